"""The id of each row of an index, and a mark on removed rows."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike

from faiss_qama.arrays import Ids, Mask
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import PartReader
from faiss_qama.index.rows_by_id import RowsById


class IdMap:
    """Ids of the rows 0, 1, ... of a base index, some of which may be removed but still there.

    Without the user's own ids, ids are 0, 1, ... over the rows that are left: removing shifts them, as in IndexFlat.

    Parameters
    ----------
    n : int
        Number of rows.
    ids : GrowingArray of shape (n,), int64, optional
        The user's own ids.
    removed : GrowingArray of shape (m,), int64, optional
        The rows that are removed.

    Attributes
    ----------
    version : int
        Number of changes so far.
    """

    def __init__(self, n: int = 0, ids: GrowingArray | None = None, removed: GrowingArray | None = None) -> None:
        self.n, self._ids, self.version = n, ids, 0
        self._removed = GrowingArray(np.empty(0, np.int64)) if removed is None else removed
        self._alive: GrowingArray | None = None  # bool, false for removed rows; None if no row is removed
        if len(self._removed):
            self._alive = GrowingArray(np.ones(n, bool))
            self._alive.array[self._removed.array] = False
        self._all: Ids | None = None  # the id of each row, without the user's own ids
        self._rows = RowsById()

    def __len__(self) -> int:
        """Return the number of rows that are not removed."""
        return self.n - len(self._removed)

    @property
    def removed(self) -> int:
        """Number of removed rows."""
        return len(self._removed)

    @property
    def ids(self) -> Ids | None:
        """The user's own ids (n,) int64, one per row, or None."""
        return None if self._ids is None else self._ids.array

    @property
    def alive(self) -> Mask | None:
        """A mask (n,) that is false for removed rows; None if no row is removed."""
        return None if self._alive is None else self._alive.array

    @property
    def live_rows(self) -> Ids:
        """The rows (m,) int64 that are not removed, ascending."""
        return np.arange(self.n) if self._alive is None else np.flatnonzero(self._alive.array)

    def ids_of(self, rows: Ids) -> Ids:
        """Return the ids int64 of ``rows`` (any shape); -1 stays -1."""
        if self._ids is not None:
            return np.where(rows >= 0, self._ids.array[rows], -1)
        if self._alive is None:
            return rows
        if self._all is None:
            self._all = np.cumsum(self._alive.array) - 1
        return np.where(rows >= 0, self._all[rows], -1)

    def rows_of(self, ids: ArrayLike) -> Ids:
        """Return the row int64 of each of ``ids``, the last if several have it. Raises IndexError for other ids."""
        wanted = _integers(ids)
        places, found = self._find(wanted.ravel())
        rows = np.full(wanted.size, -1)
        np.maximum.at(rows, places, found)
        if (rows < 0).any():
            raise IndexError(f"there is no vector with id {wanted.ravel()[rows < 0][0]} among {len(self)}")
        return rows.reshape(wanted.shape)

    def matching(self, selector: Any) -> Ids:
        """Return the live rows (m,) with ids that ``selector`` takes, a faiss.IDSelector or an array."""
        if not isinstance(selector, faiss.IDSelector):
            return np.unique(self._find(_integers(selector).ravel())[1])
        live = self.live_rows
        ids = faiss.Int64Vector()
        faiss.copy_array_to_vector(np.ascontiguousarray(self.ids_of(live)), ids)
        # In Python faiss tests one id at a time. Removing selected ids from an index of row numbers tests them in C++.
        numbers = faiss.IndexBinaryFlat(64)
        numbers.add(live.view(np.uint8).reshape(len(live), 8))
        numbers.remove_ids(faiss.IDSelectorTranslated(ids, selector))
        kept = faiss.vector_to_array(numbers.xb).view(np.int64)
        return np.setdiff1d(live, kept, assume_unique=True)

    def _find(self, wanted: Ids) -> tuple[Ids, Ids]:
        """Return the live rows that have one of the ids ``wanted`` (m,), after their places there."""
        if self._ids is not None:
            places, rows = self._rows.find(wanted, self._ids.array)
            if self._alive is None:
                return places, rows
            live = self._alive.array[rows]
            return places[live], rows[live]
        places = np.flatnonzero((wanted >= 0) & (wanted < len(self)))
        return places, wanted[places] if self._alive is None else self.live_rows[wanted[places]]

    def check_free(self, ids: Ids | None) -> None:
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
        if self._alive is not None:
            self._alive.append(np.ones(n, bool))
        self.n += n
        self._changed()

    def shrink(self, n: int, *, own: bool) -> None:
        """Drop the rows from ``n`` on, and the user's ids of those before unless they are ``own``."""
        if not own:
            self._ids = None
        for rows in (self._ids, self._alive):
            if rows is not None:
                rows.shrink(n)
        self.n, self._rows = min(n, self.n), RowsById()
        self._changed()

    def remove(self, rows: Ids) -> None:
        """Mark live ``rows`` (m,) as removed; they stay in the base index."""
        if self._alive is None:
            self._alive = GrowingArray(np.ones(self.n, bool))
        self._removed.append(rows)
        self._alive.array[rows] = False
        self._changed()

    def compact(self) -> None:
        """Drop the removed rows, as the base index does."""
        version = self.version
        vars(self).update(vars(self.live()), version=version)
        self._changed()

    def live(self) -> IdMap:
        """Return a map of the rows that are not removed, as :meth:`compact` leaves it."""
        return IdMap(len(self), None if self._ids is None else GrowingArray(self._ids.array[self.live_rows]))

    def clear(self) -> None:
        """Drop every row, and the user's own ids with them."""
        self.n, self._ids, self._alive, self._rows = 0, None, None, RowsById()
        self._removed = GrowingArray(np.empty(0, np.int64))
        self._changed()

    def growing(self) -> dict[str, GrowingArray]:
        """Return the arrays that a bundle holds of it, by name."""
        named = {} if self._ids is None else {"ids": self._ids}
        return named | ({"removed": self._removed} if len(self._removed) else {})

    @classmethod
    def from_parts(cls, n: int, reader: PartReader) -> IdMap:
        """Return the map of :meth:`growing` for ``n`` rows. Raises ValueError for a misshapen part."""
        ids = reader.growing("ids", (n,), np.int64) if reader.has("ids") else None
        if reader.has("alive"):  # as bundles had it before they could grow
            alive = reader.array("alive", (n,), bool, mapped=False)
            return cls(n, ids, GrowingArray(np.flatnonzero(~alive)))
        if not reader.has("removed"):
            return cls(n, ids)
        removed = reader.growing("removed", (None,), np.int64)
        if len(np.unique(removed.array)) < len(removed) or not 0 <= removed.array.min() <= removed.array.max() < n:
            raise reader.invalid("removed", f"rows that are not among {n}, or there twice")
        return cls(n, ids, removed)

    def _changed(self) -> None:
        self.version += 1
        self._all = None


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
