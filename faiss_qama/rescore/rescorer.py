"""The second stage: candidates from the Hamming scan are scored again with the float query.

A store answers ``scores(xq, rows)``: the scores of candidates in the metric of the floats. ``StoredVectors`` keeps the
vectors; ``UserVectors`` reads them where the user has them; ``CodeRescorer`` decodes the codes that the index holds
anyway.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids, Mask
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.kernels import kernel
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.faiss_vectors import FaissVectors
from faiss_qama.threads import even_slices, parallel_map
from faiss_qama.vectors import check_dtype_and_shape

DTYPES: dict[str, np.dtype[Any]] = {
    "sq8": np.dtype(np.int8),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}
RESCORE_KINDS = ("none", "codes", *DTYPES)


class Rescorer:
    """What scores candidates. Rows are those of the codes. This one keeps nothing, as what decodes codes need not.

    Attributes
    ----------
    stage : whose calibration holds, ``floats`` or ``codes``
    bytes_per_vector : what it keeps
    """

    stage = "floats"
    bytes_per_vector = 0

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        """Return inner products or squared L2 distances, (nq, k') float32, of ``rows`` (nq, k')."""
        raise NotImplementedError

    def take(self, rows: Ids) -> Floats:
        """Return the vectors (n, d) of ``rows`` (n,), as far as they are known."""
        raise NotImplementedError

    def convert(self, x: Floats, first: int = 0) -> NDArray[Any]:
        """Return vectors ``x`` (n, d), rows ``first`` and on of what is added, as :meth:`append` takes them.

        Raises ValueError if they cannot be stored.
        """
        return x

    def append(self, stored: NDArray[Any]) -> None:
        """Append what :meth:`convert` returned."""

    def encoded(self, rows: Ids) -> NDArray[Any]:
        """Return ``rows`` as :meth:`append` takes them, for another store of this kind."""
        return np.empty((len(rows), 0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what it keeps, by the names of a bundle's files."""
        return {}

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""

    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` is false; the others move up."""

    def clear(self) -> None:
        """Drop every row."""


class VectorRescorer(Rescorer):
    """Scoring from vectors."""

    scale = 1.0  # what gathered vectors are to be multiplied by

    def _gather(self, rows: Ids) -> Floats:
        """Return the vectors of ``rows`` (any shape), divided by ``scale``, as new float32."""
        raise NotImplementedError

    def take(self, rows: Ids) -> Floats:
        return self._gather(rows) * np.float32(self.scale)

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        """Return vectors (n, d) as they lie, divided by ``scale``, in float32 or float16, and where ``rows`` are there.

        None where they do not lie so.
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
        """Fill ``out`` (nq, k') with the scores of ``rows`` of ``x``."""
        dots, inner_product = kernel("scoring"), self.quantizer.metric == faiss.METRIC_INNER_PRODUCT
        if dots is not None:
            dots.scores(inner_product)(x.view(np.uint16) if x.dtype == np.float16 else x, rows, xq, out)
        elif inner_product:
            out[:] = np.matmul(x[rows], xq[:, :, None])[:, :, 0]
        else:
            differences = x[rows] - xq[:, None, :]
            out[:] = np.einsum("qkd,qkd->qk", differences, differences)


class StoredVectors(VectorRescorer):
    """Vectors in float32, float16 or 8 bits, row i belonging to code i; in memory, or a read-only memory map.

    float16 keeps 11 bits of each value between 6e-5 and 65504, so vectors are divided by the power of two next to the
    corpus' scale, which makes vectors of any length fit and adds no rounding of its own. ``sq8`` keeps the distance
    from the corpus' mean in 255 steps that reach to the vector's largest component; a row is d steps, then the
    bytes of the size of a step in float32.
    """

    def __init__(self, quantizer: Quantizer, kind: str, rows: NDArray[Any] | None = None) -> None:
        super().__init__(quantizer)
        self.kind, self.dtype = kind, DTYPES[kind]
        self.width = quantizer.d + (4 if kind == "sq8" else 0)
        self.scale = 2.0 ** round(math.log2(quantizer.rms_norm)) if kind == "fp16" else 1.0
        self._half = faiss.IndexScalarQuantizer(quantizer.d, faiss.ScalarQuantizer.QT_fp16)  # casts faster than numpy
        self.bytes_per_vector = self.width * self.dtype.itemsize
        self._rows = GrowingArray(np.empty((0, self.width), self.dtype) if rows is None else rows)

    @property
    def rows(self) -> NDArray[Any]:
        """The rows as they are stored, (n, width)."""
        return self._rows.array

    def convert(self, x: Floats, first: int = 0) -> NDArray[Any]:
        if self.kind == "sq8":
            x = x - self.quantizer.decoder.offset
            step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
            steps = np.rint(x / np.where(step > 0, step, 1)).astype(np.int8)
            return np.concatenate([steps, step.view(np.int8)], axis=1)
        with np.errstate(over="ignore"):
            stored = (x / np.float32(self.scale)).astype(self.dtype)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
            raise ValueError(
                f"vectors: row {first + row} holds {np.abs(x[row]).max():.3g}; this float16 store ends at "
                f"{65504 * self.scale:.3g}; rescore from fp32"
            )
        return stored

    def append(self, stored: NDArray[Any]) -> None:
        self._rows.append(stored)

    def encoded(self, rows: Ids) -> NDArray[Any]:
        return self.rows[rows]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"store": self.rows}

    def shrink(self, n: int) -> None:
        self._rows.shrink(n)

    def keep(self, kept: Mask) -> None:
        self._rows.keep(kept)

    def clear(self) -> None:
        self._rows.clear()

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        return None if self.kind == "sq8" else (self.rows, rows)

    def _gather(self, rows: Ids) -> Floats:
        stored, d = self.rows[rows], self.quantizer.d
        if self.kind == "fp32":
            return np.asarray(stored)
        if self.kind == "fp16":
            half: Floats = self._half.sa_decode(stored.reshape(-1, d).view(np.uint8))
            return half.reshape(*rows.shape, d)
        x = stored[..., :d].astype(np.float32)
        x *= np.ascontiguousarray(stored[..., d:]).view(np.float32)
        x += self.quantizer.decoder.offset
        return x


class UserVectors(VectorRescorer):
    """Vectors that the user keeps: an array, a memory map, or a faiss.Index. Row i is its i-th vector.

    It is not written to, but for one case: what is added to an index in step with a faiss.Index is added to that too.
    Vectors removed here stay there.
    """

    def __init__(self, quantizer: Quantizer, source: Any) -> None:
        super().__init__(quantizer)
        if isinstance(source, np.ndarray):
            source = np.asarray(source)  # also of a matrix, without copying a memory map
            check_dtype_and_shape(source, quantizer.d, "rescore")
        elif not isinstance(source, FaissVectors):
            source = FaissVectors(source)
        if not isinstance(source, np.ndarray) and source.d != quantizer.d:
            raise ValueError(f"rescore: dimension {source.d}, but {quantizer.d} is needed")
        self._source = source
        self._used = 0
        self._places: GrowingArray | None = None  # of our rows, once some were removed

    def convert(self, x: Floats, first: int = 0) -> NDArray[Any]:
        there, needed = len(self._source), self._used + len(x)
        if needed > there and (isinstance(self._source, np.ndarray) or self._used != there):
            raise ValueError(
                f"rescore: the vectors to rescore from are {there}, and {needed} would be needed: "
                "put them there before adding them here"
            )
        return x

    def append(self, stored: NDArray[Any]) -> None:
        if self._used + len(stored) > len(self._source):
            self._source.add(stored)
        if self._places is not None:
            self._places.append(np.arange(self._used, self._used + len(stored)))
        self._used += len(stored)

    def shrink(self, n: int) -> None:
        if isinstance(self._source, np.ndarray):  # whose rows can be added again; those of a faiss.Index were others
            self._used -= (self._used if self._places is None else len(self._places)) - n
        elif self._places is None:
            self._places = GrowingArray(np.arange(self._used))
        if self._places is not None:
            self._places.shrink(n)

    def keep(self, kept: Mask) -> None:
        if self._places is None:
            self._places = GrowingArray(np.arange(self._used))
        self._places.keep(kept)

    def clear(self) -> None:
        self._places = GrowingArray(np.empty(0, np.int64))

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        x = self._source
        readable = isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float16) and x.flags.c_contiguous
        return (x, self._place(rows)) if readable else None

    def _place(self, rows: Ids) -> Ids:
        return rows if self._places is None else self._places.array[rows]

    def _gather(self, rows: Ids) -> Floats:
        places = self._place(rows)
        if isinstance(self._source, np.ndarray):
            return self._source[places].astype(np.float32, copy=False)
        x: Floats = self._source.take(places)
        return x


class CodeRescorer(Rescorer):
    """Rescoring from the codes: asymmetric distances, the query in float and the document decoded.

    Parameters
    ----------
    quantizer : whose codes they are
    base : the codes
    """

    stage = "codes"

    def __init__(self, quantizer: Quantizer, base: CodeIndex) -> None:
        super().__init__(quantizer)
        self._base = base

    def over(self, base: CodeIndex) -> CodeRescorer:
        """Return this store on another base of the same codes."""
        return CodeRescorer(self.quantizer, base)

    def take(self, rows: Ids) -> Floats:
        return self.quantizer.decode(self._base.take(rows))

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        quantizer, decoder = self.quantizer, self.quantizer.bit_decoder
        xq = quantizer.adapt_queries(xq)
        plain = not quantizer.normalized and quantizer.metric == faiss.METRIC_INNER_PRODUCT  # no norms are needed
        squares = None if plain else decoder.energy_steps
        products, energies = self._base.weighted_sums(rows, decoder.weights(xq), squares)
        products += np.einsum("qd,d->q", xq, decoder.offset)[:, None]
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
        """Return the squared norms of what ``rows`` decode to, where they are no sum over the bits."""
        out = np.empty(rows.shape, dtype=np.float32)
        for block in topk.blocks(rows, self.quantizer.d):
            bits = bit_packing.unpack(self._base.take(rows[block].ravel()), self.quantizer.layout).astype(np.float32)
            vectors = self.quantizer.bit_decoder.vectors(bits)
            out[block] = np.square(vectors).sum(axis=1).reshape(rows[block].shape)
        return out
