"""The commands ``faiss-qama embed`` and ``faiss-qama demo``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from faiss_qama.cli.options import PATH
from faiss_qama.report import tables
from faiss_qama.storage import atomic_files


@click.command(short_help="Embed texts with a sentence-transformer.")
@click.argument("texts", type=PATH)
@click.option("-o", "--output", type=PATH, help="File or folder to write.  [default: TEXTS.npy, or the folder itself]")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="Name or path of a sentence-transformer.")
@click.option("--field", help="Field of each JSON line that holds the text.  [default: text]")
def embed(texts: Path, output: Path | None, model: str, field: str | None) -> None:
    """Embed TEXTS, one text per line (or JSON lines, in a file named .jsonl), into a .npy of float32.

    TEXTS may also be a folder in BEIR's format (corpus.jsonl, queries.jsonl, qrels/test.tsv). It becomes a data set
    folder for faiss-qama eval. Files that are embedded already are kept.
    """
    from faiss_qama.texts.embedding import embed_texts, read_texts  # here, because these are of extras

    if texts.is_dir():
        from faiss_qama.texts.beir import embed_folder

        if field is not None:
            raise ValueError(f"--field is for JSON lines; those of the folder {texts} have the fields title and text")
        output = output or texts
        click.echo(tables.facts(embed_folder(texts, output, model)))
        click.echo(f"wrote {output}\nnext: {shlex.join(['faiss-qama', 'eval', str(output)])}")
        return
    output = output or texts.with_suffix(".npy")
    atomic_files.check_writable(output, [texts])
    x = embed_texts(read_texts(texts, field or "text"), model)
    atomic_files.write_npy(output, x)
    click.echo(
        f"wrote {output}: {len(x):,} x {x.shape[1]} float32\nnext: {shlex.join(['faiss-qama', 'fit', str(output)])}"
    )


@click.command(short_help="Fit and search the documentation of Python.")
@click.option("-o", "--output", type=PATH, default=Path("demo"), show_default=True, help="Folder to write.")
def demo(output: Path) -> None:
    """Fit and search the documentation of Python's standard library, embedded with all-MiniLM-L6-v2."""
    from faiss_qama.texts.demo import run

    click.echo(f"\n{tables.fit_summary(run(output))}")
