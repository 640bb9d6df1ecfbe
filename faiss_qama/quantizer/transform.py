"""Maps from vectors to columns, before the thresholds: a linear map, or a feed-forward network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats

HIDDEN_BLOCK = 256  # vectors whose hidden layer stays in cache
MIN_PARALLEL = 32  # vectors; one thread multiplies fewer faster than it wakes others, which may wait for a core


class _FaissMatrix:
    """The matrix of a FAISS product, for numpy to see without a copy of its own.

    Nothing may resize ``A``, whose memory numpy reads.
    """

    def __init__(self, matrix: Floats) -> None:
        rows, d = matrix.shape
        self.product = faiss.LinearTransform(d, rows, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(matrix, np.float32).ravel(), self.product.A)
        self.product.is_trained = True
        address = int(self.product.A.data())
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(np.float32).str,
            "shape": (rows, d),
            "data": (address, True),
        }


@dataclass(frozen=True, eq=False)
class Linear:
    """z = gain * matrix @ x + bias: centring, rotation and projection folded into one.

    Parameters
    ----------
    matrix : ndarray of shape (columns, d), float32
        One row per column, most important first. It is copied, unless it is the matrix of another Linear: then both
        share it.
    bias : ndarray of shape (columns,), float32
    gain : float
    """

    matrix: Floats
    bias: Floats
    gain: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.matrix.base, _FaissMatrix):
            object.__setattr__(self, "matrix", np.asarray(_FaissMatrix(self.matrix)))

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, and dimension of the input."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def scaled_matrix(self) -> Floats:
        """``gain`` * ``matrix``, of shape (columns, d)."""
        return np.float32(self.gain) * self.matrix

    def __call__(self, x: Floats) -> Floats:
        """Map (n, d) float32 to (n, columns) float32."""
        z = self.products(x)
        if self.gain != 1:
            z *= np.float32(self.gain)
        z += self.bias
        return z

    def products(self, x: Floats) -> Floats:
        """Return the inner products (n, columns) of ``x`` (n, d) float32 with the rows of the matrix alone."""
        # FAISS's product runs in as many threads as FAISS may use. Numpy's does not, and its threads wait busily for
        # more while ours would work.
        rows, x, z = self.matrix.base, np.ascontiguousarray(x), np.empty((len(x), len(self.matrix)), np.float32)
        assert isinstance(rows, _FaissMatrix)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads if len(x) >= MIN_PARALLEL else 1)
        try:
            rows.product.apply_noalloc(len(x), faiss.swig_ptr(x), faiss.swig_ptr(z))
        finally:
            faiss.omp_set_num_threads(threads)
        return z

    def with_matrix(self, matrix: Floats) -> Linear:
        """Return the transform with this matrix in place of its own."""
        return replace(self, matrix=matrix)

    def __reduce__(self) -> tuple[Any, ...]:
        return Linear, (self.matrix.copy(), self.bias, self.gain)

    def truncate(self, columns: int) -> Linear:
        """Return the transform to the first ``columns``."""
        return Linear(self.matrix[:columns], self.bias[:columns], self.gain)

    def then(self, gain: float, shift: Floats) -> Linear:
        """Return the transform whose columns are multiplied by ``gain`` and then moved by ``shift``."""
        return Linear(self.matrix, np.float32(gain) * self.bias + shift, gain * self.gain)

    def rescaled(self, factor: float) -> Linear:
        """Return the transform T of ``factor`` x with T(factor x) = factor z, for the z of x here."""
        return Linear(self.matrix, np.float32(factor) * self.bias, self.gain)

    def arrays(self) -> dict[str, Floats]:
        """Return its arrays by name, of the shapes that :meth:`shapes` gives."""
        return {"matrix": self.matrix, "bias": self.bias, "gain": np.array([self.gain], np.float32)}

    @staticmethod
    def shapes(columns: int, d: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes that its arrays must have to map R^d to ``columns``."""
        return {"matrix": (columns, d), "bias": (columns,), "gain": (1,)}


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

    @property
    def matrix(self) -> Floats:
        """The matrix of ``skip``."""
        return self.skip.matrix

    def with_matrix(self, matrix: Floats) -> FeedForward:
        """Return the transform whose ``skip`` has this matrix."""
        return replace(self, skip=self.skip.with_matrix(matrix))

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
        hidden = replace(self.hidden, matrix=self.hidden.matrix / np.float32(factor))
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
    skip = linear(arrays, name)
    if f"{name}.out" not in arrays:
        return skip
    return FeedForward(skip, linear(arrays, f"{name}.hidden"), arrays[f"{name}.out"])


def linear(arrays: Mapping[str, NDArray[Any]], name: str) -> Linear:
    """Return the Linear whose arrays are those of ``arrays`` that are called ``name.*``; a missing gain is 1."""
    gain = arrays.get(f"{name}.gain", np.ones(1, np.float32))
    if gain.shape != (1,):
        raise ValueError(f"{name}.gain has shape {gain.shape}; (1,) is needed")
    return Linear(arrays[f"{name}.matrix"], arrays[f"{name}.bias"], float(gain[0]))


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
