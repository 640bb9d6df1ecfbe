"""Corpora larger than memory: vectors from arrays and files, read in chunks."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Floats, Ids, scale_to_norm
from faiss_qama.formats.kinds import read_vectors
from faiss_qama.formats.numpy_files import read_ids
from faiss_qama.formats.paths import files_of
from faiss_qama.formats.reader import Reader, Want, is_bfloat16
from faiss_qama.progress import progress
from faiss_qama.vectors import PathLike, as_floats, bad_rows_text, check_dtype_and_shape

Source: TypeAlias = ArrayLike | PathLike | Sequence[PathLike]

CHUNK_BYTES = 32 << 20  # bytes per read: few beside a large corpus, many beside a disk's latency


class Corpus:
    """Vectors from an array, a memory map, a file, or several files that are the shards of one corpus, read in chunks.

    ``docs/formats.md`` lists the formats of files. Whatever a file holds, memory for one chunk is taken at a time.

    Parameters
    ----------
    source : array of shape (n, d), str, Path or list of these
        The vectors. A path names a file, a folder of shards, or a glob of them; ``:name`` after it names an array, a
        dataset or a column in each. Shards of a folder or a glob are in the order of the numbers in their names. Shards
        without vectors are left out.
    d : int, optional
        The dimension that they must have, which a file without a header is read by.
    what : str
        The name of an array in error messages; files go by their own names.
    queries : bool
        Whether these are queries: a file that holds both, as those of ann-benchmarks do, is read for them, and ids in
        a file are left aside.
    ids : str, optional
        The column, array or dataset beside the vectors that holds their ids, or a .npy file of them.
    d_of : str, optional
        The name in error messages of what has dimension ``d``; of shards it is the first of them.
    drop_bad_rows : bool
        Leave rows without a vector of finite numbers out: NaN, infinity and, in a table, null. The others keep their
        ids, or their row numbers as ids. The vectors are read once to find such rows; a warning counts them.

    Attributes
    ----------
    shape : tuple of int
        Number and dimension of the vectors, (n, d).
    nbytes : int
        Bytes of the vectors as they are stored.
    dtype : str
        Type of the stored values, in the last part of the source.
    ids
        Their ids, an ndarray of shape (n,), int64: as the files hold them, or row numbers in the source if rows were
        left out. None if ids are row numbers.
    n_stored : int
        Number of rows in the source, those left out included.
    paths : list of Path
        The files among the sources.
    metric : str or None
        What the first file says that its vectors are compared by: ``ip``, ``l2``, ``cosine``, or another in its own
        words.

    Raises
    ------
    TypeError, ValueError
        For arrays and files of another type or shape than :func:`~faiss_qama.vectors.as_vectors` takes, for files of
        other formats or with several arrays to choose from, and for ids that are no int64.
    OSError
        If a file cannot be opened.
    ImportError
        If the library that reads a file is not installed. The message has the command that installs it.
    """

    def __init__(
        self,
        source: Source,
        d: int | None = None,
        what: str = "corpus",
        *,
        queries: bool = False,
        ids: str | None = None,
        d_of: str | None = None,
        drop_bad_rows: bool = False,
    ) -> None:
        self._factor, self._normalizes = np.float32(1), False
        ids_file = Path(ids) if ids is not None and ids.endswith(".npy") else None
        want = Want(ids=None if ids_file else ids, d=d, queries=queries)
        self._parts, self.paths = _parts(source, what, want)
        self.shape, self.nbytes = (0, d or 0), 0
        for part, name in self._parts:
            first = None if d else self._parts[0][1]
            check_dtype_and_shape(part, self.shape[1] or None, name, in_file=bool(self.paths), d_of=d_of or first)
            self.shape = (self.shape[0] + part.shape[0], part.shape[1])
            self.nbytes += self.shape[1] * part.shape[0] * part.dtype.itemsize
            self.dtype = "bfloat16" if is_bfloat16(part.dtype) else str(part.dtype)
        self.metric = self._parts[0][0].metric
        self.n_stored = self.shape[0]
        self.ids = None if queries else self._stored_ids() if ids_file is None else self._ids_in(ids_file)
        self._kept: Ids | None = None  # the stored rows that are read, if not all
        if drop_bad_rows:
            self._drop_bad_rows()

    def __len__(self) -> int:
        return self.shape[0]

    def scaled(self, factor: float) -> Corpus:
        """Return the same vectors, multiplied by ``factor`` when they are read."""
        other = copy.copy(self)
        other._factor = self._factor * np.float32(factor)
        return other

    def normalized(self) -> Corpus:
        """Return the same vectors, scaled to norm 1 when they are read; zero vectors stay zero."""
        other = copy.copy(self)
        other._normalizes = True
        return other

    def where(self, kept: NDArray[np.bool_]) -> Corpus:
        """Return the vectors where ``kept`` (n,) is true. They keep their ids, or their row numbers as ids."""
        other = copy.copy(self)
        other._keep(np.flatnonzero(kept))
        return other

    @property
    def name(self) -> str:
        """The file, how many files, or the name of an array."""
        return self._parts[0][1] if len(self._parts) == 1 else f"{len(self._parts)} files"

    @property
    def n_chunks(self) -> int:
        """Number of chunks that :meth:`chunks` yields."""
        return -(-len(self) // self._step)

    def chunks(self) -> Iterator[Floats]:
        """Yield the vectors in order, checked, as (m, d) float32 arrays of at most ``CHUNK_BYTES``."""
        step, held, waiting = self._step, 0, []
        for _, x in self._windows(self._kept):
            held += len(x)
            waiting.append(x)
            if held >= step:
                x = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                yield x[:step]
                held -= step
                waiting = [x[step:]] if held else []
        if held:
            yield np.concatenate(waiting)

    def read(self) -> Floats:
        """Return all the vectors, (n, d) float32, in memory."""
        return np.concatenate(list(self.chunks()))

    def take(self, rows: NDArray[np.int64]) -> Floats:
        """Return the vectors (m, d) float32 at ``rows`` (m,), in that order. Raises IndexError for other rows."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}")
        order = np.argsort(rows, kind="stable")
        stored = rows[order] if self._kept is None else self._kept[rows[order]]
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for where, x in progress(self._windows(stored), "reading"):
            out[order[where]] = x
        return out

    def rows_of(self, ids: NDArray[np.int64]) -> tuple[Ids, Ids]:
        """Return, for each vector that has one of ``ids`` (m,), the place in ``ids`` and its row, (n,) int64 each."""
        known = np.arange(len(self)) if self.ids is None else self.ids
        order = np.argsort(known, kind="stable")
        first, end = (np.searchsorted(known, ids, side=side, sorter=order) for side in ("left", "right"))
        places = np.repeat(np.arange(len(ids)), end - first)
        before = np.cumsum(end - first) - (end - first)
        return places, order[np.arange(len(places)) - np.repeat(before - first, end - first)]

    def _windows(self, rows: Ids | None) -> Iterator[tuple[slice, Floats]]:
        """Yield parts in order: of every stored row, or of the sorted ``rows`` with their places among them."""
        first = 0
        for part, name in self._parts:
            base = first
            for window in part.windows(self._step):
                stop = first + len(window)
                if rows is None:
                    yield slice(first, stop), self._checked(np.array(window), part, name)
                else:
                    where = slice(*np.searchsorted(rows, [first, stop]))
                    if where.start < where.stop:
                        yield where, self._checked(np.array(window[rows[where] - first]), part, name)
                first = stop
            if first != base + part.shape[0]:
                raise ValueError(f"{name}: {first - base:,} rows, but {part.shape[0]:,} when it was opened")

    @property
    def _step(self) -> int:
        return max(1, CHUNK_BYTES // (4 * self.shape[1]))

    def _checked(self, x: NDArray[Any], part: Reader, name: str) -> Floats:
        out, bad = as_floats(x)
        if len(bad):  # all of them are counted, which takes a pass over the part
            found = bad_rows_text(_bad_in(part, self._step), part.shape[0], part.null)
            remedy = "; --drop-bad-rows, in Python Corpus(..., drop_bad_rows=True), leaves out what is bad"
            raise ValueError(f"{name}: {found}{remedy}")
        if self._factor != 1:
            out *= self._factor
        return scale_to_norm(out, 1.0) if self._normalizes else out

    def _stored_ids(self) -> Ids | None:
        if all(part.ids is None for part, _ in self._parts):
            return None
        ids, first = [], 0
        for part, name in self._parts:
            if part.ids is not None and len(part.ids) != part.shape[0]:
                raise ValueError(_uneven(name, len(part.ids), part.shape[0]))
            ids.append(np.arange(first, first + part.shape[0]) if part.ids is None else part.ids)
            first += part.shape[0]
        return np.concatenate(ids)

    def _ids_in(self, path: Path) -> Ids:
        ids = read_ids(path)
        if len(ids) != self.n_stored:
            raise ValueError(_uneven(path, len(ids), self.n_stored))
        return ids

    def _drop_bad_rows(self) -> None:
        bad, first = [], 0
        for part, _ in progress(self._parts, "looking for bad rows"):
            bad.append(first + _bad_in(part, self._step))
            first += part.shape[0]
        rows = np.concatenate(bad)
        if not len(rows):
            return
        null = max(part.null for part, _ in self._parts)
        if len(rows) == first:
            raise ValueError(f"{self.name}: no vectors, as {bad_rows_text(rows, first, null)}")
        warnings.warn(f"left out of {self.name}: {bad_rows_text(rows, first, null)}", stacklevel=3)
        self._keep(np.delete(np.arange(first), rows))

    def _keep(self, rows: Ids) -> None:
        """Leave out all but the sorted ``rows`` of those that are read."""
        self._kept = rows if self._kept is None else self._kept[rows]
        self.shape = (len(rows), self.shape[1])
        self.ids = rows if self.ids is None else self.ids[rows]


def load_vectors(path: PathLike, d: int | None = None) -> Floats:
    """Return the vectors (n, d) float32 in a file, checked as an array is; errors name the file."""
    return Corpus(path, d, queries=True).read()


def _uneven(name: PathLike, ids: int, vectors: int) -> str:
    return f"{name}: one id per vector is needed; got {ids:,} ids and {vectors:,} vectors"


def _parts(source: Source, what: str, want: Want) -> tuple[list[tuple[Reader, str]], list[Path]]:
    """Return the readers of a source with their names, without empty shards, and the files."""
    if isinstance(source, str | os.PathLike):
        sources: Sequence[PathLike] = [source]
    elif isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        sources = source
    elif want.ids is not None:
        raise ValueError(f"{what}: ids names a column or an array beside the vectors in a file; got an array")
    else:
        return [(Reader.of(np.asarray(source)), what)], []
    files = [file for one in sources for file in files_of(one)]
    parts = [(read_vectors(path, replace(want, name=name)), str(path)) for path, name in files]
    parts = [part for part in parts if part[0].shape[:1] != (0,)] or parts[:1]
    d = next((part.shape[-1] for part, _ in parts if part.shape and all(part.shape)), want.d)
    whole = [(_of_nulls(part, d) if part.null and d else part, name) for part, name in parts]
    return whole, [path for path, _ in files]


def _of_nulls(part: Reader, d: int) -> Reader:
    """Return a part of a table; one without any vector, whose dimension cannot be known, as one of dimension ``d``."""
    n = part.shape[0]
    if part.shape[1]:
        return part

    def windows(step: int) -> Iterator[Floats]:
        for start in range(0, n, step):
            yield np.full((min(step, n - start), d), np.nan, np.float32)

    return replace(part, shape=(n, d), windows=windows)


def _bad_in(part: Reader, step: int) -> Ids:
    """Return the rows (m,) int64 of a part that hold NaN or infinity."""
    bad, first = [np.empty(0, np.int64)], 0
    for window in part.windows(step):
        bad.append(first + as_floats(np.array(window))[1])
        first += len(window)
    return np.concatenate(bad)
