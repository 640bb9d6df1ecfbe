"""Exhaustive scan of bit planes: two bits per component of four levels, not three, read in long SIMD registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import LANES, WORST, Codes, Distances, Floats, Ids, Mask, Words
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming import bit_planes
from faiss_qama.hamming.code_index import CodeIndex, MissingError, PartReader
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.bit_packing import hamming_table
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.threads import even_slices, parallel_map

QUERIES = 32  # queries that scan a block together
WORK = 1 << 22  # codes times queries that are worth a thread
CHUNK = 1 << 16  # codes that a query is compared with at a time, without numba
UNPACKED = 1 << 12  # codes that are unpacked at a time


class FlatCodeIndex(CodeIndex):
    """Codes as words of bit planes, scanned in parallel; without numba, unpacked chunk by chunk for FAISS's kernels.

    Among equal distances a search finds the first rows.

    Parameters
    ----------
    layout : CodeLayout
        Layout of the codes.
    groups : GrowingArray of shape (ceil(n / LANES), words, LANES), uint32, optional
        Codes, as :attr:`groups` returns them; they may be a read-only memory map.
    n : int
        Number of codes in ``groups``.
    """

    def __init__(self, layout: CodeLayout, groups: GrowingArray | None = None, n: int = 0) -> None:
        super().__init__(layout)
        self._words = bit_planes.n_words(layout)
        self._groups = GrowingArray(np.empty((0, self._words, LANES), np.uint32)) if groups is None else groups
        self._n = n
        # The last shared weights and their tables, as they seldom change.
        self._shared: tuple[Floats | None, Floats] = None, np.empty((0, 256), np.float32)

    @property
    def groups(self) -> NDArray[np.uint32]:
        """The words (ceil(n / LANES), words, LANES) uint32, those of ``LANES`` codes side by side."""
        return self._groups.array

    @property
    def index(self) -> Any:
        raise MissingError(f"base {self} is no faiss.IndexBinary; to_faiss('binary') makes one of its codes")

    def __len__(self) -> int:
        return self._n

    def __str__(self) -> str:
        return "Flat"

    @property
    def bytes_per_vector(self) -> int:
        return 4 * self._words

    def take(self, rows: Ids) -> Codes:
        code = np.empty((len(rows), self.layout.code_size), np.uint8)
        for start in range(0, len(rows), UNPACKED):
            part = slice(start, start + UNPACKED)
            code[part] = bit_planes.unpack(self.words(rows[part]), self.layout)
        return code

    def append(self, codes: Codes) -> None:
        self._append(bit_planes.packed(codes, self.layout))

    def keep(self, kept: Mask) -> None:
        words = self.words(np.flatnonzero(kept))
        groups = np.zeros((-(-len(words) // LANES), self._words, LANES), np.uint32)
        rows = np.arange(len(words))
        groups[rows // LANES, :, rows % LANES] = words
        self._groups, self._n = GrowingArray(groups), len(words)  # last, so that a lack of memory changes nothing

    def shrink(self, n: int) -> None:
        self._n = min(n, self._n)
        self._groups.shrink(-(-self._n // LANES))  # what is in its free lanes is overwritten

    def copy(self, rows: Ids) -> FlatCodeIndex:
        other = FlatCodeIndex(self.layout)
        for start in range(0, len(rows), CHUNK):
            other._append(self.words(rows[start : start + CHUNK]))
        return other

    def clear(self) -> None:
        self._groups.clear()
        self._n = 0

    def truncate(self, layout: CodeLayout) -> FlatCodeIndex:
        return FlatCodeIndex(layout, GrowingArray(bit_planes.truncate(self.groups, self.layout, layout)), self._n)

    def parts(self) -> dict[str, Any]:
        return {"codes": self.groups}

    def growing(self) -> dict[str, GrowingArray] | None:
        return {"codes": self._groups}

    @classmethod
    def from_parts(cls, name: str, layout: CodeLayout, n: int, reader: PartReader) -> FlatCodeIndex:
        return cls(layout, reader.growing("codes", (-(-n // LANES), bit_planes.n_words(layout), LANES), "<u4"), n)

    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        for name in settings:
            raise ValueError(f"{name} means nothing to {self}; it takes no search parameters")
        groups, n, found = self.groups, self._n, min(k, self._n)
        allowed = np.empty(0, bool) if rows is None else rows
        compiled, starts = kernel("scanning"), range(0, len(queries) or 1, QUERIES)
        if compiled is None:
            done = [self._without_numba(queries[start : start + QUERIES], found, allowed) for start in starts]
            return topk.padded(*topk.joined(done, axis=0), k, np.int32(WORST))
        scan_rows = compiled.scans(*bit_planes.widths(self.layout)).rows
        # Threads take parts of the groups; if queries are many, TwoStageIndex has divided them among threads before.
        parts = min(faiss.omp_get_max_threads(), 1 + n * min(len(queries), QUERIES) // WORK)
        ends = [part * len(groups) // parts * LANES for part in range(parts)] + [n]

        def scanned(task: tuple[Words, int]) -> tuple[Distances, Ids]:
            block, part = task
            shape = len(block), min(found, ends[part + 1] - ends[part])
            D, I = np.empty(shape, np.int32), np.empty(shape, np.int64)
            scan_rows(groups, ends[part], ends[part + 1], block, allowed, D, I)
            return D, I

        words = bit_planes.packed(queries, self.layout)
        tasks = [(words[start : start + QUERIES], part) for start in starts for part in range(parts)]
        done = parallel_map(scanned, tasks)
        if parts > 1:
            joined = [topk.joined(done[start : start + parts], axis=1) for start in range(0, len(done), parts)]
            done = [topk.best(D, I, found, larger=False) for D, I in joined]
        return topk.padded(*topk.joined(done, axis=0), k, np.int32(WORST))

    def distances(self, queries: Codes, rows: Ids) -> Distances:
        topk.check_rows(rows, self._n)
        compiled = kernel("scanning")
        if compiled is None:
            return super().distances(queries, rows)
        D = np.empty(rows.shape, np.int32)
        compiled.scans(*bit_planes.widths(self.layout)).distances(
            self.groups, self._place(rows), bit_planes.packed(queries, self.layout), D
        )
        return D

    def weighted_sums(self, rows: Ids, weights: Floats, shared: Floats | None) -> tuple[Floats, Floats]:
        topk.check_rows(rows, self._n)
        compiled = kernel("weighted_sums")
        if compiled is None:
            return super().weighted_sums(rows, weights, shared)
        groups, places, (pairs, others) = self.groups, self._place(rows), bit_planes.widths(self.layout)
        cached = self._shared
        if shared is None:
            cached = None, np.zeros((8 * pairs + 4 * others, 256), np.float32)
        elif cached[0] is not shared:
            table: Floats = np.empty((8 * pairs + 4 * others, 256), np.float32)
            compiled.lookup_tables(pairs, others, bit_planes.level_weights(shared[None], self.layout)[0], table)
            cached = self._shared = shared, table
        weights = bit_planes.level_weights(weights, self.layout)
        own, common = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)

        def summed(part: slice) -> None:
            compiled.weighted_sums(
                pairs, others, groups, places[part], weights[part], cached[1], own[part], common[part]
            )

        parallel_map(summed, even_slices(len(rows)))
        return own, common

    def words(self, rows: Ids) -> Words:
        places = self._place(rows)
        words: Words = self.groups[places // LANES, :, places % LANES]
        return words

    def _place(self, rows: Ids) -> Ids:
        """Return the places of ``rows`` (same shape): ``LANES`` times the group, plus the lane."""
        return rows

    def _append(self, words: Words) -> None:
        first = self._n // LANES  # the group that has room; nothing reads its lanes beyond the last row
        rows = np.arange(self._n, self._n + len(words))
        groups = np.zeros((-(-(self._n + len(words)) // LANES) - first, self._words, LANES), np.uint32)
        if self._n % LANES and len(groups):
            groups[0] = self.groups[first]
        groups[rows // LANES - first, :, rows % LANES] = words
        self._groups.write(first, groups)
        self._n += len(words)

    def _without_numba(self, queries: Codes, k: int, allowed: Mask) -> tuple[Distances, Ids]:
        rows = np.flatnonzero(allowed) if len(allowed) else np.arange(self._n)
        return nearest_of(self, queries, rows, k)


def nearest_of(base: CodeIndex, queries: Codes, rows: Ids, k: int) -> tuple[Distances, Ids]:
    """Return the ``k`` nearest codes among some rows, by FAISS's kernels; the first rows among equal distances.

    Parameters
    ----------
    base : CodeIndex
        The codes.
    queries : ndarray of shape (nq, code_size), uint8
        Codes of the queries.
    rows : ndarray of shape (m,), int64
        Rows to search.
    k : int
        Neighbours.

    Returns
    -------
    D : ndarray of shape (nq, k), int32
        Hamming distances, smallest first; ``WORST`` for missing hits.
    I : ndarray of shape (nq, k), int64
        Rows; -1 for missing hits.
    """
    D, I = np.empty((len(queries), 0), np.int32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        distances = hamming_table(queries, base.take(some))
        D = np.concatenate([D, distances], axis=1)
        I = np.concatenate([I, np.broadcast_to(some, distances.shape)], axis=1)
        D, I = topk.best(D, I, k, larger=False)
    return topk.padded(D, I, k, np.int32(WORST))
