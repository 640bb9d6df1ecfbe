"""Our own exhaustive scan: two bits for a component of four levels instead of three, read in long SIMD registers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import codes, planes, ranking
from faiss_qama.base import Base, Distances, padded
from faiss_qama.codes import Codes, Floats
from faiss_qama.labels import Ids, Mask
from faiss_qama.layout import CodeLayout
from faiss_qama.planes import LANES, Words
from faiss_qama.rows import Rows

QUERIES = 32  # that look at a block together
WORK = 1 << 22  # codes times queries that are worth a thread of their own
CHUNK = 1 << 16  # codes that are compared at a time where there is no numba

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
        self._words = sum(words * times for words, times in zip(planes.widths(layout), (2, 1), strict=True))
        self._segments = planes.segments(layout)
        self._groups = Rows(np.empty((0, self._words, LANES), np.uint32) if groups is None else groups)
        self._n = n
        # The weights that all queries shared last, and their tables: they seldom change.
        self._shared: tuple[Floats, Floats] = np.empty(0, np.float32), np.empty((0, 256), np.float32)

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
        return planes.unpack(self._of(rows), self.layout)

    def add(self, codes: Codes) -> None:
        self._append(self._pack(codes))

    def keep(self, kept: Mask) -> None:
        words = self._of(np.flatnonzero(kept))
        self.reset()
        self._append(words)

    def reset(self) -> None:
        self._groups.clear()
        self._n = 0

    def truncated(self, layout: CodeLayout) -> Scan:
        other = Scan(layout)
        other.add(codes.truncate(self.codes, layout))
        return other

    def prefix(self, layout: CodeLayout) -> Scan:
        return self.truncated(layout)

    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        for name in settings:
            raise ValueError(f"{name} means nothing to {self}; it takes no search parameters")
        found = min(k, self._n)
        allowed = np.empty(0, bool) if rows is None else rows
        kernels = _kernels()
        if kernels is None:
            return padded(*self._without_numba(queries, found, allowed), k)
        kernel, words = kernels.scan(*planes.widths(self.layout)), self._pack(queries)
        # A thread takes some of the queries, or where those are few some of the groups.
        threads, groups = faiss.omp_get_max_threads(), len(self.groups)
        parts = 1 if len(words) > QUERIES * (threads - 1) else min(threads, 1 + self._n * len(words) // WORK)
        D, I = np.empty((parts, len(words), found), np.int32), np.empty((parts, len(words), found), np.int64)

        def scanned(task: tuple[slice, int]) -> None:
            batch, part = task
            first, last = part * groups // parts * LANES, min((part + 1) * groups // parts * LANES, self._n)
            kernel(self.groups, first, last, words[batch], allowed, D[part, batch], I[part, batch])

        batches = [slice(start, start + QUERIES) for start in range(0, len(words), QUERIES)]
        _each(scanned, [(batch, part) for batch in batches for part in range(parts)])
        if parts == 1:
            return padded(D[0], I[0], k)
        nearest = ranking.best(np.concatenate(list(D), axis=1), np.concatenate(list(I), axis=1), found, larger=False)
        return padded(*nearest, k)

    def sums(self, rows: Ids, weights: Floats, shared: Floats) -> tuple[Floats, Floats]:
        kernels = _kernels()
        if kernels is None:
            return super().sums(rows, weights, shared)
        pairs, others = planes.widths(self.layout)
        if shared is not self._shared[0]:
            table: Floats = np.empty((8 * pairs + 4 * others, 256), np.float32)
            kernels.tables(pairs, others, planes.byte_weights(shared[None], self.layout)[0], table)
            self._shared = shared, table
        weights, tables = planes.byte_weights(weights, self.layout), self._shared[1]
        own, common = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)

        def summed(part: slice) -> None:
            kernels.sums(pairs, others, self.groups, rows[part], weights[part], tables, own[part], common[part])

        step = 1 + len(rows) // faiss.omp_get_max_threads()
        _each(summed, [slice(start, start + step) for start in range(0, len(rows), step)])
        return own, common

    def _pack(self, code: Codes) -> Words:
        kernels = _kernels()
        if kernels is None:
            return planes.pack(code, self.layout)
        words = np.empty((len(code), self._words), np.uint32)
        kernels.pack(np.ascontiguousarray(code), self._segments, words)
        return words

    def _of(self, rows: Ids) -> Words:
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
    """Return the module of compiled loops, or None where numba is missing."""
    try:
        from faiss_qama import kernels  # here, because importing numba takes half a second
    except ImportError:
        return None
    return kernels


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
