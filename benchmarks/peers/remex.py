"""remex: codes of 1 to 4 bits per component, which it rotates, a norm, and about a mean one more number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import remex
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import Index, Peer, Projection, Settings, projections, unchanged

NORM = MEAN = 4  # bytes


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield its codes of projections, and of the vectors about their mean where these fit whole."""
    d = x.shape[1]
    for bits in (1, 2, 3, 4):
        width = min(d, 8 * (size - NORM) // bits // 8 * 8)
        for name, project in projections(x, width).items():
            yield Peer("remex", f"{name}{bits} bit", partial(_codes, project, bits, centred=False))
        if d * bits <= 8 * (size - NORM - MEAN):
            yield Peer("remex", f"{bits} bit, centred", partial(_codes, partial(unchanged, x), bits, centred=True))


def _codes(project: Callable[[], Projection], bits: int, *, centred: bool) -> Index:
    projected = project()
    x = projected.documents
    quantizer = remex.Quantizer(x.shape[1], bits, mean=remex.corpus_mean(x) if centred else None)
    codes = quantizer.encode(x)
    packed = remex.PackedVectors.from_compressed(codes)

    def search(xq: Floats, _: Settings) -> Ids:
        return np.asarray(quantizer.search_batch(codes, projected.queries(xq), K)[0], dtype=np.int64)

    return Index(search, packed.nbytes / len(x), projected.shared)
