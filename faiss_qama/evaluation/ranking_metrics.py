"""Rankings against what people judged relevant: nDCG, recall and reciprocal rank, a value a query."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids

PerQuery: TypeAlias = NDArray[np.float64]


def ranking_metrics(I: Ids, qrels: NDArray[np.int64] | None, k: int) -> dict[str, PerQuery]:
    """Return ``ndcg``, ``relevant_recall`` and ``mrr``, at k, of the (nq, >= k) ids ``I``, as trec_eval does.

    A value for each query that has a relevant document, by query row; nothing without qrels (m, 3: query row, corpus
    row, grade). nDCG: gains are the grades and the discount is 1 / log2(rank + 1) (Järvelin and Kekäläinen, "Cumulated
    gain-based evaluation of IR techniques", 2002, section 2.2). The others take every grade above 0 alike: the share of
    the relevant documents that is among the first k, and 1 / rank of the first, 0 where there is none.
    """
    grades: dict[int, dict[int, int]] = {}
    for query, document, grade in [] if qrels is None else qrels.tolist():
        if grade > 0:
            grades.setdefault(query, {})[document] = grade
    if not grades:
        return {}
    discount = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for query in sorted(grades):
        graded = grades[query]
        gains = np.array([graded.get(document, 0) for document in I[query, :k].tolist()])
        ideal = sorted(graded.values(), reverse=True)[:k]
        hits = np.flatnonzero(gains)
        rows.append(
            (
                gains @ discount[: len(gains)] / (ideal @ discount[: len(ideal)]),
                len(hits) / len(graded),
                1 / (1 + hits[0]) if len(hits) else 0.0,
            )
        )
    return dict(zip(("ndcg", "relevant_recall", "mrr"), np.array(rows, dtype=np.float64).T, strict=True))


def ndcg(I: Ids, qrels: NDArray[np.int64] | None, k: int) -> float | None:
    """Return the mean nDCG@k of :func:`judged`, None where nothing is."""
    values = ranking_metrics(I, qrels, k)
    return float(values["ndcg"].mean()) if values else None
