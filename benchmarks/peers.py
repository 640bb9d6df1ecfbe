"""Measure whole searches against FAISS's and others': python benchmarks/peers.py DATA.

Every arrangement is tried at the settings of its grid; of those that reach a recall the fastest is kept. What was kept
takes turns in one run, with one thread and with two; medians. Before a turn there is a pause, in which idle threads of
the one before go to sleep, and a search that is not timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from arrangements import Arrangement, K, of_faiss, of_ours
from others import others
from results import million, write
from speed import in_turns
from tables import remake
from threadpoolctl import threadpool_limits

from faiss_qama.arrays import Floats, Ids
from faiss_qama.evaluation.datasets import Dataset

TARGETS = (0.95, 0.99)
QUERIES, ROUNDS = 1000, 9
BEYOND = 3  # widths tried from the first on that reaches the last of the targets

# FAISS's arrangements, and what refines them. Those that nothing refines hold what they rank by.
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
LARGE = 500_000  # vectors, from which on what takes long to build or to try is left out
OURS = [("2x192", "Flat"), ("2x192", "IVF{}")]
MORE_OF_OURS = [("2x128", "Flat"), ("2x128", "IVF{}"), ("1x384", "IVF{}")]


def vectors(folder: Path, size: str) -> tuple[Floats, Floats]:
    """Return the documents and the queries: quora's own, or a million documents made from them."""
    dataset = Dataset.load(folder)
    x = dataset.corpus.read()
    if size == "million":
        x = np.concatenate(list(million(x)))
    return x, np.ascontiguousarray(dataset.queries[:QUERIES])


def arrangements(x: Floats, lists: tuple[int, ...], folder: Path) -> Iterator[Arrangement]:
    """Yield what is compared; some need a ``folder`` to write to."""
    small = len(x) < LARGE
    for layout, base in [*OURS, *(MORE_OF_OURS if small else [])]:
        for n in lists if "{}" in base else (0,):
            yield of_ours(x, layout, base.format(n))
    for factory in [*QUICK, *(MORE if small else OF_MANY)]:
        for n in lists if "{}" in factory else (0,):
            yield of_faiss(x, factory.format(n), "Flat")
    if small:
        for n in lists:
            yield of_faiss(x, f"PCAR192,IVF{n},PQ96x4fs", "SQfp16")
        for factory in UNREFINED:
            yield of_faiss(x, factory, None)
        yield from others(x, folder)


def recall(found: Ids, truth: Ids) -> float:
    """Return the share of ``truth`` (nq, K) that is among ``found``."""
    return float((found[:, :, None] == truth[:, None]).any(axis=1).mean())


def points(arrangement: Arrangement, xq: Floats, truth: Ids) -> list[dict[str, Any]]:
    """Return recall and queries per second at settings of ever larger width, the better of two runs with one thread."""
    arrangement.search(xq[:64], arrangement.settings[0])  # what is compiled or allocated once
    found: list[dict[str, Any]] = []
    beyond: set[Any] = set()
    for settings in arrangement.settings:
        width = next(iter(settings.values()), None)
        if max((point["recall"] for point in found), default=0) >= TARGETS[-1]:
            beyond.add(width)
            if len(beyond) > BEYOND:
                break
        seconds = np.inf
        for _ in range(2):
            start = time.perf_counter()
            ids = arrangement.search(xq, settings)
            seconds = min(seconds, time.perf_counter() - start)
        found.append({"settings": settings, "recall": recall(ids, truth), "per_second": len(xq) / seconds})
    return found


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


def measure(x: Floats, xq: Floats, lists: tuple[int, ...], folder: Path) -> dict[str, Any]:
    """Return all points, and for each target the fastest of each arrangement, in turns."""
    truth = faiss.knn(xq, x, K, metric=faiss.METRIC_L2)[1]
    kept: list[tuple[Arrangement, float, dict[str, Any]]] = []
    rows: list[dict[str, Any]] = []
    for arrangement in arrangements(x, lists, folder):
        with threadpool_limits(1):
            measured = points(arrangement, xq, truth)
        about = {"name": arrangement.name, "ram": arrangement.ram, "disk": arrangement.disk, "ours": arrangement.ours}
        rows.append(about | {"points": frontier(measured)})
        for target in TARGETS:
            best = fastest(measured, target)
            if best is not None:
                kept.append((arrangement, target, best))
        kept = list(candidates(kept))  # and no more stay in memory
        click.echo(f"{arrangement.name}: {arrangement.ram:.0f} bytes, {[fastest(measured, t) for t in TARGETS]}")
    winners = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            searches = [lambda xq, a=a, p=p: a.search(xq, p["settings"]) for a, _, p in kept]
            seconds = in_turns([xq] * ROUNDS, *searches)
        for (arrangement, target, point), taken in zip(kept, seconds, strict=True):
            row = {"name": arrangement.name, "ram": arrangement.ram, "disk": arrangement.disk, "ours": arrangement.ours}
            row |= {"target": target, "settings": point["settings"], "recall": point["recall"], "threads": threads}
            winners.append(row | {"per_second": len(xq) / taken})
    return {"n": len(x), "queries": len(xq), "arrangements": rows, "in_turns": winners}


def candidates(
    kept: list[tuple[Arrangement, float, dict[str, Any]]],
) -> Iterator[tuple[Arrangement, float, dict[str, Any]]]:
    """Yield the three fastest of ours and of the others, for each target, within 80 bytes, 256, and any."""
    seen: set[tuple[str, float]] = set()
    for target in TARGETS:
        for bound in (80, 256, np.inf):
            for ours in (True, False):
                within = [k for k in kept if k[1] == target and k[0].ram <= bound and k[0].ours == ours]
                for one in sorted(within, key=lambda k: -float(k[2]["per_second"]))[:3]:
                    if (one[0].name, target) not in seen:
                        seen.add((one[0].name, target))
                        yield one


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--size", type=click.Choice(["quora", "million"]), multiple=True, default=["quora", "million"])
def main(data: Path, size: tuple[str, ...]) -> None:
    """Measure on quora's vectors in DATA, and on a million made from them, and remake the tables."""
    for one in size:
        x, xq = vectors(data / "quora", one)
        lists = (250, 500) if one == "quora" else (2048, 4096)
        with tempfile.TemporaryDirectory() as folder:
            write(f"peers-{one}", measure(x, xq, lists, Path(folder)))
    remake()


if __name__ == "__main__":
    main()
