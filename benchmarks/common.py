"""What all benchmarks share: paths, data sets, result files, large corpora and timing in turns."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import faiss_qama
from faiss_qama.arrays import Floats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SETS = ("scifact", "nfcorpus", "quora")
WIDE_SETS = ("nfcorpus-mpnet", "quora-mpnet")  # of 768 dimensions
METRIC = faiss.METRIC_INNER_PRODUCT
K = 10  # neighbours that are searched for, unless a module says otherwise
MILLION = 1_000_000
BLOCK = 50_000  # vectors of a large corpus that are made at a time
PAUSE = 0.05  # seconds


def read(name: str) -> dict[str, Any]:
    """Return docs/results/NAME.json, empty if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, record: dict[str, Any]) -> None:
    """Write docs/results/NAME.json: ``record``, and the versions and threads that it was measured with."""
    versions = {"faiss-qama": faiss_qama.__version__, "faiss": faiss.__version__, "numpy": np.__version__}
    head = {"versions": versions, "python": platform.python_version(), "threads": faiss.omp_get_max_threads()}
    (RESULTS / f"{name}.json").write_text(json.dumps(head | record, indent=1, allow_nan=False) + "\n")


def million(x: Floats, millions: int = 1) -> Iterator[Floats]:
    """Yield unit vectors in blocks, a million in all: each is a row of ``x`` moved half-way along another row.

    Up to the scale that unit norm takes away, their mean and their spread in every direction are those of ``x``.

    Parameters
    ----------
    x : ndarray of shape (n, d), float32
        Vectors to make others from.
    millions : int
        How many millions of vectors to make.
    """
    rng, center = np.random.default_rng(0), x.mean(axis=0)
    for _ in range(millions * MILLION // BLOCK):
        rows = x[rng.integers(0, len(x), BLOCK)] + 0.5 * (x[rng.integers(0, len(x), BLOCK)] - center)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def in_turns(asked: list[Any], *searches: Callable[[Any], Any]) -> list[float]:
    """Return the median seconds of each search. All take turns on the same queries.

    Before each timed run there is a pause and a run that is not timed.

    Parameters
    ----------
    asked : list
        The argument of each round.
    *searches : callable
        What is timed.
    """
    seconds: list[list[float]] = [[] for _ in searches]
    for search in searches:  # what is compiled or allocated once
        search(asked[0])
    for xq in asked:
        for search, own in zip(searches, seconds, strict=True):
            time.sleep(PAUSE)  # in which idle threads of the one before go to sleep
            search(xq)
            own.append(seconds_of(search, xq))
    return [statistics.median(own) for own in seconds]


def seconds_of(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def median_seconds(call: Callable[[], Any], rounds: int = 7) -> float:
    """Return the median seconds of a call, after pauses and runs as in :func:`in_turns`."""
    return in_turns([None] * rounds, lambda _: call())[0]
