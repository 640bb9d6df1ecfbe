"""An index whose hits are rows, whatever its ids are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids
from faiss_qama.index.qama_index import QamaIndex


class ByRow:
    """An index whose hits are the rows of its vectors, in the order of adding.

    Parameters
    ----------
    index : QamaIndex
        The index, with any ids.
    """

    def __init__(self, index: QamaIndex) -> None:
        self._index, self._ids = index, index.ids
        self._order = np.argsort(self._ids, kind="stable")

    def search(self, x: Floats, k: int, **options: Any) -> tuple[NDArray[Any], Ids]:
        """Return scores and rows of the k nearest.

        Parameters
        ----------
        x : ndarray of shape (nq, d), float32
            The queries.
        k : int
            Hits per query.
        **options : Any
            Those of :meth:`faiss_qama.QamaIndex.search`.

        Returns
        -------
        D : ndarray of shape (nq, k)
            Scores, as the index returns them.
        I : ndarray of shape (nq, k), int64
            Rows, -1 where there are fewer hits.
        """
        D, I = self._index.search(x, k, **options)
        places = np.searchsorted(self._ids, I, sorter=self._order)
        return D, np.where(I >= 0, self._order[np.minimum(places, len(self._order) - 1)], -1)
