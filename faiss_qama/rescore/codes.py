"""Re-ranking from decoded codes.

See Jégou et al., "Product Quantization for Nearest Neighbor Search", 2011, section III: asymmetric distances.
"""

from __future__ import annotations

import faiss
import numpy as np

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids, scale_to_norm
from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import Rescorer


class CodeRescorer(Rescorer):
    """Scores from the codes: asymmetric distances between the float query and the decoded document.

    It keeps no bytes of its own.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.
    base : CodeIndex
        The codes.
    """

    kind = stage = "codes"

    def __init__(self, quantizer: Quantizer, base: CodeIndex) -> None:
        super().__init__(quantizer)
        self._base = base
        # What queries and decoded vectors are moved by, for L2 distances.
        self._about: Floats = np.zeros(quantizer.d, np.float32)

    def over(self, base: CodeIndex) -> CodeRescorer:
        return type(self)(self.quantizer, base)

    @classmethod
    def from_parts(cls, quantizer: Quantizer, base: CodeIndex, reader: PartReader) -> CodeRescorer:  # noqa: ARG003
        """Return the rescorer of saved codes."""
        return cls(quantizer, base)

    def take(self, rows: Ids) -> Floats:
        x = self._unnormalized(rows)
        return scale_to_norm(x, 1.0) if self.quantizer.normalized else x

    def _unnormalized(self, rows: Ids) -> Floats:
        """Return the decoded vectors (n, d) of ``rows`` (n,), not normalized."""
        return self.quantizer.decode_unnormalized(self._base.take(rows))

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        quantizer = self.quantizer
        xq = quantizer.adapt_queries(xq) - self._about
        products, energies = self._sums(xq, rows)
        if self._needs_no_norms:
            return products
        # Sums may come out a rounding error below 0 for a vector that decodes to 0.
        energies = self._energies(rows) if energies is None else np.maximum(energies, 0)
        if quantizer.normalized:
            products /= np.sqrt(np.where(energies > 0, energies, 1))
            energies = (energies > 0).astype(np.float32)
        if quantizer.metric == faiss.METRIC_L2:
            norms = np.einsum("qd,qd->q", xq, xq)
            products = np.maximum(norms[:, None] + energies - 2 * products, 0)
        return products

    @property
    def _needs_no_norms(self) -> bool:
        return not self.quantizer.normalized and self.quantizer.metric == faiss.METRIC_INNER_PRODUCT

    def _sums(self, xq: Floats, rows: Ids) -> tuple[Floats, Floats | None]:
        """Return inner products (nq, k) of queries with decoded ``rows`` (nq, k), and squared norms if they are sums.

        The norms are anything where scores need none.
        """
        decoder = self.quantizer.bit_decoder
        squares = None if self._needs_no_norms else decoder.energy_steps
        weights, constant = decoder.weights(xq)
        products, energies = self._base.weighted_sums(rows, weights, squares)
        products += (constant + xq @ self.quantizer.decoder.offset)[:, None]
        return products, None if squares is None else energies + np.float32(decoder.energy_offset)

    def _energies(self, rows: Ids) -> Floats:
        """Return the squared norms (nq, k) of decoded ``rows`` (nq, k), if they are no sums over bits."""
        out = np.empty(rows.shape, dtype=np.float32)
        for block in topk.blocks(rows, self.quantizer.d):
            vectors = self._unnormalized(rows[block].ravel()) - self._about
            out[block] = np.square(vectors).sum(axis=1).reshape(rows[block].shape)
        return out
