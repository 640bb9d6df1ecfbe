"""turbovec: codes of 2 or 4 bits per component, which it rotates, and a norm. It stores 3 bits as 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import turbovec
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import Index, Peer, Projection, Settings, projections


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield its codes."""
    for bits in (2, 4):
        width = min(x.shape[1], 8 * (size - 4) // bits // 8 * 8)
        for name, project in projections(x, width).items():
            yield Peer("turbovec", f"{name}{bits} bit", partial(_codes, project, bits, width * bits // 8 + 4))


def _codes(project: Callable[[], Projection], bits: int, code: int) -> Index:
    projected = project()
    index = turbovec.TurboQuantIndex(projected.documents.shape[1], bits)
    index.calibrate(projected.documents)
    index.add(projected.documents)

    def search(xq: Floats, _: Settings) -> Ids:
        return np.asarray(index.search(projected.queries(xq), K)[1], dtype=np.int64)

    return Index(search, code, projected.shared)
