"""QamaIndex: the face of a FAISS index on quantized vectors."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama import topk
from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.factory import AUTO, DEFAULT, make_base
from faiss_qama.index import export
from faiss_qama.index.id_map import IdMap, as_ids
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.tuning import ASKED, BaseTrial, fastest, tune
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.progress import progress
from faiss_qama.quantizer.calibration import RECALL
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.faiss_vectors import FaissVectors
from faiss_qama.rescore.rescorer import DTYPES, RESCORE_KINDS, CodeRescorer, Rescorer, StoredVectors, UserVectors
from faiss_qama.rescore.residual import ResidualRescorer
from faiss_qama.storage import atomic_files, bundle
from faiss_qama.threads import defer_interrupt
from faiss_qama.vectors import Corpus, PathLike, as_vectors

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig

BORROWED = "borrowed"  # what ``rescore`` is called where the vectors are the user's
CHUNK = 16_384  # vectors of a wrapped index that are encoded at a time
TRAINING = 50_000  # vectors that a base index is trained on


@dataclass(frozen=True)
class Unfitted:
    """What an index will be once ``train`` has fitted its quantizer."""

    d: int
    metric: int
    config: FitConfig


class QamaIndex:
    """A FAISS-like index of quantized vectors.

    Many threads may search at once; a change waits for them and they for it, so a search sees all of it or nothing.

    Parameters
    ----------
    quantizer : from :func:`faiss_qama.training.fit`; or what :func:`~faiss_qama.index_factory` will fit in ``train``
    rescore : what scores the candidates of the Hamming scan again:
        ``none`` (nothing: D is the Hamming distance, int32, smallest first),
        ``codes`` (the codes themselves, decoded; no further memory, but for the residual's codes if the quantizer has
        any; other second stages do without), ``sq8``, ``fp16`` or ``fp32`` (the vectors, kept);
        or vectors that you keep, whose i-th is the i-th that is added: an (n, d) array, a memory map, a faiss.Index
    base : what scans the codes: ``Flat``, ``IVFn``, a string of ``faiss.index_binary_factory``, or an empty
        faiss.IndexBinary; ``auto`` for the fastest of ``Flat`` and some ``IVFn``, which ``train`` finds out

    Attributes
    ----------
    rescore : the name of the second stage
    tried : what base ``auto`` was chosen from, itself first
    """

    def __init__(self, quantizer: Quantizer | Unfitted, rescore: Any = "fp16", *, base: Any = DEFAULT) -> None:
        if isinstance(rescore, str) and rescore not in RESCORE_KINDS:
            raise ValueError(f"rescore must be one of {', '.join(RESCORE_KINDS)}, or vectors; got {rescore!r}")
        self.rescore: str = rescore if isinstance(rescore, str) else BORROWED
        self._source = rescore
        self._plan: Unfitted | None = None
        self._made_of: tuple[tuple[TwoStageIndex, int], ...] = ()  # by truncate, which copied codes at these versions
        self._lock, self._read_only = ReadWriteLock(), False
        self.tried: list[BaseTrial] = []
        self._auto = isinstance(base, str) and base == AUTO  # and none is yet
        base = DEFAULT if self._auto else base
        if not isinstance(quantizer, Quantizer | Unfitted):
            raise TypeError(f"a Quantizer is needed, such as fit() returns; got {type(quantizer).__name__}")
        if isinstance(quantizer, Unfitted):
            self._plan = quantizer
            self._base = make_base(base, quantizer.config.layout_in(quantizer.d))
        else:
            self._hold(quantizer, make_base(base, quantizer.layout), IdMap())

    # What it is.

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer. Raises ValueError if it is not fitted yet."""
        return self._fitted.quantizer

    @property
    def base_index(self) -> Any:
        """The faiss.IndexBinary of the codes, whose ids are row numbers. Set ``nprobe`` and ``efSearch`` here.

        Raises ValueError where the base is ``Flat`` or ``IVFn``.
        """
        return self._base.index

    @property
    def rescorer(self) -> Rescorer | None:
        """What scores candidates again; ``rescorer.scores(xq, rows)`` does. None with ``rescore='none'``."""
        return self._fitted.rescorer

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self._plan.d if self._plan else self.quantizer.d

    @property
    def metric_type(self) -> int:
        """``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``."""
        return self._plan.metric if self._plan else self.quantizer.metric

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return 0 if self._plan else len(self._fitted.id_map)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added: the quantizer is fitted, and the base index trained if it needs that."""
        return self._plan is None and self._base.is_trained and not self._auto

    @property
    def bytes_per_vector(self) -> tuple[int, int]:
        """Bytes a vector of codes, links and ids, and of the vectors kept to rescore with."""
        held = self._fitted
        own_ids = 0 if held.id_map.ids is None else 8
        kept = 0 if held.rescorer is None else held.rescorer.bytes_per_vector
        return held.base.bytes_per_vector + own_ids, kept

    @property
    def nprobe(self) -> int:
        """Lists that a search probes, where the base index has lists; searches that say ``nprobe=`` differ."""
        return self._setting("nprobe")

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        self._setting("nprobe", value)

    @property
    def efSearch(self) -> int:  # noqa: N802 - FAISS's name
        """Nodes that a search looks at, where the base index is a graph; never fewer than twice the candidates."""
        return self._setting("efSearch")

    @efSearch.setter
    def efSearch(self, value: int) -> None:  # noqa: N802
        self._setting("efSearch", value)

    @property
    def ids(self) -> Ids:
        """The ids (ntotal,) of the vectors, in the order of their rows."""
        id_map = self._fitted.id_map
        return id_map.ids_of(id_map.live_rows)

    @property
    def factory_string(self) -> str:
        """What :func:`~faiss_qama.index_factory` makes such an index from, but for slices and vectors of yours."""
        layout = self._plan.config.layout_in(self.d) if self._plan else self.quantizer.layout
        refine = {"sq8": "SQ8", "fp16": "SQfp16", "fp32": "Flat", "codes": "codes"}.get(self.rescore)
        return f"Qama({layout}),{AUTO if self._auto else self._base}" + (f",Refine({refine})" if refine else "")

    @property
    def vectors(self) -> Corpus | None:
        """The floats kept to rescore with, row by row, or None if there are none or rows are marked as removed."""
        held = self._fitted
        if not isinstance(held.rescorer, StoredVectors) or self.rescore == "sq8" or held.id_map.alive is not None:
            return None
        return Corpus(held.rescorer.rows, self.d, "stored vectors", held.rescorer.scale)

    def __repr__(self) -> str:
        metric = "inner product" if self.metric_type == faiss.METRIC_INNER_PRODUCT else "L2"
        return f"QamaIndex({self.factory_string!r}, {self.ntotal} x {self.d}, {metric})"

    # Filling and changing it.

    def train(
        self, x: ArrayLike, *, queries: ArrayLike | None = None, recall: float = RECALL, memory: float | None = None
    ) -> None:
        """Fit the quantizer, where :func:`~faiss_qama.index_factory` left that to do, and train the base index.

        Parameters
        ----------
        x : (n, d) vectors like those to be added; of base ``auto`` all of them, as it depends on their number
        queries : (nq, d) unlabelled queries, to fit the quantizer or to choose the base with
        recall : what base ``auto`` must keep, the fastest that does is taken; :attr:`tried` tells what was measured
        memory : bytes a vector that it may hold in codes, lists and links; None for any number

        Raises ValueError for fewer vectors than they need.
        """
        x = as_vectors(x, self.d)
        with self._lock.write():
            self._check_writable()
            if self._plan is None:
                if queries is not None and not self._auto:
                    raise ValueError("queries= are for fitting, and this index has a quantizer")
                quantizer = self.quantizer
            else:
                from faiss_qama.training import fit  # here, because run time does not depend on training

                quantizer = fit(x, config=self._plan.config, metric=self._plan.metric, queries=queries)
            if self._auto:
                base = self._choose(quantizer, quantizer.encode(x), _queries(x, queries, self.d), recall, memory)
                base.clear()
                self._hold(quantizer, base, IdMap())
            if not self._base.is_trained:
                self._base.train(quantizer.encode(x))
            if self._plan is not None:
                self._hold(quantizer, self._base, IdMap())

    def tune(self, queries: ArrayLike, k: int = 10, *, recall: float = RECALL) -> BaseTrial:
        """Set ``nprobe`` or ``efSearch`` to the smallest value that keeps ``recall``, and return what was measured.

        Parameters
        ----------
        queries : (nq, d) unlabelled queries like those to come
        k : how many are searched for

        Raises ValueError if nothing does.
        """
        xq, k = as_vectors(queries, self.d, "queries"), topk.check_k(k)
        with self._lock.write():
            if not len(self._fitted.id_map):
                raise ValueError("tune measures searches of what the index holds, and it is empty: add vectors first")
            tried = tune(self._fitted, xq, k, recall)
        if tried is None:
            raise ValueError(f"{self._base} keeps recall {recall} with no setting")
        return tried

    def add(self, x: ArrayLike) -> None:
        """Append the vectors ``x`` (n, d); their ids follow on from ``ntotal``.

        Raises TypeError or ValueError, with nothing added, for what :func:`faiss_qama.vectors.as_vectors` refuses, and
        for an index that is not trained, is read-only, or has ids of its own.
        """
        self._append(as_vectors(x, self.d), None)

    def add_with_ids(self, x: ArrayLike, ids: ArrayLike) -> None:
        """Append the vectors ``x`` (n, d) under ``ids`` (n,) int64, 0 or more.

        As in faiss.IndexIDMap2 an id may stand for several vectors: ``remove_ids`` removes them all, ``reconstruct``
        gives the last.
        """
        x = as_vectors(x, self.d)
        self._append(x, as_ids(ids, len(x)))

    def remove_ids(self, ids: Any) -> int:
        """Remove the vectors that ``ids``, an array or a faiss.IDSelector, names; return how many there were.

        Without ids of your own those that follow move up, as in IndexFlat. Graphs and hash tables keep what is removed
        until :meth:`compact`, and no longer find it.
        """
        with self._lock.write():
            self._check_writable()
            gone = self._fitted.id_map.matching(ids)
            if gone.any():
                self._fitted.remove(gone)
            return int(np.count_nonzero(gone))

    def compact(self) -> None:
        """Build the base index anew without what was removed from it."""
        with self._lock.write():
            self._check_writable()
            if self._fitted.id_map.alive is not None:
                self._fitted.keep(self._fitted.id_map.alive)

    def merge_from(self, other: QamaIndex, add_id: int = 0) -> None:
        """Move the vectors of ``other``, which must have the same quantizer and second stage, to the end of this index.

        ``add_id`` is added to the ids of ``other``. Without, those of an ``other`` that has none of its own follow on.
        Raises ValueError, with nothing moved, for an ``other`` that does not match.
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
            mine, theirs = self._fitted, other._fitted
            if other.rescore != self.rescore or self.rescore == BORROWED:
                raise ValueError(
                    f"rescore is {other.rescore} there and {self.rescore} here; merging needs one that keeps"
                )
            if not mine.quantizer.is_compatible_with(theirs.quantizer):
                raise ValueError("the two indexes have different quantizers; fit one and share it")
            if mine.id_map.ids is not None and theirs.id_map.ids is None and not add_id:
                raise ValueError("this index has ids of its own and the other has none; pass add_id")
            live = theirs.id_map.live_rows
            ids = None
            if theirs.id_map.ids is not None or add_id:
                ids = theirs.id_map.ids_of(live)
                ends = [int(end) + operator.index(add_id) for end in (ids.min(initial=0), ids.max(initial=0))]
                if ends[0] < 0 or ends[1] > np.iinfo(np.int64).max:
                    raise ValueError(f"add_id {add_id} makes ids {ends[0]} to {ends[1]}; 0 to 2**63 - 1 are possible")
                ids = ids + add_id
            stored = np.empty(0) if theirs.rescorer is None else theirs.rescorer.encoded(live)
            code = theirs.base.take(live)
            with defer_interrupt():  # else they might be in both
                mine.append(code, stored, ids)
                theirs.clear()

    def reset(self) -> None:
        """Remove every vector."""
        with self._lock.write():
            self._check_writable()
            self._fitted.clear()

    # Asking it.

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
        x : (nq, d) queries
        k : how many; where the index holds fewer, ids are padded with -1 and scores with the worst there is, as FAISS
        oversample : k * oversample candidates are taken from the Hamming scan and scored again
        recall : instead, the share of the true k nearest to find, from what was measured when fitting, with exhaustive
            scans. With neither, 0.95 when floats rescore, and 99 % of what codes can reach when they do.
        truncate_dim : scan the codes' first ``truncate_dim`` components alone, and whole codes only for what that finds
        sel : a faiss.IDSelector: only ids that it takes are found, and k of them if there are so many
        params : faiss.SearchParameters instead, with ``sel``, ``nprobe`` or ``efSearch``
        settings : ``nprobe`` or ``efSearch``, where the base index has them

        Returns
        -------
        D : (nq, k) float32 inner products, largest first, or squared L2 distances, smallest first;
            int32 Hamming distances, smallest first, where ``rescore`` is ``none``
        I : (nq, k) int64 ids
        """
        xq, k = as_vectors(x, self.d, "queries"), topk.check_k(k)
        sel, settings = _parameters(sel, params, settings)
        with self._lock.read():
            D, I, _ = self._search(
                xq, k, oversample=oversample, recall=recall, truncate_dim=truncate_dim, sel=sel, settings=settings
            )
            return D, I

    def assign(self, x: ArrayLike, k: int = 1, **options: Any) -> Ids:
        """Return the ids (nq, k) of :meth:`search`."""
        return self.search(x, k, **options)[1]

    def search_and_reconstruct(self, x: ArrayLike, k: int, **options: Any) -> tuple[NDArray[Any], Ids, Floats]:
        """Return D and I of :meth:`search`, and the vectors (nq, k, d), NaN where there is none."""
        xq, k = as_vectors(x, self.d, "queries"), topk.check_k(k)
        chosen = {name: options.pop(name, None) for name in ("oversample", "recall", "truncate_dim")}
        sel, settings = _parameters(options.pop("sel", None), options.pop("params", None), options)
        with self._lock.read():
            D, I, rows = self._search(xq, k, **chosen, sel=sel, settings=settings)
            R = np.full((*I.shape, self.d), np.nan, dtype=np.float32)
            R[I >= 0] = self._fitted.take(rows[rows >= 0])
            return D, I, R

    def range_search(
        self, x: ArrayLike, radius: float, *, sel: Any = None, params: Any = None, **settings: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], Ids]:
        """Return every vector nearer than ``radius``, best first: inner product above it, L2 or Hamming distance below.

        Candidates of the Hamming scan are doubled until the farther half of them holds no hit, so a hit that lies
        farther by Hamming distance than twice as many candidates as hold the others is missed.

        Returns
        -------
        lims : (nq + 1,) the hits of query i are D[lims[i] : lims[i + 1]] and I[lims[i] : lims[i + 1]]
        D : (lims[-1],) scores
        I : (lims[-1],) int64 ids
        """
        xq = as_vectors(x, self.d, "queries")
        sel, settings = _parameters(sel, params, settings)
        with self._lock.read():
            held = self._fitted
            hits = held.range_search(xq, radius, sel=sel, settings=settings)
            lims = np.cumsum([0] + [len(rows) for _, rows in hits])
            scores = np.concatenate([D for D, _ in hits]).astype(held.worst.dtype)
            return lims, scores, held.id_map.ids_of(np.concatenate([rows for _, rows in hits]))

    def reconstruct(self, key: int) -> Floats:
        """Return the vector (d,) of an id: the one kept, or the decoded one. Raises IndexError if there is none."""
        x: Floats = self.reconstruct_batch([key])[0]
        return x

    def reconstruct_batch(self, keys: ArrayLike) -> Floats:
        """Return the vectors (n, d) of the ids ``keys`` (n,)."""
        with self._lock.read():
            return self._fitted.take(self._fitted.id_map.rows_of(keys))

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Floats:
        """Return the vectors (ni, d) of the ids n0, n0 + 1, ...; all that there are from n0 on if ``ni`` is -1."""
        return self.reconstruct_batch(np.arange(n0, self.ntotal if ni == -1 else n0 + ni))

    def sa_encode(self, x: ArrayLike) -> Codes:
        """Return the codes (n, code_size) uint8 of ``x`` (n, d)."""
        return self.quantizer.encode(x)

    def sa_decode(self, code: Codes) -> Floats:
        """Return the vectors (n, d) that codes (n, code_size) stand for."""
        return self.quantizer.decode(code)

    def sa_code_size(self) -> int:
        """Return the bytes of a code."""
        return self.quantizer.code_size

    # Making others of it.

    @classmethod
    def wrap(
        cls, index: Any, *, config: FitConfig | None = None, queries: ArrayLike | None = None, base: Any = DEFAULT
    ) -> QamaIndex:
        """Return an index of the vectors in a filled faiss.Index: fitted on a sample, rescored from it, with its ids.

        ``index`` may be Flat, IVF, HNSW, SQ, PQ, and IDMap, PreTransform and Refine around them. It is not copied, and
        must not be changed while this is used; what is added here is added there too. Inverted lists get a direct map.
        Raises ValueError for an index that gives no vectors back, holds fewer than 2, or has ids that cannot be kept.
        """
        from faiss_qama.training import FitConfig, fit
        from faiss_qama.training.split import HELD_OUT

        vectors, config = FaissVectors(index), config or FitConfig()
        n = len(vectors)
        if n < 2:
            raise ValueError(f"fitting needs at least 2 vectors; the index to wrap holds {n}")
        places = np.random.default_rng(config.seed).choice(n, min(n, config.sample + HELD_OUT), replace=False)
        sample = vectors.take(np.sort(places))
        wrapped = cls(fit(sample, config=config, metric=index.metric_type, queries=queries), vectors, base=base)
        if not wrapped.is_trained:
            wrapped.train(sample)
        for start in progress(range(0, n, CHUNK), "encoding"):
            places = np.arange(start, min(start + CHUNK, n))
            ids = None if vectors.ids is None else as_ids(vectors.ids[places], len(places))
            wrapped._append(as_vectors(vectors.take(places), what="the index to wrap", rows=places), ids)
        return wrapped

    def truncate(self, components: int) -> QamaIndex:
        """Return a read-only index of the codes' first ``components``, sharing the vectors to rescore from.

        Nothing is encoded or trained again. A prefix is a good code of its own where the quantizer was fitted with
        ``matryoshka_dims``; those have a calibration too.
        """
        with self._lock.read():
            held, quantizer = self._fitted, self.quantizer.truncate(operator.index(components))
            base = held.base.truncate(quantizer.layout)
            store = CodeRescorer(quantizer, base) if self.rescore == "codes" else held.rescorer
            other = self._sharing(TwoStageIndex(quantizer, base, held.id_map, store), self.rescore)
            other._made_of = (*self._made_of, (held, held.version))
            return other

    def with_rescore(self, rescore: str) -> QamaIndex:
        """Return a read-only index on the same codes whose second stage is ``none`` or ``codes``."""
        if rescore not in ("none", "codes"):
            raise ValueError(f"rescore must be none or codes, which need no vectors; got {rescore!r}")
        held = self._fitted
        store: Rescorer | None = None
        if rescore == "codes" and isinstance(held.own_rescorer, CodeRescorer):
            store = held.own_rescorer
        elif rescore == "codes":  # and no codes of the residual were kept
            store = CodeRescorer(held.quantizer.truncate(held.quantizer.layout.components), held.base)
        return self._sharing(held.rescored_by(store), rescore)

    def to_faiss(self, kind: str = "hamming") -> Any:
        """Return a stock FAISS index that needs no faiss_qama; see :func:`faiss_qama.index.export.to_faiss`."""
        with self._lock.read():
            return export.to_faiss(self._fitted, kind, self.rescore)

    # On disk.

    def save(self, path: PathLike) -> None:
        """Write the index to the folder ``path``, replacing an index there in one atomic step.

        Vectors that you keep are written too, so that the saved index needs nothing else.
        """
        with self._lock.read():
            if self._auto:
                self._check_trained()
            bundle.write(path, self._bundle())

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False) -> QamaIndex:
        """Read an index that :meth:`save` or :meth:`build` wrote.

        Every checksum is verified. With ``mmap`` codes and vectors are mapped, not read: only their sizes are checked,
        the index is read-only, and several processes share its memory.
        """
        saved = bundle.read(path, mmap=mmap)
        index = cls(saved.quantizer, saved.rescore)
        id_map = IdMap(len(saved.base), saved.arrays.get("ids"), saved.arrays.get("alive"))
        index._hold(saved.quantizer, saved.base, id_map, saved.arrays)
        index._read_only = mmap
        return index

    @classmethod
    def build(
        cls,
        path: PathLike,
        quantizer: Quantizer,
        corpus: Corpus,
        rescore: str = "fp16",
        base: str = DEFAULT,
        settings: Mapping[str, int] | None = None,
        queries: Floats | None = None,
        recall: float = RECALL,
        memory: float | None = None,
    ) -> QamaIndex:
        """Index ``corpus`` straight to the folder ``path`` and load it memory-mapped: no vector stays in memory.

        ``settings`` are search parameters to set, ``nprobe`` or ``efSearch``; ``queries``, ``recall`` and ``memory``
        choose base ``auto``, as in :meth:`train`.
        """
        bundle.check_writable(path, corpus.paths)
        index = cls(quantizer, rescore, base=base)
        index._base.set(settings or {})
        chosen = index._auto
        if not index.is_trained:
            sample = corpus.take(np.unique(np.linspace(0, len(corpus) - 1, TRAINING, dtype=np.int64)))
        if chosen:
            code = np.concatenate([quantizer.encode(x) for x in progress(corpus.chunks(), "encoding", corpus.n_chunks)])
            filled = index._choose(quantizer, code, _queries(sample, queries, index.d), recall, memory)
            index._hold(quantizer, filled, IdMap(len(filled)))
        elif not index.is_trained:
            index.train(sample)
        held = index._fitted

        def rows() -> Iterator[NDArray[Any]]:
            first = 0
            for x in progress(corpus.chunks(), "storing" if chosen else "encoding", corpus.n_chunks):
                if not chosen:
                    held.base.append(quantizer.encode(x))
                yield x if held.rescorer is None else held.rescorer.convert(x, first)
                first += len(x)

        if isinstance(held.rescorer, StoredVectors):
            made = index._bundle()
            made.arrays["store"] = atomic_files.Stream((len(corpus), held.rescorer.width), held.rescorer.dtype, rows())
        else:
            for stored in rows():
                if held.rescorer is not None:
                    held.rescorer.append(stored)
            made = index._bundle()
        bundle.write(path, made)
        loaded = cls.load(path, mmap=True)
        loaded.tried = index.tried
        return loaded

    # Inside.

    @property
    def _fitted(self) -> TwoStageIndex:
        """The contents. Raises ValueError if there is no quantizer yet."""
        if self._plan is not None:
            raise ValueError("this index is not trained: call train(x) first")
        if any(held.version != version for held, version in self._made_of):
            raise ValueError("the index that this was truncated from was changed since: truncate it again")
        return self._contents

    def _hold(
        self, quantizer: Quantizer, base: CodeIndex, id_map: IdMap, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Take contents in, and with them the quantizer; ``arrays`` are those of a store that was saved."""
        store: Rescorer | None = None
        if self.rescore in DTYPES:
            store = StoredVectors(quantizer, self.rescore, None if arrays is None else arrays["store"])
        elif self.rescore == "codes" and quantizer.residual is not None:
            store = ResidualRescorer(quantizer, base, arrays, 0 if arrays is None else id_map.n)
        elif self.rescore == "codes":
            store = CodeRescorer(quantizer, base)
        elif self.rescore == BORROWED:
            store = UserVectors(quantizer, self._source)
        self._plan, self._base = None, base
        self._contents = TwoStageIndex(quantizer, base, id_map, store)

    def _choose(self, quantizer: Quantizer, code: Codes, xq: Floats, recall: float, memory: float | None) -> CodeIndex:
        """Return the fastest base of ``code`` that keeps ``recall`` within ``memory``, filled."""
        base, self.tried = fastest(quantizer, code, xq, recall, memory)
        self._auto = False
        return base

    def _sharing(self, contents: TwoStageIndex, rescore: str) -> QamaIndex:
        """Return a read-only index of ``contents``, which share something with those of this one."""
        other = QamaIndex(contents.quantizer, "none")
        other.rescore, other._base, other._read_only, other._lock = rescore, contents.base, True, self._lock
        other._contents, other._made_of = contents, self._made_of
        return other

    def _check_writable(self) -> None:
        """Raise ValueError unless vectors can come and go, which train() may have to be called for."""
        if self._read_only:
            raise ValueError(
                "this index is read-only: it shares its codes with a file (load it with mmap=False) or with the index "
                "that it was made of (change that one)"
            )

    def _setting(self, name: str, value: int | None = None) -> int:
        """Return a search parameter of the base index, set first if a value is given."""
        if name not in self._base.settings:
            raise AttributeError(f"{self._base} has no {name}")
        if value is not None:
            if not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be an integer; got {value!r}")
            self._base.set({name: int(value)})
        return self._base.settings[name]

    def __reduce__(self) -> Any:
        raise TypeError("a QamaIndex is not pickled or copied; use save() and QamaIndex.load()")

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise ValueError(f"the base index {AUTO if self._auto else self._base} is not trained: call train(x) first")

    def _append(self, x: Floats, ids: Ids | None) -> None:
        code = self.quantizer.encode(x)
        with self._lock.write():
            self._check_writable()
            self._check_trained()
            held = self._fitted
            if ids is None and held.id_map.ids is not None:
                raise ValueError("this index has ids of its own: use add_with_ids")
            held.append(code, x if held.rescorer is None else held.rescorer.convert(x), ids)

    def _search(self, xq: Floats, k: int, **options: Any) -> tuple[NDArray[Any], Ids, Ids]:
        """Return scores, ids and rows, (nq, k) each but for the rows, which are not padded."""
        held = self._fitted
        D, rows = held.search(xq, k, **options)
        return *topk.padded(D, held.id_map.ids_of(rows), k, held.worst), rows

    def _bundle(self) -> bundle.Bundle:
        held, n = self._fitted, self._fitted.id_map.n
        arrays: dict[str, Any] = {"ids": held.id_map.ids, "alive": held.id_map.alive}
        rescore = self.rescore
        if isinstance(held.rescorer, UserVectors):
            chunks = (held.take(np.arange(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK))
            rescore, arrays["store"] = "fp32", atomic_files.Stream((n, self.d), DTYPES["fp32"], chunks)
        elif held.rescorer is not None:
            arrays |= held.rescorer.arrays()
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return bundle.Bundle(held.quantizer, rescore, held.base, arrays)


def _queries(x: Floats, queries: ArrayLike | None, d: int) -> Floats:
    """Return what a base is chosen with: some of ``queries``, or documents ``x`` that stand in for them."""
    from faiss_qama.training.split import split_corpus  # here, because run time does not depend on training

    if queries is not None:
        return as_vectors(queries, d, "queries")[:ASKED]
    split = split_corpus(Corpus(x), None, len(x), seed=0)
    if not len(split.validation):
        raise ValueError(f"base auto is chosen with queries, or with 200 documents or more; got {len(x)} documents")
    return split.validation


def _parameters(sel: Any, params: Any, settings: dict[str, int]) -> tuple[Any, dict[str, int]]:
    """Return the selector and the settings that FAISS's search parameters hold, or those given beside them."""
    if params is None:
        return sel, settings
    if sel is not None or settings:
        raise ValueError("pass params=, or sel=, nprobe= and efSearch=, not both")
    if isinstance(params, faiss.SearchParametersIVF):
        settings = {"nprobe": params.nprobe}
    elif isinstance(params, faiss.SearchParametersHNSW):
        settings = {"efSearch": params.efSearch}
    elif type(params) is not faiss.SearchParameters:
        raise ValueError(f"params must be SearchParameters, -IVF or -HNSW; got {type(params).__name__}")
    return params.sel, settings
