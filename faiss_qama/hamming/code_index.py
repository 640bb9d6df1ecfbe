"""The interface of the first stage: codes in rows 0, 1, ..., and search for the nearest by Hamming distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import DTypeLike, NDArray

from faiss_qama import topk
from faiss_qama.arrays import Codes, Distances, Floats, Ids, Mask, Words
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming import bit_planes
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout


class MissingError(ValueError, AttributeError):
    """An attribute that an index lacks, or does not have yet: a ValueError for which ``hasattr`` returns False."""


class PartReader(Protocol):
    """Reads the parts of a saved index by name. Errors name the file."""

    writable: bool  # whether the index is open for writing

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool = True) -> NDArray[Any]:
        """Return an array of this shape and dtype, memory-mapped if the user asked for it and ``mapped`` allows it."""

    def growing(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> GrowingArray:
        """Return an array of this shape and dtype, to which rows can be appended; None stands for any number of rows.

        It is memory-mapped if the user asked for it, and grows in its file if the index is open for writing.
        """

    def binary(self, name: str, *, mapped: bool = False) -> faiss.IndexBinary:
        """Return a FAISS binary index, memory-mapped if the user asked for it and ``mapped`` allows it."""

    def has(self, name: str) -> bool:
        """Return whether the index has a part of this name."""

    def invalid(self, name: str, reason: str) -> ValueError:
        """Return the error for a part with impossible values."""


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
        """The faiss.IndexBinary of the codes. Raises MissingError for an index that is no FAISS index."""

    @property
    def is_trained(self) -> bool:
        """Whether codes can be added."""
        return True

    @property
    def codes(self) -> Codes:
        """The codes (n, code_size) uint8 by row, valid until the next change."""
        return self.take(np.arange(len(self)))

    @abstractmethod
    def take(self, rows: Ids) -> Codes:
        """Return the codes (m, code_size) uint8 of ``rows`` (m,)."""

    def words(self, rows: Ids) -> Words:
        """Return the words of bit planes (m, words) uint32 of ``rows`` (m,)."""
        return bit_planes.packed(self.take(rows), self.layout)

    def distances(self, queries: Codes, rows: Ids) -> Distances:
        """Return the Hamming distances (nq, k) int32 of ``queries`` (nq, code_size) to codes of ``rows`` (nq, k)."""
        D = np.empty(rows.shape, np.int32)
        for block in topk.blocks(rows, self.layout.code_size):
            code = self.take(rows[block].ravel()).reshape(*rows[block].shape, self.layout.code_size)
            D[block] = bit_packing.hamming(code, queries[block, None])
        return D

    def weighted_sums(self, rows: Ids, weights: Floats, shared: Floats | None) -> tuple[Floats, Floats]:
        """Return sums of weights over the bits that are set in a code.

        Parameters
        ----------
        rows : ndarray of shape (nq, k), int64
            Candidates of each query.
        weights : ndarray of shape (nq, n_bits), float32
            Weights of each query.
        shared : ndarray of shape (n_bits,), float32, or None
            Weights that all queries share; None for sums of 0.

        Returns
        -------
        own : ndarray of shape (nq, k), float32
            Sums of each query's own weights.
        common : ndarray of shape (nq, k), float32
            Sums of the shared weights.
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
        """Bytes per vector of the code as it is held, and of links and lists."""

    @property
    def settings(self) -> dict[str, int]:
        """The search parameters of the index, and their values."""
        return {}

    def set(self, settings: Mapping[str, int]) -> None:
        """Set search parameters, as :attr:`settings` gives them. Raises ValueError for others."""
        for name in settings:
            raise ValueError(f"{name} means nothing to {self}; it has no settings")

    @property
    def can_remove(self) -> bool:
        """Whether :meth:`keep` costs a pass over the codes and not a new index."""
        return True

    def train(self, codes: Codes) -> None:  # noqa: B027 - most indexes have no lists
        """Train the lists of the index on ``codes`` (n, code_size). Raises ValueError for too few."""

    @abstractmethod
    def append(self, codes: Codes) -> None:
        """Append ``codes`` (m, code_size) uint8 as rows."""

    @abstractmethod
    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` (n,) is false; the others move up."""

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""
        if len(self) > n:
            self.keep(np.arange(len(self)) < n)

    @abstractmethod
    def copy(self, rows: Ids) -> CodeIndex:
        """Return an index of the same kind, in memory, of the codes of ``rows`` (m,), ascending."""

    @abstractmethod
    def clear(self) -> None:
        """Drop every row."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return the parts that a bundle holds of it, by name: arrays, or a faiss.IndexBinary."""

    def growing(self) -> dict[str, GrowingArray] | None:
        """Return the parts that have changed since the index was read, by name, if it only grew; None for all parts."""
        return None

    def written(self) -> None:  # noqa: B027 - most indexes note nothing
        """Note that all parts were written: :meth:`growing` has what changes from here on."""

    @classmethod
    @abstractmethod
    def from_parts(cls, name: str, layout: CodeLayout, n: int, reader: PartReader) -> CodeIndex:
        """Return the index of :meth:`parts`.

        Parameters
        ----------
        name : str
            The factory string, ``str`` of the index.
        layout : CodeLayout
            Layout of the codes.
        n : int
            Number of codes.
        reader : PartReader
            The parts.

        Returns
        -------
        CodeIndex
            The index, filled.

        Raises
        ------
        ValueError
            For a part that is misshapen or that would make a search read elsewhere.
        """

    @abstractmethod
    def truncate(self, layout: CodeLayout) -> CodeIndex:
        """Return an index of the same kind over the codes' first components, those of ``layout``."""

    def flat_prefix(self, layout: CodeLayout) -> CodeIndex:
        """Return an exhaustive index over the codes' first components, those of ``layout``."""
        return self.truncate(layout)

    @abstractmethod
    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        """Return the ``k`` nearest codes of each query, nearest first.

        Parameters
        ----------
        queries : ndarray of shape (nq, code_size), uint8
            Codes of the queries.
        k : int
            Neighbours.
        rows : ndarray of shape (n,), bool, or None
            True for rows that may be found; None for all.
        settings : mapping of str to int
            ``nprobe`` or ``efSearch`` for this search.

        Returns
        -------
        D : ndarray of shape (nq, k), int32
            Hamming distances, smallest first; the largest int32 for missing hits.
        I : ndarray of shape (nq, k), int64
            Rows; -1 for missing hits.

        Raises
        ------
        ValueError
            For a setting that the index does not have.
        """

    def check_recall(self, settings: Mapping[str, int]) -> None:  # noqa: B027 - exhaustive scans keep any recall
        """Raise ValueError if a search with ``settings`` scans too few codes to promise a recall."""
