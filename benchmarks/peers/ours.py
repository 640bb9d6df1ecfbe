"""Indexes of this project."""

from __future__ import annotations

from typing import Any

from common import METRIC, K

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats, Ids
from faiss_qama.comparison.methods import shared_bytes
from faiss_qama.training import FitConfig, fit
from peers.peer import CANDIDATES, Index, Peer, Settings, grid, probes, sample

OVERSAMPLE = 100  # at equal bytes: with more candidates, re-ranking from codes finds no more


def whole_search(x: Floats, layout: str, base: str, rescore: str = "fp16") -> Peer:
    """Return an index that re-ranks from vectors, for all numbers of candidates and of lists."""
    index = _filled(x, FitConfig(layout=layout), rescore, base)
    lists = base.rpartition("IVF")[2]
    values: dict[str, Any] = {"nprobe": probes(int(lists))} if lists.isdigit() else {}
    return Peer("ours", index.factory_string, lambda: _peer_index(index, len(x), grid(**values, oversample=CANDIDATES)))


def equal_bytes(x: Floats, size: int, seed: int) -> Peer:
    """Return what a user gets who asks for ``size`` bytes per vector and keeps no floats."""
    index = _filled(x, FitConfig(bytes=size, seed=seed), "codes", "Flat")
    name = f"{index.quantizer.layout} {index.quantizer.fit_record.rotation}"
    return Peer("ours", name, lambda: _peer_index(index, len(x), grid(oversample=(OVERSAMPLE,))))


def _filled(x: Floats, config: FitConfig, rescore: str, base: str) -> QamaIndex:
    index = QamaIndex(fit(x, config=config, metric=METRIC, rescore=rescore), rescore, base=base)
    if not index.is_trained:
        index.train(sample(x))
    index.add(x)
    return index


def _peer_index(index: QamaIndex, n: int, settings: list[Settings]) -> Index:
    def search(xq: Floats, settings: Settings) -> Ids:
        return index.search(xq, K, **settings)[1]

    codes, kept = index.bytes_per_vector
    shared = shared_bytes(index.quantizer) / n
    if index.rescore == "codes":  # a residual code re-ranks, but it is in memory
        codes, kept = codes + kept, 0
    return Index(search, codes, shared, kept, settings)
