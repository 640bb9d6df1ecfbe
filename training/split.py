"""Splits a corpus and its queries: a sample to fit on, validation queries, and test queries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, row_norms
from faiss_qama.corpus import Corpus
from faiss_qama.training.near_duplicates import NearDuplicates
from faiss_qama.training.pairs import Pairs

HELD_OUT = 300  # validation queries, and as many test queries: they tell recall@10 to about .01
HELD_OUT_PAIRS = 1000  # labelled ones, which also tell which quantizer ranks better: a smaller difference
MIN_QUERIES = 20  # fewer neither center queries nor calibrate
# Queries lie farther from their neighbours than documents do. Where documents stand in for queries, noise of this many
# times their own distance from the centre moves them away; recall= then holds on the test queries of docs/results.
QUERY_NOISE = 1.25
NO_QRELS = np.empty((0, 3), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """A sample of the corpus, and queries held out of the fit; no two parts share a vector.

    Without real queries documents stand in for them: the same documents validate, with noise added, and test, as they
    are.

    Parameters
    ----------
    train : ndarray of shape (n, d), float32
        Documents to fit on.
    train_queries : ndarray of shape (nq, d), float32, or None
        Real queries to fit the query side on.
    validation : ndarray of shape (nv, d), float32
        Queries to choose and calibrate with; none if there are fewer than ``MIN_QUERIES``.
    test : ndarray of shape (nt, d), float32
        Queries to report on.
    test_rows : ndarray of shape (nt,), int64
        The corpus row of each test query, which is no hit of its own; -1 for real queries.
    train_qrels, validation_qrels : ndarray of shape (m, 3), int64
        Row in the queries of that name, row of ``train``, grade; none without pairs.
    test_qrels : ndarray of shape (m, 3), int64
        The same with rows of the corpus.
    test_seen : ndarray of shape (nt,), bool
        Whether the pairs to train on name a document that is relevant to this test query; none without pairs.
    share : float
        The share of the corpus that the sample was drawn as, at most 1.
    """

    train: Floats
    train_queries: Floats | None
    validation: Floats
    test: Floats
    test_rows: NDArray[np.int64]
    train_qrels: NDArray[np.int64] = field(default_factory=NO_QRELS.copy)
    validation_qrels: NDArray[np.int64] = field(default_factory=NO_QRELS.copy)
    test_qrels: NDArray[np.int64] = field(default_factory=NO_QRELS.copy)
    test_seen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    share: float = 1.0

    def arrays(self) -> list[NDArray[Any]]:
        """Return all arrays except those for the test."""
        queries = self.validation[:0] if self.train_queries is None else self.train_queries
        return [self.train, queries, self.validation, self.train_qrels, self.validation_qrels]

    @cached_property
    def without_copies(self) -> Split:
        """The split to calibrate on: the sample holds no near copies of what validates.

        A copy would be the nearest document, and so near that any code finds it. Collections of questions hold copies
        of queries too. Only so many queries validate as leave half of the sample; fewer than ``MIN_QUERIES`` texts are
        left as they are.
        """
        own = self.test if self.train_queries is None else self.validation
        if not len(self.validation):
            return self
        copied = _copied(own, [self.train], self.train)
        held = _most_held(copied, len(own))
        if not held:
            return self
        kept = copied >= held
        return replace(self, train=self.train if kept.all() else self.train[kept], validation=self.validation[:held])

    def copies(self, metric: int) -> tuple[NDArray[np.float64], float]:
        """Return how many vectors of the corpus a vector of the sample stands for, and how often texts repeat.

        The first is of each validation query, (nq,); the second is the share of them whose nearest document has copies.

        Texts that are there once grow apart in a sample. Copies of a text do not: a sample holds fewer of each. So the
        copies of each query's nearest document are counted. Of c copies in the corpus a sample of share f that holds
        one holds 1 + (c - 1) * f in the mean.
        """
        if metric not in self._copies:
            scores = faiss.pairwise_distances(self.validation, self.train, metric)  # many times as fast as faiss.knn
            near = (scores if metric == faiss.METRIC_INNER_PRODUCT else -scores).argmax(axis=1)
            there = NearDuplicates(self.train, faiss.METRIC_L2).between(self.train[near], self.train).sum(axis=1)
            there = np.maximum(there, 1)  # itself, which rounding may hide beside a very long vector
            copies = 1 + (there - 1) / self.share
            copies = np.maximum(copies, copies.mean())  # what is there once may have as many as the others
            self._copies[metric] = np.minimum(copies / there, 1 / self.share), float(np.mean(there > 1))
        return self._copies[metric]

    @cached_property
    def _copies(self) -> dict[int, tuple[NDArray[np.float64], float]]:
        return {}

    def test_set(self, corpus: Corpus) -> tuple[int, NDArray[np.bool_]]:
        """Return how many of the test queries to report on, and which vectors of ``corpus`` (n,) they search.

        Documents that stand in for queries do not search themselves, nor near copies of them, as in
        :meth:`without_copies`. Where too few texts would be left, only the documents themselves are not searched.
        """
        searched = np.ones(len(corpus), dtype=bool)
        if self.train_queries is not None:
            return len(self.test), searched
        copied = _copied(self.test, corpus.chunks(), self.train)
        held = _most_held(copied, len(self.test))
        searched[self.test_rows[: held or None]] = False
        return held or len(self.test), searched & (copied >= held)


def _copied(own: Floats, documents: Iterable[Floats], sample: Floats) -> NDArray[np.int64]:
    """Return which of ``own`` each of ``documents``, in parts, is a near copy of: the first, or else ``len(own)``.

    How near a copy is depends on the spread of ``sample``.
    """
    near, first = NearDuplicates(sample, faiss.METRIC_L2), []
    for x in documents:
        copies = near.between(own, x)
        first.append(np.where(copies.any(axis=0), copies.argmax(axis=0), len(own)))
    return np.concatenate(first)


def _most_held(copied: NDArray[np.int64], own: int) -> int:
    """Return how many of ``own`` texts leave half of the documents; 0 if some of them must go and too few are left."""
    gone = np.cumsum(np.bincount(copied, minlength=own)[:own])
    held = int(np.searchsorted(gone, len(copied) // 2, side="right"))
    return held if held >= min(MIN_QUERIES, own) else 0


def split_corpus(corpus: Corpus, queries: Corpus | None, sample: int, seed: int, pairs: Pairs | None = None) -> Split:
    """Draw a sample to fit on, and hold queries out of it.

    Parameters
    ----------
    corpus : Corpus
        The vectors.
    queries : Corpus, optional
        Unlabelled queries. With pairs they are for training alone.
    sample : int
        The most documents to fit on. The documents of pairs come in addition.
    seed : int
        Seed of every choice.
    pairs : Pairs, optional
        Labelled pairs, whose queries are then held out.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        For a corpus of one vector, and for fewer than ``MIN_QUERIES`` queries.
    """
    if len(corpus) < 2:
        raise ValueError(f"{corpus.name}: fitting needs at least 2 vectors; got 1")
    rng = np.random.default_rng(seed)
    if pairs is not None:
        return _split_pairs(corpus, queries, sample, rng, pairs)
    if queries is None:
        held = min(HELD_OUT, len(corpus) // 10)
        rows = rng.choice(len(corpus), min(len(corpus), sample + held), replace=False)
        share = len(rows) / len(corpus)
        test = corpus.take(rows[:held])
        train = corpus.take(np.sort(rows[held:]))
        validation = add_noise(test, train.mean(axis=0), QUERY_NOISE, rng) if held >= MIN_QUERIES else test[:0]
        return Split(train, None, validation, test, rows[:held], share=share)
    if len(queries) < MIN_QUERIES:
        raise ValueError(f"queries: at least {MIN_QUERIES} are needed; got {len(queries)}")
    rows = rng.choice(len(corpus), min(len(corpus), sample), replace=False)
    order = rng.choice(len(queries), min(len(queries), sample), replace=False)
    held, parts = _split(order, HELD_OUT)
    validation, test, train = (queries.take(part) for part in parts)
    if held < MIN_QUERIES:
        validation = validation[:0]
    share = len(rows) / len(corpus)
    return Split(corpus.take(np.sort(rows)), train, validation, test, np.full(held, -1), share=share)


def _split_pairs(corpus: Corpus, queries: Corpus | None, sample: int, rng: np.random.Generator, pairs: Pairs) -> Split:
    asked = np.unique(pairs.qrels[:, 0])
    if len(asked) < MIN_QUERIES:
        raise ValueError(f"pairs: at least {MIN_QUERIES} queries with a relevant document are needed; got {len(asked)}")
    asked = rng.permutation(asked)[:sample]
    parts = _hold_out(asked, pairs.qrels, rng)
    validation, test, train = (pairs.queries.take(part) for part in parts)
    qrels = [_of(pairs.qrels, part) for part in parts]
    seen = np.zeros(len(test), dtype=bool)
    seen[qrels[1][np.isin(qrels[1][:, 1], qrels[2][:, 1]), 0]] = True
    rows = rng.choice(len(corpus), min(len(corpus), sample), replace=False)
    rows = np.unique(np.concatenate([rows, qrels[0][:, 1], qrels[2][:, 1]]))
    for i in (0, 2):  # rows of the corpus become rows of the sample
        qrels[i][:, 1] = np.searchsorted(rows, qrels[i][:, 1])
    if queries is not None:
        more = queries.take(rng.permutation(len(queries))[:sample])
        held_out = np.concatenate([validation, test])
        _, near = faiss.knn(more, held_out, 1, metric=faiss.METRIC_L2)
        known = NearDuplicates(more, faiss.METRIC_L2).among(more, held_out[near])[:, 0]
        train = np.concatenate([train, more[~known]])  # what is held out is not trained on under another name
    if len(validation) < MIN_QUERIES:
        validation, qrels[0] = validation[:0], NO_QRELS
    itself, share = np.full(len(test), -1), len(rows) / len(corpus)
    return Split(corpus.take(rows), train, validation, test, itself, qrels[2], qrels[0], qrels[1], seen, share)


def _hold_out(asked: NDArray[np.int64], qrels: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the queries to validate with, to test with, and to train on.

    A training may learn the documents of its pairs by heart, and rank others worse. So two kinds of queries are held
    out, if there are enough of both: half of them share no relevant document with those to train on, directly or
    through others, and half of them share one.
    """
    most = min(HELD_OUT_PAIRS, max(len(asked) // 6, MIN_QUERIES), len(asked) // 3)
    cluster = _clusters(asked, _of(qrels, asked))
    size = np.bincount(cluster)[cluster]
    order = np.lexsort([rng.permutation(cluster.max() + 1)[cluster], size > most])
    if np.count_nonzero(size <= most) < 2 * most:
        return [asked[:most], asked[most : 2 * most], asked[2 * most :]]

    def after(held: int) -> NDArray[np.int64]:
        """Return what shares no document with the first ``held`` of the order."""
        rest: NDArray[np.int64] = order[held:][cluster[order[held:]] != cluster[order[held - 1]]]
        return rest

    seen = rng.permutation([q for q in after(most) if size[q] > 1])[:most].astype(np.int64)
    new = order[: 2 * most - len(seen)]
    seen = seen[~np.isin(cluster[seen], cluster[new])]
    train = np.setdiff1d(after(len(new)), seen, assume_unique=True)
    a, b = (len(new) + 1) // 2, len(seen) // 2
    return [asked[np.concatenate(part)] for part in ((new[:a], seen[:b]), (new[a:], seen[b:]), (train,))]


def _clusters(queries: NDArray[np.int64], qrels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number a query, the same for those that ``qrels`` connect through shared documents."""
    own = np.arange(len(queries))
    _, documents = np.unique(qrels[:, 1], return_inverse=True)
    while True:  # the least number spreads along the pairs
        least = np.full(documents.max() + 1, len(queries))
        np.minimum.at(least, documents, own[qrels[:, 0]])
        spread = own.copy()
        np.minimum.at(spread, qrels[:, 0], least[documents])
        if (spread == own).all():
            return np.unique(own, return_inverse=True)[1]
        own = spread[spread]  # and along what is known already


def _split(order: NDArray[np.int64], most: int) -> tuple[int, list[NDArray[np.int64]]]:
    """Return how many queries validate and how many test, at most ``most`` each; those two parts, and the rest."""
    held = min(most, len(order) // 3)
    return held, np.split(order, [held, 2 * held])


def _of(qrels: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of ``qrels`` about ``queries``, which are numbered by their places."""
    order = np.argsort(queries)
    place = np.minimum(np.searchsorted(queries, qrels[:, 0], sorter=order), len(queries) - 1)
    there = queries[order[place]] == qrels[:, 0]
    out: NDArray[np.int64] = qrels[there].copy()
    out[:, 0] = order[place[there]]
    return out


def add_noise(x: Floats, center: Floats, noise: float, rng: np.random.Generator) -> Floats:
    """Return documents ``x`` (n, d) turned into queries: ``noise`` moves them away, but no farther from the centre."""
    x = x - center
    moved = rng.standard_normal(x.shape).astype(np.float32)
    moved *= noise * row_norms(x)[:, None].astype(np.float32) / np.sqrt(np.float32(x.shape[1]))
    out: Floats = center + (x + moved) / np.sqrt(np.float32(1 + noise**2))
    return out
