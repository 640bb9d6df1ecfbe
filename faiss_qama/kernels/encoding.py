"""Columns to packed codes in one compiled pass; :mod:`faiss_qama.quantizer.bit_packing` is the form without numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from faiss_qama.kernels.compiling import jitted

_LANES = 16
_BITS = np.arange(256)[:, None] >> np.arange(8) & 1
# By byte: its bits with 0, 1 or 2 places between them; and one bit per pair of neighbours, set where either is.
_SPREAD = np.array([(_BITS << np.arange(8) * cuts).sum(axis=1) for cuts in (1, 2, 3)], np.uint64)
_PAIRED = ((_BITS[:, 0::2] | _BITS[:, 1::2]) << np.arange(4)).sum(axis=1).astype(np.uint64)


@intrinsic
def _above(typing: Any, z: Any, row: Any, column: Any, thresholds: Any, cut: Any) -> Any:
    """Return one bit for each of 16 columns of a row of ``z``: set unless the column is below its threshold."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z_, row_, column_, thresholds_, cut_ = arguments
        numbers = ir.VectorType(ir.FloatType(), _LANES).as_pointer()

        def loaded(kind: Any, array: Any, row: Any) -> Any:
            view = context.make_array(kind)(context, builder, array)
            width = builder.extract_value(view.shape, 1)
            place = builder.gep(view.data, [builder.add(builder.mul(row, width), column_)])
            return builder.load(builder.bitcast(place, numbers), align=4)

        above = builder.fcmp_ordered(">=", loaded(z, z_, row_), loaded(thresholds, thresholds_, cut_))
        return builder.zext(builder.bitcast(above, ir.IntType(_LANES)), ir.IntType(64))

    return types.uint64(z, types.intp, types.intp, thresholds, types.intp), generate


@jitted()
def _mask(z: Any, row: int, start: int, here: int, thresholds: Any, cut: int) -> Any:
    """Return :func:`_above` of the ``here`` columns from ``start`` on."""
    if here == _LANES:
        return _above(z, row, start, thresholds, cut)
    above = np.uint64(0)
    for column in range(here):
        if z[row, start + column] >= thresholds[cut, start + column]:
            above |= np.uint64(1) << np.uint64(column)
    return above


@jitted()
def encode(z: Any, thresholds: Any, segments: Any, out: Any) -> None:
    """Fill ``out`` with the codes of ``z``.

    Parameters
    ----------
    z : ndarray of shape (n, columns), float32, C-contiguous
        Columns: transformed vectors.
    thresholds : ndarray of shape (cuts, columns), float32, C-contiguous
        Thresholds of the columns, ascending.
    segments : ndarray of shape (s, 4), int64
        Per segment its first column, its columns, its cuts, and 1 where two columns share a bit.
    out : ndarray of shape (n, code_size), uint8
        Codes, overwritten.
    """
    byte, eight = np.uint64(255), np.uint64(8)
    for row in range(len(z)):
        held, n_held, at = np.uint64(0), np.uint64(0), 0
        for first, count, cuts, paired in segments:
            width = np.uint64(cuts)
            for start in range(first, first + count, _LANES):
                here, units = min(_LANES, first + count - start), np.uint64(0)
                for cut in range(cuts):
                    above = _mask(z, row, start, here, thresholds, cut)
                    if paired:
                        above = _PAIRED[above & byte] | _PAIRED[above >> eight] << np.uint64(4)
                    low, high = _SPREAD[cuts - 1, above & byte], _SPREAD[cuts - 1, above >> eight]
                    units |= (low | high << eight * width) << np.uint64(cut)
                held |= units << n_held
                n_held += width * np.uint64(here >> paired)
                while n_held >= eight:
                    out[row, at] = held & byte
                    held, n_held, at = held >> eight, n_held - eight, at + 1
        if n_held > 0:
            out[row, at] = held
