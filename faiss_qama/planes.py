"""Codes at two bits a component of four levels: bit planes, which a scan reads in place of thermometer codes.

A thermometer code of four levels takes three bits. Two hold the same: ``h``, set from level 2 on, and ``g``, set at
levels 1 and 2 (a Gray code). Of a query's and a document's bits, x = h ^ h' and y = g ^ g',

    |level - level'| = 1 * (x ^ y) + 2 * (x & ~(g & g')),

so distances are those of the thermometer codes. Bits of other segments stay as they are. A code becomes words of 32
bits: h and g of the first 32 components of four levels, of the next 32, ..., then the other bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faiss_qama import codes
from faiss_qama.codes import Codes, Floats
from faiss_qama.layout import CodeLayout

Words = NDArray[np.uint32]
WORD = 32  # bits
LANES = 16  # codes whose words lie side by side: a SIMD register holds one word of each


def widths(layout: CodeLayout) -> tuple[int, int]:
    """Return how many pairs of words (h, g), and how many other words, a code of ``layout`` has."""
    fours = sum(segment.units for segment in layout.segments if segment.levels == 4)
    others = sum(segment.n_bits for segment in layout.segments if segment.levels < 4)
    return -(-fours // WORD), -(-others // WORD)


def pack(code: Codes, layout: CodeLayout) -> Words:
    """Return the words (n, 2 * pairs + others) of ``code`` (n, layout.code_size)."""
    bits = codes.unpack(code, layout)
    pairs, others = widths(layout)
    h, g, rest = (np.zeros((len(bits), WORD * words), dtype=np.uint8) for words in (pairs, pairs, others))
    unit = bit = 0
    for segment, _, where in layout.slices():
        if segment.levels == 4:
            low, middle, high = np.moveaxis(bits[:, where].reshape(len(bits), segment.units, 3), 2, 0)
            h[:, unit : unit + segment.units], g[:, unit : unit + segment.units] = middle, low ^ high
            unit += segment.units
        else:
            rest[:, bit : bit + segment.n_bits] = bits[:, where]
            bit += segment.n_bits
    out = np.empty((len(bits), 2 * pairs + others), dtype=np.uint32)
    out[:, 0 : 2 * pairs : 2], out[:, 1 : 2 * pairs : 2], out[:, 2 * pairs :] = map(_words, (h, g, rest))
    return out


def segments(layout: CodeLayout) -> NDArray[np.int64]:
    """Return where the bits of each segment are and go, a row a segment, as ``kernels.pack`` reads it."""
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


def unpack(words: Words, layout: CodeLayout) -> Codes:
    """Return the codes (n, layout.code_size) whose :func:`pack` is ``words``."""
    pairs, _ = widths(layout)
    h, g, rest = map(_bits, (words[:, 0 : 2 * pairs : 2], words[:, 1 : 2 * pairs : 2], words[:, 2 * pairs :]))
    bits = np.empty((len(words), layout.n_bits), dtype=np.uint8)
    unit = bit = 0
    for segment, _, where in layout.slices():
        if segment.levels == 4:
            middle, odd = h[:, unit : unit + segment.units], g[:, unit : unit + segment.units]
            bits[:, where] = np.stack([middle | odd, middle, middle & ~odd], axis=2).reshape(len(words), segment.n_bits)
            unit += segment.units
        else:
            bits[:, where] = rest[:, bit : bit + segment.n_bits]
            bit += segment.n_bits
    return np.packbits(bits, axis=1, bitorder="little")


def _words(bits: NDArray[np.uint8]) -> Words:
    words: Words = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    return words


def _bits(words: Words) -> NDArray[np.uint8]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")


def byte_weights(weights: Floats, layout: CodeLayout) -> Floats:
    """Return what bits add, (nq, n_bits), as the words have them: (nq, 128 * pairs + 32 * others).

    Of a component of four levels: what each of h + 2 g adds; of other segments each bit; 0 for padding.
    """
    pairs, others = widths(layout)
    fours = np.zeros((len(weights), WORD * pairs, 4), dtype=np.float32)
    rest = np.zeros((len(weights), WORD * others), dtype=np.float32)
    unit = bit = 0
    for segment, _, where in layout.slices():
        if segment.levels == 4:
            levels = np.cumsum(weights[:, where].reshape(len(weights), segment.units, 3), axis=2)
            fours[:, unit : unit + segment.units][..., [2, 3, 1]] = levels  # levels 1, 2, 3 are g, g and h, h
            unit += segment.units
        else:
            rest[:, bit : bit + segment.n_bits] = weights[:, where]
            bit += segment.n_bits
    return np.concatenate([fours.reshape(len(weights), -1), rest], axis=1)
