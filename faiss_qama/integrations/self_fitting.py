"""An index that needs no fit before its first vectors, as stores of frameworks do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from faiss_qama.arrays import Floats, Ids
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import RESCORE_KINDS

SMALL = 10_000  # vectors up to which comparing every one is fast
FEW = 5_000  # an index that was fitted on fewer is fitted anew once there are SMALL


class SelfFittingIndex:
    """A QamaIndex with ids that fits itself to its first vectors, and if these were few once more.

    That happens at 10,000 vectors. Up to then a search compares every vector, however few the first ones were.

    Parameters
    ----------
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.
    rescore : str
        Second stage: ``codes``, ``sq8``, ``fp16`` or ``fp32``. With ``codes`` no vectors are kept to fit to once more.
    index : QamaIndex, optional
        An index with ids of its own, as it was saved.

    Attributes
    ----------
    index : QamaIndex or None
        None before the first vectors.

    Raises
    ------
    ValueError
        For another second stage.
    """

    def __init__(self, metric: int, rescore: str = "fp16", index: QamaIndex | None = None) -> None:
        if rescore not in RESCORE_KINDS or rescore == "none":
            kinds = ", ".join(kind for kind in RESCORE_KINDS if kind != "none")
            raise ValueError(f"rescore must be one of {kinds}, which give scores; got {rescore!r}")
        self.index, self._metric, self._rescore = index, metric, rescore

    def __len__(self) -> int:
        return 0 if self.index is None else self.index.ntotal

    def add(self, x: Floats, ids: Ids) -> None:
        """Add vectors ``x`` (n, d) float32 with ``ids`` (n,). Raises as :meth:`~faiss_qama.QamaIndex.add_with_ids`."""
        if not len(x):
            return
        index = self.index
        few = index is not None and index.quantizer.fit_record.fitted_on < FEW and self._rescore != "codes"
        if index is not None and few and len(self) + len(x) >= SMALL:
            x = np.concatenate([index.reconstruct_batch(index.ids), x])
            ids, index = np.concatenate([index.ids, ids]), None
        if index is None:
            index = QamaIndex(fitted(x, self._metric), self._rescore)
        index.add_with_ids(x, ids)
        self.index = index

    def remove(self, ids: Ids) -> None:
        """Remove the vectors of ``ids``."""
        if self.index is not None:
            self.index.remove_ids(ids)

    def search(self, x: Floats, k: int, **options: Any) -> tuple[Any, Ids]:
        """Return scores and ids (nq, k) of :meth:`~faiss_qama.QamaIndex.search`, which compares all of few vectors."""
        if self.index is None:
            return np.zeros((len(x), 0), np.float32), np.zeros((len(x), 0), np.int64)
        if self.index.ntotal < SMALL and not options.keys() & {"oversample", "recall"}:
            options["oversample"] = max(1, self.index.ntotal)
        return self.index.search(x, k, **options)


def fitted(x: Floats, metric: int) -> Quantizer:
    """Return a quantizer fitted to the vectors ``x`` (n, d), however few; also to none."""
    from faiss_qama.training import fit  # here, because run time does not depend on training

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")  # few vectors, which are all compared
        return fit(x if len(x) > 1 else np.resize(x, (2, x.shape[1])), metric=metric)  # repeats one, and makes zeros
