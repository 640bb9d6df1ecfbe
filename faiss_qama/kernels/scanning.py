"""Hot loops over codes, compiled by numba when they are first used and kept in its cache.

A scan reads words (see :mod:`faiss_qama.hamming.bit_planes`) in groups of ``LANES`` codes,
(groups, words, LANES) uint32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from faiss_qama.arrays import LANES, WORST
from faiss_qama.kernels.compiling import AHEAD, everywhere, jitted, lanes, prefetch

ROOM = 3  # hits that are held per hit wanted, before those too far are dropped; up to twice as many may stay
BLOCK = 512  # codes that stay in the first cache while several queries look at them: 24 kB of 48 bytes each


_NUMBERS = ir.VectorType(ir.IntType(32), LANES)


def _called(builder: Any, name: str, result: Any, argument: Any) -> Any:
    """Return the result of LLVM's function ``name`` for ``LANES`` numbers."""
    kind = ir.FunctionType(result, [_NUMBERS])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}i32"), [argument])


@intrinsic(prefer_literal=True)
def _tuple(typing: Any, x: Any, row: Any, width: Any) -> Any:
    """Return a row of ``x`` (n, width) as a tuple. A view would count references, which threads contend for."""
    row_of = types.UniTuple(x.dtype, width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(x)(context, builder, arguments[0]).data
        first = builder.gep(data, [builder.mul(arguments[1], arguments[2])])
        places = [builder.gep(first, [ir.Constant(arguments[1].type, i)]) for i in range(width.literal_value)]
        return context.make_tuple(builder, row_of, [builder.load(place) for place in places])

    return row_of(x, types.intp, width), generate


@intrinsic(prefer_literal=True)
def _measure(typing: Any, pairs: Any, groups: Any, group: Any, query: Any, bound: Any, out: Any, at: Any) -> Any:
    """Write the distances of a group's codes to ``out[at]`` (LANES,); return a bit per code, set if below ``bound``.

    ``query`` is a tuple of words, of which the first 2 * ``pairs`` are pairs (h, g); it stays in registers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, groups_, group_, query_, bound_, out_, at_ = arguments
        words = lanes(context, builder, groups, groups_, builder.mul(group_, ir.Constant(group_.type, query.count)))

        def word(w: int) -> tuple[Any, Any]:
            place = builder.gep(words, [ir.Constant(group_.type, w)])
            return builder.load(place, align=4), everywhere(builder, builder.extract_value(query_, w))

        def counted(bits: Any) -> Any:
            return _called(builder, "ctpop", _NUMBERS, bits)

        ones = twos = ir.Constant(_NUMBERS, [0] * LANES)
        for w in range(pairs.literal_value):
            (h, qh), (g, qg) = word(2 * w), word(2 * w + 1)
            x = builder.xor(h, qh)
            ones = builder.add(ones, counted(builder.xor(x, builder.xor(g, qg))))
            twos = builder.add(twos, counted(builder.and_(x, builder.not_(builder.and_(g, qg)))))
        for w in range(2 * pairs.literal_value, query.count):
            bits, own = word(w)
            ones = builder.add(ones, counted(builder.xor(bits, own)))
        distances = builder.add(ones, builder.add(twos, twos))
        builder.store(distances, lanes(context, builder, out, out_, at_), align=4)
        below = builder.icmp_signed("<", distances, everywhere(builder, bound_))
        return builder.zext(builder.bitcast(below, ir.IntType(LANES)), ir.IntType(32))

    return types.int32(pairs, groups, types.intp, query, types.int32, out, types.intp), generate


@intrinsic
def _first(typing: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


@jitted()
def _lowered(counts: Any, below: int, limit: int, k: int) -> tuple[int, int]:
    """Lower a limit as far as ``k`` hits stay.

    Parameters
    ----------
    counts : ndarray of shape (distances,), int32
        Hits at each distance.
    below : int
        Hits up to ``limit``.
    limit : int
        The limit before.
    k : int
        Hits to keep.

    Returns
    -------
    below : int
        Hits up to the new limit, ``k`` or more.
    limit : int
        The new limit.
    """
    while below - counts[limit] >= k:
        below, limit = below - counts[limit], limit - 1
    return below, limit


@jitted()
def _kept(distances: Any, rows: Any, n: int, limit: int) -> int:
    """Drop hits farther than ``limit`` among the first ``n``; return how many stay, in their order."""
    kept = 0
    for i in range(n):
        if distances[i] <= limit:
            distances[kept], rows[kept] = distances[i], rows[i]
            kept += 1
    return kept


@jitted()
def _answer(distances: Any, rows: Any, n: int, counts: Any, limit: int, D: Any, I: Any) -> None:
    """Fill D and I with the nearest of ``n`` hits, the first among equals, and the rest with WORST and -1.

    Parameters
    ----------
    distances : ndarray of shape (room,), int32
        Distances of the hits.
    rows : ndarray of shape (room,), int64
        Rows of the hits.
    n : int
        Number of hits.
    counts : ndarray of shape (distances,), int32
        Hits at each distance up to ``limit``; overwritten with the place of the next hit.
    limit : int
        The largest distance of a result.
    D : ndarray of shape (k,), int32
        Distances, smallest first, overwritten.
    I : ndarray of shape (k,), int64
        Rows, overwritten.
    """
    total = 0
    for distance in range(limit + 1):
        counts[distance], total = total, total + counts[distance]
    for i in range(n):
        if distances[i] <= limit:
            place = counts[distances[i]]
            counts[distances[i]] += 1
            if place < len(D):
                D[place], I[place] = distances[i], rows[i]
    D[total:], I[total:] = WORST, -1


class Scans(NamedTuple):
    """The loops over codes of one number of words; :func:`scans` describes them."""

    rows: Callable[..., None]
    lists: Callable[..., None]
    distances: Callable[..., None]


@cache
def scans(pairs: int, others: int) -> Scans:
    """Return the scans of codes of ``pairs`` pairs of words (h, g) and ``others`` other words, and plain distances.

    The scans find the nearest codes of each of ``queries`` (nq, words) uint32, among rows where ``allowed`` (n,) bool
    is true, or among all if ``allowed`` is empty. They fill D (nq, k) int32 with Hamming distances, smallest first, and
    I (nq, k) int64 with rows. Missing hits get the worst distance and -1.

    ``rows(groups, first, last, queries, allowed, D, I)`` scans the rows ``first`` (a multiple of ``LANES``) to
    ``last`` - 1. Among equal distances it takes the first rows.

    ``lists(chains, probes, queries, allowed, D, I)`` scans the lists ``probes`` (nq, nprobe) int64. Among equal
    distances it takes those that it sees first. ``chains`` is (groups, rows, heads, following): a list begins with the
    group ``heads`` (nlist,) int32, and the group after a group is ``following`` (groups,) int32, or -1 at the end;
    ``rows`` (groups, LANES) int32 are the rows of the codes, -1 in empty lanes.

    ``distances(groups, places, queries, D)`` fills D (nq, k) int32 with the distances of the codes at ``places``
    (nq, k) int64. A place is ``LANES`` times the group, plus the lane.
    """
    # Numba's cache depends on these and on this file alone: not on constants of other files.
    total, lanes = 2 * pairs + others, LANES
    most = 32 * (3 * pairs + others)

    @jitted()
    def scan(groups: Any, first: int, last: int, queries: Any, allowed: Any, D: Any, I: Any) -> None:
        nq, k = D.shape
        room = min(ROOM * k, last - first) + BLOCK
        distances, rows = np.empty((nq, room), np.int32), np.empty((nq, room), np.int64)
        counts, found, below = np.zeros((nq, most + 2), np.int32), np.zeros(nq, np.int64), np.zeros(nq, np.int64)
        limits = np.full(nq, most + 1 if k else 0, np.int64)
        of_block, near = np.empty((BLOCK // lanes, lanes), np.int32), np.empty(BLOCK // lanes, np.int32)
        for start in range(first, last, BLOCK):
            n_groups = (min(BLOCK, last - start) + lanes - 1) // lanes
            for q in range(nq):
                query, limit = _tuple(queries, q, total), limits[q]
                for b in range(n_groups):
                    near[b] = _measure(pairs, groups, start // lanes + b, query, limit, of_block, b)
                n, n_below = found[q], below[q]
                for b in range(n_groups):
                    hits = near[b]
                    while hits:
                        i = _first(hits)
                        hits &= hits - 1
                        distance, row = of_block[b, i], start + b * lanes + i
                        if distance < limit and row < last and (len(allowed) == 0 or allowed[row]):
                            distances[q, n], rows[q, n] = distance, row
                            counts[q, distance] += 1
                            n, n_below = n + 1, n_below + 1
                            if n_below >= k:
                                n_below, limit = _lowered(counts[q], n_below, limit, k)
                if n > room - BLOCK:
                    n = _kept(distances[q], rows[q], n, limit)
                found[q], below[q], limits[q] = n, n_below, limit
        for q in range(nq):
            _answer(distances[q], rows[q], found[q], counts[q], limits[q], D[q], I[q])

    @jitted()
    def scan_lists(chains: Any, probes: Any, queries: Any, allowed: Any, D: Any, I: Any) -> None:
        groups, rows, heads, following = chains
        nq, k = D.shape
        room = ROOM * k + lanes
        distances, found = np.empty((nq, room), np.int32), np.empty((nq, room), np.int64)
        counts, n, below = np.zeros((nq, most + 2), np.int32), np.zeros(nq, np.int64), np.zeros(nq, np.int64)
        limits, of_group = np.full(nq, most + 1 if k else 0, np.int64), np.empty(lanes, np.int32)
        nearest = max(1, probes.shape[1] // 8)
        # All queries scan a list together, while it is in the cache. They scan their nearest lists first, so that later
        # codes are seldom near enough.
        for some in (probes[:, :nearest], probes[:, nearest:]):
            ends, members = _by_list(some, len(heads))
            for number in range(len(heads)):
                first = heads[number] if ends[number + 1] > ends[number] else -1
                while first >= 0:
                    after = first
                    for q in members[ends[number] : ends[number + 1]]:
                        query = _tuple(queries, q, total)
                        after, left, here, n_below, limit = first, BLOCK // lanes, n[q], below[q], limits[q]
                        while after >= 0 and left > 0:
                            hits = _measure(pairs, groups, after, query, limit, of_group, 0)
                            while hits:
                                i = _first(hits)
                                hits &= hits - 1
                                distance, row = of_group[i], rows[after, i]
                                if distance >= limit or row < 0:
                                    continue
                                if len(allowed) == 0 or (row < len(allowed) and allowed[row]):
                                    distances[q, here], found[q, here] = distance, row
                                    counts[q, distance] += 1
                                    here, n_below = here + 1, n_below + 1
                                    if n_below >= k:
                                        n_below, limit = _lowered(counts[q], n_below, limit, k)
                            if here > room - lanes:
                                here = _kept(distances[q], found[q], here, limit)
                            after, left = following[after], left - 1
                        n[q], below[q], limits[q] = here, n_below, limit
                    first = after
        for q in range(nq):
            _answer(distances[q], found[q], n[q], counts[q], limits[q], D[q], I[q])

    @jitted()
    def distances_at(groups: Any, places: Any, queries: Any, D: Any) -> None:
        k, of_group = D.shape[1], np.empty(lanes, np.int32)
        for q in range(len(D)):
            query = _tuple(queries, q, total)
            for i in range(min(AHEAD, k)):
                prefetch(groups, places[q, i] // lanes)
            for i in range(k):
                if i + AHEAD < k:
                    prefetch(groups, places[q, i + AHEAD] // lanes)
                _measure(pairs, groups, places[q, i] // lanes, query, 0, of_group, 0)
                D[q, i] = of_group[places[q, i] % lanes]

    return Scans(scan, scan_lists, distances_at)


@jitted()
def _by_list(probes: Any, nlist: int) -> tuple[Any, Any]:
    """Group the probes by list.

    Parameters
    ----------
    probes : ndarray of shape (nq, nprobe), int64
        Lists that each query probes.
    nlist : int
        Number of lists.

    Returns
    -------
    ends : ndarray of shape (nlist + 1,), int64
        The queries of list i are members[ends[i] : ends[i + 1]].
    members : ndarray of shape (nq * nprobe,), int64
        Queries, list after list.
    """
    ends, members = np.zeros(nlist + 1, np.int64), np.empty(probes.size, np.int64)
    for q in range(len(probes)):
        for p in range(probes.shape[1]):
            ends[probes[q, p]] += 1
    total = 0
    for number in range(nlist + 1):
        total, ends[number] = total + ends[number], total
    for q in range(len(probes)):
        for p in range(probes.shape[1]):
            members[ends[probes[q, p]]] = q
            ends[probes[q, p]] += 1
    ends[1:] = ends[:-1].copy()
    ends[0] = 0
    return ends, members
