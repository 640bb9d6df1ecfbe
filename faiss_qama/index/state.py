"""The state behind a QamaIndex: the properties that describe it, and the vectors that it stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import ArrayLike

from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.corpus import Corpus
from faiss_qama.hamming.code_index import CodeIndex, MissingError
from faiss_qama.hamming.factory import AUTO, DEFAULT, make_base
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.tuning import BaseTrial
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.quantizer.quantizer import COSINE, Quantizer
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.rescore.factory import check_rescore, make_rescorer, of_first_codes
from faiss_qama.rescore.rescorer import Rescorer
from faiss_qama.rescore.stored_vectors import StoredVectors
from faiss_qama.rescore.user_vectors import UserVectors
from faiss_qama.storage.writer import Writer
from faiss_qama.vectors import PathLike, as_vectors

if TYPE_CHECKING:
    from typing_extensions import Self

    from faiss_qama.training import FitConfig


@dataclass(frozen=True)
class Unfitted:
    """A quantizer that ``train`` will fit: the dimension and the metric of its vectors, and the settings of the fit."""

    d: int
    fit_metric: int | str
    config: FitConfig

    @property
    def cosine(self) -> bool:
        """Whether vectors are scaled to norm 1."""
        return self.fit_metric == COSINE

    @property
    def metric(self) -> int:
        """``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``."""
        return faiss.METRIC_INNER_PRODUCT if isinstance(self.fit_metric, str) else self.fit_metric

    def checked(self, x: ArrayLike, what: str = "vectors") -> Floats:
        """Return ``x`` (n, d) as float32, which a fit scales. Raises errors that call it ``what``."""
        return as_vectors(x, self.d, what)


@dataclass(frozen=True)
class Untrained:
    """The state of an index before ``train``: a quantizer to fit, or base ``auto`` to choose, if ``base`` is None."""

    quantizer: Quantizer | Unfitted
    rescore: Any
    base: CodeIndex | None


class IndexState:
    """The state of a QamaIndex: an untrained or a two-stage index, its lock, and the index that it is a view of.

    :class:`~faiss_qama.index.qama_index.QamaIndex` describes the parameters. A property that is not there, or not yet,
    is a ValueError for which ``hasattr`` returns False.
    """

    __slots__ = ("_core", "_lock", "_mapped", "_parent", "_place", "_version", "base_trials", "early_stop")

    def __init__(self, quantizer: Quantizer | Unfitted, rescore: Any = "fp16", *, base: Any = DEFAULT) -> None:
        check_rescore(rescore)
        if not isinstance(quantizer, Quantizer | Unfitted):
            raise TypeError(f"a Quantizer is needed, such as fit() returns; got {type(quantizer).__name__}")
        auto = isinstance(base, str) and base == AUTO
        layout = quantizer.layout if isinstance(quantizer, Quantizer) else quantizer.config.layout_in(quantizer.d)
        made = None if auto else make_base(base, layout)
        if isinstance(quantizer, Quantizer) and made is not None:
            core: TwoStageIndex | Untrained = empty_index(quantizer, made, rescore)
        else:
            core = Untrained(quantizer, rescore, made)
        self._set(core, ReadWriteLock())

    def _set(
        self,
        core: TwoStageIndex | Untrained,
        lock: ReadWriteLock,
        mapped: bool = False,
        parent: IndexState | None = None,
        version: int | None = None,
    ) -> Self:
        """Set the state. ``mapped`` says memory-mapped; a view has a ``parent``, and a ``version`` if it copies."""
        self._core, self._lock, self._mapped, self._parent, self._version = core, lock, mapped, parent, version
        self._place: PathLike | Writer | None = None  # the folder that it was read from, or is open for writing
        self.base_trials: list[BaseTrial] = []
        self.early_stop: bool | None = None
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is there. Raises AttributeError for other names, such as settings of FAISS's indexes."""
        if not hasattr(type(self), name):
            raise AttributeError(
                f"a {type(self).__name__} has no {name}: it has nprobe, efSearch and early_stop, search takes "
                "oversample=, recall=, truncate_dim= and sel=, and base_index has the settings of a FAISS index of the "
                "codes"
            )
        if name == "early_stop" and not (value is None or isinstance(value, bool)):
            raise TypeError(f"early_stop must be True, False or None; got {value!r}")
        super().__setattr__(name, value)

    @property
    def quantizer(self) -> Quantizer:
        """The fitted quantizer. Raises ValueError before ``train``, if that is to fit it."""
        core = self._core
        if isinstance(core, Untrained) and isinstance(core.quantizer, Quantizer):
            return core.quantizer
        return self._fitted.quantizer

    @property
    def rescore(self) -> str:
        """The kind of the second stage, a str; ``user`` for vectors that you keep."""
        if isinstance(self._core, TwoStageIndex):
            return self._core.rescore
        return self._core.rescore if isinstance(self._core.rescore, str) else UserVectors.kind

    @property
    def base_index(self) -> Any:
        """The faiss.IndexBinary of the codes, whose ids are row numbers, as ``base_index`` of faiss.IndexRefine.

        Raises ValueError for base ``Flat`` or ``IVF``, which are no FAISS indexes.
        """
        if self._core.base is None:
            raise MissingError("base auto is not chosen yet: call train(x) first")
        return self._core.base.index

    @property
    def rescorer(self) -> Rescorer | None:
        """The second stage, whose ``scores(xq, rows)`` scores candidates; None with ``rescore='none'``."""
        return self._fitted.rescorer

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return self._core.quantizer.d

    @property
    def metric_type(self) -> int:
        """``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``."""
        return self._core.quantizer.metric

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return 0 if isinstance(self._core, Untrained) else len(self._fitted.id_map)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added, with a fitted quantizer and a base index that needs no more training."""
        return isinstance(self._core, TwoStageIndex) and self._core.base.is_trained

    @property
    def read_only(self) -> bool:
        """Whether changes are refused, because the index is memory-mapped or shares its codes with another."""
        return self._mapped or self._parent is not None

    @property
    def bytes_per_vector(self) -> tuple[int, int]:
        """Bytes per vector of codes, links and ids, and of the vectors kept to re-rank with (two ints)."""
        core = self._fitted
        own_ids = 0 if core.id_map.ids is None else 8
        kept = 0 if core.rescorer is None else core.rescorer.bytes_per_vector
        return core.base.bytes_per_vector + own_ids, kept

    @property
    def nprobe(self) -> int:
        """Lists that a search probes, if the base index has lists, else an AttributeError.

        ``search(nprobe=...)`` overrides it.
        """
        return self._setting("nprobe")

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        self._setting("nprobe", value)

    @property
    def efSearch(self) -> int:  # noqa: N802 - FAISS's name
        """Nodes that a search visits, if the base index is a graph, else an AttributeError.

        A search visits twice as many nodes as candidates, or more. ``search(efSearch=...)`` overrides it.
        """
        return self._setting("efSearch")

    @efSearch.setter
    def efSearch(self, value: int) -> None:  # noqa: N802
        self._setting("efSearch", value)

    @property
    def has_own_ids(self) -> bool:
        """Whether the vectors have ids of the user's own."""
        return self._fitted.id_map.ids is not None

    @property
    def ids(self) -> Ids:
        """The ids (ntotal,) int64 of the vectors, in the order of their rows."""
        with self._lock.read():
            id_map = self._fitted.id_map
            return id_map.ids_of(id_map.live_rows)

    @property
    def factory_string(self) -> str:
        """The string of such an index for :func:`~faiss_qama.index_factory`; it leaves out ``matryoshka_dims``."""
        quantizer = self._core.quantizer
        layout = quantizer.layout if isinstance(quantizer, Quantizer) else quantizer.config.layout_in(self.d)
        refine = {"sq8": "SQ8", "fp16": "SQfp16", "fp32": "Flat", "codes": "codes"}.get(self.rescore)
        return f"Qama({layout}),{self._base_name}" + (f",Refine({refine})" if refine else "")

    @property
    def vectors(self) -> Corpus | None:
        """The floats kept to re-rank with, (ntotal, d); None if the index keeps none, or has rows marked as removed."""
        rescorer, id_map = self._fitted.rescorer, self._fitted.id_map
        if not isinstance(rescorer, StoredVectors) or rescorer.kind == "sq8":
            return None
        if id_map.alive is not None or not id_map.n:
            return None
        return Corpus(rescorer.rows, self.d, "stored vectors").scaled(rescorer.scale)

    def __repr__(self) -> str:
        metric = "inner product" if self.metric_type == faiss.METRIC_INNER_PRODUCT else "L2"
        metric = COSINE if self._core.quantizer.cosine else metric
        return f"QamaIndex({self.factory_string!r}, {self.ntotal} x {self.d}, {metric})"

    def reconstruct(self, key: int) -> Floats:
        """Return the vector (d,) float32 of an id, kept or decoded. Raises IndexError for an unknown id."""
        x: Floats = self.reconstruct_batch([key])[0]
        return x

    def reconstruct_batch(self, keys: ArrayLike) -> Floats:
        """Return the vectors (n, d) float32 of the ids ``keys`` (n,). Raises IndexError for unknown ids."""
        with self._lock.read():
            return self._fitted.take(self._fitted.id_map.rows_of(keys))

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Floats:
        """Return the vectors (ni, d) float32 of the ids n0, n0 + 1, ...; of all from n0 on if ``ni`` is -1."""
        return self.reconstruct_batch(np.arange(n0, self.ntotal if ni == -1 else n0 + ni))

    def sa_encode(self, x: ArrayLike) -> Codes:
        """Return the codes (n, code_size) uint8 of ``x`` (n, d)."""
        return self.quantizer.encode(x)

    def sa_decode(self, code: Codes) -> Floats:
        """Return the decoded vectors (n, d) float32 of ``code`` (n, code_size) uint8."""
        return self.quantizer.decode(code)

    def sa_code_size(self) -> int:
        """Return the bytes per code."""
        return self.quantizer.code_size

    @property
    def _fitted(self) -> TwoStageIndex:
        """The two-stage index. Raises ValueError before ``train``, and if the index that this copies has changed."""
        index: IndexState | None = self
        while index is not None and index._parent is not None:
            parent = index._parent._core
            if index._version is not None and isinstance(parent, TwoStageIndex) and parent.version != index._version:
                raise MissingError("the index that this was truncated from was changed since: truncate it again")
            if index._version is None and parent.base is not index._core.base:
                raise MissingError("the index that this was made from was built anew since: make it again")
            index = index._parent
        if isinstance(self._core, Untrained):
            raise self._untrained()
        return self._core

    def _view(self, core: TwoStageIndex, version: int | None) -> Self:
        """Return ``core`` as a read-only index that shares its lock and its memory map with this one."""
        return type(self).__new__(type(self))._set(core, self._lock, self._mapped, self, version)

    def _code_rescorer(self) -> CodeRescorer:
        """Return a rescorer of these codes, with the residual codes if this index or its parents keep them."""
        core = self._fitted
        if isinstance(core.rescorer, CodeRescorer):
            return core.rescorer
        if self._parent is not None and self._parent._core.base is core.base:
            return self._parent._code_rescorer()
        return of_first_codes(core.quantizer, core.base)

    def _check_writable(self) -> None:
        """Raise ValueError for a read-only index."""
        if self._parent is not None:
            raise ValueError("this index is read-only: it shares its codes with the index that it was made of")
        if self._mapped:
            raise ValueError(
                "this index is read-only: it shares its codes with a file; QamaIndex.open(path) changes the file, "
                "QamaIndex.load(path, mmap=False) a copy in memory"
            )
        if isinstance(self._place, Writer):
            self._place.check()

    def _check_trained(self) -> None:
        if not self.is_trained:
            raise self._untrained()

    def _untrained(self) -> MissingError:
        what = "this index" if isinstance(self._core.quantizer, Unfitted) else f"the base index {self._base_name}"
        return MissingError(f"{what} is not trained: call train(x) first")

    @property
    def _base_name(self) -> str:
        return AUTO if self._core.base is None else str(self._core.base)

    def _setting(self, name: str, value: int | None = None) -> int:
        """Return a search parameter of the base index, after setting it to ``value`` if given."""
        base = self._core.base
        if base is None or name not in base.settings:
            raise AttributeError(f"{self._base_name} has no {name}")
        if value is not None:
            if not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be an integer; got {value!r}")
            base.set({name: int(value)})
        return base.settings[name]

    def __reduce__(self) -> Any:
        raise TypeError("a QamaIndex is not pickled or copied; use save() and QamaIndex.load()")


def empty_index(quantizer: Quantizer, base: CodeIndex, rescore: Any) -> TwoStageIndex:
    """Return an index of no vectors; ``rescore`` is a kind or vectors, as in :class:`QamaIndex`."""
    return TwoStageIndex(quantizer, base, IdMap(), make_rescorer(rescore, quantizer, base))
