"""How good a quantizer is on what its training does not see."""

from __future__ import annotations

import faiss
import numpy as np

from faiss_qama.evaluation import TIE, ndcg
from faiss_qama.quantizer import Quantizer
from faiss_qama.training.data import Draw

SAMPLE = 20_000
K = 10


class HeldOut:
    """The held-out queries, against a sample of the documents.

    With pairs what counts is nDCG@10, else recall@10 of the exact neighbours; by ``adc``, the float query against
    decoded codes, and by ``hamming``.
    """

    def __init__(self, drawn: Draw, metric: int) -> None:
        self.queries, self.metric = drawn.calibration, metric
        rng = np.random.default_rng(0)
        rows = rng.choice(len(drawn.train), min(SAMPLE, len(drawn.train)), replace=False)
        rows = np.unique(np.concatenate([rows, drawn.calibration_qrels[:, 1]]))
        self.x = drawn.train[rows]
        self.qrels = None
        if len(drawn.calibration_qrels):
            self.qrels = drawn.calibration_qrels.copy()
            self.qrels[:, 1] = np.searchsorted(rows, self.qrels[:, 1])
        D, _ = faiss.knn(self.queries, self.x, min(K, len(self.x)), metric=metric)
        self._bound = D[:, -1:]

    @property
    def measure(self) -> str:
        """What :meth:`quality` measures."""
        return f"recall@{K}" if self.qrels is None else f"nDCG@{K}"

    def quality(self, quantizer: Quantizer) -> dict[str, float]:
        """Return nDCG@10 or recall@10 by stage, ``adc`` and ``hamming``."""
        code, k = quantizer.encode(self.x), min(K, len(self.x))
        _, by_adc = faiss.knn(quantizer.adapt_queries(self.queries), quantizer.decode(code), k, metric=self.metric)
        binary = faiss.IndexBinaryFlat(8 * quantizer.code_size)
        binary.add(code)
        _, by_hamming = binary.search(quantizer.encode_queries(self.queries), k)
        return {"adc": self._quality(by_adc), "hamming": self._quality(by_hamming)}

    def _quality(self, found: np.ndarray) -> float:
        if self.qrels is not None:
            return ndcg(found, self.qrels, K) or 0.0
        x = self.x[found]
        if self.metric == faiss.METRIC_INNER_PRODUCT:
            scores, bound = np.einsum("qkd,qd->qk", x, self.queries), self._bound
        else:
            scores, bound = -np.square(x - self.queries[:, None]).sum(axis=2), -self._bound
        return float(np.mean(scores >= bound - TIE * np.abs(bound) - 1e-6 * np.abs(scores).max()))
