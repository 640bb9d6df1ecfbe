"""Bit planes: two bits per component of four levels, which a scan reads in place of thermometer codes.

A thermometer code of four levels takes three bits. Two hold the same: ``h``, set from level 2 on, and ``g``, set at
levels 1 and 2 (a Gray code). Of a query's and a document's bits, x = h ^ h' and y = g ^ g',

    |level - level'| = 1 * (x ^ y) + 2 * (x & ~(g & g')),

so distances are those of the thermometer codes. Bits of other segments stay as they are. A code becomes words of 32
bits: h and g of the first 32 components of four levels, of the next 32, ..., then the other bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats, Words
from faiss_qama.kernels import kernel
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout

WORD = 32  # bits


def widths(layout: CodeLayout) -> tuple[int, int]:
    """Return the number of pairs of words (h, g), and of other words, in a code of ``layout``."""
    fours, others = _counts(layout)
    return -(-fours // WORD), -(-others // WORD)


def n_words(layout: CodeLayout) -> int:
    """Return the number of words in a code of ``layout``."""
    pairs, others = widths(layout)
    return 2 * pairs + others


@cache
def segments(layout: CodeLayout) -> NDArray[np.int64]:
    """Return the places of each segment's bits, in the code and in the words.

    Parameters
    ----------
    layout : CodeLayout
        Layout of the codes.

    Returns
    -------
    ndarray of shape (s, 4), int64
        Per segment: its first bit in the code; its units, or its bits if its units have fewer levels than four; 1 if
        they have four, else 0; and its first bit in a plane, or, from 64 * pairs on, in the other words.
    """
    unit, bit = 0, 2 * WORD * widths(layout)[0]
    rows = []
    for segment, _, where in layout.slices():
        if segment.levels == 4:
            rows.append((where.start, segment.units, 1, unit))
            unit += segment.units
        else:
            rows.append((where.start, segment.n_bits, 0, bit))
            bit += segment.n_bits
    return np.array(rows)


def pack(code: Codes, layout: CodeLayout) -> Words:
    """Return the words (n, 2 * pairs + others) uint32 of ``code`` (n, layout.code_size) uint8."""
    bits = bit_packing.unpack(code, layout)
    pairs, others = widths(layout)
    h, g, rest = (np.zeros((len(bits), WORD * words), dtype=np.uint8) for words in (pairs, pairs, 2 * pairs + others))
    for first, count, fours, place in segments(layout):
        to = slice(place, place + count)
        if fours:
            low, middle, high = np.moveaxis(bits[:, first : first + 3 * count].reshape(len(bits), count, 3), 2, 0)
            h[:, to], g[:, to] = middle, low ^ high
        else:
            rest[:, to] = bits[:, first : first + count]
    out = _words(rest)
    out[:, 0 : 2 * pairs : 2], out[:, 1 : 2 * pairs : 2] = _words(h), _words(g)
    return out


def packed(code: Codes, layout: CodeLayout) -> Words:
    """Return :func:`pack` of the same, compiled if numba is there."""
    compiled = kernel("plane_packing")
    if compiled is None:
        return pack(code, layout)
    words = np.empty((len(code), n_words(layout)), np.uint32)
    compiled.pack(np.ascontiguousarray(code), segments(layout), words)
    return words


def unpack(words: Words, layout: CodeLayout) -> Codes:
    """Return the codes (n, layout.code_size) uint8 whose :func:`pack` is ``words`` (n, 2 * pairs + others) uint32."""
    pairs, _ = widths(layout)
    h, g, rest = map(_bits, (words[:, 0 : 2 * pairs : 2], words[:, 1 : 2 * pairs : 2], words))
    bits = np.empty((len(words), layout.n_bits), dtype=np.uint8)
    for first, count, fours, place in segments(layout):
        of = slice(place, place + count)
        if fours:
            middle, odd = h[:, of], g[:, of]
            levels = np.stack([middle | odd, middle, middle & ~odd], axis=2)
            bits[:, first : first + 3 * count] = levels.reshape(len(words), 3 * count)
        else:
            bits[:, first : first + count] = rest[:, of]
    return np.packbits(bits, axis=1, bitorder="little")


def truncate(groups: NDArray[np.uint32], layout: CodeLayout, prefix: CodeLayout) -> NDArray[np.uint32]:
    """Return groups (m, fewer words, lanes) uint32 of the components of ``prefix``, from ``groups`` of whole codes."""
    pairs, others = widths(prefix)
    start = 2 * widths(layout)[0]
    out = np.concatenate([groups[:, : 2 * pairs], groups[:, start : start + others]], axis=1)
    fours, rest = _counts(prefix)
    if fours % WORD:
        out[:, 2 * pairs - 2 : 2 * pairs] &= np.uint32((1 << fours % WORD) - 1)
    if rest % WORD:
        out[:, -1] &= np.uint32((1 << rest % WORD) - 1)
    return out


def level_weights(weights: Floats, layout: CodeLayout) -> Floats:
    """Return the weights of bits in the order of the words.

    Parameters
    ----------
    weights : ndarray of shape (nq, n_bits), float32
        The amount that each bit of a code adds to a sum.
    layout : CodeLayout
        Layout of the codes.

    Returns
    -------
    ndarray of shape (nq, 128 * pairs + 32 * others), float32
        The amounts of the four values of h + 2 g, component by component; then those of the other bits. Padding has 0.
    """
    pairs, others = widths(layout)
    fours = np.zeros((len(weights), WORD * pairs, 4), dtype=np.float32)
    rest = np.zeros((len(weights), WORD * others), dtype=np.float32)
    for first, count, of_four, place in segments(layout):
        if of_four:
            own = weights[:, first : first + 3 * count].reshape(len(weights), count, 3)
            fours[:, place : place + count][..., [2, 3, 1]] = np.cumsum(own, axis=2)  # levels 1, 2, 3: g, g and h, h
        else:
            start = place - 2 * WORD * pairs
            rest[:, start : start + count] = weights[:, first : first + count]
    return np.concatenate([fours.reshape(len(weights), -1), rest], axis=1)


def _counts(layout: CodeLayout) -> tuple[int, int]:
    """Return the number of components with four levels, and the number of bits of the others."""
    fours = sum(segment.units for segment in layout.segments if segment.levels == 4)
    others = sum(segment.n_bits for segment in layout.segments if segment.levels < 4)
    return fours, others


def _words(bits: NDArray[np.uint8]) -> Words:
    words: Words = np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32, copy=False)
    return words


def _bits(words: Words) -> NDArray[np.uint8]:
    return np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8), axis=1, bitorder="little")
