"""Re-ranking from vectors that the user keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids, Mask, scale_to_norm
from faiss_qama.formats.faiss_vectors import FaissVectors
from faiss_qama.growing import GrowingArray, exceeds_memory, expect_random_reads
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import VectorRescorer
from faiss_qama.vectors import check_dtype_and_shape


class UserVectors(VectorRescorer):
    """Vectors that the user keeps: an array, a memory map, or a faiss.Index. Row i is its i-th vector.

    An array is never written to. Vectors added here are also added to a faiss.Index, if that holds no others. Vectors
    removed here stay there.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.
    source : ndarray of shape (n, d), faiss.Index or FaissVectors
        The vectors.

    Raises
    ------
    TypeError, ValueError
        For vectors of another type or dimension.
    """

    kind = "user"

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
        self._places: GrowingArray | None = None  # of the rows, after some were removed

    @property
    def exceeds_memory(self) -> bool:
        return isinstance(self._source, np.ndarray) and exceeds_memory(self._source)

    def scores(self, xq: Floats, rows: Ids) -> Floats:
        out = super().scores(xq, rows)
        wrong = rows[~np.isfinite(out)]
        if len(wrong):
            raise ValueError(f"rescore: vector {self._place(wrong[:1])[0]} of yours holds NaN, infinity or huge values")
        return out

    def append(self, encoded: NDArray[Any]) -> None:
        there, needed = len(self._source), self._used + len(encoded)
        if needed > there and (isinstance(self._source, np.ndarray) or self._used != there):
            raise ValueError(
                f"rescore: {needed} vectors are needed, and there are {there}: put them there before adding them here"
            )
        if not isinstance(self._source, np.ndarray):
            self._source.check()
        if needed > there:
            self._source.add(encoded)
        if self._places is not None:
            self._places.append(np.arange(self._used, needed))
        self._used = needed

    def shrink(self, n: int) -> None:
        if isinstance(self._source, np.ndarray):  # its rows can be added again
            self._used -= (self._used if self._places is None else len(self._places)) - n
        elif self._places is None:
            self._places = GrowingArray(np.arange(self._used))
        if self._places is not None:
            self._places.shrink(n)

    def keep(self, kept: Mask) -> None:
        self._places = GrowingArray(np.flatnonzero(kept) if self._places is None else self._places.array[kept])

    def clear(self) -> None:
        self._places = GrowingArray(np.empty(0, np.int64))

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        x = self._source
        if isinstance(x, np.ndarray):
            expect_random_reads(x)
        readable = (
            isinstance(x, np.ndarray)
            and not self.quantizer.cosine
            and x.dtype in (np.float32, np.float16)
            and x.flags.c_contiguous
        )
        return (x, self._place(rows)) if readable else None

    def _place(self, rows: Ids) -> Ids:
        return rows if self._places is None else self._places.array[rows]

    def _gather(self, rows: Ids) -> Floats:
        places = self._place(rows)
        x: Floats
        if isinstance(self._source, np.ndarray):
            x = self._source[places].astype(np.float32, copy=False)
        else:
            x = self._source.take(places)
        return scale_to_norm(x.reshape(-1, x.shape[-1]), 1.0).reshape(x.shape) if self.quantizer.cosine else x
