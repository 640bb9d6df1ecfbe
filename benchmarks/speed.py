"""Measure how fast codes are scanned: python benchmarks/speed.py DATA writes docs/results/speed.json, and its table.

Both sides take turns within one run, on the same codes and as many threads; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from results import METRIC, million, write
from tables import render

from faiss_qama.codes import Codes
from faiss_qama.evaluation import Dataset
from faiss_qama.layout import CodeLayout
from faiss_qama.scan import Scan
from faiss_qama.training import FitConfig, fit

LAYOUTS = ("2x85", "2x128", "2x192", "1x256", "1x384")
K, ROUNDS = 100, 15


def coded(folder: Path, layout: str) -> tuple[CodeLayout, Codes, Codes]:
    """Return the layout, codes of a million documents made from those of ``folder``, and codes of its queries."""
    dataset = Dataset.load(folder)
    x = np.concatenate(list(dataset.corpus.chunks()))
    quantizer = fit(x, config=FitConfig(layout=layout, rotation="random"), metric=METRIC)
    code = np.concatenate([quantizer.encode(rows) for rows in million(x)])
    return quantizer.layout, code, quantizer.encode_queries(dataset.queries[:1024])


def scans(folder: Path) -> list[dict[str, Any]]:
    """Time ``Scan`` against ``IndexBinaryFlat``, 32 queries at a time and one."""
    rows = []
    for text in LAYOUTS:
        layout, code, queries = coded(folder, text)
        ours, flat = Scan(layout), faiss.IndexBinaryFlat(8 * layout.code_size)
        ours.add(code)
        flat.add(code)
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            for batch in (32, 1):
                asked = [queries[start : start + batch] for start in range(0, ROUNDS * batch, batch)]
                seconds = in_turns(asked, partial(ours.search, k=K, rows=None, settings={}), partial(flat.search, k=K))
                row = {"layout": text, "bytes": [ours.bytes_per_vector, layout.code_size], "threads": threads}
                row |= {"batch": batch, "milliseconds": [1000 * s / batch for s in seconds]}
                rows.append(row | {"times": seconds[1] / seconds[0]})
                click.echo(str(rows[-1]))
    return rows


def in_turns(asked: list[Codes], *searches: Callable[[Codes], Any]) -> list[float]:
    """Return the median seconds of each search, which take turns on the same queries."""
    seconds: list[list[float]] = [[] for _ in searches]
    for search in searches:  # what is compiled or allocated once
        search(asked[0])
    for xq in asked:
        for search, own in zip(searches, seconds, strict=True):
            start = time.perf_counter()
            search(xq)
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
def main(data: Path) -> None:
    """Measure on quora's vectors in DATA, and remake the tables."""
    write("speed", {"k": K, "n": 1_000_000, "scans": scans(data / "quora")})
    for path, text in render().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
