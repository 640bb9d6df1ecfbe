"""Options that several commands share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from faiss_qama.corpus import Corpus
from faiss_qama.formats.paths import natural
from faiss_qama.hamming.factory import DEFAULT
from faiss_qama.quantizer.quantizer import COSINE, METRICS
from faiss_qama.rescore.factory import RESCORE_KINDS

METRIC_CHOICES: dict[str, int | str] = {"ip": METRICS["inner product"], "l2": METRICS["L2"], COSINE: COSINE}


class _Path(click.Path):
    """A path that is not empty: pathlib takes an empty one for the folder where the command runs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

k_option = click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Number of neighbours.")
recall_option = click.option(
    "--recall", type=float, help="Share of the true neighbours to find; the calibration says how many to re-rank."
)
oversample_option = click.option(
    "--oversample", type=float, help="Re-rank this many times k candidates, instead of naming a recall."
)
nprobe_option = click.option("--nprobe", type=click.IntRange(min=1), help="Lists to scan (IVF and BIVF).")
ef_search_option = click.option("--efsearch", "ef_search", type=click.IntRange(min=1), help="Nodes to visit (BHNSW).")
metric_option = click.option(
    "--metric",
    type=click.Choice(list(METRIC_CHOICES)),
    default="ip",
    show_default=True,
    help="Metric of the vectors; cosine scales them to norm 1.",
)
base_option = click.option(
    "--base",
    default=DEFAULT,
    show_default=True,
    help="Index of the codes: Flat, IVF1024, BFlat, BHNSW32, ..., or auto for the fastest.",
)
rescore_option = click.option(
    "--rescore",
    type=click.Choice(RESCORE_KINDS),
    default="fp16",
    show_default=True,
    help="How candidates are re-ranked.",
)


dim_option = click.option("--dim", type=click.IntRange(min=1), help="Dimension of vectors without a header.")
ids_option = click.option(
    "--ids", metavar="NAME", help="Column or array of ids, or a .npy file of them.  [default: row numbers]"
)
drop_bad_rows_option = click.option(
    "--drop-bad-rows", is_flag=True, help="Leave out rows that hold null, NaN or infinity; the others keep their ids."
)


def open_corpus(
    sources: Sequence[Path], d: int | None, ids: str | None, drop_bad_rows: bool, d_of: str | None = None
) -> Corpus:
    """Return the corpus that a command is given, with a note if a shell has put shard-10 before shard-2."""
    numbered = sorted(sources, key=natural)
    if list(sources) == sorted(sources, key=str) != numbered:
        moved = next(i for i, (a, b) in enumerate(zip(sources, numbered, strict=True)) if a != b)
        warnings.warn(
            f"{sources[moved]} is read before {numbered[moved]}, as given; a folder or a quoted glob goes by numbers",
            stacklevel=2,
        )
    return Corpus(list(sources), d, ids=ids, d_of=d_of, drop_bad_rows=drop_bad_rows)


def drop_none(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
