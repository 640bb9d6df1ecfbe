"""usearch: sign bits by their Hamming distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import usearch.index
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import (
    BEAMS,
    CANDIDATES,
    DEGREE,
    EF_CONSTRUCTION,
    Index,
    Peer,
    Projection,
    Settings,
    file_sizes,
    grid,
    projections,
    reranked,
    signs,
)


def whole_searches(x: Floats, folder: Path) -> Iterator[Peer]:
    """Yield a graph over sign bits, re-ranked."""
    yield Peer("usearch", f"usearch HNSW{DEGREE},b1", partial(_graph, x, folder))


def _graph(x: Floats, folder: Path) -> Index:
    options = {"connectivity": DEGREE, "expansion_add": EF_CONSTRUCTION}
    index = usearch.index.Index(ndim=x.shape[1], metric="hamming", dtype="b1", **options)
    index.add(np.arange(len(x)), signs(x), threads=faiss.omp_get_max_threads())

    def search(xq: Floats, settings: Settings) -> Ids:
        n = settings["k_factor"] * K
        index.expansion_search = int(settings["beam"] * n)
        found = index.search(signs(xq), n, threads=faiss.omp_get_max_threads())
        return reranked(x, xq, np.where(np.arange(n) < found.counts[:, None], found.keys.astype(np.int64), -1))

    # What it saves: bits, keys and links. Not counted are its pointers, table of keys and spare room in memory.
    memory = sum(file_sizes(folder, index.save, "index").values()) / len(x)
    values = grid(k_factor=CANDIDATES, beam=BEAMS[1:])  # it widens a beam that is narrower than the candidates
    return Index(search, memory, disk=4.0 * x.shape[1], settings=values)


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield exact search of sign bits."""
    width = 8 * size
    for name, project in projections(x, width).items() if width <= x.shape[1] else ():
        yield Peer("usearch", f"{name}b1 exact", partial(_exact, project, size))


def _exact(project: Callable[[], Projection], size: int) -> Index:
    projected = project()
    bits, hamming = signs(projected.documents), usearch.index.MetricKind.Hamming

    def search(xq: Floats, _: Settings) -> Ids:
        found = usearch.index.search(bits, signs(projected.queries(xq)), K, hamming, exact=True)
        return np.asarray(found.keys, dtype=np.int64)

    return Index(search, size, projected.shared)
