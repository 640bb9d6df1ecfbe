"""QamaIndex: the face of a FAISS index on quantized vectors."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids
from faiss_qama.hamming.factory import DEFAULT
from faiss_qama.index import export, saving
from faiss_qama.index.id_map import as_ids
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.index.state import IndexState, Unfitted, empty_index
from faiss_qama.index.tuning import BaseTrial, fastest, trial_queries, tune
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.quantizer.calibration import RECALL
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.rescore.faiss_vectors import FaissVectors
from faiss_qama.vectors import PathLike, as_vectors

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig


class QamaIndex(IndexState):
    """A FAISS-like index of quantized vectors.

    Many threads may search at once. A change waits for them and they for it, so a search sees all of it or nothing.

    Parameters
    ----------
    quantizer : Quantizer
        From :func:`faiss_qama.training.fit`.
    rescore : str, ndarray of shape (n, d), or faiss.Index
        The second stage, which scores the candidates of the Hamming scan again. ``none``: nothing does, and D is the
        Hamming distance, int32, smallest first. ``codes``: the decoded codes do, and the residual codes if the
        quantizer has a residual. ``sq8``, ``fp16``, ``fp32``: the vectors do, which are kept. Or vectors that you
        keep, whose i-th is the i-th that is added: an array, a memory map, a faiss.Index.
    base : str or faiss.IndexBinary
        The first stage, which scans the codes: ``Flat``, ``IVF1024``, a string of ``faiss.index_binary_factory``, or
        an empty faiss.IndexBinary. ``auto``: ``train`` takes the fastest of ``Flat`` and some ``IVF``.

    Attributes
    ----------
    base_trials : list of BaseTrial
        What base ``auto`` was chosen from, itself first.
    """

    # Filling and changing it.

    def train(
        self, x: ArrayLike, *, queries: ArrayLike | None = None, recall: float = RECALL, memory: float | None = None
    ) -> None:
        """Fit the quantizer, if :func:`~faiss_qama.index_factory` left that to do, and train the base index.

        Parameters
        ----------
        x : array of shape (n, d)
            Vectors like those to be added; for base ``auto`` all of them, as it depends on their number.
        queries : array of shape (nq, d), optional
            Unlabelled queries, to fit the quantizer or to choose the base with.
        recall : float
            Recall that base ``auto`` must keep; the fastest base that keeps it is taken.
        memory : float, optional
            Bytes per vector that base ``auto`` may hold in codes, lists and links.

        Raises
        ------
        ValueError
            For fewer vectors than they need.
        """
        x = as_vectors(x, self.d)
        with self._lock.write():
            self._check_writable()
            core = self._core
            if isinstance(core, TwoStageIndex):
                if queries is not None:
                    raise ValueError("queries= are for fitting, and this index has a quantizer")
                if not core.base.is_trained:
                    core.base.train(core.quantizer.encode(x))
                return
            quantizer, base = core.quantizer, core.base
            if isinstance(quantizer, Unfitted):
                from faiss_qama.training import fit  # here, because run time does not depend on training

                quantizer = fit(x, config=quantizer.config, metric=quantizer.metric, queries=queries)
            trials: list[BaseTrial] = []
            if base is None:
                xq = trial_queries(x, queries, self.d)
                base, trials = fastest(quantizer, quantizer.encode(x), xq, recall, memory)
                base.clear()
            if not base.is_trained:
                base.train(quantizer.encode(x))
            self._core, self.base_trials = empty_index(quantizer, base, core.rescore), trials

    def tune(self, queries: ArrayLike, k: int = 10, *, recall: float = RECALL) -> BaseTrial:
        """Set ``nprobe`` or ``efSearch`` to the smallest value that keeps a recall, and return what was measured there.

        ``queries`` (nq, d) are unlabelled queries like those to come. Raises ValueError if no value keeps it.
        """
        xq, k = as_vectors(queries, self.d, "queries"), topk.check_k(k)
        with self._lock.write():
            if not len(self._fitted.id_map):
                raise ValueError("tune measures searches of what the index holds, and it is empty: add vectors first")
            trial = tune(self._fitted, xq, k, recall)
        if trial is None:
            raise ValueError(f"{self._base_name} keeps recall {recall} with no setting")
        return trial

    def add(self, x: ArrayLike) -> None:
        """Append vectors ``x`` (n, d); their ids follow on from ``ntotal``.

        Raises
        ------
        TypeError, ValueError
            For what :func:`faiss_qama.vectors.as_vectors` refuses, and for an index that is not trained, is read-only,
            or has ids of its own. Nothing is added.
        """
        self._append(as_vectors(x, self.d), None)

    def add_with_ids(self, x: ArrayLike, ids: ArrayLike) -> None:
        """Append vectors under ids of your own.

        As in faiss.IndexIDMap2 an id may stand for several vectors: ``remove_ids`` removes them all, ``reconstruct``
        gives the last.

        Parameters
        ----------
        x : array of shape (n, d)
            Vectors.
        ids : array of shape (n,), integers
            Ids, 0 or more.

        Raises
        ------
        TypeError, ValueError
            As :meth:`add`, and for other ids. Nothing is added.
        """
        x = as_vectors(x, self.d)
        self._append(x, as_ids(ids, len(x)))

    def remove_ids(self, ids: Any) -> int:
        """Remove vectors.

        Without ids of your own the ids that follow move up, as in IndexFlat. Graphs and hash tables keep removed codes
        until :meth:`compact`, and no longer find them.

        Parameters
        ----------
        ids : array of integers or faiss.IDSelector
            Ids to remove; ids that are not there are ignored.

        Returns
        -------
        int
            The number of vectors that were removed.
        """
        with self._lock.write():
            self._check_writable()
            gone = self._fitted.id_map.matching(ids)
            if gone.any():
                self._fitted.remove(gone)
            return int(np.count_nonzero(gone))

    def compact(self) -> None:
        """Build the base index anew without the codes that were removed from it."""
        with self._lock.write():
            self._check_writable()
            if self._fitted.id_map.alive is not None:
                self._fitted.keep(self._fitted.id_map.alive)

    def merge_from(self, other: QamaIndex, add_id: int = 0) -> None:
        """Move the vectors of another index, which is empty afterwards, to the end of this one.

        Parameters
        ----------
        other : QamaIndex
            An index with the same quantizer and second stage. If it has no ids of its own, its ids follow on.
        add_id : int
            Added to the ids of ``other``.

        Raises
        ------
        TypeError, ValueError
            For an ``other`` that does not match. Nothing is moved.
        """
        if not isinstance(other, QamaIndex):
            raise TypeError(f"a QamaIndex is needed; got {type(other).__name__}")
        if other._lock is self._lock:
            raise ValueError("an index cannot be merged into itself, nor what shares its codes")
        first, second = sorted((self._lock, other._lock), key=id)  # the same order whoever merges whom
        with first.write(), second.write():
            self._check_writable()
            other._check_writable()
            self._check_trained()
            self._fitted.merge_from(other._fitted, add_id)

    def reset(self) -> None:
        """Remove every vector."""
        with self._lock.write():
            self._check_writable()
            self._fitted.clear()

    # Searching it.

    def search(
        self,
        x: ArrayLike,
        k: int,
        *,
        oversample: float | None = None,
        recall: float | None = None,
        truncate_dim: int | None = None,
        sel: Any = None,
        params: Any = None,
        **settings: int,
    ) -> tuple[NDArray[Any], Ids]:
        """Return the ``k`` nearest vectors of each query, best first.

        Parameters
        ----------
        x : array of shape (nq, d)
            Queries.
        k : int
            Neighbours. Missing hits get id -1 and the worst score there is, as in FAISS.
        oversample : float, optional
            Re-rank ``k * oversample`` candidates of the Hamming scan.
        recall : float, optional
            Re-rank as many candidates as the fit measured to be needed for this recall, with exhaustive scans. The
            default is 0.95 with floats, and 99 % of what codes can reach with ``rescore='codes'``.
        truncate_dim : int, optional
            Scan only the first ``truncate_dim`` components of the codes, then rank their hits by whole codes.
        sel : faiss.IDSelector or array of integers, optional
            Ids that may be found; you get ``k`` of them if there are so many.
        params : faiss.SearchParameters, optional
            In place of ``sel``, ``nprobe`` or ``efSearch``.
        **settings : int
            ``nprobe`` or ``efSearch``, if the base index has them.

        Returns
        -------
        D : ndarray of shape (nq, k)
            float32 inner products, largest first, or squared L2 distances, smallest first; int32 Hamming distances,
            smallest first, with ``rescore='none'``.
        I : ndarray of shape (nq, k), int64
            Ids.

        Raises
        ------
        TypeError, ValueError
            For queries of another dimension, ``k`` below 1, a recall out of reach, and parameters that mean nothing to
            the base index.
        """
        xq, k = as_vectors(x, self.d, "queries"), topk.check_k(k)
        options = {"oversample": oversample, "recall": recall, "truncate_dim": truncate_dim}
        parameters = SearchParameters.of(params, sel, settings, **options)
        with self._lock.read():
            D, I, _ = self._search(xq, k, parameters)
            return D, I

    def assign(self, x: ArrayLike, k: int = 1, **options: Any) -> Ids:
        """Return the ids (nq, k) int64 of :meth:`search`."""
        return self.search(x, k, **options)[1]

    def search_and_reconstruct(
        self, x: ArrayLike, k: int, *, sel: Any = None, params: Any = None, **options: Any
    ) -> tuple[NDArray[Any], Ids, Floats]:
        """Return D and I of :meth:`search`, and the vectors (nq, k, d) float32, NaN for missing hits."""
        xq, k = as_vectors(x, self.d, "queries"), topk.check_k(k)
        chosen = {name: options.pop(name, None) for name in ("oversample", "recall", "truncate_dim")}
        parameters = SearchParameters.of(params, sel, options, **chosen)
        with self._lock.read():
            D, I, rows = self._search(xq, k, parameters)
            R = np.full((*I.shape, self.d), np.nan, dtype=np.float32)
            R[I >= 0] = self._fitted.take(rows[rows >= 0])
            return D, I, R

    def range_search(
        self, x: ArrayLike, radius: float, *, sel: Any = None, params: Any = None, **settings: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], Ids]:
        """Return every vector nearer than ``radius``, best first.

        Candidates of the Hamming scan are doubled until the farther half of them holds no hit. A hit that lies farther
        by Hamming distance than twice as many candidates is missed.

        Parameters
        ----------
        x : array of shape (nq, d)
            Queries.
        radius : float
            Inner products above it are hits; L2 or Hamming distances below it.
        sel, params, **settings
            As in :meth:`search`.

        Returns
        -------
        lims : ndarray of shape (nq + 1,), int64
            The hits of query i are D[lims[i] : lims[i + 1]] and I[lims[i] : lims[i + 1]].
        D : ndarray of shape (lims[-1],)
            Scores.
        I : ndarray of shape (lims[-1],), int64
            Ids.
        """
        xq = as_vectors(x, self.d, "queries")
        parameters = SearchParameters.of(params, sel, settings)
        with self._lock.read():
            core = self._fitted
            hits = core.range_search(xq, radius, parameters)
            lims = np.cumsum([0] + [len(rows) for _, rows in hits])
            scores = np.concatenate([D for D, _ in hits]).astype(core.worst.dtype)
            return lims, scores, core.id_map.ids_of(np.concatenate([rows for _, rows in hits]))

    # Making others of it.

    @classmethod
    def wrap(
        cls, index: Any, *, config: FitConfig | None = None, queries: ArrayLike | None = None, base: Any = DEFAULT
    ) -> QamaIndex:
        """Return an index of the vectors in a FAISS index: fitted on a sample, re-ranked from it, with its ids.

        Parameters
        ----------
        index : faiss.Index
            A filled Flat, IVF, HNSW, SQ or PQ, also inside IDMap, PreTransform or Refine. It is not copied, and must
            not be changed while this is used; vectors added here are added there too. Inverted lists get a direct map.
        config : FitConfig, optional
            Settings of the fit.
        queries : array of shape (nq, d), optional
            Unlabelled queries for the fit.
        base : str or faiss.IndexBinary
            The first stage, as in :class:`QamaIndex`.

        Returns
        -------
        QamaIndex
            With ``rescore`` ``borrowed``.

        Raises
        ------
        ValueError
            For an index that gives no vectors back, holds fewer than 2, or has ids that cannot be kept.
        """
        from faiss_qama.training import FitConfig, fit
        from faiss_qama.training.split import HELD_OUT

        vectors, config = FaissVectors(index), config or FitConfig()
        sample = vectors.sample(config.sample + HELD_OUT, config.seed)
        wrapped = cls(fit(sample, config=config, metric=index.metric_type, queries=queries), vectors, base=base)
        if not wrapped.is_trained:
            wrapped.train(sample)
        for x, ids in vectors.chunks():
            wrapped._append(x, None if ids is None else as_ids(ids, len(x)))
        return wrapped

    def truncate(self, components: int) -> QamaIndex:
        """Return a read-only index of the codes' first ``components``, sharing the vectors to re-rank from.

        Nothing is encoded or trained again. A prefix is a good code of its own if the quantizer was fitted with
        ``matryoshka_dims``; those have a calibration too.
        """
        with self._lock.read():
            core, quantizer = self._fitted, self.quantizer.truncate(operator.index(components))
            base = core.base.truncate(quantizer.layout)
            rescorer = CodeRescorer(quantizer, base) if self.rescore == "codes" else core.rescorer
            return self._view(TwoStageIndex(quantizer, base, core.id_map, rescorer), core.version)

    def with_rescore(self, rescore: str) -> QamaIndex:
        """Return a read-only index on the same codes whose second stage is ``none`` or ``codes``."""
        if rescore not in ("none", "codes"):
            raise ValueError(f"rescore must be none or codes, which need no vectors; got {rescore!r}")
        core = self._fitted
        rescorer = self._code_rescorer() if rescore == "codes" else None
        quantizer = core.quantizer if rescorer is None else rescorer.quantizer
        return self._view(TwoStageIndex(quantizer, core.base, core.id_map, rescorer), None)

    def to_faiss(self, kind: str = "hamming") -> Any:
        """Return a stock FAISS index that needs no faiss_qama; see :func:`faiss_qama.index.export.to_faiss`."""
        with self._lock.read():
            return export.to_faiss(self._fitted, kind)

    # On disk.

    def save(self, path: PathLike) -> None:
        """Write the index to the folder ``path``, replacing an index there in one atomic step.

        Vectors that you keep are written too, so that the saved index needs nothing else. Raises OSError if it cannot
        be written; an index at ``path`` stays as it was.
        """
        with self._lock.read():
            saving.write(path, self._fitted)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False) -> QamaIndex:
        """Read an index that :meth:`save` or the command ``fit`` wrote.

        Parameters
        ----------
        path : str or path
            The folder.
        mmap : bool
            Map codes and vectors instead of reading them. Several processes then share their memory, the index is
            read-only, and only sizes are checked; otherwise every checksum is.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file and the fault.
        """
        return cls.__new__(cls)._set(saving.read(path, mmap=mmap), ReadWriteLock(), mmap)

    def _append(self, x: Floats, ids: Ids | None) -> None:
        code, core = self.quantizer.encode(x), self._core
        self._check_trained()
        encoded = x
        if isinstance(core, TwoStageIndex) and core.rescorer is not None:
            encoded = core.rescorer.encode(x, code)
        with self._lock.write():
            self._check_writable()
            self._check_trained()
            core = self._fitted
            if ids is None and core.id_map.ids is not None:
                raise ValueError("this index has ids of its own: use add_with_ids")
            core.append(code, encoded, ids)

    def _search(self, xq: Floats, k: int, parameters: SearchParameters) -> tuple[NDArray[Any], Ids, Ids]:
        """Return scores, ids and rows, (nq, k) each; the rows are not padded."""
        core = self._fitted
        D, rows = core.search(xq, k, parameters)
        return *topk.padded(D, core.id_map.ids_of(rows), k, core.worst), rows
