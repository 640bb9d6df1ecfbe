"""Re-ranking from vectors that the index keeps: float32, float16, or 8 bits per component."""

from __future__ import annotations

import math
import warnings
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats, Ids, Mask
from faiss_qama.growing import GrowingArray, exceeds_memory, expect_random_reads
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import VectorRescorer

DTYPES: dict[str, np.dtype[Any]] = {
    "sq8": np.dtype(np.int8),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}
SMALLEST, INFINITE = 0x0400, 0x7C00  # bits of the smallest float16 of full precision, and of infinity
MANY = 0.01  # share of vectors; a few that are next to zero rank last whatever their digits


def row_width(kind: str, d: int) -> int:
    """Return the values per row of vectors of dimension ``d``."""
    return d + (4 if kind == "sq8" else 0)


class StoredVectors(VectorRescorer):
    """Vectors in float32, float16 or 8 bits, in memory or in a read-only memory map. Row i belongs to code i.

    float16 keeps 11 bits of each value between 6e-5 and 65504. Vectors are divided by the power of two next to the
    corpus' norm, so that vectors of any norm fit; a power of two adds no rounding. ``sq8`` keeps the difference from
    the corpus' mean in 255 steps that reach to the vector's largest component. Its row is d steps, then the bytes of
    the step's size in float32.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.
    kind : str
        ``sq8``, ``fp16`` or ``fp32``.
    rows : GrowingArray of shape (n, width), optional
        Rows as they are stored.
    """

    def __init__(self, quantizer: Quantizer, kind: str, rows: GrowingArray | None = None) -> None:
        super().__init__(quantizer)
        self.kind, self.dtype = kind, DTYPES[kind]
        self.width = row_width(kind, quantizer.d)
        self.scale = 2.0 ** round(math.log2(quantizer.rms_norm)) if kind == "fp16" else 1.0
        self._half = faiss.IndexScalarQuantizer(quantizer.d, faiss.ScalarQuantizer.QT_fp16)  # casts faster than numpy
        self.bytes_per_vector = self.width * self.dtype.itemsize
        self._rows = GrowingArray(np.empty((0, self.width), self.dtype)) if rows is None else rows

    @property
    def rows(self) -> NDArray[Any]:
        """The rows (n, width) as they are stored."""
        return self._rows.array

    @property
    def exceeds_memory(self) -> bool:
        return exceeds_memory(self.rows)

    def encode(self, x: Floats, code: Codes, first: int = 0) -> NDArray[Any]:
        if self.kind == "sq8":
            x = x - self.quantizer.decoder.offset
            step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
            steps = np.rint(x / np.where(step > 0, step, 1)).astype(np.int8)
            return np.concatenate([steps, step.view(np.int8)], axis=1)
        with np.errstate(over="ignore"):
            encoded = (x / np.float32(self.scale)).astype(self.dtype)
        if self.kind == "fp16":
            largest = (encoded.view(np.uint16) & 0x7FFF).max(axis=1)  # without signs bits are in the order of values
            too_large = np.flatnonzero(largest >= INFINITE)
            if len(too_large):
                row = int(too_large[0])
                raise ValueError(
                    f"vectors: row {first + row} holds {np.abs(x[row]).max():.3g}; float16 here ends at "
                    f"{65504 * self.scale:.3g}; use rescore='fp32'"
                )
            lost = np.count_nonzero((largest < SMALLEST) & x.any(axis=1))
            if lost > MANY * len(x):
                warnings.warn(
                    f"{lost:,} of {len(x):,} vectors hold nothing above {6.1e-5 * self.scale:.3g}, where float16 loses "
                    f"digits beside vectors of norm {self.quantizer.rms_norm:.3g}; use rescore='fp32'",
                    stacklevel=4,
                )
        return encoded

    def append(self, encoded: NDArray[Any]) -> None:
        self._rows.append(encoded)

    def encoded(self, rows: Ids) -> NDArray[Any]:
        return self.rows[rows]

    def growing(self) -> dict[str, GrowingArray]:
        return {"vectors": self._rows}

    def shrink(self, n: int) -> None:
        self._rows.shrink(n)

    def keep(self, kept: Mask) -> None:
        self._rows = GrowingArray(self.rows[kept])

    def clear(self) -> None:
        self._rows.clear()

    def _in_place(self, rows: Ids) -> tuple[NDArray[Any], Ids] | None:
        expect_random_reads(self.rows)
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
