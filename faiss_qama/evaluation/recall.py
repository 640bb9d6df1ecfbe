"""Exact neighbours of a data set, and how many of them a search finds, how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from numpy.typing import NDArray

from faiss_qama.arrays import WORST, Floats, Hits, Ids
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.ranking_metrics import PerQuery, ranking_metrics
from faiss_qama.evaluation.results import MethodResult, Result
from faiss_qama.evaluation.ties import mean_over_ties, whole_ties
from faiss_qama.progress import progress

TIMED_RUNS = 3  # the median of fewer runs follows a single disturbance
TURNS = 5  # of exact search and indexes, at least: their medians leave two disturbed ones out
MIN_SECONDS, MAX_SECONDS = 1.0, 1.5  # short turns go on, as disturbances outlast them; a large corpus gets fewer
QUERY_BLOCK = 1024  # enough to keep every core busy
TIE = 2e-6  # two scores whose difference is a smaller share of their size are equal up to the rounding of float32


class Searchable(Protocol):
    """A FAISS index, or one of this package."""

    def search(self, x: Floats, k: int) -> Hits:
        """Return the k nearest of each query.

        Parameters
        ----------
        x : ndarray of shape (nq, d), float32
            The queries.
        k : int
            Hits per query.

        Returns
        -------
        D : ndarray of shape (nq, k)
            Scores, best first: inner products, or distances.
        I : ndarray of shape (nq, k), int64
            Ids, -1 where there are fewer hits.
        """


@dataclass(frozen=True, eq=False)
class Truth:
    """The exact k nearest of the queries of a data set.

    Parameters
    ----------
    k : int
        Neighbours per query.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.
    D : ndarray of shape (nq, k), float32
        Inner products, largest first, or squared L2 distances, smallest first.
    I : ndarray of shape (nq, k), int64
        Rows of the corpus. There are fewer than k columns where the corpus has fewer vectors.
    measured : MethodResult
        The quality and the speed of exact search itself.
    """

    k: int
    metric: int
    D: Floats
    I: Ids
    measured: MethodResult


def exact(dataset: Dataset, k: int, metric: int) -> Truth:
    """Search a data set exhaustively by its floats, one chunk of the corpus at a time.

    Parameters
    ----------
    dataset : Dataset
        The documents and the queries.
    k : int
        Neighbours per query.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.

    Returns
    -------
    Truth
        The neighbours. The time to read the corpus does not count as search time.
    """
    (D, I), seconds = _timed_exact_search(dataset, k, metric)
    D, I = dataset.drop_excluded(D, I, k)
    values = {"recall": np.ones(len(I))} | ranking_metrics(I, dataset.qrels, k)
    result = Result(values, len(I) / seconds)
    return Truth(k, metric, D, I, MethodResult("exact floats", (4 * dataset.corpus.shape[1], 0), [result]))


def evaluate(
    index: Searchable, dataset: Dataset, truth: Truth, *, runs: int = TIMED_RUNS, **search_options: Any
) -> Result:
    """Measure an index against exact search.

    Of Hamming distances many are equal. Where an index returns them, the measures are means over the orders of equal
    ones.

    Parameters
    ----------
    index : Searchable
        An index that holds the corpus of ``dataset``, under ids that are rows of it.
    dataset : Dataset
        The documents and the queries.
    truth : Truth
        What :func:`exact` returned for ``dataset``.
    runs : int
        Searches to time; their median is the speed.
    **search_options : Any
        Passed to ``index.search``.

    Returns
    -------
    Result
        The quality and the speed.
    """
    timed = [_timed_search(index, dataset, truth.k, **search_options) for _ in range(runs)]
    speed = len(dataset.queries) / float(np.median([seconds for _, seconds in timed]))
    D, I = timed[-1][0]
    if not np.issubdtype(D.dtype, np.integer):
        return Result(ranking_values(dataset.drop_excluded(D, I, truth.k)[1], truth, dataset), speed)
    D, I = whole_ties(lambda k: search_in_blocks(index, dataset.queries, k, **search_options), D, I)
    D, I = dataset.drop_excluded(D, I, D.shape[1])
    return Result(ranking_values(I, truth, dataset, np.where(I < 0, WORST, D)), speed)


def speeds(indexes: Sequence[Searchable], dataset: Dataset, truth: Truth) -> list[float]:
    """Measure the speed of exact search and of indexes, all searched in turns.

    What else the machine does slows all searches of a turn alike, so that their ratios vary less than any speed. The
    exact search of the first turn is that of ``truth``.

    Parameters
    ----------
    indexes : sequence of Searchable
        Indexes that hold the corpus of ``dataset``.
    dataset : Dataset
        The documents and the queries.
    truth : Truth
        What :func:`exact` has just returned for the same queries.

    Returns
    -------
    list of float
        Queries per second, from the median of the turns: of exact search, then of each index.
    """
    turns: list[list[float]] = []
    exact_seconds = spent = len(dataset.queries) / truth.measured.mean.queries_per_second
    start = time.perf_counter() - spent
    while not turns or spent < (MAX_SECONDS if len(turns) < TURNS else MIN_SECONDS):
        if turns:
            _, exact_seconds = _timed_exact_search(dataset, truth.k, truth.metric)
        turns.append([exact_seconds, *(_timed_search(index, dataset, truth.k)[1] for index in indexes)])
        spent = time.perf_counter() - start
    return [len(dataset.queries) / float(seconds) for seconds in np.median(turns, axis=0)]


def search_in_blocks(index: Searchable, xq: Floats, k: int, **search_options: Any) -> Hits:
    """Search a block of queries at a time, with a progress bar if that takes long.

    Parameters
    ----------
    index : Searchable
        The index.
    xq : ndarray of shape (nq, d), float32
        The queries.
    k : int
        Hits per query.
    **search_options : Any
        Passed to ``index.search``.

    Returns
    -------
    D : ndarray of shape (nq, k)
        Scores, best first: inner products, or distances.
    I : ndarray of shape (nq, k), int64
        Ids, -1 where there are fewer hits.
    """
    starts = range(0, len(xq), QUERY_BLOCK)
    blocks = [index.search(xq[i : i + QUERY_BLOCK], k, **search_options) for i in progress(starts, "searching")]
    return np.concatenate([D for D, _ in blocks]), np.concatenate([I for _, I in blocks])


def ranking_values(I: Ids, truth: Truth, dataset: Dataset, D: NDArray[Any] | None = None) -> dict[str, PerQuery]:
    """Return every measure of a ranking, one value per query.

    Parameters
    ----------
    I : ndarray of shape (nq, >= k), int64
        Rows of the corpus, best first, -1 where there is no hit.
    truth : Truth
        The exact neighbours.
    dataset : Dataset
        The documents, the queries and the grades.
    D : ndarray of shape (nq, >= k), optional
        The scores of the hits, if the measures are to be means over the orders of equal scores.

    Returns
    -------
    dict of str to ndarray, float64
        The measures, as in :class:`~faiss_qama.evaluation.results.Result`.
    """
    return {"recall": recalls(I, truth, dataset, D)} | ranking_metrics(I, dataset.qrels, truth.k, D)


def recalls(I: Ids, truth: Truth, dataset: Dataset, D: NDArray[Any] | None = None) -> PerQuery:
    """Return the share of the exact k nearest that was found, for each query.

    As in ANN-Benchmarks (Aumüller, Bernhardsson and Faithfull, 2017), a hit counts if its exact score is no worse than
    that of the k-th nearest: of several equal documents any one is right.

    Parameters
    ----------
    I : ndarray of shape (nq, >= k), int64
        Rows of the corpus, best first, -1 where there is no hit.
    truth : Truth
        The exact neighbours.
    dataset : Dataset
        The documents and the queries.
    D : ndarray of shape (nq, >= k), optional
        The scores of the hits, if recall is to be the mean over the orders of equal scores.

    Returns
    -------
    ndarray of shape (nq,), float64
        Recall, from 0 to 1; 1 for a query that has no neighbours.
    """
    if D is None:
        I, D = I[:, : truth.k], np.broadcast_to(np.arange(I.shape[1]), I.shape)[:, : truth.k]
    first = (np.arange(I.shape[1]) < truth.k).astype(np.float64)
    ids, inverse = np.unique(np.maximum(I, 0), return_inverse=True)
    x, inverse = dataset.corpus.take(ids), inverse.reshape(I.shape)
    shares = np.ones(len(I))
    wanted = (truth.I >= 0).sum(axis=1)
    for row, query in enumerate(dataset.queries):
        if wanted[row] == 0:
            continue
        hits, bound = x[inverse[row]], truth.D[row, wanted[row] - 1]
        if truth.metric == faiss.METRIC_INNER_PRODUCT:
            scores = hits @ query
            size = np.abs(scores).max()
        else:
            scores, bound = -np.square(hits - query).sum(axis=1), -bound
            size = np.abs(scores).max() + query @ query
        good = found_with_ties(scores, bound, size) & (I[row] >= 0)
        shares[row] = min(float(good @ mean_over_ties(first, D[row])), int(wanted[row])) / int(wanted[row])
    return shares


def recall(I: Ids, truth: Truth, dataset: Dataset) -> float:
    """Return the mean of :func:`recalls`.

    Parameters
    ----------
    I : ndarray of shape (nq, k), int64
        Rows of the corpus, -1 where there is no hit.
    truth : Truth
        The exact neighbours.
    dataset : Dataset
        The documents and the queries.

    Returns
    -------
    float
        Recall@k, from 0 to 1.
    """
    return float(recalls(I, truth, dataset).mean())


def found_with_ties(scores: Floats, bound: Any, size: Any) -> NDArray[np.bool_]:
    """Return which hits are as good as the k-th nearest, up to the rounding of float32.

    Parameters
    ----------
    scores : ndarray of shape (..., m), float32
        Exact scores of the hits, larger is better: inner products, or negated squared L2 distances.
    bound : ndarray of shape (...) or float
        The score of the k-th nearest.
    size : ndarray of shape (...) or float
        The magnitude of what was rounded: of the scores, and of L2 distances also the squared norm of the query.

    Returns
    -------
    ndarray of shape (..., m), bool
        True for a hit no worse than ``bound``.
    """
    found: NDArray[np.bool_] = scores >= np.expand_dims(bound - TIE * size, -1)
    return found


def _timed_search(index: Searchable, dataset: Dataset, k: int, **search_options: Any) -> tuple[Hits, float]:
    """Return k hits per query and those to be excluded, and the seconds that took."""
    start = time.perf_counter()
    hits = search_in_blocks(index, dataset.queries, k + dataset.max_excluded, **search_options)
    return hits, time.perf_counter() - start


def _timed_exact_search(dataset: Dataset, k: int, metric: int) -> tuple[Hits, float]:
    """Return k exact hits per query and those to be excluded, and the seconds that took, less those of reading."""
    corpus, reading = dataset.corpus, 0.0

    def chunks() -> Iterator[Floats]:
        nonlocal reading
        source = iter(corpus.chunks())
        for _ in progress(range(corpus.n_chunks), "exact search"):
            start = time.perf_counter()
            chunk = next(source)
            reading += time.perf_counter() - start
            yield chunk

    wanted = min(min(k, len(corpus)) + dataset.max_excluded, len(corpus))
    threshold = faiss.cvar.distance_compute_blas_threshold
    try:
        # FAISS compares few queries one by one, which takes many times as long (findings/faiss-few-queries.sh).
        faiss.cvar.distance_compute_blas_threshold = 1
        start = time.perf_counter()
        D, I = knn_ground_truth(dataset.queries, chunks(), wanted, metric, ngpu=0)
        return (D, I), time.perf_counter() - start - reading
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold
