"""The commands that change an index on disk: ``faiss-qama add | remove | compact``."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from faiss_qama.arrays import Ids
from faiss_qama.cli.options import PATH, drop_bad_rows_option, ids_option, open_corpus
from faiss_qama.formats.numpy_files import read_ids
from faiss_qama.formats.reader import as_file_ids
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.progress import progress

INDEX = click.argument("index_path", metavar="INDEX", type=PATH)


@click.command(short_help="Add vectors to an index.")
@INDEX
@click.argument("corpus", nargs=-1, required=True, type=PATH)
@ids_option
@click.option("--replace", is_flag=True, help="Replace the vectors that have these ids.")
@drop_bad_rows_option
def add(index_path: Path, corpus: tuple[Path, ...], ids: str | None, replace: bool, drop_bad_rows: bool) -> None:
    """Add the vectors of CORPUS to INDEX, all of them or, after an error, none."""
    with QamaIndex.open(index_path) as index:
        x = open_corpus(corpus, index.d, ids, drop_bad_rows, str(index_path))
        own = x.ids if ids is not None else None  # else they would be numbers of the rows that are left
        if own is None and (replace or index.has_own_ids):
            what = "--replace" if replace else f"{index_path} has ids of its own and"
            raise ValueError(f"{what} needs --ids: a column or array of the corpus, or a .npy file")
        known = 0 if own is None or replace else np.count_nonzero(np.isin(own, index.ids))
        first = 0
        for part in progress(x.chunks(), "adding", x.n_chunks):
            if own is None:
                index.add(part)
            else:
                (index.upsert if replace else index.add_with_ids)(part, own[first : first + len(part)])
            first += len(part)
        index.commit(compact="auto")
        click.echo(f"added {len(x):,}: {index_path} holds {index.ntotal:,} x {index.d}")
        if known:
            click.echo(f"{known:,} of these ids were there already, and stand for two vectors now; use --replace")


@click.command(short_help="Remove vectors from an index.")
@INDEX
@click.option("--ids", required=True, metavar="FILE", type=PATH, help="A .npy file of ids, or text with one per line.")
def remove(index_path: Path, ids: Path) -> None:
    """Remove the vectors of INDEX that have these ids; ids that are not there are ignored."""
    own = _ids(ids)
    with QamaIndex.open(index_path) as index:
        gone = index.remove_ids(own)
        index.commit(compact="auto")
        click.echo(f"removed {gone:,} of {len(own):,}: {index_path} holds {index.ntotal:,} x {index.d}")
        if gone and not index.has_own_ids:
            click.echo("ids are row numbers: those after a removed vector have moved; fit --ids gives lasting ones")


@click.command(short_help="Give back the room of removed vectors.")
@INDEX
def compact(index_path: Path) -> None:
    """Write INDEX anew without removed vectors. Others can read it meanwhile."""
    with QamaIndex.open(index_path) as index:
        before = _size(index_path)
        index.compact()
        click.echo(f"{index_path}: {before / 1e6:,.1f} MB before, {_size(index_path) / 1e6:,.1f} MB now")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _ids(path: Path) -> Ids:
    """Return the ids (n,) int64 in a file. Raises OSError, TypeError or ValueError naming it."""
    if path.suffix == ".npy":
        return read_ids(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
        return as_file_ids(np.array([int(line) for line in lines], np.int64), path, "the file")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: whole numbers are needed, one per line, or a .npy file ({error})") from None
