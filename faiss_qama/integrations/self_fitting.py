"""An index that needs no fit before its first vectors, as stores of frameworks do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from faiss_qama.arrays import Floats, Ids
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.vectors import as_vectors

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
        An index to go on with.
    own : bool
        Whether ``index`` is one that was made here. Another is searched as it is, and never fitted.

    Attributes
    ----------
    index : QamaIndex or None
        None before the first vectors.

    Raises
    ------
    ValueError
        For another second stage.
    """

    def __init__(self, metric: int, rescore: str = "fp16", index: QamaIndex | None = None, *, own: bool = True) -> None:
        if rescore not in RESCORE_KINDS or rescore == "none":
            kinds = ", ".join(kind for kind in RESCORE_KINDS if kind != "none")
            raise ValueError(f"rescore must be one of {kinds}, which give scores; got {rescore!r}")
        self.index, self.own, self._metric, self._rescore = index, own, metric, rescore

    def __len__(self) -> int:
        return 0 if self.index is None else self.index.ntotal

    def add(self, x: Floats, ids: Ids | None = None) -> None:
        """Add vectors ``x`` (n, d) float32 with ``ids`` (n,), or without if they are numbered by row.

        Raises as :meth:`~faiss_qama.QamaIndex.add_with_ids`. Nothing is added then.
        """
        if not len(x):
            return
        x = as_vectors(x, what="embeddings")
        index = self.index
        if index is not None and self._is_outgrown(index, len(x)):
            x = np.concatenate([index.reconstruct_batch(index.ids), x])
            ids, index = None if ids is None else np.concatenate([index.ids, ids]), None
        if index is None:
            index = QamaIndex(fitted(x, self._metric), self._rescore)
        if ids is None:
            index.add(x)
        else:
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
        if self.own and self.index.ntotal < SMALL and not options.keys() & {"oversample", "recall"}:
            options["oversample"] = max(1, self.index.ntotal)
        return self.index.search(x, k, **options)

    def _is_outgrown(self, index: QamaIndex, more: int) -> bool:
        """Return whether ``index`` was fitted on few vectors, and has many with ``more``; if it can be replaced."""
        fits = self.own and not index.read_only and self._rescore != "codes"
        return fits and index.quantizer.fit_record.fitted_on < FEW and index.ntotal + more >= SMALL


def fitted(x: Floats, metric: int) -> Quantizer:
    """Return a quantizer fitted to the vectors ``x`` (n, d), however few; also to none."""
    from faiss_qama.training import fit  # here, because run time does not depend on training

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")  # few vectors, which are all compared
        return fit(x if len(x) > 1 else np.resize(x, (2, x.shape[1])), metric=metric)  # repeats one, and makes zeros
