"""What an index holds, and the two-stage search over it; :mod:`~faiss_qama.index.qama_index` is its public face."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import WORST, Codes, Floats, Ids, Mask
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.index.id_map import IdMap
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import CodeRescorer, Rescorer
from faiss_qama.threads import defer_interrupt, even_slices, parallel_map

DEFAULT_OVERSAMPLE = 10.0  # where nothing was calibrated
QUERIES = 32  # from which on a thread answers some of them from beginning to end; of fewer the scan is shared
PREFIX_WIDTH = 8  # prefix candidates a candidate, where nothing was calibrated
RANGE_START = 1024  # candidates that a range search starts with


class TwoStageIndex:
    """Codes, ids and vectors, row by row, with the quantizer that made the codes.

    Parameters
    ----------
    quantizer : whose codes they are
    base : the codes
    id_map : the ids
    rescorer : what scores candidates again, or None
    """

    def __init__(self, quantizer: Quantizer, base: CodeIndex, id_map: IdMap, rescorer: Rescorer | None) -> None:
        self.quantizer, self.base, self.id_map, self.rescorer = quantizer, base, id_map, rescorer
        self.own_rescorer = rescorer  # whatever scores now
        self._changes = [0]  # of all that share the codes
        self._prefixes: dict[int, CodeIndex] = {}

    def rescored_by(self, rescorer: Rescorer | None) -> TwoStageIndex:
        """Return contents that share all but the rescorer, and change with these."""
        other = TwoStageIndex(
            self.quantizer if rescorer is None else rescorer.quantizer, self.base, self.id_map, rescorer
        )
        other._prefixes, other._changes, other.own_rescorer = self._prefixes, self._changes, self.own_rescorer
        return other

    def over(self, base: CodeIndex) -> TwoStageIndex:
        """Return contents of the same codes in another base, to search as long as these do not change."""
        rescorer = self.rescorer.over(base) if isinstance(self.rescorer, CodeRescorer) else self.rescorer
        return TwoStageIndex(self.quantizer, base, self.id_map, rescorer)

    @property
    def version(self) -> int:
        """Counts the changes."""
        return self._changes[0]

    @property
    def larger(self) -> bool:
        """Whether larger scores are better."""
        return self.rescorer is not None and self.quantizer.metric == faiss.METRIC_INNER_PRODUCT

    @property
    def worst(self) -> np.generic:
        """The score of a missing hit, as FAISS has it."""
        if self.rescorer is None:
            return np.int32(WORST)
        limits = np.finfo(np.float32)
        return limits.min if self.larger else limits.max

    def append(self, code: Codes, stored: NDArray[Any], ids: Ids | None) -> None:
        """Add rows: codes, what the rescorer's ``convert`` made of the vectors, and ids of the user's own or None."""
        there = self.id_map.n
        if self.rescorer is not None:
            self.rescorer.append(stored)
        try:
            self.base.append(code)
            self.id_map.append(len(code), ids)
        except BaseException:  # Ctrl-C too
            if self.rescorer is not None:
                self.rescorer.shrink(there)
            if len(self.base) > there:
                self.base.keep(np.arange(len(self.base)) < there)
            self.id_map.shrink(there)
            raise
        self._changed()

    def remove(self, gone: Mask) -> None:
        """Remove the rows where ``gone`` is true; where that would mean a new base index, only mark them."""
        if self.base.can_remove:
            self.keep(~gone)
        else:
            self.id_map.remove(gone)
            self._changed()

    @defer_interrupt()
    def keep(self, kept: Mask) -> None:
        """Drop the rows where ``kept`` is false; the others move up."""
        if self.rescorer is not None:  # first, as it is what may run out of memory
            self.rescorer.keep(kept)
        self.base.keep(kept)
        self.id_map.keep(kept)
        self._changed()

    @defer_interrupt()
    def clear(self) -> None:
        """Drop every row."""
        if self.rescorer is not None:
            self.rescorer.clear()
        self.base.clear()
        self.id_map.clear()
        self._changed()

    def take(self, rows: Ids) -> Floats:
        """Return the vectors of ``rows``, kept or decoded."""
        if self.rescorer is not None:
            return self.rescorer.take(rows)
        return self.quantizer.decode(self.base.take(rows))

    def search(
        self,
        xq: Floats,
        k: int,
        *,
        oversample: float | None = None,
        recall: float | None = None,
        truncate_dim: int | None = None,
        sel: Any = None,
        settings: Mapping[str, int],
    ) -> tuple[NDArray[Any], Ids]:
        """Return scores and rows, (nq, at most k), best first; row -1 where there is none."""
        if truncate_dim is not None and settings:
            raise ValueError(
                f"truncate_dim= scans codes without the base index, so {', '.join(settings)} mean nothing to it"
            )
        if recall is not None and truncate_dim is None:
            self.base.check_recall(settings)
        mask, left = self._mask(sel)
        candidates = min(self._candidates(k, left, oversample, recall), left)
        funnel = None if truncate_dim is None else self._funnel(truncate_dim)
        width = 0 if truncate_dim is None else self._prefix_width(truncate_dim, k, left, candidates, recall)

        def answered(part: slice) -> tuple[NDArray[Any], Ids]:
            code = self.quantizer.encode_queries_unchecked(xq[part])
            if funnel is not None:
                D, rows = self._through(funnel, code, width, candidates, mask)
            else:
                D, rows = self.base.search(code, candidates, mask, settings)
            if self.rescorer is None or candidates == 0:
                return D[:, :k], rows[:, :k]
            return topk.best(self._scores(xq[part], rows), rows, k, self.larger)

        return topk.joined(
            parallel_map(answered, even_slices(len(xq)) if len(xq) >= QUERIES else [slice(None)]), axis=0
        )

    def range_search(
        self, xq: Floats, radius: float, *, sel: Any = None, settings: Mapping[str, int]
    ) -> list[tuple[NDArray[Any], Ids]]:
        """Return, for each query, scores and rows of what is nearer than ``radius``, best first.

        Candidates are doubled until the farther half of them holds no hit; by Hamming distance alone, until one is out
        of reach.
        """
        mask, left = self._mask(sel)
        code, todo = self.quantizer.encode_queries_unchecked(xq), np.arange(len(xq))
        hits: list[tuple[NDArray[Any], Ids]] = [(np.empty(0), np.empty(0, np.int64))] * len(xq)
        candidates = min(RANGE_START, left)
        while len(todo) and left:
            D, rows = self.base.search(code[todo], candidates, mask, settings)
            scores = D if self.rescorer is None else self._scores(xq[todo], rows)
            hit = ((scores > radius) if self.larger else (scores < radius)) & (rows >= 0)
            edge = candidates - 1 if self.rescorer is None else candidates // 2
            done = (candidates >= left) | (rows[:, -1] < 0) | ~hit[:, edge:].any(axis=1)
            for i in np.flatnonzero(done):
                D, I = topk.best(scores[i : i + 1, hit[i]], rows[i : i + 1, hit[i]], candidates, self.larger)
                hits[todo[i]] = D[0], I[0]
            todo, candidates = todo[~done], min(2 * candidates, left)
        return hits

    def _changed(self) -> None:
        self._changes[0] += 1
        self._prefixes.clear()

    def _mask(self, sel: Any) -> tuple[Mask | None, int]:
        """Return which rows may be found, None for all, and how many they are."""
        mask = self.id_map.alive if sel is None else self.id_map.matching(sel)
        return mask, self.id_map.n if mask is None else int(np.count_nonzero(mask))

    def _scores(self, xq: Floats, rows: Ids) -> Floats:
        """Return the second stage's scores of ``rows``, the worst where there is no row."""
        assert self.rescorer is not None
        scores = self.rescorer.scores(xq, np.maximum(rows, 0))
        scores[rows < 0] = self.worst
        return scores

    def _candidates(self, k: int, left: int, oversample: float | None, recall: float | None) -> int:
        """Return how many candidates the Hamming scan hands on."""
        if oversample is not None and recall is not None:
            raise ValueError("pass oversample= or recall=, not both")
        if self.rescorer is None:
            if oversample is not None or recall is not None:
                raise ValueError("rescore='none' has no second stage, so oversample= and recall= mean nothing to it")
            return k
        calibration = self.quantizer.calibration
        if oversample is None and calibration is not None:
            oversample = calibration.oversample(k, left, self.rescorer.stage, recall)
        elif oversample is None and recall is not None:
            raise ValueError("recall= needs a calibration, which this quantizer lacks; pass oversample=")
        elif oversample is None:
            oversample = DEFAULT_OVERSAMPLE
        if not oversample >= 1:
            raise ValueError(f"oversample must be at least 1; got {oversample}")
        return int(min(np.ceil(k * oversample), left))

    def _prefix_width(self, truncate_dim: int, k: int, left: int, candidates: int, recall: float | None) -> int:
        """Return how many candidates the scan of the first ``truncate_dim`` components hands on to the whole codes."""
        calibrated = self.quantizer.calibration.prefixes if self.quantizer.calibration else {}
        if truncate_dim in calibrated:
            # Half of what may be missed is left to the truncate_dim, as half of it is to the whole code.
            width = int(np.ceil(k * calibrated[truncate_dim].oversample(k, left, "floats", recall)))
        elif recall is not None:
            raise ValueError(
                f"recall= with truncate_dim={truncate_dim} needs its calibration; there are those of "
                f"{sorted(calibrated)}: fit with matryoshka_dims=, or pass oversample="
            )
        else:
            width = PREFIX_WIDTH * candidates
        return min(max(width, candidates), left)

    def _funnel(self, truncate_dim: int) -> CodeIndex:
        """Return the codes' first ``truncate_dim`` components."""
        layout = self.quantizer.layout.truncate(operator.index(truncate_dim))
        funnel = self._prefixes.get(truncate_dim)
        if funnel is None:
            funnel = self._prefixes[truncate_dim] = self.base.flat_prefix(layout)
        return funnel

    def _through(
        self, funnel: CodeIndex, code: Codes, width: int, candidates: int, mask: Mask | None
    ) -> tuple[NDArray[np.int32], Ids]:
        """Return the ``candidates`` nearest of the ``width`` whose first components are nearest."""
        _, rows = funnel.search(bit_packing.truncate(code, funnel.layout), width, mask, {})
        distances = self.base.distances(code, np.maximum(rows, 0))
        distances[rows < 0] = WORST
        return topk.best(distances, rows, candidates, larger=False)
