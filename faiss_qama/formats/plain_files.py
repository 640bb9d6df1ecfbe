"""Vectors in the formats of the TEXMEX and big-ann benchmarks, and float32 without any header.

TEXMEX (http://corpus-texmex.irisa.fr): each row is its dimension, an int32, and its values. big-ann
(https://big-ann-benchmarks.com): number and dimension of the vectors, two uint32, then all values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.formats.reader import Reader, Want, mapped

VECS: dict[str, np.dtype[Any]] = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype(np.uint8), ".ivecs": np.dtype("<i4")}
BINS: dict[str, np.dtype[Any]] = {".fbin": np.dtype("<f4"), ".u8bin": np.dtype(np.uint8), ".i8bin": np.dtype(np.int8)}
RAW = (".bin", ".dat", ".f32", ".float32", ".raw")
EXACT = 1 << 24  # whole numbers up to here are float32


def read_vecs(path: Path, want: Want) -> Reader:
    """Return a reader of a .fvecs, .bvecs or .ivecs file. Raises ValueError if rows differ in length."""
    dtype, size = VECS[path.suffix.lower()], path.stat().st_size
    first = np.fromfile(path, "<i4", 1)
    if not len(first):
        return _empty(dtype)
    d = int(first[0])
    row = np.dtype([("d", "<i4"), ("values", dtype, (max(d, 0),))])
    if d < 1 or size % row.itemsize:
        raise ValueError(f"{path}: {size:,} bytes are no rows of {d} values, the dimension that the first row names")
    whole = dtype.kind == "i"

    def windows(step: int) -> Iterator[NDArray[Any]]:
        for start in range(0, size // row.itemsize, step):
            rows = np.memmap(path, row, "r")[start : start + step]
            other = np.flatnonzero(rows["d"] != d)
            if len(other):
                raise ValueError(f"{path}: row {start + other[0]} has {rows['d'][other[0]]} values, row 0 has {d}")
            values = rows["values"]
            if whole and len(values) and np.abs(values.astype(np.int64)).max() > EXACT:
                raise ValueError(f"{path}: numbers beyond 2^24 are no float32; are these ids of neighbours?")
            yield values.astype(np.float32) if whole else values

    return Reader(shape=(size // row.itemsize, d), dtype=np.dtype(np.float32) if whole else dtype, windows=windows)


def read_bin(path: Path, want: Want) -> Reader:
    """Return a reader of a .fbin, .u8bin or .i8bin file. Raises ValueError if its size is not what its header says."""
    dtype, size = BINS[path.suffix.lower()], path.stat().st_size
    header = np.fromfile(path, "<u4", 2)
    if len(header) < 2:
        raise ValueError(f"{path}: {size} bytes; a header of 8 is needed")
    n, d = map(int, header)
    if size != 8 + n * d * dtype.itemsize:
        raise ValueError(
            f"{path}: {size:,} bytes; {n:,} x {d} {dtype}, as its header says, take {8 + n * d * dtype.itemsize:,}"
        )
    return mapped(lambda: np.memmap(path, dtype, "r", 8, (n, d))) if n * d else _empty(dtype, d)


def read_raw(path: Path, want: Want) -> Reader:
    """Return a reader of float32 without a header, in rows of ``want.d``. Raises ValueError for another size."""
    size, d = path.stat().st_size, want.d
    if d is None:
        raise ValueError(f"{path}: float32 without a header needs --dim (d= in Python), the dimension of the vectors")
    if size % (4 * d):
        raise ValueError(f"{path}: {size:,} bytes are no whole rows of {d} float32, which take {4 * d} bytes each")
    return mapped(lambda: np.memmap(path, "<f4", "r").reshape(-1, d)) if size else _empty(np.dtype(np.float32), d)


def _empty(dtype: np.dtype[Any], d: int = 0) -> Reader:
    return Reader.of(np.empty((0, d), dtype))
