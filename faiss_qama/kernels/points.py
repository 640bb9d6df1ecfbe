"""Sums over the points of trellis-coded components, by table look-up, compiled: the products of asymmetric scores.

Two components share a table. Which point each has is told by its stored bits and by its parity, which a table gives for
eight components at a time, as of a cyclic redundancy check (Sarwate, "Computation of Cyclic Redundancy Checks via Table
Look-Up", 1988).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.kernels.compiling import jitted

PLANES = 4  # the most stored bits of a component
# The points of two components, by a number in which their bits alternate, lowest first.
_PLACES, _NUMBERS = np.arange(PLANES + 1), np.arange(1 << 2 * PLANES + 2)[:, None]
# The eight bits of a byte, two in each field of 16 bits: one field per pair of components.
_BYTE = np.uint32(255)
_FOUR = np.arange(4, dtype=np.uint64)
_SPREAD = ((np.arange(256, dtype=np.uint64)[:, None] >> 2 * _FOUR & 3) << 16 * _FOUR).sum(axis=1, dtype=np.uint64)
_EVEN, _ODD = (((_NUMBERS >> 2 * _PLACES + i & 1) << _PLACES).sum(axis=1).astype(np.uint32) for i in (0, 1))


@jitted()
def sums(
    words: Any,
    rest: Any,
    pieces: Any,
    held: Any,
    checks: Any,
    points: Any,
    products: Any,
    out: Any,
) -> None:
    """Fill ``out`` with sums over the points of candidates.

    Parameters
    ----------
    words : ndarray of shape (nq, k, w), uint32
        First codes as words of bit planes.
    rest : ndarray of shape (nq, k, w'), uint32
        Residual codes as words of bit planes, or none.
    pieces : ndarray of shape (p, 7), int64
        Where the bits of components are, as :func:`faiss_qama.rescore.trellis.pieces` gives them.
    held : ndarray of shape (pairs,), int64
        The most stored bits of two neighbouring components; a multiple of four pairs.
    checks : ndarray of shape (2, 256), uint16
        Eight parities, and the next state in the upper byte: of a state, and of eight lowest stored bits.
    points : ndarray of shape (2, 2 * pairs, points), float32
        The value of each point, and what it adds to the sums that queries share.
    products : ndarray of shape (nq, 2 * pairs), float32
        What each query multiplies values with.
    out : ndarray of shape (nq, k, 2), float32
        Sums of products, and those that queries share, overwritten.
    """
    starts, room = np.empty(len(held), np.uint64), 0
    for t in range(len(held)):
        starts[t] = room
        room += 1 << 2 * held[t] + 2
    own, shared = np.empty(room, np.float32), np.empty(room, np.float32)
    planes = np.empty((PLANES, -(-len(held) // 16) + 1), np.uint32)
    _fill(shared, starts, held, points[1], np.ones(2 * len(held), np.float32))
    for q in range(len(words)):
        _fill(own, starts, held, points[0], products[q])
        for i in range(words.shape[1]):
            planes[:] = 0
            for source, word, shift, count, fours, plane, to in pieces:
                code = rest[q, i] if source else words[q, i]
                mask = np.uint32((1 << count) - 1)
                bits = code[word] >> np.uint32(shift) & mask
                if fours:
                    _put(planes[plane + 1], to, bits)
                    bits ^= code[word + 1] >> np.uint32(shift) & mask
                _put(planes[plane], to, bits)
            out[q, i, 0], out[q, i, 1] = _sum(planes, own, shared, starts, checks)


@jitted()
def _fill(table: Any, starts: Any, held: Any, values: Any, products: Any) -> None:
    """Fill ``table`` with what each pair of points adds to a sum."""
    n = values.shape[1]
    a, b = np.zeros(1 << PLANES + 1, np.float32), np.zeros(1 << PLANES + 1, np.float32)
    for t in range(len(held)):
        for p in range(n):
            a[p], b[p] = products[2 * t] * values[2 * t, p], products[2 * t + 1] * values[2 * t + 1, p]
        of_pair = table[starts[t] :]
        for i in range(1 << 2 * held[t] + 2):
            of_pair[i] = a[_EVEN[i]] + b[_ODD[i]]


@jitted()
def _sum(planes: Any, own: Any, shared: Any, starts: Any, checks: Any) -> tuple[Any, Any]:
    """Return both sums of a code whose stored bits are ``planes``, lowest first."""
    state, total, energy = np.uint16(0), np.float32(0), np.float32(0)
    for c in range(len(starts) // 4):
        word, shift = c >> 2, np.uint32(8 * (c & 3))
        low = planes[0, word] >> shift & _BYTE
        both = checks[0, state] ^ checks[1, low]
        state = both >> np.uint16(8)
        numbers = _SPREAD[both & np.uint16(255)] | _SPREAD[low] << np.uint64(2)
        for plane in range(1, PLANES):
            numbers |= _SPREAD[planes[plane, word] >> shift & _BYTE] << np.uint64(2 * plane + 2)
        for t in range(4 * c, 4 * c + 4):
            at = starts[t] + (numbers & np.uint64(1023))
            numbers >>= np.uint64(16)
            total += own[at]
            energy += shared[at]
    return total, energy


@jitted()
def _put(plane: Any, to: int, bits: Any) -> None:
    """Set up to 32 bits of a plane from bit ``to`` on."""
    plane[to >> 5] |= bits << np.uint32(to & 31)
    if to & 31:
        plane[(to >> 5) + 1] |= bits >> np.uint32(32 - (to & 31))
