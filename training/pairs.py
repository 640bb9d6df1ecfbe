"""Labelled pairs: queries and the documents relevant to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.corpus import Corpus, Source
from faiss_qama.evaluation.datasets import FROM_0, id_bound, read_rows, to_rows
from faiss_qama.vectors import PathLike

Qrels: TypeAlias = ArrayLike | PathLike | Sequence[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries with graded documents.

    Parameters
    ----------
    queries : Corpus
        The queries, (nq, d).
    qrels : ndarray of shape (m, 3), int64
        Query row, corpus row, grade; grades are above 0.
    """

    queries: Corpus
    qrels: NDArray[np.int64]


def read_pairs(queries: Source | Corpus, qrels: Qrels, corpus: Corpus) -> Pairs:
    """Return the pairs that are relevant.

    Parameters
    ----------
    queries : array of shape (nq, d), str, Path or Corpus
        The queries.
    qrels : str, Path, or rows
        A tab-separated file, or rows, of query row, corpus row, grade; of ids in place of rows where ``queries`` or
        ``corpus`` have some. Pairs of grade 0 or less are left out.
    corpus : Corpus
        The documents.

    Returns
    -------
    Pairs

    Raises
    ------
    TypeError, ValueError
        For queries of another dimension, for a wrong line or row, naming it, and if no pair is relevant.
    """
    if not isinstance(queries, Corpus):
        queries = Corpus(queries, corpus.shape[1], "queries", queries=True)
    sizes = (id_bound(queries), id_bound(corpus))
    if isinstance(qrels, str | os.PathLike):
        rows, name = read_rows(qrels, 3, sizes), str(qrels)
    else:
        rows, name = _checked(np.asarray(qrels), sizes), "qrels"
    rows = to_rows(rows, name, queries, corpus)
    relevant = rows[rows[:, 2] > 0]
    if not len(relevant):
        raise ValueError(f"{name}: no relevant pair: none of {len(rows)} grades is above 0")
    return Pairs(queries, relevant)


def _checked(rows: NDArray[Any], sizes: tuple[int | None, int | None]) -> NDArray[np.int64]:
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"qrels: rows of (query row, corpus row, grade) are needed; got shape {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"qrels: whole numbers are needed; got {rows.dtype}")
    for column, (size, what) in enumerate(zip(sizes, ("query", "corpus"), strict=True)):
        bad = np.flatnonzero((rows[:, column] < 0) | (size is not None and rows[:, column] >= size))
        if len(bad):
            raise ValueError(f"qrels: row {bad[0]}: {what} row {rows[bad[0], column]}, but there are {size}; {FROM_0}")
    return rows.astype(np.int64)
