"""Maps from vectors to columns, before the thresholds: a linear map, or a feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats

HIDDEN_BLOCK = 256  # vectors whose hidden layer stays in cache
MIN_PARALLEL = 32  # vectors; one thread multiplies fewer faster than it wakes others, which may wait for a core


@dataclass(frozen=True, eq=False)
class Linear:
    """z = matrix @ x + bias: centring, rotation and projection folded into one.

    Parameters
    ----------
    matrix : ndarray of shape (columns, d), float32
        One row per column, most important first.
    bias : ndarray of shape (columns,), float32
    """

    matrix: Floats
    bias: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, and dimension of the input."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def __call__(self, x: Floats) -> Floats:
        """Map (n, d) float32 to (n, columns) float32."""
        # FAISS's product runs in as many threads as FAISS may use. Numpy's does not, and its threads wait busily for
        # more while ours would work.
        x, z = np.ascontiguousarray(x), np.empty((len(x), len(self.matrix)), np.float32)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads if len(x) >= MIN_PARALLEL else 1)
        try:
            self._product.apply_noalloc(len(x), faiss.swig_ptr(x), faiss.swig_ptr(z))
        finally:
            faiss.omp_set_num_threads(threads)
        return z

    def __reduce__(self) -> tuple[Any, ...]:
        return Linear, (self.matrix, self.bias)

    @cached_property
    def _product(self) -> Any:
        product = faiss.LinearTransform(self.shape[1], self.shape[0], True)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.matrix, np.float32).ravel(), product.A)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.bias, np.float32), product.b)
        product.is_trained = True
        return product

    def truncate(self, columns: int) -> Linear:
        """Return the transform to the first ``columns``."""
        return Linear(self.matrix[:columns], self.bias[:columns])

    def then(self, gain: float, shift: Floats) -> Linear:
        """Return the transform whose columns are multiplied by ``gain`` and then moved by ``shift``."""
        return Linear(np.float32(gain) * self.matrix, np.float32(gain) * self.bias + shift)

    def rescaled(self, factor: float) -> Linear:
        """Return the transform T of ``factor`` x with T(factor x) = factor z, for the z of x here."""
        return Linear(self.matrix, np.float32(factor) * self.bias)

    def arrays(self) -> dict[str, Floats]:
        """Return its arrays by name, of the shapes that :meth:`shapes` gives."""
        return {"matrix": self.matrix, "bias": self.bias}

    @staticmethod
    def shapes(columns: int, d: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes that its arrays must have to map R^d to ``columns``."""
        return {"matrix": (columns, d), "bias": (columns,)}


@dataclass(frozen=True, eq=False)
class FeedForward:
    """z = skip(x) + out @ gelu(hidden(x)), with the tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415, 2).

    QAMA's network (methodology, "Matryoshka adapter") is this one where the matrix of ``skip`` is 0.

    Parameters
    ----------
    skip : Linear
        From (d,) to (columns,).
    hidden : Linear
        From (d,) to (h,).
    out : ndarray of shape (columns, h), float32
    """

    skip: Linear
    hidden: Linear
    out: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, and dimension of the input."""
        return self.skip.shape

    def __call__(self, x: Floats) -> Floats:
        """Map (n, d) float32 to (n, columns) float32."""
        z = self.skip(x)
        for start in range(0, len(x), HIDDEN_BLOCK):
            rows = slice(start, start + HIDDEN_BLOCK)
            z[rows] += gelu(self.hidden(x[rows])) @ self.out.T
        return z

    def truncate(self, columns: int) -> FeedForward:
        """Return the transform to the first ``columns``."""
        return FeedForward(self.skip.truncate(columns), self.hidden, self.out[:columns])

    def then(self, gain: float, shift: Floats) -> FeedForward:
        """Return the transform whose columns are multiplied by ``gain`` and then moved by ``shift``."""
        return FeedForward(self.skip.then(gain, shift), self.hidden, np.float32(gain) * self.out)

    def rescaled(self, factor: float) -> FeedForward:
        """Return the transform T of ``factor`` x with T(factor x) = factor z, for the z of x here."""
        hidden = Linear(self.hidden.matrix / np.float32(factor), self.hidden.bias)
        return FeedForward(self.skip.rescaled(factor), hidden, np.float32(factor) * self.out)

    def arrays(self) -> dict[str, Floats]:
        """Return its arrays by name."""
        hidden = {f"hidden.{name}": array for name, array in self.hidden.arrays().items()}
        return self.skip.arrays() | hidden | {"out": self.out}

    def shapes(self, columns: int, d: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes that its arrays must have to map R^d to ``columns``."""
        h = self.hidden.matrix.shape[0]
        hidden = {f"hidden.{name}": shape for name, shape in Linear.shapes(h, d).items()}
        return Linear.shapes(columns, d) | hidden | {"out": (columns, h)}


Transform: TypeAlias = Linear | FeedForward


def from_arrays(arrays: Mapping[str, NDArray[Any]], name: str) -> Transform:
    """Return the transform whose :meth:`arrays` are those of ``arrays`` that are called ``name.*``."""
    linear = Linear(arrays[f"{name}.matrix"], arrays[f"{name}.bias"])
    if f"{name}.out" not in arrays:
        return linear
    hidden = Linear(arrays[f"{name}.hidden.matrix"], arrays[f"{name}.hidden.bias"])
    return FeedForward(linear, hidden, arrays[f"{name}.out"])


def gelu(x: Floats) -> Floats:
    """Return the tanh form of GELU of an array of any shape, in an array of its own."""
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(np.sqrt(2 / np.pi))
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner
