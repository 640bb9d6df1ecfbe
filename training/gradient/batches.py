"""The batches of a training: queries, and documents among which are hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.progress import progress
from faiss_qama.training.near_duplicates import NearDuplicates, drop_one
from faiss_qama.training.split import Split, add_noise
from faiss_qama.training.train_config import TrainConfig

MAX_STAND_INS = 20_000  # documents that stand in for queries: finding their neighbours takes seconds
NEIGHBOURS = 50  # nearest documents that hard negatives are drawn from
QUERY_BLOCK = 256  # queries whose neighbours' vectors are in memory at a time
THRESHOLD_DOCUMENTS = 512  # random documents that moving thresholds follow


@dataclass(frozen=True, eq=False)
class Batch:
    """The queries and documents of a step.

    Parameters
    ----------
    queries : ndarray of shape (nq, d), float32
    documents : ndarray of shape (n, d), float32
    grades : ndarray of shape (nq, n), float32
        0 where a document is not known to be relevant.
    itself : ndarray of shape (nq, n), bool
        True where a document is the query, or stands in for it.
    """

    queries: Floats
    documents: Floats
    grades: Floats
    itself: NDArray[np.bool_]


class Batches:
    """Batches drawn from a corpus and its queries; ``batches[i]`` is the batch of step i, the same for each seed.

    A batch has queries (real ones, and documents in their place). For each of them it has one relevant document, if
    one is known, and hard negatives from its nearest documents; it also has random documents.
    """

    def __init__(self, split: Split, config: TrainConfig, metric: int, seed: int) -> None:
        self._x, self._config, self._seed = split.train, config, seed
        self._duplicates = NearDuplicates(split.train, metric)
        rng = np.random.default_rng(seed)
        real = split.train[:0] if split.train_queries is None else split.train_queries
        self._share = 1.0 if not len(real) else config.documents_as_queries
        rows = (
            rng.choice(len(self._x), min(MAX_STAND_INS, len(self._x)), replace=False)
            if self._share
            else np.empty(0, int)
        )
        stand_ins = self._x[rows]
        if config.noise:
            stand_ins = add_noise(stand_ins, self._x.mean(axis=0), config.noise, rng)
        self._real = len(real)
        self._questions = np.concatenate([real, stand_ins])
        self._rows = np.concatenate([np.full(len(real), -1), rows])
        self._near = _nearest(self._questions, self._rows, self._x, metric, self._duplicates)
        order = np.argsort(split.train_qrels[:, 0], kind="stable")
        self._qrels = split.train_qrels[order]
        self._first = np.searchsorted(self._qrels[:, 0], np.arange(len(self._questions) + 1))

    def __getitem__(self, step: int) -> Batch:
        rng, config = np.random.default_rng([self._seed, step]), self._config
        stand_ins = round(config.batch_size * self._share)
        asked = np.concatenate(
            [
                rng.integers(0, max(1, self._real), config.batch_size - stand_ins),
                rng.integers(self._real, max(self._real + 1, len(self._questions)), stand_ins),
            ]
        )
        first, count = self._first[asked], self._first[asked + 1] - self._first[asked]
        labelled = np.flatnonzero(count)
        relevant = self._qrels[first[labelled] + rng.integers(0, count[labelled]), 1]
        width = self._near.shape[1]
        hard = np.take_along_axis(
            self._near[asked], rng.integers(0, width, (len(asked), config.hard_negatives if width else 0)), axis=1
        )
        documents = np.unique(
            np.concatenate([relevant, hard.ravel(), rng.integers(0, len(self._x), config.random_negatives)])
        )
        queries, x, grades = self._questions[asked], self._x[documents], self._grades(first, count, documents)
        itself = self._rows[asked][:, None] == documents
        itself |= self._duplicates.between(queries, x)
        return Batch(queries, x, grades, itself & (grades == 0))

    def documents(self, step: int) -> Floats:
        """Return random documents (n, d)."""
        rng = np.random.default_rng([self._seed, step, 1])
        return self._x[rng.integers(0, len(self._x), THRESHOLD_DOCUMENTS)]

    def _grades(self, first: NDArray[np.int64], count: NDArray[np.int64], documents: NDArray[np.int64]) -> Floats:
        grades = np.zeros((len(first), len(documents)), dtype=np.float32)
        asked = np.repeat(np.arange(len(first)), count)
        pair = np.repeat(first - np.concatenate([[0], np.cumsum(count)[:-1]]), count) + np.arange(count.sum())
        wanted, grade = self._qrels[pair, 1], self._qrels[pair, 2]
        place = np.minimum(np.searchsorted(documents, wanted), len(documents) - 1)
        there = documents[place] == wanted
        grades[asked[there], place[there]] = grade[there]
        return grades


def _nearest(
    questions: Floats, rows: NDArray[np.int64], x: Floats, metric: int, duplicates: NearDuplicates
) -> NDArray[np.int64]:
    """Return the nearest documents, (nq, NEIGHBOURS or fewer), of each question, without the query itself."""
    k = min(NEIGHBOURS + 1, len(x))
    parts = []
    for start in progress(range(0, len(questions), QUERY_BLOCK), "neighbours"):
        part = slice(start, start + QUERY_BLOCK)
        _, I = faiss.knn(questions[part], x, k, metric=metric)
        own = (I == rows[part, None]) | duplicates.among(questions[part], x[I])
        parts.append(I[drop_one(own)].reshape(len(I), k - 1))
    return np.concatenate(parts)
