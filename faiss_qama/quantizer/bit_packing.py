"""Levels to packed bits and back: bit order, the side of a threshold, and padding.

A unit's level is the number of its thresholds t with z - t >= 0, as FAISS cuts in IndexLSH. Level l of L becomes
L - 1 bits, the lowest l of them set, so that the Hamming distance of two codes is the L1 distance of their levels.
Units follow each other without gaps; bits are packed lowest first (``bitorder="little"``, as FAISS packs), and the
last byte is padded with zeros.
"""

from __future__ import annotations

from functools import cache

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.transform import Transform
from faiss_qama.threads import parallel_map, slices

ENCODE_CHUNK = 4096  # vectors whose columns stay in cache until they are packed


def encode(z: Floats, thresholds: Floats, layout: CodeLayout) -> Codes:
    """Turn columns into levels and pack them.

    Parameters
    ----------
    z : ndarray of shape (n, layout.columns), float32
        The columns.
    thresholds : ndarray of shape (layout.columns, layout.max_levels - 1), float32
        Ascending per column; unused thresholds are +inf.
    layout : CodeLayout
        The layout of the code.

    Returns
    -------
    ndarray of shape (n, layout.code_size), uint8
        The codes.
    """
    compiled = kernel("encoding")
    if compiled is not None:
        z, cuts = (np.ascontiguousarray(array, np.float32) for array in (z, thresholds.T))
        code = np.empty((len(z), layout.code_size), np.uint8)
        compiled.encode(z, cuts, _cut_columns(layout), code)
        return code
    bits = np.empty((len(z), layout.n_bits), dtype=bool)
    for segment, columns, where in layout.slices():
        out = bits[:, where].reshape(len(z), segment.units, -1)  # a view: the last axis is split in place
        for cut in range(segment.levels - 1):
            above = z[:, columns] >= thresholds[columns, cut]
            if segment.bits == "0.5or":
                above = above[:, 0::2] | above[:, 1::2]
            out[:, :, cut] = above
    return np.packbits(bits, axis=1, bitorder="little")


def check_codes(code: Codes, layout: CodeLayout, n: int | None = None, what: str = "codes") -> None:
    """Raise TypeError or ValueError unless ``code`` is an array of codes of ``layout``, ``n`` of them if given."""
    if not isinstance(code, np.ndarray):
        raise TypeError(f"{what} must be an array; got {type(code).__name__}")
    wanted = (len(code) if n is None and code.ndim else n, layout.code_size)
    if code.shape != wanted or code.dtype != np.uint8:
        count = "n" if n is None else n
        raise ValueError(f"{what} must be ({count}, {layout.code_size}) uint8; got {code.shape} {code.dtype}")


def codes(x: Floats, transform: Transform, thresholds: Floats, layout: CodeLayout) -> Codes:
    """Return the codes (n, layout.code_size) uint8 of vectors ``x`` (n, d)."""
    out = np.empty((len(x), layout.code_size), dtype=np.uint8)

    def fill(chunk: slice) -> None:
        out[chunk] = encode(transform(x[chunk]), thresholds, layout)

    parallel_map(fill, slices(len(x), ENCODE_CHUNK))
    return out


@cache
def _cut_columns(layout: CodeLayout) -> NDArray[np.int64]:
    """Return first column, columns, cuts, and whether two columns share a bit, of each segment, (s, 4)."""
    rows = [(of.start, s.columns, s.levels - 1, s.bits == "0.5or") for s, of, _ in layout.slices()]
    return np.array(rows, np.int64)


def decode(code: Codes, values: Floats, layout: CodeLayout) -> Floats:
    """Return the value of each column's level.

    Parameters
    ----------
    code : ndarray of shape (n, layout.code_size), uint8
        The codes.
    values : ndarray of shape (layout.columns, layout.max_levels), float32
        The value of each level.
    layout : CodeLayout
        The layout of the code.

    Returns
    -------
    ndarray of shape (n, layout.columns), float32
        The columns.
    """
    compiled = kernel("decoding")
    if compiled is not None:
        columns = np.empty((len(code), layout.columns), np.float32)
        compiled.decode(np.ascontiguousarray(code), np.ascontiguousarray(values), _cut_columns(layout), columns)
        return columns
    by_column = np.repeat(levels(code, layout), layout.columns_per_unit, axis=1)
    return np.take_along_axis(values.T, by_column, axis=0)


def unpack(codes: Codes, layout: CodeLayout) -> NDArray[np.uint8]:
    """Return the bits of ``codes`` as (n, layout.n_bits) uint8 of 0 and 1, padding dropped."""
    return np.unpackbits(codes, axis=1, count=layout.n_bits, bitorder="little")


def levels(codes: Codes, layout: CodeLayout) -> NDArray[np.uint8]:
    """Return the level of every unit as (n, units) uint8."""
    bits = unpack(codes, layout)
    out, unit = np.empty((len(bits), layout.units), np.uint8), 0
    for segment, _, where in layout.slices():
        of_segment = out[:, unit : unit + segment.units]
        cuts = segment.levels - 1
        of_segment[:] = 0
        for cut in range(cuts):
            of_segment += bits[:, where.start + cut : where.stop : cuts]
        unit += segment.units
    return out


def of_levels(levels: NDArray[np.uint8], layout: CodeLayout) -> Codes:
    """Return the codes (n, layout.code_size) whose units have these ``levels`` (n, units)."""
    bits, unit = np.empty((len(levels), layout.n_bits), bool), 0
    for segment, _, where in layout.slices():
        cuts = segment.levels - 1
        for cut in range(cuts):
            bits[:, where.start + cut : where.stop : cuts] = levels[:, unit : unit + segment.units] > cut
        unit += segment.units
    return np.packbits(bits, axis=1, bitorder="little")


def truncate(codes: Codes, layout: CodeLayout) -> Codes:
    """Return the codes (n, layout.code_size) of a prefix ``layout`` of that of ``codes`` (n, >= code_size)."""
    out = codes[:, : layout.code_size].copy()
    if layout.n_bits % 8:
        out[:, -1] &= (1 << layout.n_bits % 8) - 1
    return out


def twice(codes: Codes, layout: CodeLayout) -> Codes:
    """Return each code (n, layout.code_size) followed by itself, bit by bit, as a layout of twice the segments."""
    return np.packbits(np.tile(unpack(codes, layout), 2), axis=1, bitorder="little")


def hamming_table(a: Codes, b: Codes) -> NDArray[np.int32]:
    """Return the Hamming distances (na, nb) int32 of all codes ``a`` (na, code_size) from all ``b`` (nb, code_size)."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)  # FAISS reads them by address, so they must stay alive
    distances = np.empty((len(a), len(b)), np.int32)
    faiss.hammings(faiss.swig_ptr(a), faiss.swig_ptr(b), len(a), len(b), a.shape[1], faiss.swig_ptr(distances))
    return distances


def hamming(a: Codes, b: Codes) -> NDArray[np.int32]:
    """Return the Hamming distances int32 of codes (..., code_size), whose other axes broadcast."""
    distances: NDArray[np.int32] = np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int32)
    return distances
