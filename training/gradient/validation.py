"""Quality of a quantizer on the validation queries, which its training does not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids
from faiss_qama.evaluation.exhaustive_search import search_decoded, search_hamming
from faiss_qama.evaluation.ranking_metrics import ndcg
from faiss_qama.evaluation.recall import found_with_ties
from faiss_qama.quantizer.calibration import K
from faiss_qama.quantizer.fit_record import MAY_LOSE, Quality, quality_ratios
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training.near_duplicates import NearDuplicates, drop_one
from faiss_qama.training.split import Split

VALIDATION_DOCUMENTS = 100_000  # fewer documents would forgive a quantizer that confuses them


class Validation:
    """The validation queries, against a sample of the documents.

    With pairs the measure is nDCG@10, else recall@10 of the exact neighbours. It is taken by stage: ``adc``, float
    queries against decoded codes, and ``hamming``; of the whole code and of its prefixes.

    Parameters
    ----------
    split : Split
        Its ``validation`` is searched for in ``train``.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.
    ends : sequence of int
        Component counts of the prefixes.
    """

    def __init__(self, split: Split, metric: int, ends: Sequence[int] = ()) -> None:
        self.queries, self.metric, self._ends = split.validation, metric, ends
        rng = np.random.default_rng(0)
        rows = rng.choice(len(split.train), min(VALIDATION_DOCUMENTS, len(split.train)), replace=False)
        rows = np.unique(np.concatenate([rows, split.validation_qrels[:, 1]]))
        self.x = split.train[rows]
        self._duplicates = NearDuplicates(self.x, metric)
        self.qrels = None
        self._rows, self._relevant = np.arange(len(self.queries))[:, None], np.empty(0, np.int64)
        if len(split.validation_qrels):
            self.qrels = split.validation_qrels.copy()
            self.qrels[:, 1] = np.searchsorted(rows, self.qrels[:, 1])
            self._relevant = self.qrels[:, 0] * len(self.x) + self.qrels[:, 1]
        D, I = faiss.knn(self.queries, self.x, min(K + 1, len(self.x)), metric=metric)
        D, _ = self._without_itself(D, I)
        self._bound = D[:, -1]

    @property
    def measure(self) -> str:
        """The measure that decides: ``recall@10`` or ``nDCG@10``."""
        return f"recall@{K}" if self.qrels is None else f"nDCG@{K}"

    def quality(self, quantizer: Quantizer) -> Quality:
        """Return nDCG@10, if there are pairs, and recall@10 by stage: ``adc``, ``hamming``, ``adc of 96``, ..."""
        measured = self._stages(quantizer, "")
        for end in self._ends:
            if end < quantizer.layout.components:
                measured |= self._stages(quantizer.truncate(end), f" of {end}")
        return measured

    def _stages(self, quantizer: Quantizer, of: str) -> Quality:
        (code, residual), k = quantizer.encode_both(self.x), min(K + 1, len(self.x))
        found = {
            "adc": search_decoded(quantizer, code, self.queries, k, residual),
            "hamming": search_hamming(quantizer, code, self.queries, k),
        }
        return {stage + of: self._quality(self._without_itself(D, I)[1]) for stage, (D, I) in found.items()}

    def gain(self, quality: Quality, reference: Quality) -> float:
        """Return how much better ``quality`` is than ``reference``, as a share: the mean over the stages."""
        return float(np.mean(quality_ratios(quality, reference, self.measure))) - 1

    def never_worse(self, quality: Quality, reference: Quality) -> bool:
        """Return whether ``quality`` is in no stage worse than ``reference``, by more than ``MAY_LOSE``."""
        return bool(min(quality_ratios(quality, reference, self.measure)) >= 1 - MAY_LOSE)

    def _without_itself(self, D: NDArray[Any], I: Ids) -> tuple[NDArray[Any], Ids]:
        """Return K of K + 1 hits, without one that is the query itself and not known to be relevant."""
        own = self._duplicates.among(self.queries, self.x[I]) & ~np.isin(I + self._rows * len(self.x), self._relevant)
        kept = drop_one(own)
        return D[kept].reshape(len(D), -1), I[kept].reshape(len(I), -1)

    def _quality(self, found: Ids) -> dict[str, float]:
        x = self.x[found]
        if self.metric == faiss.METRIC_INNER_PRODUCT:
            scores, bound, size = np.einsum("qkd,qd->qk", x, self.queries), self._bound, np.float32(0)
        else:
            scores, bound = -np.square(x - self.queries[:, None]).sum(axis=2), -self._bound
            size = np.square(self.queries).sum(axis=1)  # what distances were rounded at
        measured = {f"recall@{K}": float(np.mean(found_with_ties(scores, bound, np.abs(bound) + size)))}
        if self.qrels is not None:
            measured[f"nDCG@{K}"] = ndcg(found, self.qrels, K) or 0.0
        return measured
