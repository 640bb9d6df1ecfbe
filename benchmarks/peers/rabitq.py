"""RaBitQ by its authors (rabitqlib): inverted lists of codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import rabitqlib
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import LISTS, Index, Peer, Projection, Settings, file_sizes, grid, probes, projections

FLOATS = 32  # bits that mean codes of 1 bit, re-ranked with the floats


def whole_searches(x: Floats, folder: Path) -> Iterator[Peer]:
    """Yield inverted lists at several bits."""
    threads, lists = faiss.omp_get_max_threads(), int(LISTS * math.sqrt(len(x)))
    exact = rabitqlib.FinalAssignmentMode.Exact
    clusters = rabitqlib.RaBitQKMeans(x.shape[1], lists, num_threads=threads, final_assignment=exact)
    clusters.train(x)
    for bits in (1, 4, 7, FLOATS):
        yield Peer("RaBitQ", f"RaBitQ IVF{lists},{bits} bit", partial(_lists, x, clusters, bits, folder))


def _lists(x: Floats, clusters: Any, bits: int, folder: Path) -> Index:
    (n, d), lists = x.shape, len(clusters.centroids)
    index = rabitqlib.IvfIndex(d, n, lists, bits, "ip")
    index.build(x, clusters.centroids, clusters.assignments, num_threads=faiss.omp_get_max_threads())

    def search(xq: Floats, settings: Settings) -> Ids:
        found = index.search(xq, K, settings["nprobe"], num_threads=faiss.omp_get_max_threads())
        return np.asarray(found[0], dtype=np.int64)

    # What it saves: codes with their factors, ids and centroids; less the floats, where it has them.
    disk = 4.0 * d if bits == FLOATS else 0.0
    memory = sum(file_sizes(folder, index.save, "index").values()) / n - disk
    return Index(search, memory, disk=disk, settings=grid(nprobe=probes(lists)))


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield one list, components in 64s: 12 bytes of factors to 1 bit, 20 to more. Ids are not counted."""
    for bits in (1, 2, 3, 4):
        factors = 12 if bits == 1 else 20
        width = min(x.shape[1], 8 * (size - factors) // bits // 64 * 64)
        for name, project in projections(x, width).items() if width > 0 else ():
            code = width * bits // 8 + factors
            yield Peer("rabitqlib", f"{name}{bits} bit", partial(_one_list, project, bits, code))


def _one_list(project: Callable[[], Projection], bits: int, code: int) -> Index:
    projected = project()
    documents = projected.documents
    index = rabitqlib.IvfIndex(documents.shape[1], len(documents), 1, bits, "ip")
    index.build(documents, documents.mean(axis=0, keepdims=True), np.zeros(len(documents), dtype=np.uint32))

    def search(xq: Floats, _: Settings) -> Ids:
        return np.asarray(index.search(projected.queries(xq), K, 1)[0], dtype=np.int64)

    return Index(search, code, projected.shared)
