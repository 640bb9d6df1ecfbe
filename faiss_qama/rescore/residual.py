"""Re-ranking from two codes: the code of the vector, and the code of its residual.

See Chen et al., "Approximate Nearest Neighbor Search by Residual Vector Quantization", 2010.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import LANES, Codes, Floats, Ids, Mask, row_norms
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.quantizer.bit_packing import ENCODE_CHUNK
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.threads import one_blas_thread, parallel_map, slices


def norm_dtype(metric: int, normalized: bool) -> np.dtype[Any] | None:
    """Return the dtype of the stored norms of decoded sums, or None where scores need no norm.

    The norm of a sum of two decoded vectors is no sum over their bits. Cosines are divided by it, L2 distances contain
    its square, and inner products need no norm.
    """
    if normalized:
        return np.dtype(np.float16)
    return np.dtype(np.float32) if metric == faiss.METRIC_L2 else None


def center(quantizer: Quantizer) -> Floats:
    """Return what L2 distances are found about, (d,): near the corpus, float32 keeps small ones apart."""
    if quantizer.metric == faiss.METRIC_L2 and not quantizer.normalized:
        return quantizer.decoder.offset
    return np.zeros(quantizer.d, np.float32)


def residual_bytes(layout: CodeLayout, metric: int, normalized: bool) -> int:
    """Return the bytes per vector of the residual codes of ``layout`` and of the norm; 0 without a residual."""
    if layout.residual is None:
        return 0
    kept = None if layout.trellis else norm_dtype(metric, normalized)
    return FlatCodeIndex(layout.residual).bytes_per_vector + (0 if kept is None else kept.itemsize)


class ResidualRescorer(CodeRescorer):
    """Scores from the codes of an index, and from residual codes, which it keeps.

    Parameters
    ----------
    quantizer : Quantizer
        A quantizer with a residual.
    base : CodeIndex
        The codes.
    """

    def __init__(self, quantizer: Quantizer, base: CodeIndex) -> None:
        super().__init__(quantizer, base)
        assert quantizer.layout.residual is not None
        self._layout = quantizer.layout.residual
        self._dtype = None if quantizer.layout.trellis else norm_dtype(quantizer.metric, quantizer.normalized)
        self._about = center(quantizer)
        self._codes = FlatCodeIndex(self._layout)
        self._norms = GrowingArray(np.empty(0, self._dtype or np.float32))
        self.bytes_per_vector = residual_bytes(quantizer.layout, quantizer.metric, quantizer.normalized)

    def over(self, base: CodeIndex) -> ResidualRescorer:
        other = type(self)(self.quantizer, base)
        other._codes, other._norms = self._codes, self._norms
        return other

    def growing(self) -> dict[str, GrowingArray]:
        norms = {} if self._dtype is None else {"norms": self._norms}
        codes = self._codes.growing() or {}
        return {"residual": codes["codes"]} | norms

    @classmethod
    def from_parts(cls, quantizer: Quantizer, base: CodeIndex, reader: PartReader) -> ResidualRescorer:
        """Return the rescorer of :meth:`growing`. Raises ValueError for a misshapen part, and for impossible norms."""
        rescorer, n = cls(quantizer, base), len(base)
        shape = (-(-n // LANES), *rescorer._codes.groups.shape[1:])
        rescorer._codes = FlatCodeIndex(rescorer._layout, reader.growing("residual", shape, "<u4"), n)
        if rescorer._dtype is not None:
            rescorer._norms = reader.growing("norms", (n,), rescorer._dtype)
            norms = rescorer._norms.array
            if not isinstance(norms, np.memmap) and not (np.isfinite(norms) & (norms >= 0)).all():
                raise reader.invalid("norms", "a norm is not finite, or below 0")
        return rescorer

    def encode(self, x: Floats, code: Codes, first: int = 0) -> NDArray[Any]:  # noqa: ARG002
        chunks = slices(len(x), ENCODE_CHUNK)
        if len(chunks) <= 1:
            return self._encoded(x, code)
        with one_blas_thread:
            return np.concatenate(parallel_map(lambda chunk: self._encoded(x[chunk], code[chunk]), chunks))

    def _encoded(self, x: Floats, code: Codes) -> NDArray[Any]:
        residual = self.quantizer.encode_residual(x, code)
        if self._dtype is None:
            return residual
        norms = row_norms(self.quantizer.decode_unnormalized(code, residual) - self._about).astype(self._dtype)
        return np.concatenate([residual, norms[:, None].view(np.uint8)], axis=1)

    def append(self, encoded: NDArray[Any]) -> None:
        there, size = len(self._codes), self._layout.code_size
        try:
            self._codes.append(encoded[:, :size])
            if self._dtype is not None:
                self._norms.append(np.ascontiguousarray(encoded[:, size:]).view(self._dtype)[:, 0])
        except BaseException:  # Ctrl-C too
            self.shrink(there)
            raise

    def encoded(self, rows: Ids) -> NDArray[Any]:
        code = self._codes.take(rows)
        if self._dtype is None:
            return code
        return np.concatenate([code, self._norms.array[rows][:, None].view(np.uint8)], axis=1)

    def shrink(self, n: int) -> None:
        self._codes.shrink(n)
        self._norms.shrink(n)

    def keep(self, kept: Mask) -> None:
        left = self._norms.array[kept] if self._dtype is not None else self._norms.array
        self._codes, self._norms = self._codes.copy(np.flatnonzero(kept)), GrowingArray(left)

    def clear(self) -> None:
        self._codes.clear()
        self._norms.clear()

    def _unnormalized(self, rows: Ids) -> Floats:
        return self.quantizer.decode_unnormalized(self._base.take(rows), self._codes.take(rows))

    def _sums(self, xq: Floats, rows: Ids) -> tuple[Floats, Floats | None]:
        quantizer, residual = self.quantizer, self.quantizer.residual
        assert residual is not None
        weights, constant = quantizer.bit_decoder.weights(xq)
        more_weights, more = residual.bit_decoder.weights(xq)
        products = self._base.weighted_sums(rows, weights, None)[0]
        products += self._codes.weighted_sums(rows, more_weights, None)[0]
        offset = quantizer.decoder.offset - self._about + residual.decoder.offset
        products += (constant + more + xq @ offset)[:, None]
        return products, None if self._dtype is None else np.square(self._norms.array[rows].astype(np.float32))
