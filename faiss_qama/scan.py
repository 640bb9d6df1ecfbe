"""Our own exhaustive scan: two bits for a component of four levels instead of three, read in long SIMD registers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import planes, ranking
from faiss_qama.base import WORST, Base, Distances
from faiss_qama.codes import Codes, Floats
from faiss_qama.labels import Ids, Mask
from faiss_qama.layout import CodeLayout
from faiss_qama.planes import LANES, Words
from faiss_qama.rows import Rows

QUERIES = 32  # that look at a block together
WORK = 1 << 22  # codes times queries that are worth a thread of their own
CHUNK = 1 << 16  # codes that those are compared with at a time where there is no numba
UNPACKED = 1 << 12  # codes that are expanded at a time

T = TypeVar("T")
R = TypeVar("R")


class Scan(Base):
    """Codes as words of bit planes, scanned in parallel; without numba, expanded piece by piece for FAISS's kernels.

    Of equal distances the first rows are found.

    Parameters
    ----------
    layout : of the codes
    groups, n : codes that there are, as :attr:`groups` has them, and how many; they may be a read-only memory map
    """

    def __init__(self, layout: CodeLayout, groups: NDArray[np.uint32] | None = None, n: int = 0) -> None:
        super().__init__(layout)
        self._words = planes.n_words(layout)
        self._segments = planes.segments(layout)
        self._groups = Rows(np.empty((0, self._words, LANES), np.uint32) if groups is None else groups)
        self._n = n
        # The weights that all queries shared last, and their tables: they seldom change.
        self._shared: tuple[Floats | None, Floats] = None, np.empty((0, 256), np.float32)

    @property
    def groups(self) -> NDArray[np.uint32]:
        """The words of ``LANES`` codes side by side, (ceil(n / LANES), words, LANES)."""
        return self._groups.array

    @property
    def index(self) -> Any:
        raise ValueError("base Scan is no faiss.IndexBinary; to_faiss('binary') makes one of its codes")

    def __len__(self) -> int:
        return self._n

    def __str__(self) -> str:
        return "Scan"

    @property
    def bytes_per_vector(self) -> int:
        return 4 * self._words

    def take(self, rows: Ids) -> Codes:
        code = np.empty((len(rows), self.layout.code_size), np.uint8)
        for start in range(0, len(rows), UNPACKED):
            part = slice(start, start + UNPACKED)
            code[part] = planes.unpack(self._gather(rows[part]), self.layout)
        return code

    def add(self, codes: Codes) -> None:
        self._append(self._pack(codes))

    def keep(self, kept: Mask) -> None:
        words = self._gather(np.flatnonzero(kept))
        self.reset()
        self._append(words)

    def reset(self) -> None:
        self._groups.clear()
        self._n = 0

    def truncated(self, layout: CodeLayout) -> Scan:
        return Scan(layout, planes.truncate(self.groups, self.layout, layout), self._n)

    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        for name in settings:
            raise ValueError(f"{name} means nothing to {self}; it takes no search parameters")
        groups, n, found = self.groups, self._n, min(k, self._n)
        allowed = np.empty(0, bool) if rows is None else rows
        kernels = _kernels()
        if kernels is None:
            blocks = [queries[start : start + QUERIES] for start in range(0, len(queries) or 1, QUERIES)]
            done = [self._without_numba(block, found, allowed) for block in blocks]
            return ranking.padded(*_joined(done, axis=0), k, np.int32(WORST))
        kernel, words = kernels.scan(*planes.widths(self.layout)), self._pack(queries)
        # A thread takes some of the queries, or where those are few some of the groups.
        threads, batches, parts = faiss.omp_get_max_threads(), max(1, -(-len(words) // QUERIES)), 1
        if batches < threads:
            parts = min(threads, 1 + n * len(words) // WORK)
        else:
            batches = -(-batches // threads) * threads
        ends = [part * len(groups) // parts * LANES for part in range(parts)] + [n]

        def scanned(task: tuple[Words, int]) -> tuple[Distances, Ids]:
            batch, part = task
            shape = len(batch), min(found, ends[part + 1] - ends[part])
            D, I = np.empty(shape, np.int32), np.empty(shape, np.int64)
            kernel(groups, ends[part], ends[part + 1], batch, allowed, D, I)
            return D, I

        tasks = [(batch, part) for batch in np.array_split(words, batches) for part in range(parts)]
        done = _each(scanned, tasks)
        if parts > 1:
            joined = [_joined(done[start : start + parts], axis=1) for start in range(0, len(done), parts)]
            done = [ranking.best(D, I, found, larger=False) for D, I in joined]
        return ranking.padded(*_joined(done, axis=0), k, np.int32(WORST))

    def weighted_sums(self, rows: Ids, weights: Floats, shared: Floats | None) -> tuple[Floats, Floats]:
        if rows.size and not 0 <= rows.min() <= rows.max() < self._n:
            raise IndexError(f"rows must be from 0 to {self._n - 1}; got {rows.min()} to {rows.max()}")
        kernels = _kernels()
        if kernels is None:
            return super().weighted_sums(rows, weights, shared)
        groups, (pairs, others) = self.groups, planes.widths(self.layout)
        cached = self._shared
        if shared is None:
            cached = None, np.zeros((8 * pairs + 4 * others, 256), np.float32)
        elif cached[0] is not shared:
            table: Floats = np.empty((8 * pairs + 4 * others, 256), np.float32)
            kernels.lookup_tables(pairs, others, planes.level_weights(shared[None], self.layout)[0], table)
            cached = self._shared = shared, table
        weights = planes.level_weights(weights, self.layout)
        own, common = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)

        def summed(part: slice) -> None:
            kernels.weighted_sums(pairs, others, groups, rows[part], weights[part], cached[1], own[part], common[part])

        step = -(-len(rows) // faiss.omp_get_max_threads()) or 1
        _each(summed, [slice(start, start + step) for start in range(0, len(rows), step)])
        return own, common

    def _pack(self, code: Codes) -> Words:
        kernels = _kernels()
        if kernels is None:
            return planes.pack(code, self.layout)
        words = np.empty((len(code), self._words), np.uint32)
        kernels.pack(np.ascontiguousarray(code), self._segments, words)
        return words

    def _gather(self, rows: Ids) -> Words:
        """Return the words (n, words) of ``rows`` (n,)."""
        words: Words = self.groups[rows // LANES, :, rows % LANES]
        return words

    def _append(self, words: Words) -> None:
        rows = np.arange(self._n, self._n + len(words))
        missing = -(-(self._n + len(words)) // LANES) - len(self._groups)
        self._groups.append(np.zeros((missing, self._words, LANES), np.uint32))
        self.groups[rows // LANES, :, rows % LANES] = words
        self._n += len(words)

    def _without_numba(self, queries: Codes, k: int, allowed: Mask) -> tuple[Distances, Ids]:
        D, I = np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.int64)
        for start in range(0, self._n, CHUNK):
            rows = np.arange(start, min(start + CHUNK, self._n))
            if len(allowed):
                rows = rows[allowed[rows]]
            distances = np.empty((len(queries), len(rows)), np.int32)
            code = self.take(rows)
            faiss.hammings(
                faiss.swig_ptr(queries),
                faiss.swig_ptr(code),
                len(queries),
                len(rows),
                code.shape[1],
                faiss.swig_ptr(distances),
            )
            D = np.concatenate([D, distances], axis=1)
            I = np.concatenate([I, np.broadcast_to(rows, distances.shape)], axis=1)
            D, I = ranking.best(D, I, k, larger=False)
        return D, I


@cache
def _kernels() -> Any:
    """Return the module of compiled loops, or None, with a warning, where numba is missing."""
    try:
        from faiss_qama import kernels  # here, because importing numba takes half a second
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        warnings.warn("Scan is slower without numba: pip install 'faiss-qama[scan]'", stacklevel=2)
        return None
    return kernels


def _joined(done: Sequence[tuple[Distances, Ids]], axis: int) -> tuple[Distances, Ids]:
    """Return all D and all I side by side."""
    if len(done) == 1:
        return done[0]
    return np.concatenate([D for D, _ in done], axis=axis), np.concatenate([I for _, I in done], axis=axis)


def _each(do: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
    """Return what ``do`` returns of each task, as many at a time as FAISS may use threads."""
    if len(tasks) <= 1 or faiss.omp_get_max_threads() == 1:
        return [do(task) for task in tasks]
    return list(_threads(faiss.omp_get_max_threads()).map(do, tasks))


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="faiss-qama-scan")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)
