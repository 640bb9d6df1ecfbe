"""Input checks of vectors, and corpora larger than memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Floats, scale_to_norm
from faiss_qama.progress import progress

PathLike: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = ArrayLike | PathLike | Sequence[PathLike]

CHUNK_BYTES = 32 << 20  # bytes per read: few beside a large corpus, many beside a disk's latency


def check_dtype_and_shape(x: NDArray[np.generic], d: int | None, what: str) -> None:
    """Raise TypeError or ValueError unless ``x`` is a floating (n > 0, d > 0) array, of dimension ``d`` if given."""
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"{what}: float32 is needed (float64 and float16 are cast); got {x.dtype}")
    if x.ndim != 2:
        hint = "; for one vector use x.reshape(1, -1)" if x.ndim == 1 else ""
        raise ValueError(f"{what}: an array of shape (n, d) is needed; got {x.ndim} dimensions, shape {x.shape}{hint}")
    if 0 in x.shape:
        raise ValueError(f"{what}: no vectors, shape {x.shape}")
    if d is not None and x.shape[1] != d:
        raise ValueError(f"{what}: dimension {x.shape[1]}, but {d} is needed")


def as_vectors(
    x: ArrayLike, d: int | None = None, what: str = "vectors", rows: Sequence[int] | NDArray[np.int64] | None = None
) -> Floats:
    """Check vectors and cast them to float32.

    Parameters
    ----------
    x : array of shape (n, d)
        Vectors of any float type.
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
        For a wrong rank or dimension, no vectors, and NaN or infinity, naming the first such row.
    """
    array = np.asarray(x)
    check_dtype_and_shape(array, d, what)
    with np.errstate(over="ignore", invalid="ignore"):
        out: Floats = np.ascontiguousarray(array, dtype=np.float32)
        if np.isfinite(out.sum()):
            return out
        suspects = np.flatnonzero(~np.isfinite(out.sum(axis=1)))  # a sum may overflow where no value does
    bad = suspects[~np.isfinite(out[suspects]).all(axis=1)]
    if len(bad):
        raise ValueError(f"{what}: row {bad[0] if rows is None else rows[bad[0]]} holds NaN or infinity (as float32)")
    return out


class Corpus:
    """Vectors from an array, a memory map, a .npy file, or a list of .npy shards, read in chunks of rows.

    A file is mapped anew for each chunk, so that chunks read before do not pile up in resident memory.

    Parameters
    ----------
    source : array of shape (n, d), str, Path or list of these
        The vectors.
    d : int, optional
        The dimension that they must have.
    what : str
        The name of an array in error messages; files go by their own names.
    scale : float
        A factor that the values are multiplied by when they are read.

    Attributes
    ----------
    shape : tuple of int
        Number and dimension of the vectors, (n, d).
    nbytes : int
        Bytes of the vectors as they are stored.
    dtype : dtype
        Type of the stored values, in the last part of the source.

    Raises
    ------
    TypeError, ValueError
        For arrays and files of another type or shape than :func:`as_vectors` takes, and for files that are no .npy
        files.
    """

    def __init__(self, source: Source, d: int | None = None, what: str = "corpus", scale: float = 1.0) -> None:
        self._scale, self._normalizes = np.float32(scale), False
        shards = source if isinstance(source, list | tuple) and _all_paths(source) else [source]
        self._parts = [(Path(s), str(s)) if isinstance(s, str | os.PathLike) else (np.asarray(s), what) for s in shards]
        self.shape, self.nbytes = (0, d or 0), 0
        for part, name in self._parts:
            array = _open(part)
            check_dtype_and_shape(array, self.shape[1] or None, name)
            self.shape = (self.shape[0] + array.shape[0], array.shape[1])
            self.nbytes += array.nbytes
            self.dtype = array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def normalized(self) -> Corpus:
        """Return the same vectors, scaled to norm 1 when they are read; zero vectors stay zero."""
        other = copy.copy(self)
        other._normalizes = True
        return other

    @property
    def paths(self) -> list[Path]:
        """The files among the sources."""
        return [part for part, _ in self._parts if isinstance(part, Path)]

    @property
    def n_chunks(self) -> int:
        """Number of chunks that :meth:`chunks` yields."""
        return sum(-(-len(_open(part)) // self._step) for part, _ in self._parts)

    def chunks(self) -> Iterator[Floats]:
        """Yield the vectors in order, checked, as (m, d) float32 arrays of at most ``CHUNK_BYTES``."""
        for _, chunk in self._windows(None):
            yield chunk

    def read(self) -> Floats:
        """Return all the vectors, (n, d) float32, in memory."""
        return np.concatenate(list(self.chunks()))

    def take(self, rows: NDArray[np.int64]) -> Floats:
        """Return the vectors (m, d) float32 at ``rows`` (m,), in that order. Raises IndexError for other rows."""
        order = np.argsort(rows, kind="stable")
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        done = 0
        for where, chunk in progress(self._windows(rows[order]), "reading"):
            out[order[where]] = chunk
            done += len(chunk)
        if done != len(rows):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}")
        return out

    def _windows(self, rows: NDArray[np.int64] | None) -> Iterator[tuple[slice, Floats]]:
        """Yield chunks in order: of every row, or of the sorted ``rows`` with their places among them."""
        base = 0
        for part, name in self._parts:
            n = len(_open(part))
            for start in range(0, n, self._step):
                stop = min(start + self._step, n)
                if rows is None:
                    yield slice(base + start, base + stop), self._read(part, name, range(start, stop))
                    continue
                where = slice(*np.searchsorted(rows, [base + start, base + stop]))
                if where.start < where.stop:
                    yield where, self._read(part, name, rows[where] - base)
            base += n

    @property
    def _step(self) -> int:
        return max(1, CHUNK_BYTES // (4 * self.shape[1]))

    def _read(self, part: Path | NDArray[np.generic], name: str, rows: range | NDArray[np.int64]) -> Floats:
        where = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        chunk = np.array(_open(part)[where])  # a copy: the map is dropped here
        out = as_vectors(chunk, self.shape[1], name, rows)
        if self._scale != 1:
            out *= self._scale
        return scale_to_norm(out, 1.0) if self._normalizes else out


def load_vectors(path: PathLike, d: int | None = None) -> Floats:
    """Return the vectors (n, d) float32 in a .npy file, checked as by :func:`as_vectors`; errors name the file."""
    return as_vectors(_open(Path(path)), d, str(path))


def _all_paths(source: Sequence[object]) -> bool:
    return len(source) > 0 and all(isinstance(s, str | os.PathLike) for s in source)


def _open(part: Path | NDArray[np.generic]) -> NDArray[np.generic]:
    return open_npy(part) if isinstance(part, Path) else part


def open_npy(path: Path, mmap: bool = True) -> NDArray[Any]:
    """Return the array in a .npy file, mapped or read. Raises OSError, or ValueError naming the file and the fault."""
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes numpy raise almost anything
        reason = "it holds no numbers" if "pickle" in str(error) else str(error)
        raise ValueError(f"{path}: not a whole .npy file ({reason})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: one array in a .npy file is needed; this is an archive")
    return array
