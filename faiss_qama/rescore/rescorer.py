"""The interface of the second stage: score candidates of the Hamming scan again, with the float query."""

from __future__ import annotations

from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import Codes, Floats, Ids, Mask
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.threads import even_slices, parallel_map


class Rescorer:
    """Scores candidates. Its rows are those of the codes.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.

    Attributes
    ----------
    kind : str
        ``codes``, ``sq8``, ``fp16``, ``fp32``, or ``user`` for vectors that the user keeps.
    stage : str
        The calibration that holds for it: ``floats`` or ``codes``.
    bytes_per_vector : int
        Bytes that it keeps per vector.
    """

    kind: str
    stage: ClassVar[str] = "floats"
    bytes_per_vector = 0

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        """Return the scores of candidates.

        Parameters
        ----------
        xq : ndarray of shape (nq, d), float32
            Queries.
        rows : ndarray of shape (nq, k), int64
            Candidates of each query, 0 to n - 1.

        Returns
        -------
        ndarray of shape (nq, k), float32
            Inner products, larger is better; or squared L2 distances, smaller is better.
        """
        raise NotImplementedError

    def take(self, rows: Ids) -> Floats:
        """Return the vectors (n, d) float32 of ``rows`` (n,), kept or decoded."""
        raise NotImplementedError

    def encode(self, x: Floats, code: Codes, first: int = 0) -> NDArray[Any]:
        """Return vectors as :meth:`append` takes them. Reads nothing that changes, so no lock is needed.

        Parameters
        ----------
        x : ndarray of shape (n, d), float32
            Vectors.
        code : ndarray of shape (n, code_size), uint8
            Their codes.
        first : int
            The number of the first vector, for error messages.

        Returns
        -------
        ndarray of shape (n, width)
            Rows as the rescorer stores them.

        Raises
        ------
        ValueError
            For vectors that cannot be stored.
        """
        return x

    def encode_both(self, x: Floats, first: int = 0) -> tuple[Codes, NDArray[Any]]:
        """Return the codes (n, code_size) uint8 of vectors ``x`` (n, d), and what :meth:`encode` returns for them."""
        code = self.quantizer.encode(x)
        return code, self.encode(x, code, first)

    def append(self, encoded: NDArray[Any]) -> None:
        """Append rows (n, width) of :meth:`encode`. Raises ValueError, and changes nothing, if they have no place."""

    def encoded(self, rows: Ids) -> NDArray[Any]:
        """Return the stored ``rows`` (n,) as :meth:`append` takes them, (n, width)."""
        return np.empty((len(rows), 0))

    def growing(self) -> dict[str, GrowingArray]:
        """Return the arrays of this rescorer that a bundle holds, by name."""
        return {}

    def over(self, base: CodeIndex) -> Rescorer:
        """Return this rescorer for the same codes in another index."""
        return self

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""

    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` (n,) is false; the others move up."""

    def clear(self) -> None:
        """Drop every row."""


class VectorRescorer(Rescorer):
    """Scores from float vectors, stored or the user's."""

    scale = 1.0  # factor of gathered vectors

    @property
    def exceeds_memory(self) -> bool:
        """Whether vectors are read from a memory-mapped file that memory cannot hold, so that reads take long."""
        return False

    def _gather(self, rows: Ids) -> Floats:
        """Return the vectors (..., d) of ``rows`` (...), divided by ``scale``, as new float32."""
        raise NotImplementedError

    def take(self, rows: Ids) -> Floats:
        return self._gather(rows) * np.float32(self.scale)

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        """Return the stored vectors (n, d), divided by ``scale``, and the places of ``rows`` among them.

        Return None unless they are stored as float32 or float16.
        """
        return None

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        out = np.empty(rows.shape, dtype=np.float32)
        xq = xq / np.float32(self.scale)
        there = self._in_place(rows) if kernel("scoring") else None
        if there is not None:
            topk.check_rows(there[1], len(there[0]))
            parallel_map(
                lambda part: self._compare(there[0], there[1][part], xq[part], out[part]), even_slices(len(rows))
            )
        else:
            for block in topk.blocks(rows, self.quantizer.d):
                x = self._gather(rows[block])  # (queries, k', d)
                places = np.arange(rows[block].size).reshape(rows[block].shape)
                self._compare(x.reshape(-1, self.quantizer.d), places, xq[block], out[block])
        out *= np.float32(self.scale**2)
        return out

    def _compare(self, x: NDArray[Any], rows: Ids, xq: Floats, out: Floats) -> None:
        """Fill ``out`` (nq, k') with the scores of ``rows`` (nq, k') of ``x`` (n, d), for queries ``xq`` (nq, d)."""
        dots, inner_product = kernel("scoring"), self.quantizer.metric == faiss.METRIC_INNER_PRODUCT
        if dots is not None:
            dots.scores(inner_product)(x.view(np.uint16) if x.dtype == np.float16 else x, rows, xq, out)
        elif inner_product:
            out[:] = np.matmul(x[rows], xq[:, :, None])[:, :, 0]
        else:
            differences = x[rows] - xq[:, None, :]
            out[:] = np.einsum("qkd,qkd->qk", differences, differences)
