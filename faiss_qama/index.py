"""QamaIndex: codes in a FAISS binary index, searched by Hamming distance and rescored in float."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama import persistence
from faiss_qama.codes import Codes, Floats
from faiss_qama.progress import progress
from faiss_qama.quantizer import Quantizer
from faiss_qama.rescore import DTYPES, STORES, CodesStore, FloatStore, Ids
from faiss_qama.vectors import Corpus, PathLike, as_vectors


class QamaIndex:
    """A FAISS-like index of quantized vectors.

    Parameters
    ----------
    quantizer : from :func:`faiss_qama.training.fit`
    rescore : what scores the candidates of the Hamming scan again:
        ``none`` (nothing: D is the Hamming distance, int32, smallest first),
        ``codes`` (the codes themselves, decoded; no further memory), ``fp16`` or ``fp32`` (the vectors, kept)

    Attributes
    ----------
    quantizer : the quantizer
    rescore : the name of the second stage
    binary : the ``faiss.IndexBinaryFlat`` of the codes
    is_trained : always True: the quantizer comes fitted
    """

    is_trained = True

    def __init__(self, quantizer: Quantizer, rescore: str = "fp16") -> None:
        if rescore not in STORES:
            raise ValueError(f"rescore must be one of {', '.join(STORES)}; got {rescore!r}")
        self.quantizer, self.rescore = quantizer, rescore
        self.binary = faiss.IndexBinaryFlat(quantizer.code_size * 8)
        self._read_only = False
        self._store: FloatStore | CodesStore | None = None
        if rescore in DTYPES:
            self._store = FloatStore(quantizer, rescore)
        elif rescore == "codes":
            self._store = CodesStore(quantizer, self._codes)

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self.quantizer.d

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return int(self.binary.ntotal)

    @property
    def metric_type(self) -> int:
        """``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``."""
        return self.quantizer.metric

    @property
    def bytes_per_vector(self) -> tuple[int, int]:
        """Bytes a vector of the codes, and of the vectors kept to rescore with."""
        kept = self.d * self._store.dtype.itemsize if isinstance(self._store, FloatStore) else 0
        return self.quantizer.code_size, kept

    @property
    def vectors(self) -> Corpus | None:
        """The vectors kept to rescore with, or None."""
        if not isinstance(self._store, FloatStore):
            return None
        return Corpus(self._store.rows(self.ntotal), self.d, "stored vectors", self._store.scale)

    def __repr__(self) -> str:
        return (
            f"QamaIndex({self.ntotal} x {self.d}, {self.quantizer.layout}, rescore={self.rescore!r}, "
            f"{self.quantizer.metric_name})"
        )

    def add(self, x: ArrayLike) -> None:
        """Append the vectors ``x`` (n, d); their ids follow on from ``ntotal``.

        Raises TypeError or ValueError, with nothing added, for what :func:`faiss_qama.vectors.as_vectors` refuses.
        """
        if self._read_only:
            raise ValueError(
                "this index is read-only: it shares its codes with a file or another index; load it with mmap=False"
            )
        x = as_vectors(x, self.d)
        codes = self.quantizer.encode(x)
        if isinstance(self._store, FloatStore):
            self._store.write(self.ntotal, self._store.convert(x))
        self.binary.add(codes)

    def search(
        self, x: ArrayLike, k: int, *, oversample: float | None = None, recall: float | None = None
    ) -> tuple[NDArray[Any], Ids]:
        """Return the ``k`` nearest vectors of each query, best first.

        Parameters
        ----------
        x : (nq, d) queries
        k : how many; where the index holds fewer, ids are padded with -1 and scores with the worst there is, as FAISS
        oversample : k * oversample candidates are taken from the Hamming scan and scored again
        recall : instead, the share of the true k nearest to find, from what was measured when fitting.
            With neither, 0.95 when floats rescore, and 99 % of what codes can reach when they do.

        Returns
        -------
        D : (nq, k) float32 inner products, largest first, or squared L2 distances, smallest first;
            int32 Hamming distances, smallest first, where ``rescore`` is ``none``
        I : (nq, k) int64 ids
        """
        xq = as_vectors(x, self.d, "queries")
        k = operator.index(k)
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        candidates = min(self._candidates(k, oversample, recall), self.ntotal)
        if candidates == 0:
            return self._padded(np.empty((len(xq), 0)), np.empty((len(xq), 0), np.int64), k)
        D, I = self.binary.search(self.quantizer.encode_queries(xq), candidates)
        if self._store is not None:
            D, I = self._best(self._store.scores(xq, I), I, k)
        return self._padded(D, I, k)

    def save(self, path: PathLike) -> None:
        """Write the index to the folder ``path``, replacing an index there in one atomic step."""
        rows = self._store.rows(self.ntotal) if isinstance(self._store, FloatStore) else None
        persistence.write(path, self.quantizer, self.rescore, self.binary, rows)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False) -> QamaIndex:
        """Read an index that :meth:`save` or :meth:`build` wrote.

        Every checksum is verified. With ``mmap`` codes and vectors are mapped, not read: only their sizes are checked,
        the index is read-only, and several processes share its memory.
        """
        quantizer, rescore, binary, rows = persistence.read(path, mmap=mmap)
        index = cls(quantizer, rescore)
        index.binary, index._read_only = binary, mmap
        if rows is not None:
            index._store = FloatStore(quantizer, rescore, rows)
        return index

    @classmethod
    def build(cls, path: PathLike, quantizer: Quantizer, corpus: Corpus, rescore: str = "fp16") -> QamaIndex:
        """Index ``corpus`` straight to the folder ``path`` and load it memory-mapped: no vector stays in memory."""
        index = cls(quantizer, rescore)

        def rows() -> Iterator[NDArray[np.floating]]:
            for x in progress(corpus.chunks(), "encoding", corpus.n_chunks):
                first = index.ntotal
                index.binary.add(quantizer.encode(x))
                if isinstance(index._store, FloatStore):
                    yield index._store.convert(x, first)

        if isinstance(index._store, FloatStore):
            persistence.write(path, quantizer, rescore, index.binary, rows(), (len(corpus), quantizer.d))
        else:
            for _ in rows():
                pass
            persistence.write(path, quantizer, rescore, index.binary)
        return cls.load(path, mmap=True)

    def with_rescore(self, rescore: str) -> QamaIndex:
        """Return a read-only index on the same codes whose second stage is ``none`` or ``codes``."""
        if rescore not in ("none", "codes"):
            raise ValueError(f"rescore must be none or codes, which need no vectors; got {rescore!r}")
        other = QamaIndex(self.quantizer, rescore)
        other.binary, other._read_only = self.binary, True
        return other

    def _codes(self) -> Codes:
        """Return a view of the codes, (ntotal, code_size), valid until the next add."""
        size = self.quantizer.code_size
        view: Codes = faiss.rev_swig_ptr(self.binary.xb.data(), self.ntotal * size).reshape(-1, size)
        return view

    def _candidates(self, k: int, oversample: float | None, recall: float | None) -> int:
        """Return how many candidates the Hamming scan hands on."""
        if oversample is not None and recall is not None:
            raise ValueError("pass oversample= or recall=, not both")
        if self._store is None:
            if oversample is not None or recall is not None:
                raise ValueError("rescore='none' has no second stage, so oversample= and recall= mean nothing to it")
            return k
        if oversample is None:
            calibration = self.quantizer.calibration
            if calibration is not None:
                stage = "codes" if self.rescore == "codes" else "floats"
                oversample = calibration.oversample(k, self.ntotal, stage, recall)
            elif recall is not None:
                raise ValueError("recall= needs a calibration, which this quantizer lacks; pass oversample=")
            else:
                oversample = 10.0
        if not oversample >= 1:
            raise ValueError(f"oversample must be at least 1; got {oversample}")
        return int(min(np.ceil(k * oversample), self.ntotal))

    def _best(self, scores: Floats, ids: Ids, k: int) -> tuple[Floats, Ids]:
        """Return the best ``k`` of each row of ``scores``, best first; ties in the order of the Hamming scan."""
        keys = -scores if self.metric_type == faiss.METRIC_INNER_PRODUCT else scores
        order = np.argsort(keys, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _padded(self, D: NDArray[np.generic], I: Ids, k: int) -> tuple[NDArray[Any], Ids]:
        """Return D and I with ``k`` columns."""
        worst: np.generic = np.int32(np.iinfo(np.int32).max)
        if self._store is not None:
            limits = np.finfo(np.float32)
            worst = limits.min if self.metric_type == faiss.METRIC_INNER_PRODUCT else limits.max
        missing = ((0, 0), (0, k - D.shape[1]))
        return (
            np.pad(D.astype(worst.dtype), missing, constant_values=worst),
            np.pad(I, missing, constant_values=-1),
        )
