"""Packed codes to columns in one compiled pass; :mod:`faiss_qama.quantizer.bit_packing` is the form without numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.kernels.compiling import jitted

_ONES = np.array([0, 1, 1, 2, 1, 2, 2, 3], np.uint8)  # set bits of a unit: its level


@jitted()
def decode(code: Any, values: Any, segments: Any, out: Any) -> None:
    """Fill ``out`` with the value of each column's level.

    Parameters
    ----------
    code : ndarray of shape (n, code_size), uint8, C-contiguous
        Codes.
    values : ndarray of shape (columns, levels), float32, C-contiguous
        The value of each level.
    segments : ndarray of shape (s, 4), int64
        Per segment its first column, its columns, its cuts, and 1 where two columns share a bit.
    out : ndarray of shape (n, columns), float32, C-contiguous
        Columns, overwritten.
    """
    one, eight = np.uint64(1), np.uint64(8)
    for row in range(len(code)):
        held, n_held, at = np.uint64(0), np.uint64(0), 0
        for first, count, cuts, paired in segments:
            width = np.uint64(cuts)
            for column in range(first, first + count, 1 + paired):
                if n_held < width:
                    held |= np.uint64(code[row, at]) << n_held
                    n_held, at = n_held + eight, at + 1
                level = _ONES[held & (one << width) - one]
                held, n_held = held >> width, n_held - width
                out[row, column] = values[column, level]
                if paired:
                    out[row, column + 1] = values[column + 1, level]
