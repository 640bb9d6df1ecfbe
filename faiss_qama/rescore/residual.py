"""Rescoring from two codes: that of the vector, and that of what it leaves over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids, Mask, row_norms
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import CodeRescorer


def norm_dtype(metric: int, normalized: bool) -> np.dtype[Any] | None:
    """Return how the length of the sum of two decoded vectors is kept: it is no sum over their bits.

    Cosines are divided by it, L2 distances hold its square, and inner products do without.
    """
    if normalized:
        return np.dtype(np.float16)
    return np.dtype(np.float32) if metric == faiss.METRIC_L2 else None


def residual_bytes(layout: CodeLayout | None, metric: int, normalized: bool) -> int:
    """Return the bytes a vector of codes of a residual's ``layout`` and of the length; none without a residual."""
    if layout is None:
        return 0
    kept = norm_dtype(metric, normalized)
    return FlatCodeIndex(layout).bytes_per_vector + (0 if kept is None else kept.itemsize)


class ResidualRescorer(CodeRescorer):
    """Rescoring from the codes of an index and the codes of what they leave over, which are kept here.

    Parameters
    ----------
    quantizer : with a residual
    base : the codes
    arrays, n : what :meth:`arrays` returned of a store that was saved, and how many rows it has
    """

    def __init__(
        self, quantizer: Quantizer, base: CodeIndex, arrays: Mapping[str, NDArray[Any]] | None = None, n: int = 0
    ) -> None:
        super().__init__(quantizer, base)
        assert quantizer.residual is not None
        self._finer = quantizer.residual
        self._type = norm_dtype(quantizer.metric, quantizer.normalized)
        # Of L2 distances it is the length about the corpus' centre, so that float32 keeps small distances apart.
        self._about = np.zeros(quantizer.d, np.float32)
        if quantizer.metric == faiss.METRIC_L2 and not quantizer.normalized:
            self._about = quantizer.decoder.offset
        arrays = arrays or {}
        self._codes = FlatCodeIndex(self._finer.layout, arrays.get("residual"), n)
        self._norms = GrowingArray(arrays.get("norms", np.empty(0, self._type or np.float32)))
        self.bytes_per_vector = residual_bytes(self._finer.layout, quantizer.metric, quantizer.normalized)

    def over(self, base: CodeIndex) -> ResidualRescorer:
        other = ResidualRescorer(self.quantizer, base)
        other._codes, other._norms = self._codes, self._norms
        return other

    def arrays(self) -> dict[str, NDArray[Any]]:
        kept = {} if self._type is None else {"norms": self._norms.array}
        return {"residual": self._codes.groups} | kept

    @staticmethod
    def shapes(quantizer: Quantizer, n: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return shape and type of :meth:`arrays` of ``n`` rows."""
        store = ResidualRescorer(quantizer, FlatCodeIndex(quantizer.layout))
        groups = store._codes.groups.shape[1:]
        kept = {} if store._type is None else {"norms": ((n,), store._type)}
        return {"residual": ((-(-n // groups[-1]), *groups), np.dtype("<u4"))} | kept

    def convert(self, x: Floats, first: int = 0) -> NDArray[Any]:  # noqa: ARG002
        coarse = self.quantizer.decode_unnormalized(self.quantizer.encode(x))
        finer = self._finer.encode(x - coarse)
        if self._type is None:
            return finer
        kept = row_norms(coarse + self._finer.decode_unnormalized(finer) - self._about).astype(self._type)
        return np.concatenate([finer, kept[:, None].view(np.uint8)], axis=1)

    def append(self, stored: NDArray[Any]) -> None:
        there, size = len(self._codes), self._finer.code_size
        try:
            self._codes.append(stored[:, :size])
            if self._type is not None:
                self._norms.append(np.ascontiguousarray(stored[:, size:]).view(self._type)[:, 0])
        except BaseException:  # Ctrl-C too
            self.shrink(there)
            raise

    def encoded(self, rows: Ids) -> NDArray[Any]:
        code = self._codes.take(rows)
        if self._type is None:
            return code
        return np.concatenate([code, self._norms.array[rows][:, None].view(np.uint8)], axis=1)

    def shrink(self, n: int) -> None:
        if len(self._codes) > n:
            self._codes.keep(np.arange(len(self._codes)) < n)
        self._norms.shrink(n)

    def keep(self, kept: Mask) -> None:
        left = self._norms.array[kept] if self._type is not None else self._norms.array
        self._codes.keep(kept)
        self._norms = GrowingArray(left)

    def clear(self) -> None:
        self._codes.clear()
        self._norms.clear()

    def take(self, rows: Ids) -> Floats:
        return self.quantizer.decode(self._base.take(rows), self._codes.take(rows))

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        quantizer, coarse, finer = self.quantizer, self.quantizer.bit_decoder, self._finer.bit_decoder
        xq = quantizer.adapt_queries(xq) - self._about
        products, _ = self._base.weighted_sums(rows, coarse.weights(xq), None)
        products += self._codes.weighted_sums(rows, finer.weights(xq), None)[0]
        products += (xq @ (coarse.offset - self._about + finer.offset))[:, None]
        if self._type is None:
            return products
        kept = self._norms.array[rows].astype(np.float32)
        if quantizer.normalized:
            products /= np.where(kept > 0, kept, 1)
            kept = (kept > 0).astype(np.float32)
        if quantizer.metric == faiss.METRIC_L2:
            squares = np.einsum("qd,qd->q", xq, xq)[:, None] + np.square(kept)
            products = np.maximum(squares - 2 * products, 0)
        return products
