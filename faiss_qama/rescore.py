"""The second stage: candidates from the Hamming scan are scored again with the float query.

A store answers ``scores(xq, ids)``: the scores of candidates in the metric of the floats. ``FloatStore`` keeps the
vectors; ``CodesStore`` decodes the codes that the index holds anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import codes
from faiss_qama.codes import Codes, Floats
from faiss_qama.quantizer import Quantizer

Ids = NDArray[np.int64]

DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
STORES = ("none", "codes", *DTYPES)

_BLOCK_FLOATS = 1 << 21  # floats gathered at a time: 8 MB, so that a block stays in cache until it is summed


class FloatStore:
    """Vectors in float16 or float32, row i belonging to code i; in memory, or a read-only memory map.

    float16 keeps 11 bits of each value between 6e-5 and 65504, so vectors are divided by the power of two next to the
    corpus' scale, which makes vectors of any length fit and adds no rounding of its own.
    """

    def __init__(self, quantizer: Quantizer, kind: str, rows: NDArray[np.floating] | None = None) -> None:
        self._metric, self.dtype = quantizer.metric, DTYPES[kind]
        self.scale = 2.0 ** round(math.log2(quantizer.scale)) if kind == "fp16" else 1.0
        self._buffer = np.empty((0, quantizer.d), self.dtype) if rows is None else rows

    def rows(self, n: int) -> NDArray[np.floating]:
        """Return the first ``n`` vectors as they are stored, (n, d)."""
        return self._buffer[:n]

    def convert(self, x: Floats, first: int = 0) -> NDArray[np.floating]:
        """Return ``x``, rows ``first`` and on, as it is stored. Raises ValueError where float16 cannot hold it."""
        with np.errstate(over="ignore"):
            stored = (x / np.float32(self.scale)).astype(self.dtype)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
            raise ValueError(
                f"vectors: row {first + row} holds {np.abs(x[row]).max():.3g}; this float16 store ends at "
                f"{65504 * self.scale:.3g}; rescore from fp32"
            )
        return stored

    def write(self, start: int, stored: NDArray[np.floating]) -> None:
        """Put rows that :meth:`convert` returned at ``start``, making room for more than them."""
        end = start + len(stored)
        if end > len(self._buffer):
            grown = np.empty((max(end, len(self._buffer) * 3 // 2), stored.shape[1]), self.dtype)
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        self._buffer[start:end] = stored

    def scores(self, xq: Floats, ids: Ids) -> Floats:
        """Return the inner products or squared L2 distances, (nq, k') float32, of ``ids`` (nq, k')."""
        out = np.empty(ids.shape, dtype=np.float32)
        inner_product = self._metric == faiss.METRIC_INNER_PRODUCT
        xq = xq / np.float32(self.scale)
        for block in _blocks(ids, self._buffer.shape[1]):
            x = self._buffer[ids[block]].astype(np.float32, copy=False)  # (queries, k', d), gathered, so ours to change
            if inner_product:
                out[block] = np.matmul(x, xq[block, :, None])[:, :, 0]
            else:
                x -= xq[block, None, :]
                out[block] = np.einsum("qkd,qkd->qk", x, x)
        out *= np.float32(self.scale**2)
        return out


class CodesStore:
    """Rescoring from the codes: asymmetric distances, the query in float and the document decoded.

    Parameters
    ----------
    quantizer : whose codes they are
    view : returns the codes, (ntotal, code_size) uint8
    """

    def __init__(self, quantizer: Quantizer, view: Callable[[], Codes]) -> None:
        self._quantizer, self._view = quantizer, view

    def scores(self, xq: Floats, ids: Ids) -> Floats:
        """Return the inner products or squared L2 distances, (nq, k') float32, of the decoded ``ids`` (nq, k')."""
        quantizer, decoder, view = self._quantizer, self._quantizer.bit_decoder, self._view()
        weights, base = xq @ decoder.steps.T, xq @ decoder.offset
        norms = np.einsum("qd,qd->q", xq, xq)
        out = np.empty(ids.shape, dtype=np.float32)
        for block in _blocks(ids, quantizer.layout.n_bits):
            bits = codes.unpack(view[ids[block].ravel()], quantizer.layout).astype(np.float32)
            products = np.matmul(bits.reshape(*ids[block].shape, -1), weights[block, :, None])[:, :, 0]
            products += base[block, None]
            if quantizer.unit or quantizer.metric == faiss.METRIC_L2:
                energies = decoder.energies(bits).reshape(products.shape)
            if quantizer.unit:
                products /= np.sqrt(np.where(energies > 0, energies, 1))
                energies = (energies > 0).astype(np.float32)
            if quantizer.metric == faiss.METRIC_L2:
                products = np.maximum(norms[block, None] + energies - 2 * products, 0)
            out[block] = products
        return out


def _blocks(ids: Ids, width: int) -> Iterator[slice]:
    """Yield slices of queries whose candidates, ``width`` floats each, make a block."""
    step = max(1, _BLOCK_FLOATS // max(1, ids.shape[1] * width))
    for start in range(0, len(ids), step):
        yield slice(start, start + step)
