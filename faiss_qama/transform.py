"""What is applied to a vector before it is cut into levels."""

from __future__ import annotations

from dataclasses import dataclass

from faiss_qama.codes import Floats


@dataclass(frozen=True, eq=False)
class Linear:
    """z = matrix @ x + bias: centring, rotation and projection folded into one.

    Parameters
    ----------
    matrix : (columns, d) float32, a row a column, most important first
    bias : (columns,) float32
    """

    matrix: Floats
    bias: Floats

    @property
    def d(self) -> int:
        """Dimension of the input."""
        return int(self.matrix.shape[1])

    def __call__(self, x: Floats) -> Floats:
        """Map (n, d) float32 to (n, columns) float32."""
        z: Floats = x @ self.matrix.T
        z += self.bias
        return z

    def truncate(self, columns: int) -> Linear:
        """Return the transform to the first ``columns``."""
        return Linear(self.matrix[:columns], self.bias[:columns])
