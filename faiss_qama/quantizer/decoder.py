"""Codes back to vectors: a value per level and column, then a linear map to R^d.

A thermometer code sets its bits one level after the other, so each bit moves its column by the step from one level to
the next. That makes the asymmetric score of a float query (Jégou et al., "Product Quantization for Nearest Neighbor
Search", 2011, section III.B) a sum of weights over the bits that are set, one weight per bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.transform import Linear


@dataclass(frozen=True, eq=False)
class Decoder:
    """x = offset + sum over columns j of values[j, level of j's unit] * matrix[j].

    Parameters
    ----------
    values : ndarray of shape (columns, max_levels), float32
    matrix : ndarray of shape (columns, d), float32
    offset : ndarray of shape (d,), float32
    """

    values: Floats
    matrix: Floats
    offset: Floats

    def vectors(self, code: Codes, layout: CodeLayout) -> Floats:
        """Return the vectors (n, d) of ``code`` (n, code_size)."""
        return self.of_columns(bit_packing.decode(code, self.values, layout))

    def of_columns(self, z: Floats) -> Floats:
        """Return the vectors (n, d) of columns ``z`` (n, columns)."""
        x: Floats = z @ self.matrix
        x += self.offset
        return x

    def truncate(self, columns: int, max_levels: int) -> Decoder:
        """Return the decoder of the first ``columns``."""
        return Decoder(self.values[:columns, :max_levels], self.matrix[:columns], self.offset)

    def energies(self, z: Floats) -> Floats:
        """Return what columns ``z`` (..., columns) add to |x|^2, less |offset|^2, if the rows are orthogonal."""
        squares = np.einsum("cd,cd->c", self.matrix, self.matrix)
        out: Floats = z * z * squares + 2 * z * (self.matrix @ self.offset)
        return out

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether the rows of the matrix are orthogonal: |x|^2 then is a sum over columns, without cross terms."""
        gram = self.matrix @ self.matrix.T
        squares = np.diag(gram)
        return bool(np.abs(gram - np.diag(squares)).max() <= 1e-4 * max(squares.max(), 1e-30))

    def of_bits(self, layout: CodeLayout) -> BitDecoder:
        """Return what each bit adds to scores and to squared norms."""
        energy = self.energies(self.values.T).T
        numbers = np.broadcast_to(np.arange(layout.columns)[:, None], (layout.columns, layout.max_levels - 1))
        return BitDecoder(
            product=Linear(self.matrix, np.zeros(len(self.matrix), np.float32)),
            first=self.values[:, 0],
            columns=_per_bit(numbers, layout),
            steps=_per_bit(np.diff(self.values, axis=1), layout),
            energy_steps=_per_bit(np.diff(energy, axis=1), layout).sum(axis=0) if self.is_orthogonal else None,
            energy_offset=float(self.offset @ self.offset + energy[:, 0].sum()),
        )


@dataclass(frozen=True, eq=False)
class BitDecoder:
    """What the bits of a code add to the inner product with a query, and to |x|^2 if the decoder's rows are orthogonal.

    Parameters
    ----------
    product : Linear
        The decoder's matrix as a product with queries, from (n, d) to (n, columns).
    first : ndarray of shape (columns,), float32
        The values of columns whose bits are all 0.
    columns : ndarray of shape (1 or 2, n_bits), int64
        The columns that each bit moves: 2 if the layout has units of two columns.
    steps : ndarray of shape (1 or 2, n_bits), float32
        By how much it moves them.
    energy_steps : ndarray of shape (n_bits,), float32, or None
        What each bit adds to |x|^2; None if the decoder's rows are not orthogonal.
    energy_offset : float
        The squared norm of the vector whose bits are all 0.
    """

    product: Linear
    first: Floats
    columns: Ids
    steps: Floats
    energy_steps: Floats | None
    energy_offset: float

    def weights(self, xq: Floats) -> tuple[Floats, Floats]:
        """Return what each bit adds to the inner product with queries ``xq`` (n, d), and what no bits give.

        The two are (n, n_bits) and (n,), without the decoder's offset.
        """
        products = self.product.products(xq)
        weights: Floats = (products[:, self.columns] * self.steps).sum(axis=1)
        return weights, products @ self.first


def _per_bit(of_columns: NDArray[Any], layout: CodeLayout) -> NDArray[Any]:
    """Turn what is of each column and step, (columns, levels - 1), into what is of each bit, (1 or 2, n_bits)."""
    width = max(layout.columns_per_unit)
    out = np.zeros((width, layout.n_bits), of_columns.dtype)
    for segment, columns, bits in layout.slices():
        cuts = segment.levels - 1
        parts = of_columns[columns, :cuts].reshape(segment.units, segment.columns // segment.units, cuts)
        out[: parts.shape[1], bits] = parts.swapaxes(0, 1).reshape(parts.shape[1], segment.n_bits)
    return out
