"""Measures of rankings with ties: the mean over all orders of the hits that tie.

Hamming distances are whole numbers, so many hits share one. Which of them comes first is chance, or their order in the
corpus. The means have closed forms (McSherry and Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", 2008, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids

WIDEST = 8192  # hits per query that are asked for to hold a whole tie


def whole_ties(search: Callable[[int], tuple[NDArray[Any], Ids]], D: NDArray[Any], I: Ids) -> tuple[NDArray[Any], Ids]:
    """Search for more hits, until the last tie of every query is there as a whole.

    Parameters
    ----------
    search : callable
        Takes a number of hits, and returns so many scores and ids.
    D : ndarray of shape (nq, k)
        Scores of k hits, best first.
    I : ndarray of shape (nq, k), int64
        Their ids, -1 where there are fewer hits.

    Returns
    -------
    D : ndarray of shape (nq, >= k)
        Scores, best first.
    I : ndarray of shape (nq, >= k), int64
        Ids, -1 where there are fewer hits.
    """
    k = D.shape[1]
    width = 2 * k
    while ((D[:, -1] == D[:, k - 1]) & (I[:, -1] >= 0)).any() and width <= WIDEST:
        D, I = search(width)
        width *= 2
    return D, I


def mean_over_ties(by_rank: NDArray[np.float64], D: NDArray[Any]) -> NDArray[np.float64]:
    """Return what each hit gets in the mean, if the ranks get ``by_rank``.

    Parameters
    ----------
    by_rank : ndarray of shape (m,), float64
        A value for each rank, as the discount of nDCG.
    D : ndarray of shape (m,)
        The scores of the hits, best first.

    Returns
    -------
    ndarray of shape (m,), float64
        The mean of ``by_rank`` over the ranks of the hits with the same score.
    """
    tie = np.cumsum(np.r_[0, D[1:] != D[:-1]])
    means: NDArray[np.float64] = (np.bincount(tie, by_rank) / np.bincount(tie))[tie]
    return means


def mean_reciprocal_rank(relevant: NDArray[np.bool_], D: NDArray[Any], k: int) -> float:
    """Return 1 / rank of the first relevant hit, in the mean over ties.

    Parameters
    ----------
    relevant : ndarray of shape (m,), bool
        Which hits are relevant.
    D : ndarray of shape (m,)
        The scores of the hits, best first.
    k : int
        How many ranks count.

    Returns
    -------
    float
        From 0 to 1; 0 where no relevant hit can be among the first k.
    """
    if not relevant.any():
        return 0.0
    tie = np.flatnonzero(D == D[relevant.argmax()])
    m, r = len(tie), int(relevant[tie].sum())
    j = np.arange(m - r + 1)  # hits of the tie that come before its first relevant one
    first = r / (m - j)  # that the next is it, if none before was
    chance = first * np.r_[1, np.cumprod(1 - first)[:-1]]
    rank = tie[0] + j + 1
    return float((chance / rank)[rank <= k].sum())
