"""Drawing from a corpus: what is fitted on, what calibrates, and what is left to report on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faiss_qama.codes import Floats
from faiss_qama.vectors import Corpus

HELD_OUT = 300  # queries to calibrate on, and as many to report on: recall@10 to about .01
MIN_QUERIES = 20


@dataclass(frozen=True, eq=False)
class Queries:
    """Vectors that act as queries.

    Parameters
    ----------
    vectors : (nq, d) float32
    rows : (nq,) the row of the corpus that each one is, never a hit of its own; -1 for real queries
    """

    vectors: Floats
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Draw:
    """What a fit works with: disjoint random parts of the corpus and of the queries.

    Parameters
    ----------
    train : (n, d) float32, fitted on
    train_rows : (n,) their rows in the corpus
    queries : (nq, d) float32 real queries to fit the queries' centre on, or None
    calibration, report : queries held out of the fit: real ones where there are any, else documents
    """

    train: Floats
    train_rows: NDArray[np.int64]
    queries: Floats | None
    calibration: Queries
    report: Queries


def draw(corpus: Corpus, queries: Corpus | None, sample: int, seed: int) -> Draw:
    """Draw at most ``sample`` vectors to fit on, and what is held out of that.

    Raises ValueError for a corpus of one vector, and for fewer than ``MIN_QUERIES`` queries.
    """
    if len(corpus) < 2:
        raise ValueError("fitting needs at least 2 vectors; got 1")
    rng = np.random.default_rng(seed)
    held = min(2 * HELD_OUT, len(corpus) // 5)
    rows = rng.choice(len(corpus), min(len(corpus), sample + held), replace=False)
    train = np.sort(rows[held:])
    if queries is None:
        real = None
        parts = [Queries(corpus.take(r), r) for r in (rows[: held // 2], rows[held // 2 : held])]
    else:
        if len(queries) < MIN_QUERIES:
            raise ValueError(f"queries: at least {MIN_QUERIES} are needed; got {len(queries)}")
        order = rng.choice(len(queries), min(len(queries), sample), replace=False)
        held = min(2 * HELD_OUT, len(order) // 2)
        real = queries.take(order[held:])
        parts = [
            Queries(queries.take(r), np.full(len(r), -1)) for r in (order[: held // 2], order[held // 2 : held])
        ]
    return Draw(corpus.take(train), train, real, *parts)
