"""The id of each row of an index, and a mark on removed rows."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Ids, Mask
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import PartReader


class IdMap:
    """Ids of the rows 0, 1, ... of a base index, some of which may be removed but still there.

    Without the user's own ids, ids are 0, 1, ... over the rows that are left: removing shifts them, as in IndexFlat.

    Parameters
    ----------
    n : int
        Number of rows.
    ids : ndarray of shape (n,), int64, optional
        The user's own ids.
    alive : ndarray of shape (n,), bool, optional
        False for removed rows; None if no row is removed.

    Attributes
    ----------
    version : int
        Number of changes so far.
    """

    def __init__(self, n: int = 0, ids: Ids | None = None, alive: Mask | None = None) -> None:
        self.n = n
        self._ids = None if ids is None else GrowingArray(ids)
        self.alive = alive
        self.version = 0
        self._all: Ids | None = None  # the id of each row, without the user's own ids
        self._sorted: tuple[Ids, Ids] | None = None  # places among the live rows in the order of their ids, and the ids

    def __len__(self) -> int:
        """Return the number of rows that are not removed."""
        return self.n if self.alive is None else int(np.count_nonzero(self.alive))

    @property
    def ids(self) -> Ids | None:
        """The user's own ids (n,) int64, one per row, or None."""
        return None if self._ids is None else self._ids.array

    @property
    def live_rows(self) -> Ids:
        """The rows (m,) int64 that are not removed, ascending."""
        return np.arange(self.n) if self.alive is None else np.flatnonzero(self.alive)

    def ids_of(self, rows: Ids) -> Ids:
        """Return the ids int64 of ``rows`` (any shape); -1 stays -1."""
        if self._ids is not None:
            return np.where(rows >= 0, self._ids.array[rows], -1)
        if self.alive is None:
            return rows
        if self._all is None:
            self._all = np.cumsum(self.alive) - 1
        return np.where(rows >= 0, self._all[rows], -1)

    def rows_of(self, ids: ArrayLike) -> Ids:
        """Return the row int64 of each of ``ids``, the last if several have it. Raises IndexError for other ids."""
        wanted, live = _integers(ids), self.live_rows
        if self._ids is None:
            places, found = wanted, (wanted >= 0) & (wanted < len(live))
        else:
            if self._sorted is None:
                order = np.argsort(self._ids.array[live], kind="stable")
                self._sorted = order, self._ids.array[live][order]
            order, ordered = self._sorted
            at = np.searchsorted(ordered, wanted, side="right") - 1
            found = (at >= 0) & (ordered[at] == wanted) if len(ordered) else np.zeros(wanted.shape, bool)
            places = order[at] if len(ordered) else at
        if not found.all():
            raise IndexError(f"there is no vector with id {wanted[~found].flat[0]} among {len(live)}")
        rows: Ids = live[places]
        return rows

    def matching(self, selector: Any) -> Mask:
        """Return a mask (n,) bool of the live rows with ids that ``selector`` takes, a faiss.IDSelector or array."""
        if not isinstance(selector, faiss.IDSelector):
            selector = faiss.IDSelectorBatch(_integers(selector).ravel())
        live = self.live_rows
        ids = faiss.Int64Vector()
        faiss.copy_array_to_vector(np.ascontiguousarray(self.ids_of(live)), ids)
        # In Python faiss tests one id at a time. Removing selected ids from an index of row numbers tests them in C++.
        numbers = faiss.IndexBinaryFlat(64)
        numbers.add(live.view(np.uint8).reshape(len(live), 8))
        numbers.remove_ids(faiss.IDSelectorTranslated(ids, selector))
        mask = np.ones(self.n, dtype=bool) if self.alive is None else self.alive.copy()
        mask[faiss.vector_to_array(numbers.xb).view(np.int64)] = False
        return mask

    def check(self, ids: Ids | None) -> None:
        """Raise ValueError if rows that were added without ids have some of ``ids`` (m,): 0, 1, ... until now."""
        if ids is None or self._ids is not None:
            return
        taken = ids[ids < len(self)]
        if len(taken):
            raise ValueError(
                f"id {taken[0]} is taken: {len(self)} vectors were added without ids, and are 0 to {len(self) - 1}; "
                f"give ids from {len(self)} on"
            )

    def append(self, n: int, ids: Ids | None = None) -> None:
        """Append ``n`` rows, with ``ids`` (n,) int64 or without; rows before keep their ids."""
        if ids is not None:
            if self._ids is None:
                self._ids = GrowingArray(self.ids_of(np.arange(self.n)))
            self._ids.append(ids)
        if self.alive is not None:
            self.alive = np.append(self.alive, np.ones(n, dtype=bool))
        self.n += n
        self._changed()

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""
        if self._ids is not None:
            self._ids.shrink(n)
        if self.alive is not None:
            self.alive = self.alive[:n]
        self.n = min(n, self.n)
        self._changed()

    def remove(self, gone: Mask) -> None:
        """Mark the rows where ``gone`` (n,) is true as removed; they stay in the base index."""
        self.alive = ~gone if self.alive is None else self.alive & ~gone
        self._changed()

    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` (n,) is false, as the base index does."""
        if self._ids is not None:
            self._ids.keep(kept)
        if self.alive is not None:
            self.alive = self.alive[kept]
            if self.alive.all():
                self.alive = None
        self.n = int(np.count_nonzero(kept))
        self._changed()

    def clear(self) -> None:
        """Drop every row, and the user's own ids with them."""
        self.n, self._ids, self.alive = 0, None, None
        self._changed()

    def parts(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that a bundle holds of it, by name."""
        return {name: array for name, array in (("ids", self.ids), ("alive", self.alive)) if array is not None}

    @classmethod
    def from_parts(cls, n: int, reader: PartReader) -> IdMap:
        """Return the map of :meth:`parts` for ``n`` rows. Raises ValueError for a misshapen part."""
        ids = reader.array("ids", (n,), np.int64, mapped=False) if reader.has("ids") else None
        return cls(n, ids, reader.array("alive", (n,), bool, mapped=False) if reader.has("alive") else None)

    def _changed(self) -> None:
        self.version += 1
        self._all = self._sorted = None


def as_ids(ids: ArrayLike, n: int) -> Ids:
    """Return ``ids`` as (n,) int64. Raises TypeError or ValueError for others, and for negative ids."""
    array = _integers(ids)
    if array.shape != (n,):
        raise ValueError(f"ids: one per vector is needed, shape ({n},); got shape {array.shape}")
    if n and array.min() < 0:
        raise ValueError(f"ids are 0 or more, as -1 marks a missing hit; got {array.min()}")
    return np.ascontiguousarray(array)


def _integers(ids: ArrayLike) -> Ids:
    """Return ``ids`` as int64. Raises TypeError for other types, ValueError beyond int64."""
    array = np.asarray(ids)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        hint = "; of a mask pass np.flatnonzero(mask)" if array.dtype == bool else ""
        raise TypeError(f"ids are int64; got {array.dtype}{hint}")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"ids are int64; got {array.max()}")
    return array.astype(np.int64)
