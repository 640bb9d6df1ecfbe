"""Re-ranking from decoded codes.

See Jégou et al., "Product Quantization for Nearest Neighbor Search", 2011, section III: asymmetric distances.
"""

from __future__ import annotations

import faiss
import numpy as np

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids
from faiss_qama.hamming.code_index import CodeIndex
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

    def over(self, base: CodeIndex) -> CodeRescorer:
        return CodeRescorer(self.quantizer, base)

    def take(self, rows: Ids) -> Floats:
        return self.quantizer.decode(self._base.take(rows))

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        quantizer, decoder = self.quantizer, self.quantizer.bit_decoder
        xq = quantizer.adapt_queries(xq)
        plain = not quantizer.normalized and quantizer.metric == faiss.METRIC_INNER_PRODUCT  # scores need no norms
        squares = None if plain else decoder.energy_steps
        weights, constant = decoder.weights(xq)
        products, energies = self._base.weighted_sums(rows, weights, squares)
        products += (constant + xq @ quantizer.decoder.offset)[:, None]
        if plain:
            return products
        if squares is None:
            energies = self._energies(rows)
        else:
            # The affine form may come out a rounding error below 0 for a vector that decodes to 0.
            energies = np.maximum(energies + np.float32(decoder.energy_offset), 0)
        if quantizer.normalized:
            products /= np.sqrt(np.where(energies > 0, energies, 1))
            energies = (energies > 0).astype(np.float32)
        if quantizer.metric == faiss.METRIC_L2:
            norms = np.einsum("qd,qd->q", xq, xq)
            products = np.maximum(norms[:, None] + energies - 2 * products, 0)
        return products

    def _energies(self, rows: Ids) -> Floats:
        """Return the squared norms (nq, k) of decoded ``rows`` (nq, k), if they are no sums over bits."""
        out = np.empty(rows.shape, dtype=np.float32)
        for block in topk.blocks(rows, self.quantizer.d):
            vectors = self.quantizer.decode_unnormalized(self._base.take(rows[block].ravel()))
            out[block] = np.square(vectors).sum(axis=1).reshape(rows[block].shape)
        return out
