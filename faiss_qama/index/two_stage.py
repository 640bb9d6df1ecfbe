"""Both stages together: Hamming candidates, then re-ranking; the engine of QamaIndex."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import WORST, Codes, Floats, Ids, Mask
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.norms import SAMPLE, Watch
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.calibration import MISSES, MISSES_OF_STOPS
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.rescore.early_stop import nearest
from faiss_qama.rescore.factory import of_first_codes
from faiss_qama.rescore.rescorer import Rescorer, VectorRescorer
from faiss_qama.rescore.stored_vectors import StoredVectors
from faiss_qama.rescore.user_vectors import UserVectors
from faiss_qama.threads import defer_interrupt, even_slices, parallel_map

DEFAULT_OVERSAMPLE = 10.0  # candidates per neighbour, without a calibration
QUERIES = 32  # so many queries or more are divided among threads; threads share the scan of fewer
PREFIX_WIDTH = 8  # prefix candidates per candidate, without a calibration
RANGE_START = 1024  # candidates that a range search starts with
DEAD = 1 / 16  # share of rows that may be marked as removed before they are dropped


class TwoStageIndex:
    """Codes, ids and vectors, row by row, with the quantizer that made the codes.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.
    base : CodeIndex
        The first stage: the codes.
    id_map : IdMap
        The ids.
    rescorer : Rescorer or None
        The second stage.
    """

    def __init__(self, quantizer: Quantizer, base: CodeIndex, id_map: IdMap, rescorer: Rescorer | None) -> None:
        self.quantizer, self.base, self.id_map, self.rescorer = quantizer, base, id_map, rescorer
        self._prefixes: tuple[int, dict[int, CodeIndex]] = 0, {}  # by number of components, at a version
        self._codes: CodeRescorer | None = None
        self.manifest_sha256 = ""  # of the manifest that it was read by
        self.watch = Watch(quantizer, quantizer)

    @property
    def rescore(self) -> str:
        """The kind of the rescorer."""
        return "none" if self.rescorer is None else self.rescorer.kind

    @property
    def version(self) -> int:
        """Number of changes so far."""
        return self.id_map.version

    def over(self, base: CodeIndex) -> TwoStageIndex:
        """Return an index of the same codes in another base, valid until this one changes."""
        return TwoStageIndex(self.quantizer, base, self.id_map, self.rescorer and self.rescorer.over(base))

    @property
    def larger(self) -> bool:
        """Whether larger scores are better."""
        return self.rescorer is not None and self.quantizer.metric == faiss.METRIC_INNER_PRODUCT

    @property
    def worst(self) -> np.generic:
        """The score of a missing hit, as in FAISS: int32 for Hamming distances, else float32."""
        if self.rescorer is None:
            return np.int32(WORST)
        limits = np.finfo(np.float32)
        return limits.min if self.larger else limits.max

    def append(self, code: Codes, encoded: NDArray[Any], ids: Ids | None, *, replaced: Ids | None = None) -> None:
        """Append rows. An error leaves everything as it was, and so does Ctrl-C, unless it comes when all is done.

        Parameters
        ----------
        code : ndarray of shape (n, code_size), uint8
            Codes.
        encoded : ndarray of shape (n, width)
            The vectors, from :meth:`~faiss_qama.rescore.rescorer.Rescorer.encode`.
        ids : ndarray of shape (n,), int64, or None
            The user's own ids.
        replaced : ndarray of shape (m,), int64, optional
            Rows that are removed in the same step, which may have the same ids.

        Raises
        ------
        ValueError
            For ids of vectors that were added without, and as the second stage.
        OSError
            If a file that rows go to has no room.
        """
        there, had_ids, done = self.id_map.n, self.id_map.ids is not None, False
        if replaced is None:
            self.id_map.check_free(ids)
        if self.rescorer is not None:
            self.rescorer.append(encoded)
        try:
            self.base.append(code)
            with defer_interrupt():
                self.id_map.append(len(code), ids)
                if replaced is not None and len(replaced):
                    self.id_map.remove(replaced)
                done = True
        except BaseException:  # Ctrl-C too
            if done:  # it was held back until here
                raise
            for part in (self.rescorer, self.base):
                if part is not None:
                    part.shrink(there)
            self.id_map.shrink(there, own=had_ids)
            raise

    @defer_interrupt()
    def remove(self, rows: Ids) -> None:
        """Mark ``rows`` (m,) as removed."""
        self.id_map.remove(rows)

    def drop_removed(self) -> None:
        """Drop the removed rows if they are many, there is memory, and the base need not be built anew for that."""
        if self.base.can_remove and self.id_map.removed > DEAD * self.id_map.n:
            with suppress(MemoryError):
                self.compact()

    @defer_interrupt()
    def compact(self) -> None:
        """Drop the removed rows; the others move up. Without enough memory everything stays as it was."""
        kept = self.id_map.alive
        if kept is None:
            return
        parts = [part for part in (self.id_map, self.rescorer) if part is not None]
        before = [vars(part).copy() for part in parts]
        try:
            self.id_map.compact()
            if self.rescorer is not None:
                self.rescorer.keep(kept)
            self.base.keep(kept)
        except BaseException:
            for part, state in zip(parts, before, strict=True):
                vars(part).update(state)
            raise

    @defer_interrupt()
    def clear(self) -> None:
        """Drop every row."""
        for part in (self.rescorer, self.base, self.id_map):
            if part is not None:
                part.clear()

    def merge_from(self, other: TwoStageIndex, add_id: int) -> None:
        """Move the rows of another index to the end.

        Parameters
        ----------
        other : TwoStageIndex
            The other index, empty afterwards.
        add_id : int
            A number that is added to its ids.

        Raises
        ------
        ValueError
            For another quantizer or rescorer, and for ids out of range. Nothing is moved.
        """
        if self.rescore != other.rescore or isinstance(self.rescorer, UserVectors):
            raise ValueError(
                f"rescore is {other.rescore} there and {self.rescore} here; merging needs the same, and one that stores"
            )
        if not self.quantizer.is_compatible_with(other.quantizer):
            raise ValueError("the two indexes have different quantizers; fit one and share it")
        if self.id_map.ids is not None and other.id_map.ids is None and not add_id:
            raise ValueError("this index has ids of its own and the other has none; pass add_id")
        live, ids = other.id_map.live_rows, None
        if other.id_map.ids is not None or add_id:
            ids = other.id_map.ids_of(live)
            ends = [int(end) + operator.index(add_id) for end in (ids.min(initial=0), ids.max(initial=0))]
            if ends[0] < 0 or ends[1] > np.iinfo(np.int64).max:
                raise ValueError(f"add_id {add_id} makes ids {ends[0]} to {ends[1]}; 0 to 2**63 - 1 are possible")
            ids = ids + add_id
        encoded = np.empty(0) if other.rescorer is None else other.rescorer.encoded(live)
        code = other.base.take(live)
        with defer_interrupt():  # else rows might be in both
            self.append(code, encoded, ids)
            other.clear()

    def take(self, rows: Ids) -> Floats:
        """Return the vectors (m, d) float32 of ``rows`` (m,), kept or decoded."""
        if self.rescorer is not None:
            return self.rescorer.take(rows)
        return self.quantizer.decode(self.base.take(rows))

    def latest(self) -> Floats:
        """Return the vectors (m, d) that were appended last and are kept, up to ``SAMPLE``."""
        if not isinstance(self.rescorer, StoredVectors):
            return np.empty((0, self.quantizer.d), np.float32)
        return self.take(self.id_map.live_rows[-SAMPLE:])

    def search(self, xq: Floats, k: int, parameters: SearchParameters) -> tuple[NDArray[Any], Ids]:
        """Return the ``k`` nearest rows of each query, best first.

        Parameters
        ----------
        xq : ndarray of shape (nq, d), float32
            Queries.
        k : int
            Neighbours.
        parameters : SearchParameters
            Options.

        Returns
        -------
        D : ndarray of shape (nq, k or fewer)
            float32 inner products, largest first, or squared L2 distances, smallest first; int32 Hamming distances,
            smallest first, without a second stage.
        I : ndarray of shape (nq, k or fewer), int64
            Rows; -1 for missing hits.

        Raises
        ------
        ValueError
            For a recall out of reach, and for options that mean nothing to the base or to the second stage.
        """
        settings, truncate_dim = parameters.settings, parameters.truncate_dim
        if parameters.recall is not None and truncate_dim is None:
            self.base.check_recall(settings)
        mask, left = self._mask(parameters.sel)
        guesser = self._guesser(parameters)
        candidates = min(self._candidates(k, left, parameters, MISSES if guesser is None else MISSES_OF_STOPS), left)
        funnel = None if truncate_dim is None else self._funnel(truncate_dim)
        width = 0 if truncate_dim is None else self._prefix_width(k, left, candidates, parameters)

        def answered(part: slice) -> tuple[NDArray[Any], Ids]:
            code = self.quantizer.encode_queries_unchecked(xq[part])
            if funnel is not None:
                D, rows = self._through(funnel, code, width, candidates, mask)
            else:
                D, rows = self.base.search(code, candidates, mask, settings)
            if self.rescorer is None or candidates == 0:
                return D[:, :k], rows[:, :k]
            if guesser is not None:
                return self._read_few(guesser, xq[part], rows, k, parameters.recall)
            return topk.best(self._scores(xq[part], rows), rows, k, self.larger)

        parts = even_slices(len(xq)) if len(xq) >= QUERIES else [slice(None)]
        return topk.joined(parallel_map(answered, parts), axis=0)

    def range_search(self, xq: Floats, radius: float, parameters: SearchParameters) -> list[tuple[NDArray[Any], Ids]]:
        """Return scores and rows (hits,) of each query, of all vectors nearer than ``radius``, best first.

        Candidates are doubled until the farther half of them holds no hit; without a second stage until the farthest is
        no hit. ``xq`` (nq, d) are float32 queries. The scores are those of :meth:`search`. Raises ValueError for an
        oversample, and as :meth:`search`.
        """
        if parameters.oversample is not None:
            raise ValueError("a range search takes as many candidates as it needs, so k_factor means nothing to it")
        mask, left = self._mask(parameters.sel)
        code, todo = self.quantizer.encode_queries_unchecked(xq), np.arange(len(xq))
        hits: list[tuple[NDArray[Any], Ids]] = [(np.empty(0), np.empty(0, np.int64))] * len(xq)
        candidates = min(RANGE_START, left)
        while len(todo) and left:
            D, rows = self.base.search(code[todo], candidates, mask, parameters.settings)
            scores = D if self.rescorer is None else self._scores(xq[todo], rows)
            hit = ((scores > radius) if self.larger else (scores < radius)) & (rows >= 0)
            edge = candidates - 1 if self.rescorer is None else candidates // 2
            done = (candidates >= left) | (rows[:, -1] < 0) | ~hit[:, edge:].any(axis=1)
            for i in np.flatnonzero(done):
                D, I = topk.best(scores[i : i + 1, hit[i]], rows[i : i + 1, hit[i]], candidates, self.larger)
                hits[todo[i]] = D[0], I[0]
            todo, candidates = todo[~done], min(2 * candidates, left)
        return hits

    def _mask(self, sel: Any) -> tuple[Mask | None, int]:
        """Return a mask (n,) of the rows that may be found, None for all, and the number of these rows."""
        if sel is None:
            return self.id_map.alive, len(self.id_map)
        rows, mask = self.id_map.matching(sel), np.zeros(self.id_map.n, bool)
        mask[rows] = True
        return mask, len(rows)

    def _scores(self, xq: Floats, rows: Ids) -> Floats:
        """Return the scores (nq, k') of the second stage for ``rows`` (nq, k'); the worst for row -1."""
        assert self.rescorer is not None
        scores = self.rescorer.scores(xq, np.maximum(rows, 0))
        scores[rows < 0] = self.worst
        return scores

    def _guesser(self, parameters: SearchParameters) -> CodeRescorer | None:
        """Return what orders candidates before their vectors are read, if a search need not read all of them."""
        rescorer, calibration, layout = self.rescorer, self.quantizer.calibration, self.quantizer.layout
        if parameters.oversample is not None or parameters.early_stop is False:
            return None
        calibrated = calibration is not None and calibration.depth is not None
        if not calibrated or layout.residual is not None or not isinstance(rescorer, VectorRescorer):
            if parameters.early_stop:
                raise ValueError(
                    f"early_stop needs vectors to re-rank from; rescore is {self.rescore!r}"
                    if not isinstance(rescorer, VectorRescorer)
                    else f"early_stop needs a layout without a second part; this one is {layout}"
                    if layout.residual is not None
                    else "early_stop needs a calibration, which this fit lacks: fit anew, on 200 vectors or more"
                )
            return None
        if not (parameters.early_stop or rescorer.exceeds_memory):
            return None
        if self._codes is None or self._codes.quantizer is not self.quantizer:
            self._codes = of_first_codes(self.quantizer, self.base)
        return self._codes

    def _read_few(
        self, guesser: CodeRescorer, xq: Floats, rows: Ids, k: int, recall: float | None
    ) -> tuple[Floats, Ids]:
        """Return the best ``k`` of candidates (nq, k'), reading vectors until no other is likely to be among them."""
        calibration = self.quantizer.calibration
        assert self.rescorer is not None
        assert calibration is not None
        guesses = guesser.scores(xq, np.maximum(rows, 0))
        bounds = calibration.bounds(guesses if self.larger else -guesses, k, recall)
        return nearest(self.rescorer, xq, rows, bounds, k, self.larger)

    def _candidates(self, k: int, left: int, parameters: SearchParameters, misses: float = MISSES) -> int:
        """Return the number of candidates to re-rank."""
        oversample, recall = parameters.oversample, parameters.recall
        if self.rescorer is None:
            if oversample is not None or recall is not None:
                raise ValueError("rescore='none' has no second stage, so oversample= and recall= mean nothing to it")
            return k
        calibration = self.quantizer.calibration
        if oversample is None and calibration is not None:
            oversample = calibration.oversample(k, left, self.rescorer.stage, recall, misses=misses)
        elif oversample is None and recall is not None:
            raise ValueError("recall= needs a calibration, which this quantizer lacks; pass oversample=")
        elif oversample is None:
            oversample = DEFAULT_OVERSAMPLE
        if not oversample >= 1:
            raise ValueError(f"oversample must be at least 1; got {oversample}")
        return int(min(np.ceil(k * oversample), left))

    def _prefix_width(self, k: int, left: int, candidates: int, parameters: SearchParameters) -> int:
        """Return the number of hits of the first components that whole codes rank."""
        calibrated = self.quantizer.calibration.prefixes if self.quantizer.calibration else {}
        components, recall = parameters.truncate_dim, parameters.recall
        if components is not None and components in calibrated:
            # Half of the misses are left to the prefix, and half to the whole code.
            width = int(np.ceil(k * calibrated[components].oversample(k, left, "floats", recall)))
        elif recall is not None:
            raise ValueError(
                f"recall= with truncate_dim={components} needs its calibration; there are those of "
                f"{sorted(calibrated)}: fit with matryoshka_dims=, or pass oversample="
            )
        else:
            width = PREFIX_WIDTH * candidates
        return min(max(width, candidates), left)

    def _funnel(self, components: int) -> CodeIndex:
        """Return an index of the codes' first ``components``, cached until the next change."""
        layout = self.quantizer.layout.truncate(operator.index(components))
        version, prefixes = self._prefixes
        if version != self.version:
            self._prefixes = self.version, (prefixes := {})
        if components not in prefixes:
            prefixes[components] = self.base.flat_prefix(layout)
        return prefixes[components]

    def _through(
        self, funnel: CodeIndex, code: Codes, width: int, candidates: int, mask: Mask | None
    ) -> tuple[NDArray[np.int32], Ids]:
        """Return the nearest ``candidates``, among the ``width`` codes whose first components are nearest: (nq, k')."""
        _, rows = funnel.search(bit_packing.truncate(code, funnel.layout), width, mask, {})
        distances = self.base.distances(code, np.maximum(rows, 0))
        distances[rows < 0] = WORST
        return topk.best(distances, rows, candidates, larger=False)


def encode(quantizer: Quantizer, rescorer: Rescorer | None, x: Floats, first: int = 0) -> tuple[Codes, NDArray[Any]]:
    """Return the codes (n, code_size) of vectors ``x`` (n, d), and rows (n, width) of them for the rescorer.

    Raises ValueError for vectors that cannot be stored; ``first`` is the number of the first one.
    """
    return (quantizer.encode(x), x) if rescorer is None else rescorer.encode_both(x, first)
