"""The first stage: codes in rows 0, 1, ..., and the nearest of them by Hamming distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import DTypeLike, NDArray

from faiss_qama import topk
from faiss_qama.arrays import Codes, Distances, Floats, Ids, Mask
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout


class PartReader(Protocol):
    """Reads the parts of a saved index by name. Errors name the file."""

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool = True) -> NDArray[Any]:
        """Return an array of this shape and dtype, memory-mapped if that was asked for and ``mapped`` allows it."""

    def binary(self, name: str, *, mapped: bool = False) -> faiss.IndexBinary:
        """Return a FAISS binary index, memory-mapped if that was asked for and ``mapped`` allows it."""

    def has(self, name: str) -> bool:
        """Return whether there is such a part."""

    def invalid(self, name: str, reason: str) -> ValueError:
        """Return the error for a part whose values cannot be."""


class CodeIndex(ABC):
    """Codes by row, and a search for the nearest of them.

    Parameters
    ----------
    layout : CodeLayout
        Layout of the codes.
    """

    def __init__(self, layout: CodeLayout) -> None:
        self.layout = layout

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __str__(self) -> str:
        """Return the factory string of such an index."""

    @property
    @abstractmethod
    def index(self) -> Any:
        """The faiss.IndexBinary of the codes. Raises ValueError where there is none."""

    @property
    def is_trained(self) -> bool:
        """Whether codes can be added."""
        return True

    @property
    def codes(self) -> Codes:
        """The codes by row, (n, code_size), valid until the next change."""
        return self.take(np.arange(len(self)))

    @abstractmethod
    def take(self, rows: Ids) -> Codes:
        """Return the codes (n, code_size) of ``rows`` (n,)."""

    def distances(self, queries: Codes, rows: Ids) -> Distances:
        """Return the distances (nq, k) of the codes of ``rows`` (nq, k) from ``queries`` (nq, code_size)."""
        D = np.empty(rows.shape, np.int32)
        for block in topk.blocks(rows, self.layout.code_size):
            code = self.take(rows[block].ravel()).reshape(*rows[block].shape, self.layout.code_size)
            D[block] = bit_packing.hamming(code, queries[block, None])
        return D

    def weighted_sums(self, rows: Ids, weights: Floats, shared: Floats | None) -> tuple[Floats, Floats]:
        """Return the sums of the weights of the bits that are set: each query's own, and the shared; (nq, k) float32.

        Parameters
        ----------
        rows : (nq, k) int64
        weights : (nq, n_bits) float32, each query's own
        shared : (n_bits,) float32, all queries', or None for sums of 0
        """
        own, common = np.empty(rows.shape, np.float32), np.zeros(rows.shape, np.float32)
        for block in topk.blocks(rows, self.layout.n_bits):
            bits = bit_packing.unpack(self.take(rows[block].ravel()), self.layout).astype(np.float32)
            if shared is not None:
                common[block] = (bits @ shared).reshape(rows[block].shape)
            own[block] = np.matmul(bits.reshape(*rows[block].shape, -1), weights[block, :, None])[:, :, 0]
        return own, common

    @property
    @abstractmethod
    def bytes_per_vector(self) -> int:
        """Bytes of a code as it is held, and of links and lists."""

    @property
    def settings(self) -> dict[str, int]:
        """The search parameters that it has, as they are set."""
        return {}

    def set(self, settings: Mapping[str, int]) -> None:
        """Set search parameters, as :attr:`settings` gives them."""
        for name in settings:
            raise ValueError(f"{name} means nothing to {self}; it has no settings")

    @property
    def can_remove(self) -> bool:
        """Whether :meth:`keep` costs a pass over the codes and not a new index."""
        return True

    def train(self, codes: Codes) -> None:  # noqa: B027 - most need none
        """Train what needs it."""

    @abstractmethod
    def append(self, codes: Codes) -> None:
        """Append rows."""

    @abstractmethod
    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` (n,) is false; the others move up."""

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""
        if len(self) > n:
            self.keep(np.arange(len(self)) < n)

    @abstractmethod
    def clear(self) -> None:
        """Drop every row."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return what a bundle holds of it: arrays, and faiss.IndexBinary objects, by name."""

    @classmethod
    @abstractmethod
    def from_parts(cls, name: str, layout: CodeLayout, n: int, reader: PartReader) -> CodeIndex:
        """Return the index of :meth:`parts`.

        Parameters
        ----------
        name : str
            Its factory string, ``str`` of it.
        layout : CodeLayout
            Layout of the codes.
        n : int
            Number of codes.
        reader : PartReader
            The parts.

        Raises
        ------
        ValueError
            For a part that is misshapen or that would make a search read elsewhere.
        """

    @abstractmethod
    def truncate(self, layout: CodeLayout) -> CodeIndex:
        """Return a base of the same kind whose codes are those of the prefix ``layout``."""

    def flat_prefix(self, layout: CodeLayout) -> CodeIndex:
        """Return an exhaustive base whose codes are those of the prefix ``layout``."""
        return self.truncate(layout)

    @abstractmethod
    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        """Return distances and rows, (nq, k) each, nearest first; row -1 and the worst distance where there is none.

        Parameters
        ----------
        queries : (nq, code_size) uint8
        k : how many
        rows : (n,) bool, the rows that may be found, or None for all
        settings : nprobe or efSearch, for this search; ValueError where they mean nothing
        """

    def check_recall(self, settings: Mapping[str, int]) -> None:  # noqa: B027 - what scans everything keeps any promise
        """Raise ValueError where a search with ``settings`` looks at so little that no recall can be promised."""
