"""Arrays that grow by rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class GrowingArray:
    """An array with room at its end, so that appending row after row costs no more than appending them at once.

    Parameters
    ----------
    array : ndarray of shape (n, ...)
        The first rows. A memory map stays one until rows are appended or dropped.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._buffer, self._n = array, len(array)

    def __len__(self) -> int:
        return self._n

    @property
    def array(self) -> NDArray[Any]:
        """The rows (n, ...), as a view."""
        return self._buffer[: self._n]

    def append(self, rows: NDArray[Any]) -> None:
        """Append ``rows`` (m, ...)."""
        end = self._n + len(rows)
        if end > len(self._buffer):
            grown = np.empty((max(end, len(self._buffer) * 3 // 2), *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self._n] = self.array
            self._buffer = grown
        self._buffer[self._n : end] = rows
        self._n = end

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""
        self._n = min(n, self._n)

    def clear(self) -> None:
        """Drop every row."""
        self._buffer = np.empty((0, *self._buffer.shape[1:]), self._buffer.dtype)
        self._n = 0

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the rows where ``kept`` (n,) is false; the others move up."""
        self._buffer = self.array[kept]
        self._n = len(self._buffer)
