"""Candidates to results: the best k, padded as FAISS pads."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids
from faiss_qama.kernels import kernel

MOST = 2**31 - 1  # hits per query
BLOCK = 1 << 19  # values gathered at a time: 2 MB of floats, so that a block stays in cache until it is summed
FEW = 1000  # hits that are put in their places one by one; more are sorted


def check_k(k: Any) -> int:
    """Return ``k`` as an int. Raises TypeError or ValueError unless it is an integer of at least 1."""
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    if k > MOST:
        raise ValueError(f"k must be at most {MOST}; got {k}")
    return int(k)


def check_rows(rows: Ids, n: int) -> None:
    """Raise IndexError unless all ``rows`` (any shape) are from 0 to ``n`` - 1."""
    if rows.size and not 0 <= rows.min() <= rows.max() < n:
        raise IndexError(f"rows must be from 0 to {n - 1}; got {rows.min()} to {rows.max()}")


def blocks(rows: Ids, width: int) -> Iterator[slice]:
    """Yield slices of queries whose candidates ``rows`` (nq, k'), of ``width`` values each, fill a block."""
    step = max(1, BLOCK // max(1, rows.shape[1] * width))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def best(scores: NDArray[Any], rows: Ids, k: int, larger: bool) -> tuple[NDArray[Any], Ids]:
    """Return the best ``k`` candidates of each query, best first; ties keep their order.

    Parameters
    ----------
    scores : ndarray of shape (nq, n)
        Scores of the candidates.
    rows : ndarray of shape (nq, n), int64
        Rows of the candidates.
    k : int
        Candidates to return, at most n.
    larger : bool
        Whether larger scores are better.

    Returns
    -------
    D : ndarray of shape (nq, min(k, n))
        Scores, in the dtype of ``scores``.
    I : ndarray of shape (nq, min(k, n)), int64
        Rows.
    """
    k, compiled = min(k, scores.shape[1]), kernel("scoring")
    if compiled is not None and k <= FEW:
        D, I = np.empty((len(scores), k), scores.dtype), np.empty((len(scores), k), np.int64)
        compiled.best(scores, rows, larger, D, I)
        return D, I
    order = np.argsort(-scores if larger else scores, axis=1, kind="stable")[:, :k]
    order += np.arange(len(scores))[:, None] * scores.shape[1]  # faster than take_along_axis, for one query above all
    return scores.ravel()[order], rows.ravel()[order]


def joined(done: Sequence[tuple[NDArray[Any], Ids]], axis: int) -> tuple[NDArray[Any], Ids]:
    """Return the scores and the rows of all pairs in ``done``, joined along ``axis``."""
    if len(done) == 1:
        return done[0]
    return np.concatenate([D for D, _ in done], axis=axis), np.concatenate([I for _, I in done], axis=axis)


def padded(D: NDArray[Any], I: Ids, k: int, worst: np.generic) -> tuple[NDArray[Any], Ids]:
    """Return D (nq, k), cast to the dtype of ``worst``, and I (nq, k); missing hits get ``worst`` and -1."""
    if D.shape[1] == k:
        return D.astype(worst.dtype, copy=False), I
    missing = ((0, 0), (0, k - D.shape[1]))
    return (
        np.pad(D.astype(worst.dtype), missing, constant_values=worst),
        np.pad(I, missing, constant_values=-1),
    )
