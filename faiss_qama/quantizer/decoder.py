"""Codes back to vectors: a value per level and column, then a linear map to R^d.

A thermometer code sets its bits one level after the other, so a decoded vector is an affine function of the bits:
each bit adds the step from one level to the next. That makes the asymmetric score of a float query (Jégou et al.,
"Product Quantization for Nearest Neighbor Search", 2011, section III.B) one product of the bits with d-vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from faiss_qama.arrays import Floats
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

    def truncate(self, columns: int, max_levels: int) -> Decoder:
        """Return the decoder of the first ``columns``."""
        return Decoder(self.values[:columns, :max_levels], self.matrix[:columns], self.offset)

    def of_bits(self, layout: CodeLayout) -> BitDecoder:
        """Return the same decoder as a function of the bits."""
        vectors = self.values[:, :, None] * self.matrix[:, None, :]
        gram = self.matrix @ self.matrix.T
        squares = np.diag(gram)
        orthogonal = bool(np.abs(gram - np.diag(squares)).max() <= 1e-4 * max(squares.max(), 1e-30))
        # With orthogonal rows |x|^2 has no cross terms, so it too is a sum over units, hence affine in the bits.
        energy = self.values**2 * squares[:, None] + 2 * self.values * (self.matrix @ self.offset)[:, None]
        return BitDecoder(
            steps=_per_bit(vectors, layout),
            offset=self.offset + vectors[:, 0].sum(axis=0),
            energy_steps=_per_bit(energy, layout) if orthogonal else None,
            energy_offset=float(self.offset @ self.offset + energy[:, 0].sum()),
        )


@dataclass(frozen=True, eq=False)
class BitDecoder:
    """x = bits @ steps + offset, and |x|^2 = bits @ energy_steps + energy_offset if the decoder's rows are orthogonal.

    Parameters
    ----------
    steps : ndarray of shape (n_bits, d), float32
    offset : ndarray of shape (d,), float32
    energy_steps : ndarray of shape (n_bits,), float32, or None
        None if the decoder's rows are not orthogonal.
    energy_offset : float
        The squared norm of the vector whose bits are all 0.
    """

    steps: Floats
    offset: Floats
    energy_steps: Floats | None
    energy_offset: float

    @cached_property
    def weights(self) -> Linear:
        """What each bit adds to the inner product with a query: from (n, d) to (n, n_bits)."""
        return Linear(self.steps, np.zeros(len(self.steps), np.float32))

    def vectors(self, bits: Floats) -> Floats:
        """Return the vectors (n, d) of ``bits`` (n, n_bits)."""
        x: Floats = bits @ self.steps
        x += self.offset
        return x


def _per_bit(table: Floats, layout: CodeLayout) -> Floats:
    """Turn what each level of each column adds, (columns, levels, ...), into what each bit adds, (n_bits, ...)."""
    steps = np.diff(table, axis=1)
    parts = []
    for segment, columns, where in layout.slices():
        a = steps[columns, : segment.levels - 1]
        a = a.reshape(segment.units, -1, *a.shape[1:]).sum(axis=1)  # the columns of a unit move together
        parts.append(a.reshape(where.stop - where.start, *a.shape[2:]))
    return np.concatenate(parts)
