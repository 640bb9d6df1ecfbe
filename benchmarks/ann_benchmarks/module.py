"""faiss-qama for ann-benchmarks: this folder is ``ann_benchmarks/algorithms/faiss_qama`` there.

In a clone of ann-benchmarks, with CLONE as the path of one of faiss-qama, which is not on PyPI yet::

    cp -r CLONE/benchmarks/ann_benchmarks ann_benchmarks/algorithms/faiss_qama
    pip wheel --no-deps -w ann_benchmarks/algorithms/faiss_qama CLONE
    python install.py --algorithm faiss_qama
    python run.py --algorithm faiss-qama --dataset glove-100-angular

The Dockerfile installs the wheel. Where faiss-qama is installed, ``run.py --local`` needs neither it nor Docker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit

from ..base.module import BaseANN


class FaissQama(BaseANN):  # type: ignore[misc]
    """A QamaIndex: candidates from codes, then re-ranked.

    Parameters
    ----------
    metric : str
        ``angular`` or ``euclidean``.
    options : dict
        ``base`` and ``rescore`` of the index, and the ``bytes`` per vector of its codes, if not as many as by default.
    """

    def __init__(self, metric: str, options: dict[str, Any]) -> None:
        self._metric = {"angular": "cosine", "euclidean": faiss.METRIC_L2}[metric]
        self._options = options
        self._index: Any = None
        self._search: dict[str, float] = {}

    def fit(self, X: np.ndarray) -> None:
        """Fit codes to the vectors ``X`` (n, d), and index them."""
        options = self._options
        quantizer = fit(X, config=FitConfig(bytes=options.get("bytes")), metric=self._metric)
        self._index = QamaIndex(quantizer, options["rescore"], base=options["base"])
        if not self._index.is_trained:
            self._index.train(X)
        self._index.add(X)
        self._index.search(X[:1], 1)  # compiles the kernels, which are not to be timed

    def set_query_arguments(self, oversample: float, nprobe: int | None = None) -> None:
        """Re-rank ``oversample`` candidates per neighbour, from ``nprobe`` lists."""
        self._search = {"oversample": oversample} | ({} if nprobe is None else {"nprobe": nprobe})

    def query(self, q: np.ndarray, n: int) -> np.ndarray:
        """Return the ids of the ``n`` nearest vectors of ``q`` (d,), best first, fewer if fewer were found."""
        self.batch_query(q[None], n)
        return self.get_batch_results()[0]

    def batch_query(self, X: np.ndarray, n: int) -> None:
        """Search for the ``n`` nearest vectors of each of ``X`` (nq, d)."""
        self.res = self._index.search(X, n, **self._search)[1]

    def get_batch_results(self) -> Sequence[np.ndarray]:
        """Return the ids that each query of :meth:`batch_query` found."""
        return [found[found >= 0] for found in self.res]

    def done(self) -> None:
        """Free the index."""
        self._index = None

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in (self._options | self._search).items())
        return f"faiss-qama({settings})"
