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


class FaissVectors:
    """Reads the vectors of a filled faiss.Index without copying it; a flat index is read in place.

    Inverted lists get a direct map, which FAISS needs to find a vector by its id (8 bytes per vector or more).

    Parameters
    ----------
    index : faiss.Index
        A float index that can reconstruct: Flat, IVF, HNSW, SQ or PQ, also inside IDMap, PreTransform or Refine.

    Attributes
    ----------
    index : faiss.Index
        The same index.
    ids : ndarray of shape (n,), int64, or None
        The user's own ids.

    Raises
    ------
    TypeError, ValueError
        For other objects, for an index that cannot reconstruct, and for inverted lists with an id twice.
    """

    def __init__(self, index: Any) -> None:
        if not isinstance(index, faiss.Index) or isinstance(index, faiss.IndexBinary):
            raise TypeError(f"a faiss.Index of float vectors is needed; got {type(index).__name__}")
        self.index = index
        self.ids: Ids | None = None
        inner = faiss.downcast_index(index)
        if isinstance(inner, faiss.IndexIDMap):
            self.ids = faiss.vector_to_array(inner.id_map)
            inner = faiss.downcast_index(inner.index)
        while isinstance(inner, faiss.IndexRefine | faiss.IndexHNSW):
            inner = faiss.downcast_index(inner.refine_index if isinstance(inner, faiss.IndexRefine) else inner.storage)
        self._inner = inner
        lists = inner
        while isinstance(lists, faiss.IndexPreTransform):
            lists = faiss.downcast_index(lists.index)
        self._keys: Ids | None = None
        if isinstance(lists, faiss.IndexIVF):
            self._keys = self._map_directly(lists)
        if len(self):
            try:
                self.take(np.zeros(1, np.int64))
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(f"{type(index).__name__} gives no vectors back ({reason})") from None

    def __len__(self) -> int:
        return int(self._inner.ntotal)

    @property
    def d(self) -> int:
        """Dimension of the vectors."""
        return int(self._inner.d)

    def take(self, places: Ids) -> Floats:
        """Return the vectors (..., d) float32 at ``places`` (...) int64."""
        if isinstance(self._inner, faiss.IndexFlat):
            view = faiss.rev_swig_ptr(self._inner.get_xb(), len(self) * self.d).reshape(-1, self.d)
            flat: Floats = view[places]
            return flat
        keys = places if self._keys is None else self._keys[places]
        x: Floats = self._inner.reconstruct_batch(np.ascontiguousarray(keys.ravel()))
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
        """Append ``x`` (m, d) float32. Raises ValueError if the index has ids of its own: ``x`` comes without."""
        if self.ids is not None or self._keys is not None:
            raise ValueError(f"{type(self.index).__name__} has ids of its own; add to it first, then here")
        self.index.add(x)

    def _map_directly(self, lists: Any) -> Ids | None:
        """Give ``lists`` a direct map; return the key (n,) of each place, or None if keys are the places."""
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
            lists.set_direct_map_type(faiss.DirectMap.Array)
            return None
        lists.set_direct_map_type(faiss.DirectMap.Hashtable)
        if self.ids is None:
            self.ids = keys
        return keys


def read_faiss(path: Path, want: Want) -> Reader:
    """Return a reader of the vectors in a FAISS index on disk, with its ids and its metric.

    Its vectors are mapped where FAISS can map them. Raises ValueError for a file that FAISS cannot read, and for an
    index without vectors of floats.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        vectors = FaissVectors(index)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[-1].strip()}") from None

    def windows(step: int) -> Iterator[Floats]:
        for start in range(0, len(vectors), step):
            yield vectors.take(np.arange(start, min(start + step, len(vectors))))

    return Reader(
        shape=(len(vectors), vectors.d),
        dtype=np.dtype(np.float32),
        windows=windows,
        ids=None if vectors.ids is None else as_file_ids(vectors.ids, path, "the index"),
        metric="l2" if index.metric_type == faiss.METRIC_L2 else "ip",
    )
