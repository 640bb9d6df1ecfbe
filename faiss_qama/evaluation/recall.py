"""Exact neighbours, what searches are worth beside them, and the data set folders that is measured on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids
from faiss_qama.evaluation.bootstrap import bootstrap_interval
from faiss_qama.evaluation.ranking_metrics import PerQuery, ranking_metrics
from faiss_qama.progress import progress
from faiss_qama.vectors import Corpus, PathLike, load_vectors

TIMED_RUNS = 3
QUERY_BLOCK = 1024  # enough to keep every core busy
TIE = 2e-6  # scores this near, as a share of their size, are equal but for float32's rounding


class Searchable(Protocol):
    """A FAISS index, or one of ours."""

    def search(self, x: Floats, k: int) -> tuple[NDArray[Any], Ids]:
        """Return scores and ids, (nq, k) each."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Queries against a corpus, and what is known about the answers.

    Parameters
    ----------
    corpus : the documents
    queries : (nq, d) float32
    qrels : (m, 3) int64 rows of query row, corpus row, grade, or None; grades above 0 are relevant
    train_queries : unlabelled queries of the same kind, or None
    exclude : (e, 2) int64 rows of query row, corpus row: hits to drop, where a query is itself a document
    """

    corpus: Corpus
    queries: Floats
    qrels: NDArray[np.int64] | None = None
    train_queries: Corpus | None = None
    exclude: NDArray[np.int64] | None = None

    @classmethod
    def load(cls, folder: PathLike) -> Dataset:
        """Read a folder of ``corpus.npy``, ``queries.npy`` and what there is of the other files named after the fields.

        Raises FileNotFoundError, or ValueError naming the file and the line.
        """
        path = Path(folder)
        corpus = Corpus(path / "corpus.npy")
        queries = load_vectors(path / "queries.npy", corpus.shape[1])
        sizes = (len(queries), len(corpus))
        train = path / "train_queries.npy"
        return cls(
            corpus,
            queries,
            read_rows(path / "qrels.tsv", 3, sizes) if (path / "qrels.tsv").exists() else None,
            Corpus(train, corpus.shape[1]) if train.exists() else None,
            read_rows(path / "exclude.tsv", 2, sizes) if (path / "exclude.tsv").exists() else None,
        )


@dataclass(frozen=True, eq=False)
class Result:
    """What a search was worth.

    Parameters
    ----------
    values : a value a query, by measure: ``recall``, the share of the exact k nearest that was found; and where there
        are qrels, of the queries that have a relevant document, by row, ``ndcg``, ``relevant_recall`` and ``mrr``
    queries_per_second : how fast
    """

    values: Mapping[str, PerQuery]
    queries_per_second: float

    @property
    def recall(self) -> float:
        """Recall@k of the exact neighbours."""
        return float(self.values["recall"].mean())

    @property
    def ndcg(self) -> float | None:
        """nDCG@k; None without qrels."""
        return float(self.values["ndcg"].mean()) if "ndcg" in self.values else None

    def to_dict(self) -> dict[str, float]:
        """Return the mean of each measure, and queries a second."""
        means = {measure: float(values.mean()) for measure, values in self.values.items()}
        return means | {"queries_per_second": self.queries_per_second}


@dataclass(frozen=True, eq=False)
class MethodResult:
    """A method's name, its bytes a vector (codes, and what is kept besides to rescore with), and a result a fit."""

    name: str
    bytes: tuple[int, int]
    results: list[Result]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Result:
        """The mean over fits, query by query."""
        values = {
            measure: np.mean([result.values[measure] for result in self.results], axis=0)
            for measure in self.results[0].values
        }
        return Result(values, float(np.mean([r.queries_per_second for r in self.results])))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the mean, the 95 % interval of each measure, and each fit's own result."""
        mean = self.mean
        return {
            "method": self.name,
            "bytes": list(self.bytes),
            **mean.to_dict(),
            "intervals": {name: mean_interval(values) for name, values in mean.values.items()},
            "each": [result.to_dict() for result in self.results],
            "config": self.config,
        }


def mean_interval(values: PerQuery) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a value a query."""
    return bootstrap_interval(lambda rows: float(values[rows].mean()), len(values))


@dataclass(frozen=True, eq=False)
class Truth:
    """The exact k nearest of a data set's queries: scores and ids, (nq, k), best first, and what that was worth."""

    k: int
    metric: int
    D: Floats
    I: Ids
    measured: MethodResult


def exact(dataset: Dataset, k: int, metric: int) -> Truth:
    """Search ``dataset`` exhaustively, a chunk of the corpus at a time. Reading does not count as search time."""
    wanted = min(k, len(dataset.corpus)) + _surplus(dataset)
    reading = 0.0

    def chunks() -> Iterator[Floats]:
        nonlocal reading
        source = iter(dataset.corpus.chunks())
        for _ in progress(range(dataset.corpus.n_chunks), "exact search"):
            start = time.perf_counter()
            chunk = next(source)
            reading += time.perf_counter() - start
            yield chunk

    start = time.perf_counter()
    D, I = knn_ground_truth(dataset.queries, chunks(), min(wanted, len(dataset.corpus)), metric, ngpu=0)
    seconds = time.perf_counter() - start - reading
    D, I = _drop_excluded(dataset, D, I, k)
    values = {"recall": np.ones(len(I))} | ranking_metrics(I, dataset.qrels, k)
    result = Result(values, len(I) / seconds)
    return Truth(k, metric, D, I, MethodResult("exact floats", (4 * dataset.corpus.shape[1], 0), [result]))


def evaluate(
    index: Searchable, dataset: Dataset, truth: Truth, *, runs: int = TIMED_RUNS, **search_options: Any
) -> Result:
    """Measure ``index``, which holds the corpus of ``dataset``, against the exact search; the median speed of runs."""
    k, surplus, seconds = truth.k, _surplus(dataset), []
    for _ in range(runs):
        start = time.perf_counter()
        D, I = search_in_blocks(index, dataset.queries, k + surplus, **search_options)
        seconds.append(time.perf_counter() - start)
    _, I = _drop_excluded(dataset, D, I, k)
    return Result(ranking_values(I, truth, dataset), len(I) / float(np.median(seconds)))


def ranking_values(I: Ids, truth: Truth, dataset: Dataset) -> dict[str, PerQuery]:
    """Return each measure of the (nq, >= k) ids ``I``, a value a query (see :class:`Result`)."""
    return {"recall": recalls(I[:, : truth.k], truth, dataset)} | ranking_metrics(I, dataset.qrels, truth.k)


def search_in_blocks(index: Searchable, xq: Floats, k: int, **search_options: Any) -> tuple[NDArray[Any], Ids]:
    """Return what ``index.search`` does, a block of queries at a time, with a progress bar if that is long."""
    starts = range(0, len(xq), QUERY_BLOCK)
    blocks = [index.search(xq[i : i + QUERY_BLOCK], k, **search_options) for i in progress(starts, "searching")]
    return np.concatenate([D for D, _ in blocks]), np.concatenate([I for _, I in blocks])


def recalls(I: Ids, truth: Truth, dataset: Dataset) -> PerQuery:
    """Return the share of the exact k nearest that the (nq, k) ids ``I`` found, of each query; 1 where there are none.

    As ANN-Benchmarks does, a hit is one whose exact score is no worse than the k-th nearest's (up to ``TIE``):
    duplicates are as good as each other.
    """
    ids, inverse = np.unique(np.maximum(I, 0), return_inverse=True)
    x, inverse = dataset.corpus.take(ids), inverse.reshape(I.shape)
    found_shares = np.ones(len(I))
    wanted = (truth.I >= 0).sum(axis=1)
    for row, query in enumerate(dataset.queries):
        if wanted[row] == 0:
            continue
        found = x[inverse[row]]
        if truth.metric == faiss.METRIC_INNER_PRODUCT:
            scores, bound = found @ query, truth.D[row, wanted[row] - 1]
        else:
            scores, bound = -np.square(found - query).sum(axis=1), -truth.D[row, wanted[row] - 1]
        size = np.abs(scores).max() + np.dot(query, query) * (truth.metric == faiss.METRIC_L2)
        good = (scores >= bound - TIE * size) & (I[row] >= 0)
        found_shares[row] = min(int(good.sum()), int(wanted[row])) / int(wanted[row])
    return found_shares


def recall(I: Ids, truth: Truth, dataset: Dataset) -> float:
    """Return the mean of :func:`recalls`."""
    return float(recalls(I, truth, dataset).mean())


def read_rows(path: PathLike, columns: int, sizes: tuple[int, int]) -> NDArray[np.int64]:
    """Read a tab-separated file: (m, columns) int64, whose query and corpus rows exist by ``sizes``.

    A first line without a whole number is a header.
    Raises ValueError naming the file and the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = [int(np.int64(int(field))) for field in line.split("\t")]
        except (ValueError, OverflowError):
            if number == 1 and not any(field.strip().lstrip("-").isdigit() for field in line.split()):
                continue
            raise ValueError(f"{path}: line {number}: whole numbers are needed; got {line!r}") from None
        if len(row) != columns:
            raise ValueError(f"{path}: line {number}: {columns} tab-separated columns are needed; got {len(row)}")
        for value, size, what in zip(row, sizes, ("query", "corpus"), strict=False):
            if not 0 <= value < size:
                raise ValueError(f"{path}: line {number}: {what} row {value}, but there are {size}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return np.array(rows, dtype=np.int64)


def _surplus(dataset: Dataset) -> int:
    """Return how many hits beyond k to ask for, so that k are left when the excluded ones are dropped."""
    return 0 if dataset.exclude is None else int(np.bincount(dataset.exclude[:, 0]).max())


def _drop_excluded(dataset: Dataset, D: NDArray[Any], I: Ids, k: int) -> tuple[NDArray[Any], Ids]:
    if dataset.exclude is not None:
        dropped: dict[int, list[int]] = {}
        for query, document in dataset.exclude.tolist():
            dropped.setdefault(query, []).append(document)
        last = np.zeros(I.shape, dtype=bool)
        for query, documents in dropped.items():
            last[query] = np.isin(I[query], documents)
        order = np.argsort(last, axis=1, kind="stable")
        D, I = np.take_along_axis(D, order, axis=1), np.take_along_axis(np.where(last, -1, I), order, axis=1)
    return D[:, :k], I[:, :k]
