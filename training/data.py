"""Drawing from a corpus: what is fitted on, what calibrates, and what is left to report on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faiss_qama.codes import Floats
from faiss_qama.quantizer import lengths
from faiss_qama.vectors import Corpus

HELD_OUT = 300  # queries to calibrate on, or to report on: recall@10 to about .01
MIN_QUERIES = 20
# Queries lie farther from their neighbours than documents do. Where documents stand in for queries, noise of this many
# times their own distance from the centre moves them away; recall= then holds on the test queries of docs/results.
NOISE = 1.25


@dataclass(frozen=True, eq=False)
class Draw:
    """What a fit works with: random parts of the corpus and of the queries, none of which share a vector.

    Where there are no real queries, documents stand in for them, and those that calibrate (made harder by noise) also
    report (as they are).

    Parameters
    ----------
    train : (n, d) float32 documents to fit on
    train_queries : (nq, d) float32 real queries to fit the query side on, or None
    calibration : (nc, d) float32 queries to calibrate on; none if there are fewer than ``MIN_QUERIES``
    report : (nr, d) float32 queries to report on
    report_rows : (nr,) the row of the corpus that each of those is, so no hit of its own; -1 for real queries
    """

    train: Floats
    train_queries: Floats | None
    calibration: Floats
    report: Floats
    report_rows: NDArray[np.int64]


def draw(corpus: Corpus, queries: Corpus | None, sample: int, seed: int) -> Draw:
    """Draw at most ``sample`` vectors to fit on, and what is held out of that.

    Raises ValueError for a corpus of one vector, and for fewer than ``MIN_QUERIES`` queries.
    """
    if len(corpus) < 2:
        raise ValueError("fitting needs at least 2 vectors; got 1")
    rng = np.random.default_rng(seed)
    if queries is None:
        held = min(HELD_OUT, len(corpus) // 10)
        rows = rng.choice(len(corpus), min(len(corpus), sample + held), replace=False)
        report = corpus.take(rows[:held])
        train = corpus.take(np.sort(rows[held:]))
        calibration = _harder(report, train.mean(axis=0), rng) if held >= MIN_QUERIES else report[:0]
        return Draw(train, None, calibration, report, rows[:held])
    if len(queries) < MIN_QUERIES:
        raise ValueError(f"queries: at least {MIN_QUERIES} are needed; got {len(queries)}")
    rows = rng.choice(len(corpus), min(len(corpus), sample), replace=False)
    order = rng.choice(len(queries), min(len(queries), sample), replace=False)
    held = min(HELD_OUT, len(order) // 3)
    calibration, report, train = (queries.take(part) for part in np.split(order, [held, 2 * held]))
    if held < MIN_QUERIES:
        calibration = calibration[:0]
    return Draw(corpus.take(np.sort(rows)), train, calibration, report, np.full(held, -1))


def _harder(x: Floats, center: Floats, rng: np.random.Generator) -> Floats:
    """Return documents ``x`` (n, d) turned into queries: noise moves them away, but no farther from the centre."""
    x = x - center
    noise = rng.standard_normal(x.shape).astype(np.float32)
    noise *= NOISE * lengths(x)[:, None].astype(np.float32) / np.sqrt(np.float32(x.shape[1]))
    harder: Floats = center + (x + noise) / np.sqrt(np.float32(1 + NOISE**2))
    return harder
