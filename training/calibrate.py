"""Measures on validation queries: which query side is best, and how many candidates a recall needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.evaluation.exhaustive_search import search_hamming
from faiss_qama.evaluation.recall import found_with_ties
from faiss_qama.progress import progress
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.calibration import KS, MAX_CANDIDATES, OVERSAMPLES, Calibration
from faiss_qama.quantizer.depth import MARGINS, Depth
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.threads import one_blas_thread, parallel_map
from faiss_qama.training.split import Split

QUERY_SIDE_MARGIN = 0.02  # recall that a later query side must add to the first's
QUERY_SIDE_DOCUMENTS = 20_000  # that query sides are compared on: a second or two
DEEPEST, NEAR = 512, 100  # candidates of each query that may be read, and that guesses are fitted to
_Top: TypeAlias = tuple[Floats, Floats]  # what _top returns
PRODUCTS = 2**21  # that are measured at a time, of queries with documents


def choose_query_side(quantizers: Sequence[Quantizer], split: Split) -> Quantizer:
    """Return the first of ``quantizers`` whose Hamming scan is within ``QUERY_SIDE_MARGIN`` of the best of them.

    What counts is the share of the 10 nearest documents that are among 40 candidates, on the validation queries. The
    quantizers differ only in how they encode queries.
    """
    if len(quantizers) == 1 or len(split.validation) == 0 or len(split.train) < 40:
        return quantizers[0]
    split = replace(split, train=split.train[:: -(-len(split.train) // QUERY_SIDE_DOCUMENTS)]).without_copies
    xq, x = split.validation, split.train
    _, near = faiss.knn(xq, x, 10, metric=quantizers[0].metric)
    code, recalls = quantizers[0].encode(x), []
    for quantizer in quantizers:
        _, found = search_hamming(quantizer, code, xq, 40)
        recalls.append(np.mean((near[:, :, None] == found[:, None, :]).any(axis=2)))
    return quantizers[int(np.argmax(np.array(recalls) >= max(recalls) - QUERY_SIDE_MARGIN))]


def calibrate(quantizer: Quantizer, split: Split, prefixes: Sequence[int] = (), ks: Sequence[int] = KS) -> Quantizer:
    """Return ``quantizer`` with a calibration.

    Parameters
    ----------
    quantizer : Quantizer
        Fitted to ``split.train``.
    split : Split
        Its validation queries are searched for in ``split.train``. If there are none, nothing is measured.
    prefixes : sequence of int
        Component counts that get a calibration of their own.
    ks : sequence of int
        Which of ``KS`` to measure. The recall of the others stays 0.

    Returns
    -------
    Quantizer
    """
    if len(split.validation) == 0:
        return quantizer
    split = split.without_copies
    blocks = _blocks(split, quantizer.metric, ks)
    nested = {components: _measure(quantizer.truncate(components), split, blocks)[0] for components in prefixes}
    own, depth = _measure(quantizer, split, blocks, with_depth=tuple(ks) == KS)
    return replace(quantizer, calibration=replace(own, prefixes=nested, depth=depth))


@dataclass(frozen=True)
class _Block:
    """Some queries, and all documents as they rank them.

    Parameters
    ----------
    queries : ndarray of shape (nq,), int64
        The queries, among those that validate.
    scores : ndarray of shape (nq, n), float32
        Of documents; larger is better.
    sizes : ndarray of shape (nq,), float32
        What scores were rounded at, besides their own sizes.
    copies : float
        How many vectors of the corpus a document stands for.
    wanted : dict of int to int
        Documents that are the k nearest, for each k.
    bounds : dict of int to ndarray of shape (nq,), float32
        The score of the last of them.
    """

    queries: NDArray[np.int64]
    scores: Floats
    sizes: Floats
    copies: float
    wanted: dict[int, int]
    bounds: dict[int, Floats]

    @classmethod
    def of(cls, queries: NDArray[np.int64], scores: Floats, sizes: Floats, copies: float, ks: Iterable[int]) -> _Block:
        """Return a block with what follows from the scores."""
        n = scores.shape[1]
        wanted = {k: min(int(np.ceil(k / copies)), n) for k in ks}
        ordered = np.partition(scores, [n - w for w in wanted.values()], axis=1)
        return cls(queries, scores, sizes, copies, wanted, {k: ordered[:, n - w].copy() for k, w in wanted.items()})


def _blocks(split: Split, metric: int, ks: Sequence[int]) -> list[_Block]:
    """Return the validation queries in blocks of queries that count as many copies, ranked by floats."""
    xq, x = split.validation, split.train
    copies, _ = split.copies(metric)
    step = max(1, PRODUCTS // len(x))
    rows = [np.flatnonzero(copies == c) for c in np.unique(copies)]
    sizes = np.einsum("qd,qd->q", xq, xq) * (metric == faiss.METRIC_L2)

    def ranked(some: NDArray[np.int64]) -> _Block:
        return _Block.of(some, _scores(xq[some], x, metric), sizes[some], float(copies[some[0]]), ks)

    with one_blas_thread:
        return parallel_map(ranked, [own[i : i + step] for own in rows for i in range(0, len(own), step)])


def _scores(xq: Floats, x: Floats, metric: int) -> Floats:
    """Return scores (nq, n) of documents ``x`` (n, d), larger is better."""
    scores: Floats = faiss.pairwise_distances(xq, x, metric)
    return scores if metric == faiss.METRIC_INNER_PRODUCT else np.negative(scores, out=scores)


def _measure(
    quantizer: Quantizer, split: Split, blocks: Sequence[_Block], *, with_depth: bool = False
) -> tuple[Calibration, Depth | None]:
    xq, x, metric = split.validation, split.train, quantizer.metric
    adapted = quantizer.adapt_queries(xq)
    code, finer = quantizer.encode_both(x)
    query_code = quantizer.encode_queries(xq)
    decoded = quantizer.decode(code, finer)
    # A quantizer trained on pairs need not find the neighbours of the floats: its own best hits are the truth.
    by_codes = quantizer.fit_record.trained and len(split.validation_qrels) > 0
    bar = progress(blocks, "calibration")

    def measured(block: _Block) -> tuple[NDArray[np.float64], NDArray[np.float64], _Top | None]:
        """Return the sums of some queries against everything, as :func:`_curves`, and the best candidates."""
        asymmetric = _scores(adapted[block.queries], decoded, metric)
        hamming = bit_packing.hamming_table(query_code[block.queries], code)
        distances = hamming.astype(np.min_scalar_type(8 * quantizer.code_size))  # numpy sorts 16 bits by their digits
        floats, codes = _curves(block, asymmetric, distances)
        top = _top(block, asymmetric) if with_depth else None
        if by_codes:
            ranked = _Block.of(block.queries, asymmetric, block.sizes, block.copies, block.wanted)
            codes = _curves(ranked, asymmetric, distances)[1]
        bar.update()
        return floats, codes, top

    with bar, one_blas_thread:
        of_floats, of_codes, tops = zip(*parallel_map(measured, blocks), strict=True)
    floats, codes = np.sum(of_floats, axis=0), np.sum(of_codes, axis=0)
    copies, repeated = split.copies(metric)
    own = Calibration(round(len(x) * copies.mean()), _mean(floats, len(xq), repeated), _mean(codes, len(xq), repeated))
    return own, _depth(blocks, tops) if with_depth else None


def _mean(sums: NDArray[np.float64], n: int, repeated: float) -> NDArray[np.float64]:
    """Return the mean of ``n`` queries from the sums of values and of their squares.

    Where texts repeat, the k nearest are copies of a few, and each query tells less: that share of the standard error
    is left out.
    """
    mean = sums[0] / n
    out: NDArray[np.float64] = mean - repeated * np.sqrt(np.maximum(sums[1] / n - mean**2, 0) / n)
    return out


def _curves(
    block: _Block, asymmetric: Floats, hamming: NDArray[np.unsignedinteger]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall@k by (k, oversample), summed over queries, and its squares, for re-ranking by floats and by codes.

    Of ``KS`` only those of the block are measured.

    Scores and distances are (nq, n), of queries and documents. Documents as near as the k-th nearest, up to the
    rounding of scores and more, count as found: duplicates are as good as each other.
    """
    nq = len(hamming)
    order = np.argsort(hamming, axis=1, kind="stable")[:, :MAX_CANDIDATES]
    ordered, losses = np.take_along_axis(block.scores, order, axis=1), -np.take_along_axis(asymmetric, order, axis=1)
    floats = np.zeros((2, len(KS), len(OVERSAMPLES)))
    codes = np.zeros_like(floats)
    for k, wanted in block.wanted.items():
        i, bounds = KS.index(k), block.bounds[k]
        relevant = found_with_ties(ordered, bounds, abs(bounds) + block.sizes)
        found = np.minimum(np.cumsum(relevant, axis=1), wanted)
        best = np.empty((nq, 0), dtype=np.intp)  # of the candidates so far
        seen = 0
        for j, oversample in enumerate(OVERSAMPLES):
            candidates = min(max(int(np.ceil(k * oversample) / block.copies), wanted), order.shape[1])
            more = np.broadcast_to(np.arange(seen, candidates), (nq, candidates - seen))
            best, seen = np.concatenate([best, more], axis=1), candidates
            top = np.argpartition(np.take_along_axis(losses, best, axis=1), wanted - 1, axis=1)[:, :wanted]
            best = np.take_along_axis(best, top, axis=1)
            kept = np.minimum(np.take_along_axis(relevant, best, axis=1).sum(axis=1), wanted)
            for sums, share in ((floats, found[:, candidates - 1] / wanted), (codes, kept / wanted)):
                sums[:, i, j] = share.sum(), (share**2).sum()
    return floats, codes


def _top(block: _Block, asymmetric: Floats) -> _Top:
    """Return the scores of codes (nq, ``DEEPEST``), best first, and those of their vectors."""
    n = min(DEEPEST, asymmetric.shape[1])
    order = np.argpartition(-asymmetric, n - 1, axis=1)[:, :n]
    guesses = np.take_along_axis(asymmetric, order, axis=1)
    best = np.argsort(-guesses, axis=1, kind="stable")
    order = np.take_along_axis(order, best, axis=1)
    return np.take_along_axis(guesses, best, axis=1), np.take_along_axis(block.scores, order, axis=1)


def _depth(blocks: Sequence[_Block], tops: Sequence[_Top]) -> Depth:
    """Return the recall of searches that stop, from :func:`_top` of the blocks."""
    x = np.concatenate([guesses[:, :NEAR].ravel() for guesses, _ in tops]).astype(np.float64)
    y = np.concatenate([scores[:, :NEAR].ravel() for _, scores in tops]).astype(np.float64)
    centred = x - x.mean()
    spread = centred @ centred
    slope = float(centred @ y / spread) if spread > 0 else 1.0
    intercept = float(y.mean() - slope * x.mean())
    deviation = float(np.std(y - slope * x - intercept))
    recalls = np.zeros((len(KS), len(MARGINS)))
    for block, (guesses, scores) in zip(blocks, tops, strict=True):
        bounds = np.append(slope * guesses[:, 1:] + intercept, np.full((len(guesses), 1), -np.inf), axis=1)
        for row, k in enumerate(KS):
            wanted, limit = block.wanted[k], block.bounds[k]
            found = np.cumsum(found_with_ties(scores, limit, abs(limit) + block.sizes), axis=1)
            # The k-th best score after each read, and by how much what follows may be better.
            best = np.full((len(scores), wanted), -np.inf)
            gaps = np.full(scores.shape, np.inf)
            for i in range(scores.shape[1]):
                best[:, 0] = np.maximum(best[:, 0], scores[:, i])
                best.sort(axis=1)
                if i >= wanted - 1:
                    gaps[:, i] = bounds[:, i] - best[:, 0]
            for column, margin in enumerate(MARGINS):
                read = np.argmax(gaps + margin * deviation < 0, axis=1)
                kept = np.minimum(np.take_along_axis(found, read[:, None], axis=1), wanted)
                recalls[row, column] += (kept / wanted).sum()
    return Depth(np.array([slope, intercept, deviation]), recalls / sum(len(scores) for _, scores in tops))
