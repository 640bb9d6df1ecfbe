"""Rankings against documents that people judged relevant: nDCG, recall and reciprocal rank, one value per query."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids
from faiss_qama.evaluation.ties import mean_over_ties, mean_reciprocal_rank

PerQuery: TypeAlias = NDArray[np.float64]


def ranking_metrics(
    I: Ids, qrels: NDArray[np.int64] | None, k: int, D: NDArray[Any] | None = None
) -> dict[str, PerQuery]:
    """Return nDCG, recall of the relevant documents and reciprocal rank at k, as trec_eval computes them.

    nDCG takes grades as gains, discounted by 1 / log2(rank + 1) (Järvelin and Kekäläinen, "Cumulated gain-based
    evaluation of IR techniques", 2002, section 2.2). The other two treat every grade above 0 alike.

    Parameters
    ----------
    I : ndarray of shape (nq, >= k), int64
        Rows of the corpus, best first, -1 where there is no hit.
    qrels : ndarray of shape (m, 3), int64, or None
        Rows of query row, corpus row and grade. Corpus row -1 is a document that is not there, which counts as missed.
    k : int
        How many hits of each query count.
    D : ndarray of shape (nq, >= k), optional
        The scores of the hits. The measures are then means over the orders of hits of the same score; hits after the
        k-th that tie with it belong to ``I`` and ``D`` too.

    Returns
    -------
    dict of str to ndarray of shape (judged queries,), float64
        ``ndcg``; ``relevant_recall``, the share of the relevant documents among the first k; and ``mrr``, 1 / rank of
        the first relevant document, 0 where there is none. Each has one value for every query with a relevant document,
        in the order of their rows. Empty where no query has one.
    """
    grades: dict[int, dict[int, int]] = {}
    for row, (query, document, grade) in enumerate([] if qrels is None else qrels.tolist()):
        if grade > 0:  # each document that is not there gets a number that no hit has
            grades.setdefault(query, {})[document if document >= 0 else -2 - row] = grade
    if not grades:
        return {}
    discount = 1 / np.log2(np.arange(2, k + 2))
    if D is None:
        I, D = I[:, :k], np.broadcast_to(np.arange(k), (len(I), k))[:, : I.shape[1]]
    counts = np.pad(np.stack([discount, np.ones(k)]), ((0, 0), (0, I.shape[1])))[:, : I.shape[1]]  # 0 after rank k
    rows = []
    for query in sorted(grades):
        graded = grades[query]
        gains = np.array([graded.get(document, 0) for document in I[query].tolist()])
        ideal = sorted(graded.values(), reverse=True)[:k]
        discounts, among = (mean_over_ties(by_rank, D[query]) for by_rank in counts)
        rows.append(
            (
                gains @ discounts / (ideal @ discount[: len(ideal)]),
                (gains > 0) @ among / len(graded),
                mean_reciprocal_rank(gains > 0, D[query], k),
            )
        )
    return dict(zip(("ndcg", "relevant_recall", "mrr"), np.array(rows, dtype=np.float64).T, strict=True))


def ndcg(I: Ids, qrels: NDArray[np.int64] | None, k: int) -> float | None:
    """Return the mean nDCG@k of :func:`ranking_metrics`.

    Parameters
    ----------
    I : ndarray of shape (nq, >= k), int64
        Rows of the corpus, best first, -1 where there is no hit.
    qrels : ndarray of shape (m, 3), int64, or None
        Rows of query row, corpus row and grade.
    k : int
        How many hits of each query count.

    Returns
    -------
    float or None
        nDCG@k, from 0 to 1; None where no query has a relevant document.
    """
    values = ranking_metrics(I, qrels, k)
    return float(values["ndcg"].mean()) if values else None
