"""Inverted lists of bit planes: a search scans only the lists nearest to its query.

Inverted lists come from Sivic and Zisserman, "Video Google: A Text Retrieval Approach to Object Matching in Videos",
2003.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import LANES, WORST, Codes, Distances, Ids, Mask, Words
from faiss_qama.growing import GrowingArray, with_room
from faiss_qama.hamming import bit_planes
from faiss_qama.hamming.code_index import PartReader
from faiss_qama.hamming.flat import CHUNK, FlatCodeIndex, nearest_of
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.bit_packing import levels, of_levels, truncate, twice
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.threads import even_slices, parallel_map

QUERIES, HITS = 1024, 1 << 19  # queries that scan a list together, at most, and their hits
BULK = 1 / 4  # an append of this share of the codes or more rebuilds all lists in order
ITERATIONS = 10  # of k-means
MAX_LISTS = 1 << 24  # more than any corpus needs: four times the root of 17 trillion vectors
STEPS = 64  # steps of a centroid from one level to the next
NEAR = 8  # lists that may be a code's own: those that it would probe first
Centroids = NDArray[np.uint8]


class IVFCodeIndex(FlatCodeIndex):
    """Lists of codes that lie near each other; a search probes the nearest lists.

    A list is a chain of groups of ``LANES`` codes; the last group may have empty lanes. Centroids are means of levels,
    found by k-means, and lie between levels. A scan finds the lists to probe: each centroid is rounded to levels
    twice, with 1/4 and with 3/4 of a level added before it is rounded down. The sum of both Hamming distances is twice
    the L1 distance, to within half a level per component. Of the first ``NEAR`` lists, those with the nearest centroids
    are probed first. A code belongs to the list that it would probe first if all held codes. Lists without codes are
    not probed; if there are none, an equal query finds a code with ``nprobe`` 1.

    Parameters
    ----------
    layout : CodeLayout
        Layout of the codes.
    nlist : int
        Number of lists, 1 to ``MAX_LISTS``.
    """

    def __init__(self, layout: CodeLayout, nlist: int) -> None:
        if not 1 <= nlist <= MAX_LISTS:
            raise ValueError(f"base: lists must be 1 to {MAX_LISTS:,}; got {nlist}")
        super().__init__(layout)
        self.nlist, self.nprobe = nlist, 1
        self._set_centroids(np.empty((0, layout.units), np.uint8))
        # Of an index open for writing: codes in the lists of its bundle, and words and lists of the codes since then.
        self._log: tuple[int, GrowingArray, GrowingArray] | None = None
        self._clear()

    def _set_centroids(self, centroids: Centroids) -> None:
        """Set the centroids (nlist, units) uint8, in ``STEPS`` per level."""
        self._centroids = centroids
        self._coarse = FlatCodeIndex(CodeLayout(2 * self.layout.segments))
        rounded = [(centroids + np.uint8(quarter * STEPS // 4)) // STEPS for quarter in (1, 3)]
        self._coarse.append(of_levels(np.concatenate(rounded, axis=1), self._coarse.layout))

    def _clear(self) -> None:
        self._groups, self._n = GrowingArray(np.empty((0, self._words, LANES), np.uint32)), 0
        self._rows = GrowingArray(np.empty((0, LANES), np.int32))  # of the codes of a group, -1 in empty lanes
        self._places = GrowingArray(np.empty(0, np.int32))  # of rows: LANES * group + lane
        self._following = GrowingArray(np.empty(0, np.int32))  # the next group of the list, or -1
        self._lists = GrowingArray(np.empty(0, np.int32))  # of groups
        self._heads, self._tails = np.full((2, self.nlist), -1, np.int32)  # groups
        self._sizes = np.zeros(self.nlist, np.int64)

    def __str__(self) -> str:
        return f"IVF{self.nlist}"

    @property
    def bytes_per_vector(self) -> int:
        held = [rows.array.nbytes for rows in (self._groups, self._rows, self._places, self._following, self._lists)]
        held += [self._heads.nbytes, self._tails.nbytes, self._sizes.nbytes, self._centroids.nbytes]
        return round((sum(held) + self._coarse.groups.nbytes) / max(self._n, 1))

    @property
    def is_trained(self) -> bool:
        return len(self._coarse) > 0

    @property
    def settings(self) -> dict[str, int]:
        return {"nprobe": self.nprobe}

    def set(self, settings: Mapping[str, int]) -> None:
        self.nprobe = self._nprobe(settings)

    def _nprobe(self, settings: Mapping[str, int]) -> int:
        for name, value in settings.items():
            if name != "nprobe":
                raise ValueError(f"{name} means nothing to {self}; it takes nprobe")
            if value < 1:
                raise ValueError(f"nprobe must be at least 1; got {value}")
        return min(settings.get("nprobe", self.nprobe), self.nlist)

    def check_recall(self, settings: Mapping[str, int]) -> None:
        if self.nlist > 1 and self._nprobe(settings) == 1:
            raise ValueError(f"recall= was measured with exhaustive scans, and {self} probes 1 list: set nprobe too")

    def train(self, codes: Codes) -> None:
        if len(codes) < self.nlist:
            raise ValueError(f"{self} needs at least {self.nlist} vectors to train; got {len(codes)}")
        points = levels(codes, self.layout).astype(np.float32)
        kmeans = faiss.Kmeans(points.shape[1], self.nlist, niter=ITERATIONS, seed=1, min_points_per_centroid=1)
        kmeans.train(points)
        self._set_centroids(np.rint(STEPS * kmeans.centroids).astype(np.uint8))

    def append(self, codes: Codes) -> None:
        words, lists = bit_planes.packed(codes, self.layout), self._own_lists(codes)
        if self._log is not None:
            before, *log = self._log
            for rows, more in zip(log, (words, lists), strict=True):
                rows.write(self._n - before, more)  # first: what is logged beyond the last code does not count
        if len(codes) >= BULK * self._n:
            there = np.arange(self._n)
            both = np.concatenate([self.words(there), words])
            self._fill(both, np.concatenate([self._lists_of(there), lists]))
        else:
            self._insert(words, lists)

    def keep(self, kept: Mask) -> None:
        rows = np.flatnonzero(kept)
        self._fill(self.words(rows), self._lists_of(rows))
        self._log = None

    def copy(self, rows: Ids) -> IVFCodeIndex:
        other = copy(self)
        other._fill(self.words(rows), self._lists_of(rows))
        other._log = None
        return other

    def shrink(self, n: int) -> None:
        log = self._log
        if n < self._n:
            self.keep(np.arange(self._n) < n)
        self._log = log if log is not None and n >= log[0] else None

    def clear(self) -> None:
        self._clear()
        self._log = None

    def truncate(self, layout: CodeLayout) -> IVFCodeIndex:
        other = IVFCodeIndex(layout, self.nlist)
        other.nprobe = self.nprobe
        other._set_centroids(self._centroids[:, : other._centroids.shape[1]])
        other._groups = GrowingArray(bit_planes.truncate(self.groups, self.layout, layout))
        other._n, other._rows, other._places = self._n, self._rows, self._places
        other._following, other._lists = self._following, self._lists
        other._heads, other._tails, other._sizes = self._heads, self._tails, self._sizes
        return other

    def flat_prefix(self, layout: CodeLayout) -> FlatCodeIndex:
        other = FlatCodeIndex(layout)
        other.append(truncate(self.codes, layout))
        return other

    def parts(self) -> dict[str, Any]:
        """Return the arrays that a bundle holds, by name, with the groups in the order of their lists."""
        order = np.argsort(self._lists.array, kind="stable")
        rows = self._rows.array[order]
        places = np.empty(self._n, np.int32)
        flat = np.flatnonzero(rows.ravel() >= 0)
        places[rows.ravel()[flat]] = flat
        return {
            "codes": self.groups[order],
            "rows": rows,
            "places": places,
            "sizes": self._sizes,
            "centroids": self._centroids,
        }

    def growing(self) -> dict[str, GrowingArray] | None:
        if self._log is None:
            return None
        before, words, lists = self._log
        for rows in (words, lists):
            rows.shrink(self._n - before)
        return {"newcodes": words, "newlists": lists} if len(words) else {}

    def written(self) -> None:
        log = GrowingArray(np.empty((0, self._words), np.uint32)), GrowingArray(np.empty(0, np.int32))
        self._log = self._n, *log

    @classmethod
    def from_parts(cls, name: str, layout: CodeLayout, n: int, reader: PartReader) -> IVFCodeIndex:
        base, logged = cls(layout, int(name.removeprefix("IVF"))), reader.has("newcodes")
        base._sizes = np.array(reader.array("sizes", (base.nlist,), "<i8", mapped=False))
        held = int(base._sizes.sum())
        if base._sizes.min() < 0 or base._sizes.max() > n or held > n or (held < n and not logged):
            raise reader.invalid("sizes", f"lists of {held} codes; the manifest says {n}")
        words = GrowingArray(np.empty((0, base._words), np.uint32))
        lists = GrowingArray(np.empty(0, np.int32))
        if logged:
            words = reader.growing("newcodes", (n - held, base._words), "<u4")
            lists = reader.growing("newlists", (n - held,), "<i4")
            if not 0 <= lists.array.min() <= lists.array.max() < base.nlist:
                raise reader.invalid("newlists", f"a list that is not among {base.nlist}")
        base._set_centroids(np.asarray(reader.array("centroids", (base.nlist, layout.units), "|u1", mapped=False)))
        groups = -(-base._sizes // LANES)
        of_group = int(groups.sum())
        codes = reader.array("codes", (of_group, base._words, LANES), "<u4")
        rows = _within(reader, "rows", (of_group, LANES), -1, held)
        places = _within(reader, "places", (held,), 0, of_group * LANES)
        ends = np.cumsum(groups).astype(np.int32)
        base._heads = np.where(groups, ends - groups.astype(np.int32), np.int32(-1))
        base._tails = np.where(groups, ends - np.int32(1), np.int32(-1))
        following = np.arange(1, groups.sum() + 1, dtype=np.int32)
        following[base._tails[groups > 0]] = -1
        base._following = GrowingArray(following)
        base._lists = GrowingArray(np.repeat(np.arange(base.nlist, dtype=np.int32), groups))
        own = with_room if logged or reader.writable else GrowingArray  # codes are inserted into them
        base._groups, base._rows, base._places = own(codes), own(rows), own(places)
        base._n = held
        if logged:
            base._insert(words.array, lists.array)
        base._log = (held, words, lists) if reader.writable else None
        return base

    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        nprobe, left = self._nprobe(settings), self._n if rows is None else int(np.count_nonzero(rows))
        if k >= left or 2 * left < self._n:
            nprobe = self.nlist
        D, I = self._probe(queries, min(k, self._n), rows, nprobe)
        if rows is not None and nprobe < self.nlist:  # with a filter too, k rows are found if k match
            short = np.flatnonzero(I[:, -1] < 0)
            if len(short):
                D[short], I[short] = self._probe(queries[short], k, rows, self.nlist)
        return topk.padded(D, I, k, np.int32(WORST))

    def _probe(self, queries: Codes, k: int, rows: Mask | None, nprobe: int) -> tuple[Distances, Ids]:
        """Return distances and rows (nq, k) of the nearest codes in the ``nprobe`` nearest lists that hold any."""
        held = self._sizes > 0
        nprobe, filled = min(nprobe, int(held.sum())), None if held.all() else held
        D, I = np.full((len(queries), k), WORST, np.int32), np.full((len(queries), k), -1)
        compiled, words = kernel("scanning"), bit_planes.packed(queries, self.layout)
        allowed = np.empty(0, bool) if rows is None else rows

        def scanned(part: slice) -> None:
            step = max(1, min(QUERIES, HITS // k))
            for start in range(part.start, min(part.stop, len(queries)), step):
                block = slice(start, min(start + step, part.stop))
                probes = self._nearest_lists(queries[block], nprobe, filled)
                if compiled is None:
                    self._without_lists(queries[block], probes, allowed, D[block], I[block])
                    continue
                scan_lists = compiled.scans(*bit_planes.widths(self.layout)).lists
                chains = self.groups, self._rows.array, self._heads, self._following.array
                scan_lists(chains, probes, words[block], allowed, D[block], I[block])

        if k:
            parallel_map(scanned, even_slices(len(queries)))
        return D, I

    def _without_lists(self, queries: Codes, probes: Ids, allowed: Mask, D: Distances, I: Ids) -> None:
        """Search ``probes`` (nq, nprobe) as the compiled loop does. Among equal distances it may find other rows."""
        order = np.argsort(self._lists.array, kind="stable")
        ends = np.searchsorted(self._lists.array[order], np.arange(self.nlist + 1))
        for q, lists in enumerate(probes):
            groups = np.concatenate([order[ends[probed] : ends[probed + 1]] for probed in lists])
            rows = self._rows.array[groups].ravel()
            rows = rows[rows >= 0].astype(np.int64)
            if len(allowed):
                rows = rows[allowed[rows]]
            D[q : q + 1], I[q : q + 1] = nearest_of(self, queries[q : q + 1], rows, D.shape[1])

    def _own_lists(self, code: Codes) -> NDArray[np.int32]:
        """Return the list (n,) of each code: the one that it would probe first."""
        lists = np.empty(len(code), np.int32)
        for start in range(0, len(code), CHUNK):
            lists[start : start + CHUNK] = self._nearest_lists(code[start : start + CHUNK], 1, None)[:, 0]
        return lists

    def _nearest_lists(self, code: Codes, n: int, allowed: Mask | None) -> Ids:
        """Return the ``n`` nearest lists (nq, n) of each code; fewer than ``NEAR`` are the nearest of so many by L2."""
        near = max(n, min(NEAR, self.nlist if allowed is None else int(allowed.sum())))
        lists = self._coarse.search(twice(code, self.layout), near, allowed, {})[1]
        if n >= near:
            return lists
        centroids, places = self._centroids, lists
        if lists.size < self.nlist:  # those of a few queries' lists alone
            used, places = np.unique(lists, return_inverse=True)
            centroids = centroids[used]
        points, centroids = np.float32(STEPS) * levels(code, self.layout), centroids.astype(np.float32)
        distances, places = np.empty(lists.shape, np.float32), np.ascontiguousarray(places.ravel(), np.int64)
        pointers = [faiss.swig_ptr(array) for array in (distances, points, centroids, places)]
        faiss.fvec_L2sqr_by_idx(*pointers, points.shape[1], len(code), near)
        return np.take_along_axis(lists, np.argsort(distances, axis=1, kind="stable")[:, :n], axis=1)

    def _fill(self, words: Words, lists: NDArray[np.int32]) -> None:
        """Replace all rows by ``words`` (n, words) in ``lists`` (n,), in one step at the end."""
        filled = copy(self)
        filled._clear()
        filled._insert(words, lists)
        vars(self).update(vars(filled))

    def _insert(self, words: Words, lists: NDArray[np.int32]) -> None:
        """Append rows ``words`` (m, words) to ``lists`` (m,): to empty lanes of last groups, then to new groups.

        An error or Ctrl-C leaves the lists as they were.
        """
        order = np.argsort(lists, kind="stable")
        lists, more = lists[order], np.bincount(lists, minlength=self.nlist)
        had, have = -(-self._sizes // LANES), -(-(self._sizes + more) // LANES)  # groups
        first_new = len(self.groups) + np.cumsum(have - had) - (have - had)
        place = self._sizes[lists] + np.arange(len(lists)) - (np.cumsum(more) - more)[lists]  # within the list
        into = place // LANES - had[lists]  # 0 or more: a new group
        group, lane = np.where(into < 0, self._tails[lists], first_new[lists] + into), place % LANES

        longer, new = np.flatnonzero(have > had), int((have - had).sum())
        following = len(self.groups) + np.arange(1, new + 1, dtype=np.int32)
        following[np.cumsum((have - had)[longer]) - 1] = -1
        places = np.empty(len(order), np.int32)
        places[order] = LANES * group + lane
        grown = {
            self._groups: np.zeros((new, self._words, LANES), np.uint32),
            self._rows: np.full((new, LANES), -1, np.int32),
            self._following: following,
            self._lists: np.repeat(np.arange(self.nlist, dtype=np.int32), have - had),
            self._places: places,
        }
        lengths, n = {rows: len(rows) for rows in grown}, self._n
        heads, tails, sizes = self._heads.copy(), self._tails.copy(), self._sizes.copy()
        begun, ended = longer[had[longer] == 0], longer[had[longer] > 0]
        try:
            for rows, more_rows in grown.items():
                rows.append(more_rows)
            self.groups[group, :, lane] = words[order]
            self._rows.array[group, lane] = self._n + order
            self._heads[begun] = first_new[begun]
            self._following.array[self._tails[ended]] = first_new[ended]
            self._tails[longer] = (first_new + have - had - 1)[longer]
            self._sizes += more
            self._n += len(order)
        except BaseException:
            for rows, length in lengths.items():
                rows.shrink(length)
            there = group < len(self.groups)
            self._rows.array[group[there], lane[there]] = -1
            self._following.array[tails[ended]] = -1
            self._heads, self._tails, self._sizes, self._n = heads, tails, sizes, n
            raise

    def _place(self, rows: Ids) -> Ids:
        places = self._places.array[rows].astype(np.int64)
        topk.check_rows(places, LANES * len(self._groups))  # a mapped file may hold anything
        return places

    def _lists_of(self, rows: Ids) -> NDArray[np.int32]:
        lists: NDArray[np.int32] = self._lists.array[self._place(rows) // LANES]
        return lists


def _within(reader: PartReader, name: str, shape: tuple[int, ...], least: int, most: int) -> NDArray[np.int32]:
    """Return an array of numbers from ``least`` to ``most`` - 1. Searches check a memory map, as they read it."""
    array = reader.array(name, shape, "<i4")
    if not isinstance(array, np.memmap) and array.size and not least <= array.min() <= array.max() < most:
        raise reader.invalid(name, f"{array.min()} to {array.max()}; {least} to {most - 1} are possible")
    return array
