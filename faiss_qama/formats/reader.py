"""What every format is read as, and what its reader shares with the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids

BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16: it reads a .npy of them as 2 bytes without a meaning


@dataclass(frozen=True, eq=False, kw_only=True)
class Reader:
    """The vectors of one file, read a window of rows at a time.

    Parameters
    ----------
    shape : tuple of int
        As it is stored: (n, d) for vectors; a caller refuses others.
    dtype : dtype
        Type of the stored values; ``BFLOAT16`` for bfloat16.
    windows : callable
        Takes a number of rows, and yields consecutive arrays (m, d) of at most so many, in order. A row of a table that
        holds no vector is NaN there.
    ids : ndarray of shape (n,), int64, or None
        The ids that the file holds.
    metric : str or None
        What the file says that its vectors are compared by: ``ip``, ``l2``, ``cosine``, or another in its own words.
    null : str
        Words for what rows may hold in place of a vector, beside NaN.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    windows: Callable[[int], Iterator[NDArray[Any]]]
    ids: Ids | None = None
    metric: str | None = None
    null: str = ""

    @classmethod
    def of(cls, array: NDArray[Any]) -> Reader:
        """Return a reader of an array in memory, or of a memory map."""
        return cls(shape=array.shape, dtype=array.dtype, windows=lambda step: slices(array, step))


@dataclass(frozen=True, kw_only=True)
class Want:
    """What to read of a file.

    Parameters
    ----------
    name : str or None
        The array, tensor, dataset or column of vectors.
    ids : str or None
        That of ids.
    d : int or None
        The dimension of vectors in a file without a header.
    queries : bool
        Whether to read the queries of a file that holds them beside documents.
    """

    name: str | None = None
    ids: str | None = None
    d: int | None = None
    queries: bool = False


def slices(array: NDArray[Any], step: int) -> Iterator[NDArray[Any]]:
    """Yield ``array`` (n, ...) in slices of ``step`` rows."""
    for start in range(0, len(array), step):
        yield array[start : start + step]


def mapped(open_map: Callable[[], NDArray[Any]], **facts: Any) -> Reader:
    """Return a reader of a memory map (n, d), of which ``facts`` are known.

    The file is mapped anew for each window, so that windows read before do not pile up in resident memory.
    """
    array = open_map()
    shape, dtype = array.shape, array.dtype

    def windows(step: int) -> Iterator[NDArray[Any]]:
        for start in range(0, shape[0], step):
            yield open_map()[start : start + step]

    return Reader(shape=shape, dtype=dtype, windows=windows, **facts)


def is_readable(dtype: np.dtype[Any]) -> bool:
    """Return whether a file may hold vectors of this type: floats, bfloat16, int8 or uint8."""
    return np.issubdtype(dtype, np.floating) or is_bfloat16(dtype) or dtype in (np.int8, np.uint8)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether values are bfloat16, as ``BFLOAT16`` or as the type of that name in ml_dtypes."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None


def from_bfloat16(x: NDArray[Any]) -> Floats:
    """Return bfloat16 values as float32, whose upper halves they are."""
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def chosen(path: Path, name: str | None, held: Mapping[str, str], good: list[str], what: str) -> str:
    """Return the part of a file to read: the one that is named, or the only one that holds vectors.

    Parameters
    ----------
    path : Path
        The file.
    name : str or None
        The name that the user gave.
    held : mapping of str to str
        What each part of the file holds, in words.
    good : list of str
        The parts that hold vectors.
    what : str
        What a part is called, such as ``column``.

    Returns
    -------
    str
        A name in ``held``.

    Raises
    ------
    ValueError
        If there is no such part, or no single one. The message names what there is.
    """
    listed = ", ".join(f"{key} ({value})" for key, value in list(held.items())[:10]) or "nothing"
    if name is not None:
        if name not in held:
            raise ValueError(f"{path}: no {what} {name!r}; it holds {listed}")
        return name
    if len(good) != 1:
        fault = f"no {what} of vectors" if not good else f"{len(good)} {what}s of vectors"
        remedy = f"; name one, as in {path}:{good[0]}" if good else ""
        raise ValueError(f"{path}: {fault}: it holds {listed}{remedy}")
    return good[0]


def as_file_ids(values: NDArray[Any], path: Path, name: str) -> Ids:
    """Return the ids (n,) int64 in a column or array ``name`` of a file.

    Raises TypeError or ValueError, with the remedy, for what is no whole number from 0 to 2^63 - 1.
    """
    what = f"{path}: ids in {name!r}"
    if values.ndim != 1:
        raise ValueError(f"{what}: one number per row is needed; got shape {values.shape}")
    if len(values) and not np.issubdtype(values.dtype, np.integer):
        if not isinstance(values[0], str):
            raise TypeError(f"{what}: int64 is needed; got {values.dtype}")
        raise TypeError(
            f"{what}: int64 is needed; got text such as {values[0][:40]!r}; without --ids, ids are row numbers, by "
            "which you can look names up"
        )
    if len(values) and (values.min() < 0 or int(values.max()) > np.iinfo(np.int64).max):
        wrong = values.min() if values.min() < 0 else values.max()
        raise ValueError(f"{what}: 0 to 2^63 - 1 is needed, as int64 holds ids and -1 marks a missing hit; got {wrong}")
    return values.astype(np.int64)


def library(module: str, path: Path, extra: str) -> Any:
    """Import the library that reads ``path``. Raises ImportError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{path}: this needs {package}: pip install '.[{extra}]' in the clone ({error})") from None
