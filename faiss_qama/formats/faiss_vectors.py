"""The vectors inside a FAISS float index, by place: 0, 1, ... in the order in which they were added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids
from faiss_qama.formats.reader import Reader, Want, as_file_ids
from faiss_qama.progress import progress

CHUNK = 16_384  # vectors that are read at a time
PROBES, HITS = 16, 64  # vectors that the index is searched for, and hits of each, to compare its scores with ours
TOLERANCE, ROUNDING = 0.1, 3e-6  # of the spread of scores, as fast scans round, and of the largest squared norm
MAPPED = 1 << 26  # bytes from which on a file is mapped
TRIAL = 1000  # vectors that are added to a copy of an empty index first
METRICS = {faiss.METRIC_INNER_PRODUCT: "ip", faiss.METRIC_L2: "l2"}
_INSIDE = (
    (faiss.IndexIDMap, ("index",)),
    (faiss.IndexPreTransform, ("index",)),
    (faiss.IndexRefine, ("base_index", "refine_index")),
    (faiss.IndexHNSW, ("storage",)),
    (faiss.IndexNSG, ("storage",)),
)


class FaissVectors:
    """Reads the vectors of a filled faiss.Index without copying it.

    Inverted lists without a direct map get one, a hash table, which FAISS needs to find a vector by its id (some 50
    bytes per vector).

    Parameters
    ----------
    index : faiss.Index
        A float index that gives back the vectors it ranks by: Flat, IVF, HNSW, SQ or PQ, also inside IDMap,
        PreTransform or Refine.

    Attributes
    ----------
    index : faiss.Index
        The same index.
    ids : ndarray of shape (n,), int64, or None
        The user's own ids.

    Raises
    ------
    TypeError, ValueError
        For other objects, for inverted lists with an id twice, and as :meth:`check`.
    """

    def __init__(self, index: Any) -> None:
        if not isinstance(index, faiss.Index) or isinstance(index, faiss.IndexBinary):
            raise TypeError(f"a faiss.Index of float vectors is needed; got {type(index).__name__}")
        self.index = index
        self.ids: Ids | None = None
        parts = list(parts_of(index))
        self._inner, self._innermost = parts[0], parts[-1]
        if isinstance(parts[0], faiss.IndexIDMap):
            self.ids = faiss.vector_to_array(parts[0].id_map)
            self._inner = parts[1]
        self._mapped = any(map(_is_mapped, parts))
        self._checked = False
        self._keys: Ids | None = None
        unmapped = False
        if isinstance(self._innermost, faiss.IndexIVF):
            self._keys = self._keys_in(self._innermost)
            unmapped = self._innermost.direct_map.type == faiss.DirectMap.NoMap
        if unmapped:
            self._innermost.set_direct_map_type(faiss.DirectMap.Hashtable)
        try:
            self.check()
        except BaseException:
            if unmapped:
                self._innermost.set_direct_map_type(faiss.DirectMap.NoMap)
            raise

    def __len__(self) -> int:
        return int(self._inner.ntotal)

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return int(self._inner.d)

    def check(self) -> None:
        """Raise ValueError for an index that gives no vectors back, or others than those that it ranks by.

        RaBitQ does the latter: of 4 bits per component it gives back 1. An empty index passes until it holds vectors.
        """
        if self._checked or not len(self):
            return
        name = type(self.index).__name__
        places = np.random.default_rng(0).choice(len(self), min(len(self), PROBES), replace=False)
        try:
            self.take(places)
            error, spread = _errors(self._innermost, self._keys_of(places))
        except RuntimeError as refusal:
            reason = str(refusal).splitlines()[-1].strip()
            raise ValueError(f"{name} gives no vectors back ({reason})") from None
        if error > spread:
            raise ValueError(
                f"{name} gives back other vectors than it ranks by: its scores and theirs differ by {error:.3g}, "
                f"and {spread:.3g} would be rounding; pass the vectors themselves, or an index that keeps them"
            )
        self._checked = True

    def take(self, places: Ids) -> Floats:
        """Return the vectors (..., d) float32 at ``places`` (...) int64."""
        x: Floats = self._inner.reconstruct_batch(np.ascontiguousarray(self._keys_of(places).ravel()))
        return x.reshape(*places.shape, self.d)

    def sample(self, n: int, seed: int) -> Floats:
        """Return ``n`` random vectors (n, d) float32, or all. Raises ValueError for an index of fewer than 2."""
        if len(self) < 2:
            raise ValueError(f"fitting needs at least 2 vectors; the index to wrap holds {len(self)}")
        places = np.random.default_rng(seed).choice(len(self), min(len(self), n), replace=False)
        return self.take(np.sort(places))

    def chunks(self) -> Iterator[tuple[Floats, Ids, Ids | None]]:
        """Yield all vectors in order, (m, d) float32 and not checked, with their places and the user's own ids (m,)."""
        for start in progress(range(0, len(self), CHUNK), "encoding"):
            places = np.arange(start, min(start + CHUNK, len(self)))
            yield self.take(places), places, None if self.ids is None else self.ids[places]

    def add(self, x: Floats) -> None:
        """Append ``x`` (m, d) float32. Raises ValueError for an index with ids of its own, or mapped from a file."""
        if self._mapped:
            raise ValueError(f"{type(self.index).__name__} is read-only: it is mapped from a file; read it into memory")
        if self.ids is not None or self._keys is not None:
            raise ValueError(f"{type(self.index).__name__} has ids of its own; add to it first, then here")
        if not self._checked:
            trial = faiss.clone_index(self.index)
            trial.add(x[:TRIAL])
            FaissVectors(trial)
        self.index.add(x)

    def _keys_of(self, places: Ids) -> Ids:
        return places if self._keys is None else self._keys[places]

    def _keys_in(self, lists: Any) -> Ids | None:
        """Return the key (n,) of each place in ``lists``, or None if keys are the places."""
        parts = [
            faiss.rev_swig_ptr(lists.invlists.get_ids(i), lists.invlists.list_size(i)).copy()
            for i in range(lists.nlist)
            if lists.invlists.list_size(i)
        ]
        keys: NDArray[np.int64] = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise ValueError(f"id {twice[0]} stands for several vectors, which inverted lists cannot tell apart")
        if (keys == np.arange(len(keys))).all():
            return None
        if self.ids is None:
            self.ids = keys
        return keys


def read_faiss(path: Path, want: Want) -> Reader:
    """Return a reader of the vectors in a FAISS index on disk, with its ids and its metric.

    Vectors of a large file are mapped where FAISS can map them. Raises ValueError for a file that FAISS cannot read,
    and for an index without vectors of floats.
    """
    size = path.stat().st_size
    try:
        # FAISS checks what it reads, but not all that it maps: a file that is cut off may end the process.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if size > MAPPED else 0)
        *_, innermost = parts_of(index)
        if index.ntotal * getattr(innermost, "code_size", 0) > size:
            raise ValueError(f"{size:,} bytes are too few for {index.ntotal:,} vectors")
        vectors = FaissVectors(index)
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[-1].strip()}") from None

    def windows(step: int) -> Iterator[Floats]:
        for start in range(0, len(vectors), step):
            yield vectors.take(np.arange(start, min(start + step, len(vectors))))

    return Reader(
        shape=(len(vectors), vectors.d),
        dtype=np.dtype(np.float32),
        windows=windows,
        ids=None if vectors.ids is None else as_file_ids(vectors.ids, path, "the index"),
        metric=METRICS.get(index.metric_type, f"FAISS's metric {index.metric_type}"),
    )


def parts_of(index: Any) -> Iterator[Any]:
    """Yield ``index`` and the indexes inside it; the last one holds the vectors."""
    index = faiss.downcast_index(index)
    yield index
    for kind, names in _INSIDE:
        if isinstance(index, kind):
            for name in names:
                yield from parts_of(getattr(index, name))


def _is_mapped(index: Any) -> bool:
    """Return whether codes, links or lists of ``index`` lie in a file, where adding ends the process."""
    lists = faiss.downcast_InvertedLists(index.invlists) if isinstance(index, faiss.IndexIVF) else None
    arrays = [getattr(index, "codes", None)]
    if isinstance(index, faiss.IndexHNSW):
        arrays.append(index.hnsw.neighbors)
    if isinstance(lists, faiss.ArrayInvertedLists):
        arrays += [lists.codes.at(i) for i in range(lists.nlist)]
    return getattr(lists, "read_only", False) or not all(getattr(array, "is_owned", True) for array in arrays)


def _errors(index: Any, keys: Ids) -> tuple[float, float]:
    """Return how far the scores of a search for ``keys`` (n,) are from those of the vectors, and how far is allowed."""
    x = index.reconstruct_batch(keys)
    D, I = index.search(x, min(int(index.ntotal), HITS))
    found, at = np.unique(I, return_inverse=True)
    y = np.zeros((len(found), index.d), np.float32)
    y[found >= 0] = index.reconstruct_batch(found[found >= 0])
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is refused where vectors are checked
        scores = faiss.pairwise_distances(x, y, index.metric_type, index.metric_arg).astype(np.float64)
        errors = D - np.take_along_axis(scores, at.reshape(I.shape), axis=1)
    hits = (I >= 0) & np.isfinite(errors)
    if not hits.any():
        return 0.0, 0.0
    spread, norms = scores[np.isfinite(scores)].std(), np.square(x[hits.any(axis=1)], dtype=np.float64).sum(axis=1)
    return float(np.sqrt(np.square(errors[hits]).mean())), float(TOLERANCE * spread + ROUNDING * norms.max())
