"""FAISS's binary indexes on sign bits, re-ranked with the floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import (
    BEAMS,
    CANDIDATES,
    DEGREE,
    EF_CONSTRUCTION,
    LISTS,
    Index,
    Peer,
    Settings,
    grid,
    probes,
    reranked,
    sample,
    signs,
)

Search = Callable[[Any, Floats, Settings], Ids]


def whole_searches(x: Floats) -> Iterator[Peer]:
    """Yield an exhaustive scan, a graph and inverted lists."""
    d, nlist = x.shape[1], int(LISTS * math.sqrt(len(x)))
    flat, graph = faiss.IndexBinaryFlat(d), faiss.IndexBinaryHNSW(d, DEGREE)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(d), d, nlist)
    values = grid(k_factor=CANDIDATES, heap=(True, False))
    yield Peer("FAISS", "BinaryFlat,signs", partial(_filled, x, flat, _scan, values))
    values = grid(k_factor=CANDIDATES, beam=BEAMS)
    yield Peer("FAISS", f"BinaryHNSW{DEGREE},signs", partial(_filled, x, graph, _walk, values))
    values = grid(nprobe=probes(nlist), k_factor=CANDIDATES)
    yield Peer("FAISS", f"BinaryIVF{nlist},signs", partial(_filled, x, lists, _probe, values))


def _filled(x: Floats, index: Any, search: Search, settings: list[Settings]) -> Index:
    if not index.is_trained:
        index.train(signs(sample(x)))
    index.add(signs(x))
    # All of what FAISS serializes: bits, ids of lists, and a graph's links, levels and offsets.
    memory = faiss.serialize_index_binary(index).nbytes / len(x)
    disk = 4.0 * x.shape[1]
    return Index(lambda xq, chosen: reranked(x, xq, search(index, xq, chosen)), memory, disk=disk, settings=settings)


def _scan(flat: Any, xq: Floats, settings: Settings) -> Ids:
    flat.use_heap = settings["heap"]
    return flat.search(signs(xq), settings["k_factor"] * K)[1]


def _walk(graph: Any, xq: Floats, settings: Settings) -> Ids:
    n = settings["k_factor"] * K
    parameters = faiss.SearchParametersHNSW(efSearch=int(settings["beam"] * n))
    return graph.search(signs(xq), n, params=parameters)[1]


def _probe(lists: Any, xq: Floats, settings: Settings) -> Ids:
    parameters = faiss.SearchParametersIVF(nprobe=settings["nprobe"])
    return lists.search(signs(xq), settings["k_factor"] * K, params=parameters)[1]
