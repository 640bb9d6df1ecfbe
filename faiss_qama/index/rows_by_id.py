"""The rows that have an id, found in a time that hardly depends on their number."""

from __future__ import annotations

import numpy as np

from faiss_qama.arrays import Ids

FEW = 1000  # rows that are looked up one by one before all are sorted anew
SHARE = 1 / 8  # of the sorted rows: as many may be looked up one by one


class RowsById:
    """Rows by their ids: most of them sorted, the newest in a dictionary until they are many.

    Appending rows changes nothing here. After rows are dropped another one is needed.
    """

    def __init__(self) -> None:
        self._sorted, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)
        self._newer: dict[int, list[int]] = {}
        self._n = 0

    def find(self, wanted: Ids, ids: Ids) -> tuple[Ids, Ids]:
        """Return the rows that have one of the ids ``wanted``.

        Parameters
        ----------
        wanted : ndarray of shape (m,), int64
            Ids.
        ids : ndarray of shape (n,), int64
            The id of each row, those of an earlier call first.

        Returns
        -------
        places : ndarray of shape (found,), int64
            Places among ``wanted``.
        rows : ndarray of shape (found,), int64
            A row of that id. Rows of one id are ascending.
        """
        self._take_in(ids)
        first, last = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        counts = last - first
        places = np.repeat(np.arange(len(wanted)), counts)
        rows = self._rows[np.arange(len(places)) + np.repeat(first - (np.cumsum(counts) - counts), counts)]
        if self._newer:
            newer = [(i, row) for i, own in enumerate(wanted.tolist()) for row in self._newer.get(own, ())]
            if newer:
                more = np.array(newer, np.int64)
                places, rows = np.append(places, more[:, 0]), np.append(rows, more[:, 1])
        return places, rows

    def _take_in(self, ids: Ids) -> None:
        if len(ids) - len(self._sorted) > max(FEW, SHARE * len(self._sorted)):
            self._rows = np.argsort(ids, kind="stable")
            self._sorted, self._newer = ids[self._rows], {}
        else:
            for row in range(self._n, len(ids)):
                self._newer.setdefault(int(ids[row]), []).append(row)
        self._n = len(ids)
