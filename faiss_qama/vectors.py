"""Checks of vectors that are given: their type, their shape, and that all numbers are finite."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Floats, Ids
from faiss_qama.formats.reader import from_bfloat16, is_bfloat16, is_readable
from faiss_qama.threads import parallel_map, slices

PathLike: TypeAlias = str | os.PathLike[str]
CONVERTED = 1 << 18  # values that a thread converts at a time


class _Stored(Protocol):
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_dtype_and_shape(
    x: _Stored, d: int | None, what: str, *, in_file: bool = False, d_of: str | None = None
) -> None:
    """Raise TypeError or ValueError unless ``x`` is a floating (n > 0, d > 0) array, of dimension ``d`` if given.

    A file may also hold bfloat16, int8 and uint8. ``d_of`` is the name of what has that dimension.
    """
    if not (is_readable(x.dtype) if in_file else np.issubdtype(x.dtype, np.floating)):
        cast = "other floats, int8 and uint8" if in_file else "other floats"
        raise TypeError(f"{what}: float32 is needed ({cast} are cast); got {x.dtype}{_remedy(x.dtype)}")
    if len(x.shape) != 2:
        hint = "; for one vector use x.reshape(1, -1)" if len(x.shape) == 1 else ""
        raise ValueError(
            f"{what}: an array of shape (n, d) is needed; got {len(x.shape)} dimensions, shape {x.shape}{hint}"
        )
    if 0 in x.shape:
        raise ValueError(f"{what}: no vectors, shape {x.shape}")
    if d is not None and x.shape[1] != d:
        raise ValueError(f"{what}: dimension {x.shape[1]}, but {d} is needed" + (f", as in {d_of}" if d_of else ""))


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "O":
        return "; np.stack(list(x)).astype(np.float32) makes one array of rows of numbers"
    if dtype.kind in "biu":
        return "; x.astype(np.float32) takes the numbers as they are" + (
            ", np.unpackbits(x, axis=1) takes packed bits apart" if dtype.itemsize == 1 and dtype.kind != "b" else ""
        )
    return ""


def as_vectors(
    x: ArrayLike, d: int | None = None, what: str = "vectors", rows: Sequence[int] | NDArray[np.int64] | None = None
) -> Floats:
    """Check vectors and cast them to float32.

    Parameters
    ----------
    x : array of shape (n, d)
        Vectors of any float type, also bfloat16.
    d : int, optional
        The dimension that they must have.
    what : str
        Their name in error messages.
    rows : sequence of int, optional
        The numbers of the rows in error messages; by default 0, 1, ...

    Returns
    -------
    ndarray of shape (n, d), float32
        The vectors, C-contiguous; ``x`` itself if it is that already.

    Raises
    ------
    TypeError
        For integers, strings and objects.
    ValueError
        For a wrong rank or dimension, no vectors, and NaN or infinity, counting and naming such rows.
    """
    array = np.asarray(x)
    array = from_bfloat16(array) if is_bfloat16(array.dtype) else array
    check_dtype_and_shape(array, d, what)
    out, bad = as_floats(array)
    if len(bad):
        raise ValueError(f"{what}: {bad_rows_text(bad if rows is None else np.asarray(rows)[bad], len(out))}")
    return out


def as_floats(x: NDArray[Any]) -> tuple[Floats, Ids]:
    """Return ``x`` (n, d) as contiguous float32, and its rows (m,) with NaN or infinity."""
    x = from_bfloat16(x) if is_bfloat16(x.dtype) else x
    there = x.dtype == np.float32 and x.flags.c_contiguous
    out: Floats = x if there else np.empty(x.shape, np.float32)

    def convert(part: slice) -> Ids:
        with np.errstate(over="ignore", invalid="ignore"):
            if not there:
                out[part] = x[part]
            if np.isfinite(out[part].sum()):
                return np.empty(0, np.int64)
            suspects = part.start + np.flatnonzero(~np.isfinite(out[part].sum(axis=1)))  # a sum may overflow alone
        bad: Ids = suspects[~np.isfinite(out[suspects]).all(axis=1)]
        return bad

    bad = parallel_map(convert, slices(len(x), max(1, CONVERTED // x.shape[1])))
    return out, np.concatenate([np.empty(0, np.int64), *bad])


def bad_rows_text(rows: Ids, n: int, null: str = "") -> str:
    """Say which ``rows`` of ``n`` are no vectors; ``null`` is what else they may hold."""
    what = f"{null}NaN or infinity (as float32)"
    if len(rows) == 1:
        return f"row {rows[0]} holds {what}"
    return f"{len(rows):,} rows of {n:,} hold {what}: {', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''}"
