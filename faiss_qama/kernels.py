"""The hot loops, compiled by numba when they are first used and kept in its cache; nothing else imports numba.

A scan reads words (see :mod:`faiss_qama.planes`) in groups of ``LANES`` codes, (groups, words, LANES) uint32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple

from faiss_qama.base import WORST
from faiss_qama.planes import LANES

# Of 12 bits, four thermometer codes: their h in the lower four bits, their g in the upper.
_UNITS = np.arange(4096)[:, None] >> 3 * np.arange(4)
_FOURS = (((_UNITS >> 1 & 1) + 16 * ((_UNITS ^ _UNITS >> 2) & 1)) << np.arange(4)).sum(axis=1).astype(np.uint8)

BLOCK = 512  # codes that stay in the first cache while several queries look at them: 24 kB of 48 bytes each


def _compiled(function: Callable[..., Any]) -> Any:
    """Return what numba makes of ``function``, from its cache where there is a folder for one."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no such folder can be written
        return njit(nogil=True)(function)


@intrinsic
def _popcount(typing: Any, word: Any) -> Any:  # noqa: ARG001 - numba's signature
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return word(word), generate


@_compiled
def _nearest(distances: Any, rows: Any, n: int, k: int, counts: Any) -> int:
    """Keep the ``k`` smallest of the first ``n`` (all, if fewer), in order of distance and then of row, by counting.

    Returns the largest distance that is kept.
    """
    counts[:] = 0
    for i in range(n):
        counts[distances[i]] += 1
    # Where each distance begins.
    total = 0
    last = 0
    for d in range(len(counts)):
        here = counts[d]
        counts[d] = total
        if total < k and here:
            last = d
        total += here
    kept_d, kept_r = np.empty(k, np.int32), np.empty(k, np.int64)
    for i in range(n):
        place = counts[distances[i]]
        counts[distances[i]] += 1
        if place < k:
            kept_d[place], kept_r[place] = distances[i], rows[i]
    n = min(n, k)
    distances[:n], rows[:n] = kept_d[:n], kept_r[:n]
    return last


@cache
def scan(pairs: int, others: int) -> Callable[..., None]:
    """Return the scan of codes of so many words.

    ``scan(groups, first, last, queries, allowed, D, I)`` finds the nearest of the rows ``first`` (a multiple of
    ``LANES``) to ``last``, for each of ``queries`` (nq, words), and of those where ``allowed`` (n,) is true, unless
    that is empty. It fills D (nq, k) int32 with distances, ascending, and I (nq, k) int64 with rows; of equal distances
    the first rows are taken; where there are fewer than k, D is the worst distance and I is -1.
    """
    # Numba knows what it has compiled by these, and by this file alone: not by constants of other files.
    total, lanes = 2 * pairs + others, LANES

    @_compiled
    def scan_words(groups: Any, first: int, last: int, queries: Any, allowed: Any, D: Any, I: Any) -> None:
        nq, k = D.shape
        room = min(2 * k, last - first) + BLOCK
        distances, rows = np.empty((nq, room), np.int32), np.empty((nq, room), np.int64)
        found, bound = np.zeros(nq, np.int64), np.full(nq, WORST, np.int64)
        counts = np.empty(32 * (3 * pairs + others) + 1, np.int64)
        of_block = np.empty(BLOCK, np.int32)
        for start in range(first, last, BLOCK):
            here = min(BLOCK, last - start)
            for q in range(nq):
                query = to_fixed_tuple(queries[q], total)  # into registers
                for group in range((here + lanes - 1) // lanes):
                    words = groups[start // lanes + group]
                    for i in range(lanes):
                        ones, twos = np.int32(0), np.int32(0)
                        for w in range(pairs):
                            h, g = words[2 * w, i] ^ query[2 * w], words[2 * w + 1, i]
                            ones += np.int32(_popcount(np.uint32(h ^ g ^ query[2 * w + 1])))
                            twos += np.int32(_popcount(np.uint32(h & ~(g & query[2 * w + 1]))))
                        for w in range(2 * pairs, 2 * pairs + others):
                            ones += np.int32(_popcount(np.uint32(words[w, i] ^ query[w])))
                        of_block[group * lanes + i] = ones + twos + twos
                least = np.int32(WORST)
                for i in range(BLOCK):
                    least = min(least, of_block[i])
                if least >= bound[q]:
                    continue
                n = found[q]
                for group in range((here + lanes - 1) // lanes):
                    nearest = np.int32(WORST)
                    for i in range(group * lanes, group * lanes + lanes):
                        nearest = min(nearest, of_block[i])
                    if nearest >= bound[q]:
                        continue
                    for i in range(group * lanes, min(group * lanes + lanes, here)):
                        if of_block[i] < bound[q] and (len(allowed) == 0 or allowed[start + i]):
                            distances[q, n], rows[q, n] = of_block[i], start + i
                            n += 1
                if n >= 2 * k:
                    bound[q] = _nearest(distances[q], rows[q], n, k, counts)
                    n = k
                found[q] = n
        for q in range(nq):
            _nearest(distances[q], rows[q], found[q], k, counts)
            n = min(found[q], k)
            D[q, :n], I[q, :n] = distances[q, :n], rows[q, :n]
            D[q, n:], I[q, n:] = WORST, -1

    compiled: Callable[..., None] = scan_words
    return compiled


@_compiled
def pack(code: Any, segments: Any, out: Any) -> None:
    """Fill ``out`` (n, words) with the words of ``code`` (n, code_size), as :func:`faiss_qama.planes.pack` does.

    Parameters
    ----------
    segments : (s, 4) int64, :func:`faiss_qama.planes.segments`
    """
    out[:] = 0
    size = code.shape[1]
    for row in range(len(code)):
        for first, count, fours, place in segments:
            width = 3 if fours else 1
            for unit in range(0, count, 4):
                bit = first + width * unit
                here = min(4, count - unit)
                value = np.uint32(0)
                for byte in range(3):  # which holds 12 bits, wherever they begin
                    if (bit >> 3) + byte < size:
                        value |= np.uint32(code[row, (bit >> 3) + byte]) << np.uint32(8 * byte)
                value = value >> np.uint32(bit & 7) & np.uint32((1 << width * here) - 1)
                word, shift = (place + unit) >> 5, (place + unit) & 31
                if fours:
                    both = _FOURS[value]
                    _put(out[row], 2 * word, 2, shift, np.uint32(both & 15))
                    _put(out[row], 2 * word + 1, 2, shift, np.uint32(both >> 4))
                else:
                    _put(out[row], word, 1, shift, value)


@_compiled
def _put(words: Any, word: int, step: int, shift: int, bits: Any) -> None:
    """Set four bits at ``shift`` of a word; those that go over its end in the next one, ``step`` words on."""
    words[word] |= np.uint32(bits << np.uint32(shift))
    if shift > 28 and bits >> np.uint32(32 - shift):
        words[word + step] |= np.uint32(bits >> np.uint32(32 - shift))


@_compiled
def lookup_tables(pairs: int, others: int, weights: Any, out: Any) -> None:
    """Fill ``out`` (8 * pairs + 4 * others, 256) with what each byte of a code adds to its sum of weights.

    Parameters
    ----------
    weights : (32 * pairs * 4 + 32 * others,) float32: what each h + 2 g adds, unit by unit; then each other bit
    """
    low, high = np.empty(16, np.float32), np.empty(16, np.float32)
    for t in range(8 * pairs):  # four units: bits 0 to 3 are their h, 4 to 7 their g
        first = weights[16 * t : 16 * t + 16]
        for i in range(16):
            a, b = (i & 1) + 2 * (i >> 2 & 1), (i >> 1 & 1) + 2 * (i >> 3)
            low[i], high[i] = first[a] + first[4 + b], first[8 + a] + first[12 + b]
        for i in range(256):
            out[t, i] = low[(i & 3) | (i >> 2 & 12)] + high[(i >> 2 & 3) | (i >> 4 & 12)]
    for t in range(4 * others):  # eight bits
        first = weights[128 * pairs + 8 * t : 128 * pairs + 8 * t + 8]
        for i in range(16):
            low[i] = high[i] = np.float32(0)
            for bit in range(4):
                if i >> bit & 1:
                    low[i] += first[bit]
                    high[i] += first[4 + bit]
        for i in range(256):
            out[8 * pairs + t, i] = low[i & 15] + high[i >> 4]


@_compiled
def weighted_sums(
    pairs: int, others: int, groups: Any, rows: Any, weights: Any, shared: Any, own: Any, common: Any
) -> None:
    """Fill ``own`` and ``common`` (nq, k) with sums over the bytes of the codes of ``rows`` (nq, k).

    Parameters
    ----------
    weights : (nq, ...) float32, as :func:`lookup_tables` takes them
    shared : (8 * pairs + 4 * others, 256) float32, tables that all queries share
    """
    table, lanes = np.empty_like(shared), groups.shape[2]
    for q in range(len(rows)):
        lookup_tables(pairs, others, weights[q], table)
        for i in range(rows.shape[1]):
            words, lane = groups[rows[q, i] // lanes], rows[q, i] % lanes
            a, b = np.float32(0), np.float32(0)
            for w in range(pairs):
                h, g = words[2 * w, lane], words[2 * w + 1, lane]
                for t in range(8):
                    shift = np.uint32(4 * t)
                    byte = (h >> shift & np.uint32(15)) | (g >> shift & np.uint32(15)) << np.uint32(4)
                    a += table[8 * w + t, byte]
                    b += shared[8 * w + t, byte]
            for w in range(others):
                word = words[2 * pairs + w, lane]
                for t in range(4):
                    byte = word >> np.uint32(8 * t) & np.uint32(255)
                    a += table[8 * pairs + 4 * w + t, byte]
                    b += shared[8 * pairs + 4 * w + t, byte]
            own[q, i], common[q, i] = a, b
