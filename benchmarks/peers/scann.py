"""Google's ScaNN: hashes of blocks of dimensions, 4 bits each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import scann
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import CANDIDATES, LISTS, Index, Peer, Projection, Settings, file_sizes, grid, probes, projections

ANISOTROPY = 0.2


def whole_searches(x: Floats, folder: Path) -> Iterator[Peer]:
    """Yield an index without a tree, and trees without and with second leaves (SOAR), all re-ranked."""
    leaves = int(LISTS * math.sqrt(len(x)))
    for n, soar in ((0, None), (leaves, None), (leaves, 1.5)):
        name = "ScaNN " + (f"tree{n}," if n else "") + ("SOAR," if soar else "") + "AH2"
        yield Peer("ScaNN", name, partial(_tree, x, n, soar, folder))


def _tree(x: Floats, leaves: int, soar: float | None, folder: Path) -> Index:
    builder = scann.scann_ops_pybind.builder(x, K, "dot_product")
    builder = builder.set_n_training_threads(faiss.omp_get_max_threads())
    if leaves:
        builder = builder.tree(leaves, leaves // 10, soar_lambda=soar, overretrieve_factor=soar)
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=ANISOTROPY).reorder(10 * K).build()

    def search(xq: Floats, settings: Settings) -> Ids:
        threads = faiss.omp_get_max_threads()
        chosen = {"pre_reorder_num_neighbors": settings["k_factor"] * K, "leaves_to_search": settings.get("nprobe")}
        if threads == 1:
            return np.asarray(searcher.search_batched(xq, K, **chosen)[0], dtype=np.int64)
        searcher.set_num_threads(threads)
        each = -(-len(xq) // threads)
        return np.asarray(searcher.search_batched_parallel(xq, K, **chosen, batch_size=each)[0], dtype=np.int64)

    # What it saves without the floats that re-rank. Of codes half: 4 bits are saved as a byte, but scanned packed.
    # Not counted are the bytes that it keeps beside them where there is no tree.
    files = file_sizes(folder, searcher.serialize, "")
    disk = files.pop("dataset.npy")
    memory = sum(size / 2 if file.startswith("hashed_dataset") else size for file, size in files.items())
    values: dict[str, Any] = {"nprobe": probes(leaves)} if leaves else {}
    return Index(search, memory / len(x), disk=disk / len(x), settings=grid(k_factor=CANDIDATES, **values))


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield hashes with and without the anisotropic loss, not re-ranked."""
    for block in (1, 2, 4, 8):
        if (width := 2 * size * block) <= x.shape[1]:
            for name, project in projections(x, width).items():
                for threshold, loss in ((ANISOTROPY, ""), (float("nan"), " without anisotropy")):
                    yield Peer("ScaNN", f"{name}AH{block}{loss}", partial(_hashes, project, size, block, threshold))


def _hashes(project: Callable[[], Projection], size: int, block: int, threshold: float) -> Index:
    projected = project()
    n, width = projected.documents.shape
    builder = scann.scann_ops_pybind.builder(projected.documents, K, "dot_product")
    searcher = builder.score_ah(block, anisotropic_quantization_threshold=threshold).build()

    def search(xq: Floats, _: Settings) -> Ids:
        return np.asarray(searcher.search_batched(projected.queries(xq))[0], dtype=np.int64)

    return Index(search, size, projected.shared + 4.0 * 16 * width / n)  # and its centres
