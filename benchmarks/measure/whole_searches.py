"""Whole searches of ours, of FAISS and of other libraries, into docs/results/peers-*.json.

Every index is tried at the settings of its grid; of those that reach a recall the fastest is kept. What was kept takes
turns in one run, with one thread and with two; medians. Before a turn there is a pause, in which idle threads of the
one before go to sleep, and a search that is not timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from common import K, in_turns, million, write
from peers import faiss as faiss_floats
from peers import faiss_binary, ours
from peers.peer import Index, Peer, importable
from threadpoolctl import threadpool_limits

from faiss_qama.arrays import Floats, Ids
from faiss_qama.evaluation.datasets import Dataset

SIZES = {  # a data set, and numbers of inverted lists
    "quora": ("quora", (250, 500)),
    "million": ("quora", (2048, 4096)),
    "quora-mpnet": ("quora-mpnet", (200, 400)),
}
TARGETS = (0.95, 0.99)
QUERIES, ROUNDS = 1000, 9
BEYOND = 3  # widths tried from the first on that reaches the last of the targets
BOUNDS = (80, 256, np.inf)  # bytes per vector in memory, within which the fastest are kept

# FAISS's indexes of codes, re-ranked from floats. Those that nothing re-ranks hold what they rank by.
QUICK = ["PCAR192,PQ96x4fs", "PCAR96,PQ48x4fs", "PCAR192,IVF{},PQ96x4fs"]
MORE = [
    "PCAR128,IVF{},PQ64x4fs",
    "IVF{},PQ192x4fs",
    "OPQ96_192,PQ96x4fs",
    "RaBitQfs",
    "IVF{},RaBitQfs",
    "PCAR192,HNSW16,SQ4",
]
UNREFINED = ["Flat", "HNSW32", "SQ8", "SQ4", "RaBitQ"]
OF_MANY = ["PCAR192,IVF{}_HNSW32,PQ96x4fs", "PCAR192,HNSW16,SQ4"]
LIBRARIES = ("svs", "scann", "usearch", "rabitq", "sentence_transformers")
LARGE = 500_000  # vectors, from which on what takes long to build or to try is left out
OURS = [("2x192", "Flat"), ("2x192", "IVF{}")]
MORE_OF_OURS = [("2x128", "Flat"), ("2x128", "IVF{}"), ("1x384", "IVF{}")]
WIDE = 768  # dimensions, at which larger codes are tried too
OF_WIDE = ["PCAR384,PQ192x4fs", "PCAR384,IVF{},PQ192x4fs", "PCAR384,HNSW16,SQ4"]
OURS_OF_WIDE = [("2x384", "Flat"), ("2x384", "IVF{}")]


@dataclass(frozen=True)
class Searched:
    """An index, and the fastest of its points that reaches a recall.

    Parameters
    ----------
    about : dict
        Its name, bytes per vector in memory (``ram``) and on disk, and whether it is ours.
    index : Index
        What is searched.
    target : float
        The recall.
    point : dict
        Settings, recall and queries per second (``per_second``).
    """

    about: dict[str, Any]
    index: Index
    target: float
    point: dict[str, Any]

    @property
    def per_second(self) -> float:
        """Queries per second, with one thread."""
        return float(self.point["per_second"])


def whole_searches(data: Path, size: str) -> None:
    """Measure on a data set in ``data``, or for size ``million`` on as many vectors that are made from it."""
    name, lists = SIZES[size]
    dataset = Dataset.load(data / name)
    x, xq = dataset.corpus.read(), np.ascontiguousarray(dataset.queries[:QUERIES])
    if size == "million":
        x = np.concatenate(list(million(x)))
    with tempfile.TemporaryDirectory() as folder:
        write(f"peers-{size}", measure(x, xq, peers(x, lists, Path(folder))))


def peers(x: Floats, lists: tuple[int, ...], folder: Path) -> Iterator[Peer]:
    """Yield what is compared.

    Parameters
    ----------
    x : ndarray of shape (n, d), float32
        Vectors of unit norm.
    lists : tuple of int
        Numbers of inverted lists.
    folder : Path
        Takes files, which are removed again.
    """
    small, wide = len(x) < LARGE, x.shape[1] >= WIDE
    for layout, base in [*OURS, *(MORE_OF_OURS if small else []), *(OURS_OF_WIDE if wide else [])]:
        for n in lists if "{}" in base else (0,):
            yield ours.whole_search(x, layout, base.format(n))
    for factory in [*QUICK, *(MORE if small else OF_MANY), *(OF_WIDE if wide else [])]:
        for n in lists if "{}" in factory else (0,):
            yield faiss_floats.whole_search(x, factory.format(n), "Flat")
    if small:
        for n in lists:
            yield faiss_floats.whole_search(x, f"PCAR192,IVF{n},PQ96x4fs", "SQfp16")
        for factory in UNREFINED:
            yield faiss_floats.whole_search(x, factory, None)
        for library in importable(LIBRARIES):
            yield from library.whole_searches(x, folder)
        yield from faiss_binary.whole_searches(x)


def measure(x: Floats, xq: Floats, compared: Iterator[Peer]) -> dict[str, Any]:
    """Return all points, and for each target the fastest of each index, in turns."""
    truth = faiss.knn(xq, x, K, metric=faiss.METRIC_L2)[1]
    kept: list[Searched] = []
    rows: list[dict[str, Any]] = []
    for peer in compared:
        index = peer.build()
        with threadpool_limits(1):
            measured = points(index, xq, truth)
        about = {"name": peer.name, "ram": index.memory + index.shared, "disk": index.disk}
        about |= {"ours": peer.family == "ours"}
        rows.append(about | {"points": frontier(measured)})
        best = [fastest(measured, target) for target in TARGETS]
        kept += [Searched(about, index, t, point) for t, point in zip(TARGETS, best, strict=True) if point is not None]
        kept = list(leaders(kept))  # and no more stay in memory
        click.echo(f"{peer.name}: {about['ram']:.0f} bytes, {best}")
    turns = [row for threads in (1, 2) for row in take_turns(kept, xq, threads)]
    return {"n": len(x), "queries": len(xq), "arrangements": rows, "in_turns": turns}


def points(index: Index, xq: Floats, truth: Ids) -> list[dict[str, Any]]:
    """Return recall and queries per second at settings of ever larger width, the better of two runs with one thread."""
    index.search(xq[:64], index.settings[0])  # what is compiled or allocated once
    found: list[dict[str, Any]] = []
    beyond: set[Any] = set()
    for settings in index.settings:
        width = next(iter(settings.values()), None)
        if max((point["recall"] for point in found), default=0) >= TARGETS[-1]:
            beyond.add(width)
            if len(beyond) > BEYOND:
                break
        seconds = np.inf
        for _ in range(2):
            start = time.perf_counter()
            ids = index.search(xq, settings)
            seconds = min(seconds, time.perf_counter() - start)
        found.append({"settings": settings, "recall": share_of(truth, ids), "per_second": len(xq) / seconds})
    return found


def share_of(truth: Ids, found: Ids) -> float:
    """Return the share of ``truth`` (nq, K) that is among ``found`` (nq, K)."""
    return float((found[:, :, None] == truth[:, None]).any(axis=1).mean())


def frontier(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points that no other beats in both recall and speed, by recall."""
    kept: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (-p["per_second"], -p["recall"])):
        if not kept or point["recall"] > kept[-1]["recall"]:
            kept.append(point)
    return kept


def fastest(measured: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    """Return the fastest of the points that reach a recall."""
    reached = [point for point in measured if point["recall"] >= target]
    return max(reached, key=lambda point: float(point["per_second"]), default=None)


def leaders(kept: list[Searched]) -> Iterator[Searched]:
    """Yield the three fastest of ours and of the others, for each target, within each of ``BOUNDS``."""
    seen: set[tuple[str, float]] = set()
    for target in TARGETS:
        for bound in BOUNDS:
            for own in (True, False):
                within = [k for k in kept if k.target == target and k.about["ram"] <= bound and k.about["ours"] == own]
                for one in sorted(within, key=lambda k: -k.per_second)[:3]:
                    if (one.about["name"], target) not in seen:
                        seen.add((one.about["name"], target))
                        yield one


def take_turns(kept: list[Searched], xq: Floats, threads: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each search, timed in turns with the others."""
    with threadpool_limits(threads):
        searches = [lambda xq, one=one: one.index.search(xq, one.point["settings"]) for one in kept]
        seconds = in_turns([xq] * ROUNDS, *searches)
    for one, taken in zip(kept, seconds, strict=True):
        row = one.about | {"target": one.target, "settings": one.point["settings"], "recall": one.point["recall"]}
        yield row | {"threads": threads, "per_second": len(xq) / taken}
