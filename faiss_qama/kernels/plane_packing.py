"""Thermometer codes to bit planes, compiled; :mod:`faiss_qama.hamming.bit_planes` is the form without numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.kernels.compiling import jitted

# By 12 bits, which are four thermometer codes: their h in the lower four bits, their g in the upper.
_UNITS = np.arange(4096)[:, None] >> 3 * np.arange(4)
_FOURS = (((_UNITS >> 1 & 1) + 16 * ((_UNITS ^ _UNITS >> 2) & 1)) << np.arange(4)).sum(axis=1).astype(np.uint8)


@jitted()
def pack(code: Any, segments: Any, out: Any) -> None:
    """Fill ``out`` with the words of ``code``, as :func:`faiss_qama.hamming.bit_planes.pack` does.

    Parameters
    ----------
    code : ndarray of shape (n, code_size), uint8
        Codes.
    segments : ndarray of shape (s, 4), int64
        From :func:`faiss_qama.hamming.bit_planes.segments`.
    out : ndarray of shape (n, words), uint32
        Words, overwritten.
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
                for byte in range(3):  # three bytes hold 12 bits, wherever those begin
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


@jitted()
def _put(words: Any, word: int, step: int, shift: int, bits: Any) -> None:
    """Set four bits at ``shift`` of a word; bits beyond its end go to the next word, ``step`` words on."""
    words[word] |= np.uint32(bits << np.uint32(shift))
    if shift > 28 and bits >> np.uint32(32 - shift):
        words[word + step] |= np.uint32(bits >> np.uint32(32 - shift))
