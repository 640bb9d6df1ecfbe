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
_EVEN, _ODD = (((_NUMBERS >> 2 * _PLACES + i & 1) << _PLACES).sum(axis=1) for i in (0, 1))


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
        The most stored bits of two neighbouring components.
    checks : ndarray of shape (2, 256), uint16
        Eight parities, and the next state in the upper byte: of a state, and of eight lowest stored bits.
    points : ndarray of shape (2, 2 * pairs, points), float32
        The value of each point, and what it adds to the sums that queries share.
    products : ndarray of shape (nq, 2 * pairs), float32
        What each query multiplies values with.
    out : ndarray of shape (nq, k, 2), float32
        Sums of products, and those that queries share, overwritten.
    """
    starts, room = np.empty(len(held), np.int64), 0
    for t in range(len(held)):
        starts[t] = room
        room += 1 << 2 * held[t] + 2
    table, planes = np.empty((room, 2), np.float32), np.empty((PLANES, -(-len(held) // 16) + 1), np.uint32)
    for q in range(len(words)):
        _fill(table, starts, held, points, products[q])
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
            out[q, i, 0], out[q, i, 1] = _sum(planes, table, starts, held, checks)


@jitted()
def _fill(table: Any, starts: Any, held: Any, points: Any, products: Any) -> None:
    """Fill ``table`` with what each pair of points adds to both sums."""
    for t in range(len(held)):
        a, b = products[2 * t], products[2 * t + 1]
        for i in range(1 << 2 * held[t] + 2):
            even, odd = _EVEN[i], _ODD[i]
            table[starts[t] + i, 0] = a * points[0, 2 * t, even] + b * points[0, 2 * t + 1, odd]
            table[starts[t] + i, 1] = points[1, 2 * t, even] + points[1, 2 * t + 1, odd]


@jitted()
def _sum(planes: Any, table: Any, starts: Any, held: Any, checks: Any) -> tuple[Any, Any]:
    """Return both sums of a code whose stored bits are ``planes``, lowest first."""
    two, three = np.uint32(2), np.uint32(3)
    state, total, energy = np.uint16(0), np.float32(0), np.float32(0)
    for c in range(-(-len(held) // 4)):
        word, shift = c >> 2, np.uint32(8 * (c & 3))
        p0, p1, p2, p3 = (
            planes[0, word] >> shift,
            planes[1, word] >> shift,
            planes[2, word] >> shift,
            planes[3, word] >> shift,
        )
        both = checks[0, state] ^ checks[1, p0 & np.uint32(255)]
        parity, state = np.uint32(both), both >> np.uint16(8)
        for t in range(4 * c, min(4 * c + 4, len(held))):
            at = parity & three | (p0 & three) << two
            if held[t] > 1:
                at |= (p1 & three) << np.uint32(4)
            if held[t] > 2:
                at |= (p2 & three) << np.uint32(6) | (p3 & three) << np.uint32(8)
            total += table[starts[t] + at, 0]
            energy += table[starts[t] + at, 1]
            parity, p0, p1, p2, p3 = parity >> two, p0 >> two, p1 >> two, p2 >> two, p3 >> two
    return total, energy


@jitted()
def _put(plane: Any, to: int, bits: Any) -> None:
    """Set up to 32 bits of a plane from bit ``to`` on."""
    plane[to >> 5] |= bits << np.uint32(to & 31)
    if to & 31:
        plane[(to >> 5) + 1] |= bits >> np.uint32(32 - (to & 31))
