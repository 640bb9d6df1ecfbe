"""The FAISS binary index under a QamaIndex: codes in rows 0, 1, ..., scanned by Hamming distance.

FAISS's binary indexes differ: HNSW and hash tables cannot remove, IVF and hash tables take no selector, HNSW has no
range search. Access to the codes by row makes them all alike here.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np

from faiss_qama import topk
from faiss_qama.arrays import WORST, Codes, Distances, Ids, Mask
from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout

MOST = 2**31 - 1  # of what FAISS holds in an int
EF_WIDTH = 2  # least nodes of a graph to visit per candidate: with one per candidate, a tenth is missed
KNOWN = "BFlat, BIVFn, BIVFn_HNSWm, BHNSWm, BHashb, BHashnxb, Flat, IVFn"
_CLASSES = (
    faiss.IndexBinaryFlat,
    faiss.IndexBinaryIVF,
    faiss.IndexBinaryHNSW,
    faiss.IndexBinaryHash,
    faiss.IndexBinaryMultiHash,
)


class FaissCodeIndex(CodeIndex):
    """A FAISS binary index, and its codes by row.

    Parameters
    ----------
    base : str or faiss.IndexBinary
        A string of ``faiss.index_binary_factory``, or an empty index. An IDMap is taken off, as
        :class:`~faiss_qama.index.id_map.IdMap` keeps the ids.
    layout : CodeLayout
        Layout of the codes.
    filled : bool
        Whether ``base`` may hold codes.

    Raises
    ------
    TypeError, ValueError
        For other indexes and strings, for codes of another size, and for lists, links or bits that FAISS cannot search.
    """

    def __init__(self, base: Any, layout: CodeLayout, filled: bool = False) -> None:
        super().__init__(layout)
        code_size, text = layout.code_size, base if isinstance(base, str) else None
        if text is not None:
            base = _made(text, code_size)
        if isinstance(base, faiss.IndexBinaryIDMap):
            mapped = faiss.downcast_IndexBinary(base.index)
            mapped.referenced_objects = [base]  # which frees it
            base = mapped
        if not isinstance(base, _CLASSES):
            raise TypeError(f"base must be one of {KNOWN}, as a string or an index; got {type(base).__name__}")
        if base.code_size != code_size:
            raise ValueError(f"base has codes of {base.code_size} bytes; the quantizer's have {code_size}")
        if base.ntotal and not filled:
            raise ValueError(f"base must be empty; it holds {base.ntotal} codes")
        self._index = base
        self._check_size()
        if text is not None:
            self._check_read(text)
        self._flat: Any = None  # an IndexBinaryFlat with the same rows, except for inverted lists
        self._lists: Codes | None = None  # the codes of inverted lists by row, once somebody asked for them
        if isinstance(base, faiss.IndexBinaryFlat):
            self._flat = base
        elif isinstance(base, faiss.IndexBinaryHNSW | faiss.IndexBinaryMultiHash):
            self._flat = faiss.downcast_IndexBinary(base.storage)
        elif isinstance(base, faiss.IndexBinaryHash):  # its buckets cannot be read
            self._flat = faiss.IndexBinaryFlat(8 * code_size)

    def _check_size(self) -> None:
        """Raise ValueError for numbers of lists, links or bits that crash FAISS or find nothing."""
        index, bits = self.index, 8 * self.index.code_size
        if isinstance(index, faiss.IndexBinaryIVF):
            good = index.nlist >= 1
        elif isinstance(index, faiss.IndexBinaryHNSW):
            good = index.hnsw.cum_nneighbor_per_level.size() > 2 and _links(index) >= 2
        elif isinstance(index, faiss.IndexBinaryHash | faiss.IndexBinaryMultiHash):
            good = index.b >= 1 and index.b * getattr(index, "nhash", 1) <= bits
        else:
            good = True
        if not good:
            raise ValueError(f"base: lists must be 1 or more, links 2 or more, hashed bits from 1 to {bits}")

    def _check_read(self, text: str) -> None:
        """Raise ValueError unless FAISS read the whole ``text``: it skips what follows a number.

        What it read is in the name of the index, except for an id map, which is taken off.
        """
        parts = [part for part in text.split(",") if not re.fullmatch("IDMap2?", part)]
        if parts != [str(self)]:
            rest = ",".join(parts).removeprefix(os.path.commonprefix([",".join(parts), str(self)]))
            raise ValueError(f"base {text!r} is read as {self}: {rest!r} is not understood; there are {KNOWN}")

    @property
    def index(self) -> Any:
        return self._index

    @property
    def nlist(self) -> int:
        """Number of inverted lists."""
        return int(self.index.nlist)

    @property
    def is_trained(self) -> bool:
        return bool(self.index.is_trained)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def __str__(self) -> str:
        index = self.index
        if isinstance(index, faiss.IndexBinaryIVF):
            coarse = faiss.downcast_IndexBinary(index.quantizer)
            return f"BIVF{index.nlist}" + (f"_HNSW{_links(coarse)}" if hasattr(coarse, "hnsw") else "")
        if isinstance(index, faiss.IndexBinaryHNSW):
            return f"BHNSW{_links(index)}"
        if isinstance(index, faiss.IndexBinaryMultiHash):
            return f"BHash{index.nhash}x{index.b}"
        return f"BHash{index.b}" if isinstance(index, faiss.IndexBinaryHash) else "BFlat"

    @property
    def codes(self) -> Codes:
        size = self.index.code_size
        if len(self) == 0:
            return np.empty((0, size), dtype=np.uint8)
        if self._flat is not None:
            view: Codes = faiss.rev_swig_ptr(self._flat.xb.data(), len(self) * size).reshape(-1, size)
            return view
        if self._lists is None:
            codes = np.empty((len(self), size), dtype=np.uint8)
            for number in range(self.index.nlist):
                rows, of_list = _inverted_list(self.index, number)
                codes[rows] = of_list
            self._lists = codes
        return self._lists

    def take(self, rows: Ids) -> Codes:
        return self.codes[rows]

    @property
    def bytes_per_vector(self) -> int:
        return int(self.index.code_size) + self._beside

    @property
    def _beside(self) -> int:
        """Bytes per vector beside the code: links, list entries, a second copy of the code."""
        index = self.index
        if isinstance(index, faiss.IndexBinaryIVF):
            return 8 + (index.code_size if self._lists is not None else 0)
        if isinstance(index, faiss.IndexBinaryHNSW):
            return 4 * int(index.hnsw.nb_neighbors(0))  # levels above the first add a few per cent
        if isinstance(index, faiss.IndexBinaryMultiHash):
            return 8 * int(index.nhash)
        return 8 + int(index.code_size) if isinstance(index, faiss.IndexBinaryHash) else 0

    @property
    def settings(self) -> dict[str, int]:
        names = {"nprobe": self.index, "nflip": self.index, "efSearch": getattr(self.index, "hnsw", None)}
        return {name: int(getattr(owner, name)) for name, owner in names.items() if hasattr(owner, name)}

    def set(self, settings: Mapping[str, int]) -> None:
        for name, value in settings.items():
            if name not in self.settings:
                raise ValueError(f"{name} means nothing to {self}; it has {', '.join(self.settings) or 'no settings'}")
            least, most = (0, self.index.b) if name == "nflip" else (1, MOST)
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}; got {value}")
            setattr(self.index.hnsw if name == "efSearch" else self.index, name, value)

    @property
    def can_remove(self) -> bool:
        return isinstance(self.index, faiss.IndexBinaryFlat | faiss.IndexBinaryIVF)

    def parts(self) -> dict[str, Any]:
        """Return the FAISS index; for a hash table its codes in a flat index, as a load rebuilds the table."""
        hashed = isinstance(self.index, faiss.IndexBinaryHash | faiss.IndexBinaryMultiHash)
        return {"codes": self._flat if hashed else self.index}

    @classmethod
    def from_parts(cls, name: str, layout: CodeLayout, n: int, reader: PartReader) -> FaissCodeIndex:
        binary = reader.binary("codes", mapped=name == "BFlat")
        if binary.code_size != layout.code_size:
            raise reader.invalid("codes", f"codes of {binary.code_size} bytes; the manifest says {layout.code_size}")
        if binary.ntotal != n:
            raise reader.invalid("codes", f"{binary.ntotal} codes; the manifest says {n}")
        base = cls(binary, layout, filled=True)
        if str(base) == name:
            return base
        made_anew = cls(name, layout)
        if str(base) != "BFlat" or not isinstance(made_anew.index, faiss.IndexBinaryHash | faiss.IndexBinaryMultiHash):
            raise reader.invalid("codes", f"{base}; the manifest says {name}")
        made_anew.append(base.codes)
        return made_anew

    def train(self, codes: Codes) -> None:
        if not self.index.is_trained and len(codes) < self.index.nlist:
            raise ValueError(f"{self} needs at least {self.index.nlist} vectors to train; got {len(codes)}")
        if hasattr(self.index, "cp"):
            self.index.cp.min_points_per_centroid = 1  # or FAISS warns of fewer than 39, on standard error
        self.index.train(codes)

    def append(self, codes: Codes) -> None:
        self.index.add(codes)
        if isinstance(self.index, faiss.IndexBinaryHash):
            self._flat.add(codes)
        self._lists = None

    def keep(self, kept: Mask) -> None:
        if not self.can_remove:
            codes = self.codes[kept]
            self.clear()
            self.append(codes)
            return
        self.index.remove_ids(faiss.IDSelectorBatch(np.flatnonzero(~kept)))
        if isinstance(self.index, faiss.IndexBinaryIVF):
            renumbered = np.cumsum(kept) - 1
            for number in range(self.index.nlist):
                rows, _ = _inverted_list(self.index, number)
                rows[:] = renumbered[rows]
        self._lists = None

    def copy(self, rows: Ids) -> FaissCodeIndex:
        hashed = isinstance(self.index, faiss.IndexBinaryHash | faiss.IndexBinaryMultiHash)
        made = str(self) if hashed else faiss.clone_binary_index(self.index)  # FAISS does not clone hash tables
        other = FaissCodeIndex(made, self.layout, filled=True)
        other.clear()
        other.set(self.settings)
        other.append(self.codes[rows])
        return other

    def clear(self) -> None:
        self.index.reset()
        if self._flat is not None:
            self._flat.reset()
        self._lists = None

    def truncate(self, layout: CodeLayout) -> CodeIndex:
        try:
            other = FaissCodeIndex(str(self), layout)
        except ValueError:  # too short to hash
            other = FaissCodeIndex("BFlat", layout)
        if isinstance(self.index, faiss.IndexBinaryIVF):
            coarse = FaissCodeIndex(faiss.downcast_IndexBinary(self.index.quantizer), self.layout, filled=True)
            other.index.quantizer.add(bit_packing.truncate(coarse.codes, layout))
            other.index.is_trained = True
        other.set({name: value for name, value in self.settings.items() if name in other.settings})
        other.append(bit_packing.truncate(self.codes, layout))
        return other

    def flat_prefix(self, layout: CodeLayout) -> CodeIndex:
        other = FaissCodeIndex("BFlat", layout)
        other.append(bit_packing.truncate(self.codes, layout))
        return other

    def search(self, queries: Codes, k: int, rows: Mask | None, settings: Mapping[str, int]) -> tuple[Distances, Ids]:
        parameters = self._parameters(settings, k)
        n = len(self)
        left = n if rows is None else int(np.count_nonzero(rows))
        allowed = None if rows is None or left == n else np.flatnonzero(rows)
        if k >= left or 2 * left < n:
            return self._scan(queries, k, allowed)
        if rows is None or allowed is None:
            return self._search(queries, k, parameters)
        # Most rows may be found, so most of slightly more than k hits may be found too.
        D, I = self._search(queries, min(n, int(1.2 * k * n / left) + 16), parameters)
        out = (I < 0) | ~rows[I]
        D, I = np.where(out, WORST, D), np.where(out, -1, I)
        order = np.argsort(out, axis=1, kind="stable")[:, :k]
        D, I = np.take_along_axis(D, order, axis=1), np.take_along_axis(I, order, axis=1)
        short = np.flatnonzero(I[:, -1] < 0)
        if len(short):
            D[short], I[short] = self._scan(queries[short], k, allowed)
        return D, I

    def _search(self, queries: Codes, k: int, parameters: Any) -> tuple[Distances, Ids]:
        """Return distances and rows (nq, k) of FAISS's search; missing hits get ``WORST`` and -1 for every index."""
        D, I = self.index.search(queries, k, params=parameters)
        return np.where(I < 0, WORST, D), I

    def _scan(self, queries: Codes, k: int, rows: Ids | None) -> tuple[Distances, Ids]:
        """Return distances and rows (nq, k) of an exhaustive search of ``rows`` (m,), or of all rows."""
        codes = self.codes if rows is None else self.codes[rows]
        found = min(k, len(codes))
        if found == 0:
            return np.full((len(queries), k), WORST, np.int32), np.full((len(queries), k), -1)
        D, I = faiss.knn_hamming(queries, codes, found)
        return topk.padded(D, I if rows is None else rows[I], k, np.int32(WORST))

    def _parameters(self, settings: Mapping[str, int], k: int) -> Any:
        """Return FAISS's search parameters for ``settings``. Raises ValueError for one that this index lacks."""
        kind, name = None, None
        if isinstance(self.index, faiss.IndexBinaryIVF):
            kind, name = faiss.SearchParametersIVF, "nprobe"
        elif isinstance(self.index, faiss.IndexBinaryHNSW):
            kind, name = faiss.SearchParametersHNSW, "efSearch"
            settings = {"efSearch": max(EF_WIDTH * k, self.settings["efSearch"]), **settings}
        for setting, value in settings.items():
            if setting != name:
                raise ValueError(f"{setting} means nothing to {self}; it takes {name or 'no search parameters'}")
            if value < 1:
                raise ValueError(f"{setting} must be at least 1; got {value}")
        return kind(**settings) if kind and settings else None

    def check_recall(self, settings: Mapping[str, int]) -> None:
        if isinstance(self.index, faiss.IndexBinaryIVF) and settings.get("nprobe", self.settings["nprobe"]) == 1:
            raise ValueError(f"recall= was measured with exhaustive scans, and {self} probes 1 list: set nprobe too")
        if isinstance(self.index, faiss.IndexBinaryHash | faiss.IndexBinaryMultiHash):
            raise ValueError(f"{self} finds only what shares a bucket, so recall= cannot be kept; pass oversample=")


def _made(text: str, code_size: int) -> Any:
    try:
        return faiss.index_binary_factory(8 * code_size, text)
    except (RuntimeError, ValueError):
        raise ValueError(f"base {text!r} is not one of {KNOWN}") from None


def _links(hnsw: Any) -> int:
    """Return M, the links per vector at the upper levels of ``hnsw``."""
    return int(hnsw.hnsw.nb_neighbors(1))


def _inverted_list(ivf: Any, number: int) -> tuple[Ids, Codes]:
    """Return views of the rows (n,) and the codes (n, code_size) of one inverted list."""
    lists, size = ivf.invlists, ivf.code_size
    n = lists.list_size(number)
    if n == 0:
        return np.empty(0, np.int64), np.empty((0, size), np.uint8)
    rows = faiss.rev_swig_ptr(lists.get_ids(number), n)
    return rows, faiss.rev_swig_ptr(lists.get_codes(number), n * size).reshape(n, size)
