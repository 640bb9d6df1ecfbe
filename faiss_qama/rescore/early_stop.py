"""Re-ranking that reads vectors in the order of their codes' scores, until no other is likely to be among the nearest.

It saves reads where vectors lie on disk. RaBitQ stops so too, by a bound of its own (Gao and Long, "RaBitQ", 2024,
section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids
from faiss_qama.rescore.rescorer import Rescorer

READ = 8  # vectors that are read at a time, of each query


def nearest(
    rescorer: Rescorer, xq: Floats, rows: Ids, bounds: NDArray[np.floating[Any]], k: int, larger: bool
) -> tuple[Floats, Ids]:
    """Return the best ``k`` of some candidates.

    Parameters
    ----------
    rescorer : Rescorer
        What scores vectors.
    xq : ndarray of shape (nq, d), float32
        Queries.
    rows : ndarray of shape (nq, n), int64
        Candidates, -1 for none.
    bounds : ndarray of shape (nq, n)
        What each candidate may score at most; larger is better.
    k : int
        Hits per query.
    larger : bool
        Whether larger scores of the rescorer are better.

    Returns
    -------
    D : ndarray of shape (nq, min(k, n)), float32
        Scores, best first.
    I : ndarray of shape (nq, min(k, n)), int64
        Rows.
    """
    bounds = np.where(rows < 0, -np.inf, bounds)
    order = np.argsort(-bounds, axis=1, kind="stable")
    rows, bounds = np.take_along_axis(rows, order, axis=1), np.take_along_axis(bounds, order, axis=1)
    n = rows.shape[1]
    k, sign = min(k, n), 1 if larger else -1
    D, I = np.full((len(xq), k), -np.inf, np.float32), np.full((len(xq), k), -1)
    going, start, step = np.arange(len(xq)), 0, k
    while len(going) and start < n:
        read = rows[going, start : start + step]
        scores = sign * rescorer.scores(xq[going], np.maximum(read, 0))
        scores[read < 0] = -np.inf
        both = np.concatenate([D[going], scores], axis=1), np.concatenate([I[going], read], axis=1)
        D[going], I[going] = topk.best(*both, k, larger=True)
        start, step = start + step, READ
        if start < n:
            going = going[bounds[going, start] >= D[going, -1]]
    return sign * D, I
