"""QamaIndex: a FAISS-like index on quantized vectors."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama import topk
from faiss_qama.arrays import Floats, Ids
from faiss_qama.formats.faiss_vectors import FaissVectors
from faiss_qama.hamming.factory import DEFAULT
from faiss_qama.index import export
from faiss_qama.index.id_map import as_ids
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.index.state import Unfitted, empty_index
from faiss_qama.index.stored_index import StoredIndex
from faiss_qama.index.tuning import BaseTrial, fastest, trial_queries, tune
from faiss_qama.index.two_stage import TwoStageIndex, encode
from faiss_qama.quantizer.calibration import RECALL
from faiss_qama.rescore.factory import of_first_codes
from faiss_qama.storage.writer import Writer
from faiss_qama.vectors import as_vectors

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig


class QamaIndex(StoredIndex):
    """A FAISS-like index of quantized vectors.

    Many threads may search at once. A change and a search wait for each other, so a search sees a whole change.

    Parameters
    ----------
    quantizer : Quantizer
        From :func:`faiss_qama.training.fit`.
    rescore : str, ndarray of shape (n, d), or faiss.Index
        The second stage, which re-ranks the candidates of the Hamming scan. ``none``: no second stage, and D is the
        Hamming distance. ``codes``: re-rank from decoded codes, and from residual codes if the quantizer has a
        residual. ``sq8``, ``fp16``, ``fp32``: re-rank from the vectors, which the index keeps. Or vectors that you
        keep, in the order in which you add them: an array, a memory map, a faiss.Index.
    base : str or faiss.IndexBinary
        The first stage, which scans the codes: ``Flat``, ``IVF1024``, a string of ``faiss.index_binary_factory``, or
        an empty faiss.IndexBinary. With ``auto``, ``train`` chooses the fastest of ``Flat``, some ``IVF`` and a graph.

    Attributes
    ----------
    base_trials : list of BaseTrial
        The measurements that base ``auto`` was chosen by, the chosen one first.
    early_stop : bool or None
        Whether a search without ``oversample`` reads vectors in the order of their codes' scores, until no other is
        likely to be among the nearest. None: where vectors lie on disk and exceed the machine's memory.

    Examples
    --------
    >>> import numpy as np
    >>> from faiss_qama import QamaIndex, training
    >>> x = np.random.default_rng(0).standard_normal((500, 32))
    >>> index = QamaIndex(training.fit(x))
    >>> index.add(x)
    >>> index
    QamaIndex('Qama(2x16),Flat,Refine(SQfp16)', 500 x 32, inner product)
    """

    def train(
        self, x: ArrayLike, *, queries: ArrayLike | None = None, recall: float = RECALL, memory: float | None = None
    ) -> None:
        """Fit the quantizer of an index from :func:`~faiss_qama.index_factory`, and train the base index.

        Parameters
        ----------
        x : array of shape (n, d)
            Vectors like those to be added; for base ``auto`` all of them, as it depends on their number.
        queries : array of shape (nq, d), optional
            Unlabelled queries, to fit the quantizer or to choose the base with.
        recall : float
            Recall that base ``auto`` must keep.
        memory : float, optional
            Bytes per vector that base ``auto`` may hold in codes, lists and links.

        Raises
        ------
        ValueError
            For too few vectors, and for ``queries`` if the quantizer is fitted.
        """
        x = self._core.quantizer.checked(x)
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

                quantizer = fit(x, config=quantizer.config, metric=quantizer.fit_metric, queries=queries)
            trials: list[BaseTrial] = []
            if base is None:
                xq = trial_queries(x, queries, self.d)
                base, trials = fastest(quantizer, quantizer.encode(x), xq, recall, memory)
                base.clear()
            if not base.is_trained:
                base.train(quantizer.encode(x))
            self._core, self.base_trials = empty_index(quantizer, base, core.rescore), trials

    def tune(self, queries: ArrayLike, k: int = 10, *, recall: float = RECALL) -> BaseTrial:
        """Set ``nprobe`` or ``efSearch`` to the smallest value that keeps a recall, and return its measurements.

        ``queries`` (nq, d) are unlabelled queries like those to come, each for ``k`` neighbours. Raises ValueError if
        no value keeps the recall, and for an empty index.
        """
        xq, k = self._core.quantizer.checked(queries, "queries"), topk.check_k(k)
        with self._lock.write():
            if not len(self._fitted.id_map):
                raise ValueError("tune measures searches of what the index holds, and it is empty: add vectors first")
            trial = tune(self._fitted, xq, k, recall)
        if trial is None:
            raise ValueError(f"{self._base_name} keeps recall {recall} with no setting")
        return trial

    def add(self, x: ArrayLike) -> None:
        """Append vectors ``x`` (n, d) of any float type; their ids are ``ntotal`` and on.

        Raises TypeError or ValueError, and adds nothing, for vectors that :func:`~faiss_qama.vectors.as_vectors`
        refuses, and for an index that is not trained, is read-only, or has ids of its own.
        """
        self._append(self._core.quantizer.checked(x), None)

    def add_with_ids(self, x: ArrayLike, ids: ArrayLike) -> None:
        """Append vectors with your own ids.

        Vectors may share an id, as in faiss.IndexIDMap2: ``remove_ids`` removes all, ``reconstruct`` returns the last.

        Parameters
        ----------
        x : array of shape (n, d)
            Vectors, of any float type.
        ids : array of shape (n,), integers
            Ids, 0 or more.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`add`, and for other ids. Nothing is added.
        """
        x = self._core.quantizer.checked(x)
        self._append(x, as_ids(ids, len(x)))

    def upsert(self, x: ArrayLike, ids: ArrayLike) -> None:
        """Add vectors ``x`` (n, d) with ``ids`` (n,), and remove the vectors that had these ids, in one step.

        Of vectors with the same id, the last one counts. Raises the errors of :meth:`add_with_ids`, and changes
        nothing then.
        """
        x = self._core.quantizer.checked(x)
        own = as_ids(ids, len(x))
        last = len(own) - 1 - np.unique(own[::-1], return_index=True)[1]
        last.sort()
        self._append(x[last], own[last], replace=True)

    def remove_ids(self, ids: Any) -> int:
        """Remove the vectors of ``ids``, an array of integers or a faiss.IDSelector; return their number.

        Unknown ids are ignored. Without your own ids the ids that follow move up, as in IndexFlat. Graphs and hash
        tables keep removed codes until :meth:`compact`, and do not find them any more.
        """
        with self._lock.write():
            self._check_writable()
            core = self._fitted
            rows = core.id_map.matching(ids)
            if len(rows):
                core.remove(rows)
                self._drop_removed()
            return len(rows)

    def merge_from(self, other: QamaIndex, add_id: int = 0) -> None:
        """Move the vectors of ``other``, which is empty afterwards, to the end of this index.

        ``other`` has the same quantizer and second stage. If it has no ids of its own, its ids are ``ntotal`` and on.
        ``add_id`` is added to them. Raises TypeError or ValueError, and moves nothing, if ``other`` does not match.
        """
        if not isinstance(other, QamaIndex):
            raise TypeError(f"a QamaIndex is needed; got {type(other).__name__}")
        if other._lock is self._lock:
            raise ValueError("an index cannot be merged into itself or with an index that shares its codes")
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
            Neighbours. Missing hits get id -1 and the worst score, as in FAISS.
        oversample : float, optional
            Re-rank ``k * oversample`` candidates of the Hamming scan.
        recall : float, optional
            Re-rank as many candidates as this recall needs with exhaustive scans, by the calibration of the fit. The
            default is 0.95 with floats, and 99 % of the best recall of the codes with ``rescore='codes'``.
        truncate_dim : int, optional
            Scan only the first ``truncate_dim`` components of the codes, then rank their hits by whole codes.
        sel : faiss.IDSelector or array of integers, optional
            Ids that may be found. A search finds ``k`` of them, or all if they are fewer.
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

        Examples
        --------
        >>> import numpy as np
        >>> from faiss_qama import QamaIndex, training
        >>> x = np.random.default_rng(0).standard_normal((500, 32))
        >>> index = QamaIndex(training.fit(x))
        >>> index.add(x)
        >>> index.search(x[:3], k=1)[1].ravel()
        array([0, 1, 2])
        """
        xq, k = self._core.quantizer.checked(x, "queries"), topk.check_k(k)
        options = {"oversample": oversample, "recall": recall, "truncate_dim": truncate_dim}
        parameters = SearchParameters.of(params, sel, settings, **options, early_stop=self.early_stop)
        with self._lock.read():
            D, I, _ = self._search(xq, k, parameters)
            return D, I

    def assign(self, x: ArrayLike, k: int = 1, **options: Any) -> Ids:
        """Return the ids (nq, k) int64, best first, of :meth:`search` with ``x`` (nq, d) and the same options."""
        return self.search(x, k, **options)[1]

    def search_and_reconstruct(
        self, x: ArrayLike, k: int, *, sel: Any = None, params: Any = None, **options: Any
    ) -> tuple[NDArray[Any], Ids, Floats]:
        """Return D and I of :meth:`search` of ``x`` (nq, d), and vectors (nq, k, d) float32, NaN for missing hits."""
        xq, k = self._core.quantizer.checked(x, "queries"), topk.check_k(k)
        chosen = {name: options.pop(name, None) for name in ("oversample", "recall", "truncate_dim")}
        parameters = SearchParameters.of(params, sel, options, **chosen, early_stop=self.early_stop)
        with self._lock.read():
            D, I, rows = self._search(xq, k, parameters)
            R = np.full((*I.shape, self.d), np.nan, dtype=np.float32)
            R[I >= 0] = self._fitted.take(rows[rows >= 0])
            return D, I, R

    def range_search(
        self, x: ArrayLike, radius: float, *, sel: Any = None, params: Any = None, **settings: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], Ids]:
        """Return every vector nearer than ``radius``, best first.

        Candidates of the Hamming scan are doubled until the farther half holds no hit. Hits beyond them are missed.

        Parameters
        ----------
        x : array of shape (nq, d)
            Queries.
        radius : float
            Inner products above it are hits; squared L2 or Hamming distances below it.
        sel : faiss.IDSelector or array of integers, optional
            Ids that may be found.
        params : faiss.SearchParameters, optional
            As in :meth:`search`, like ``settings``.
        **settings : int
            ``nprobe`` or ``efSearch``, if the base index has them.

        Returns
        -------
        lims : ndarray of shape (nq + 1,), int64
            The hits of query i are D[lims[i] : lims[i + 1]] and I[lims[i] : lims[i + 1]].
        D : ndarray of shape (lims[-1],)
            Scores, as in :meth:`search`.
        I : ndarray of shape (lims[-1],), int64
            Ids.
        """
        xq = self._core.quantizer.checked(x, "queries")
        parameters = SearchParameters.of(params, sel, settings)
        with self._lock.read():
            core = self._fitted
            hits = core.range_search(xq, radius, parameters)
            lims = np.cumsum([0] + [len(rows) for _, rows in hits])
            scores = np.concatenate([D for D, _ in hits]).astype(core.worst.dtype)
            return lims, scores, core.id_map.ids_of(np.concatenate([rows for _, rows in hits]))

    @classmethod
    def wrap(
        cls, index: Any, *, config: FitConfig | None = None, queries: ArrayLike | None = None, base: Any = DEFAULT
    ) -> QamaIndex:
        """Return an index over a FAISS index, with its ids: fitted on a sample of its vectors, re-ranked from them.

        Parameters
        ----------
        index : faiss.Index
            A filled Flat, IVF, HNSW, SQ or PQ, also inside IDMap, PreTransform or Refine. It is not copied, so do not
            change it yourself; vectors added here are added to it too. Inverted lists without a direct map get a
            hash table, some 50 bytes per vector.
        config : FitConfig, optional
            Settings of the fit.
        queries : array of shape (nq, d), optional
            Unlabelled queries for the fit.
        base : str or faiss.IndexBinary
            The first stage, as in :class:`QamaIndex`.

        Returns
        -------
        QamaIndex
            With ``rescore`` ``user``.

        Raises
        ------
        ValueError
            For an index that gives back other vectors than it ranks by, holds fewer than 2, or has unfit ids.

        Examples
        --------
        >>> import faiss, numpy as np
        >>> flat = faiss.IndexFlatIP(32)
        >>> flat.add(np.random.default_rng(0).standard_normal((500, 32)))
        >>> QamaIndex.wrap(flat)
        QamaIndex('Qama(2x16),Flat', 500 x 32, inner product)
        """
        from faiss_qama.training import FitConfig, fit
        from faiss_qama.training.split import HELD_OUT

        vectors, config = FaissVectors(index), config or FitConfig()
        sample = vectors.sample(config.sample_in(vectors.d) + HELD_OUT, config.seed)
        wrapped = cls(fit(sample, config=config, metric=index.metric_type, queries=queries), vectors, base=base)
        if not wrapped.is_trained:
            wrapped.train(sample)
        for x, rows, ids in vectors.chunks():
            wrapped._append(as_vectors(x, None, "the index to wrap", rows), ids if ids is None else as_ids(ids, len(x)))
        return wrapped

    def truncate(self, components: int) -> QamaIndex:
        """Return a read-only index of the codes' first ``components``, which shares the vectors to re-rank from.

        It encodes and trains nothing. A prefix in the ``matryoshka_dims`` of the fit is a good code of its own, with a
        calibration. Raises ValueError for fewer than 1 or more than all components.
        """
        with self._lock.read():
            core, quantizer = self._fitted, self.quantizer.truncate(operator.index(components))
            base = core.base.truncate(quantizer.layout)
            rescorer = of_first_codes(quantizer, base) if self.rescore == "codes" else core.rescorer
            return self._view(TwoStageIndex(quantizer, base, core.id_map, rescorer), core.version)

    def with_rescore(self, rescore: str) -> QamaIndex:
        """Return a read-only index on the same codes, with second stage ``none`` or ``codes``, else a ValueError."""
        if rescore not in ("none", "codes"):
            raise ValueError(f"rescore must be none or codes, which need no vectors; got {rescore!r}")
        core = self._fitted
        rescorer = self._code_rescorer() if rescore == "codes" else None
        quantizer = core.quantizer if rescorer is None else rescorer.quantizer
        return self._view(TwoStageIndex(quantizer, core.base, core.id_map, rescorer), None)

    def to_faiss(self, kind: str = "hamming") -> Any:
        """Return a stock FAISS index, which needs no faiss_qama: :func:`faiss_qama.index.export.to_faiss`."""
        with self._lock.read():
            return export.to_faiss(self._fitted, kind)

    def _append(self, x: Floats, ids: Ids | None, *, replace: bool = False) -> None:
        quantizer, core = self.quantizer, self._core
        code, encoded = encode(quantizer, core.rescorer if isinstance(core, TwoStageIndex) else None, x)
        self._check_trained()
        with self._lock.write():
            self._check_writable()
            self._check_trained()
            core = self._fitted
            if core.quantizer.transform is not quantizer.transform:  # it was fitted anew meanwhile
                code, encoded = encode(core.quantizer, core.rescorer, x)
            if ids is None and core.id_map.ids is not None:
                raise ValueError("this index has ids of its own: use add_with_ids")
            watch = core.watch.after(x, core.rescore, core.latest)
            replaced = core.id_map.matching(ids) if replace else None
            core.append(code, encoded, ids, replaced=replaced)
            core.watch, core.quantizer = watch, watch.quantizer
            if replace:
                self._drop_removed()

    def _drop_removed(self) -> None:
        """Drop removed vectors from memory if they are many; those in files are dropped by :meth:`compact`."""
        if not isinstance(self._place, Writer):
            self._fitted.drop_removed()

    def _search(self, xq: Floats, k: int, parameters: SearchParameters) -> tuple[NDArray[Any], Ids, Ids]:
        """Return scores (nq, k), ids (nq, k) and rows (nq, k or fewer)."""
        core = self._fitted
        D, rows = core.search(xq, k, parameters)
        return *topk.padded(D, core.id_map.ids_of(rows), k, core.worst), rows
