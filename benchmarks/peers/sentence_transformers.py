"""sentence-transformers: sign bits, whose candidates are scored with the float query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import K
from sentence_transformers.util.quantization import semantic_search_faiss

from faiss_qama.arrays import Floats, Ids
from peers.peer import CANDIDATES, RESCORED, Index, Peer, Projection, Settings, grid, projections, signs, unchanged


def whole_searches(x: Floats, folder: Path) -> Iterator[Peer]:  # noqa: ARG001
    """Yield its search at several numbers of candidates."""
    yield Peer("sentence-transformers", "semantic_search_faiss,ubinary", partial(_whole_search, x))


def _whole_search(x: Floats) -> Index:
    index, search = _filled(unchanged(x))
    memory = faiss.serialize_index_binary(index).nbytes / len(x)
    return Index(search, memory, settings=grid(k_factor=CANDIDATES))


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield its search of as many sign bits as there are, of projected and of the first components."""
    if (width := 8 * size) > x.shape[1]:
        return
    ways = projections(x, width)
    if width < x.shape[1]:
        ways[f"first {width},"] = lambda: Projection(
            np.ascontiguousarray(x[:, :width]), lambda xq: np.ascontiguousarray(xq[:, :width]), 0.0
        )
    for name, project in ways.items():
        yield Peer("sentence-transformers", f"{name}ubinary", partial(_codes, project, size))


def _codes(project: Callable[[], Projection], size: int) -> Index:
    projected = project()
    _, search = _filled(projected)
    return Index(search, size, projected.shared, settings=grid(k_factor=(RESCORED,)))


def _filled(projected: Projection) -> tuple[Any, Callable[[Floats, Settings], Ids]]:
    """Return its FAISS index of sign bits, and its search."""
    options = {"corpus_precision": "ubinary", "top_k": K}
    *_, index = semantic_search_faiss(projected.documents[:1], signs(projected.documents), output_index=True, **options)

    def search(xq: Floats, settings: Settings) -> Ids:
        times = settings["k_factor"]
        found, _ = semantic_search_faiss(projected.queries(xq), corpus_index=index, rescore_multiplier=times, **options)
        return np.array([[hit["corpus_id"] for hit in hits] for hits in found])

    return index, search
