"""A data set: documents, queries, and grades of which documents are relevant; and the folder it is read from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, Ids, scale_to_norm
from faiss_qama.corpus import Corpus
from faiss_qama.vectors import PathLike


@dataclass(frozen=True, eq=False)
class Dataset:
    """Documents, queries, and what is known about the answers.

    Parameters
    ----------
    corpus : Corpus
        The documents.
    queries : ndarray of shape (nq, d), float32
        The queries to measure with.
    qrels : ndarray of shape (m, 3), int64, or None
        Rows of query row, corpus row and grade. A grade above 0 means relevant. The corpus row of a document that is
        not in the corpus is -1; no search finds it, and the measures count it as missed.
    train_queries : Corpus or None
        Unlabelled queries of the same kind, which a fit may use.
    exclude : ndarray of shape (e, 2), int64, or None
        Rows of query row and corpus row. These hits are dropped, because the query is that document itself.
    """

    corpus: Corpus
    queries: Floats
    qrels: NDArray[np.int64] | None = None
    train_queries: Corpus | None = None
    exclude: NDArray[np.int64] | None = None

    @classmethod
    def load(cls, folder: PathLike, *, drop_bad_rows: bool = False) -> Dataset:
        """Read a data set folder.

        The folder holds ``corpus.npy`` and ``queries.npy``. It may also hold ``qrels.tsv``, ``train_queries.npy`` and
        ``exclude.tsv``.

        Parameters
        ----------
        folder : str or os.PathLike
            The folder.
        drop_bad_rows : bool
            Leave out vectors with NaN or infinity, and what is labelled with them.

        Returns
        -------
        Dataset
            The corpus is read in chunks when needed, the queries are read at once.

        Raises
        ------
        FileNotFoundError
            If ``corpus.npy`` or ``queries.npy`` is missing.
        ValueError
            If a file is malformed. The message names the file and the line.
        """
        path = Path(folder)
        corpus = Corpus(path / "corpus.npy", drop_bad_rows=drop_bad_rows)
        queries = Corpus(path / "queries.npy", corpus.shape[1], drop_bad_rows=drop_bad_rows)
        train = path / "train_queries.npy"
        return cls(
            corpus,
            queries.read(),
            read_labels(path / "qrels.tsv", 3, queries, corpus) if (path / "qrels.tsv").exists() else None,
            Corpus(train, corpus.shape[1], drop_bad_rows=drop_bad_rows) if train.exists() else None,
            read_labels(path / "exclude.tsv", 2, queries, corpus) if (path / "exclude.tsv").exists() else None,
        )

    def normalized(self) -> Dataset:
        """Return the data set with documents and queries of norm 1: inner products are cosines then."""
        train = None if self.train_queries is None else self.train_queries.normalized()
        corpus, queries = self.corpus.normalized(), scale_to_norm(self.queries, 1.0)
        return replace(self, corpus=corpus, queries=queries, train_queries=train)

    @property
    def max_excluded(self) -> int:
        """The most hits that are excluded for one query; a search for k asks for this many more."""
        return 0 if self.exclude is None else int(np.bincount(self.exclude[:, 0]).max())

    def drop_excluded(self, D: NDArray[Any], I: Ids, k: int) -> tuple[NDArray[Any], Ids]:
        """Drop the excluded hits from the results of a search.

        Parameters
        ----------
        D : ndarray of shape (nq, >= k)
            Scores, best first.
        I : ndarray of shape (nq, >= k), int64
            Ids, best first.
        k : int
            Hits to keep.

        Returns
        -------
        D, I : ndarray of shape (nq, k)
            Scores and ids, best first. Where too few hits are left, excluded ones are at the end with id -1.
        """
        if self.exclude is not None:
            documents: dict[int, list[int]] = {}
            for query, document in self.exclude.tolist():
                documents.setdefault(query, []).append(document)
            excluded = np.zeros(I.shape, dtype=bool)
            for query, rows in documents.items():
                excluded[query] = np.isin(I[query], rows)
            order = np.argsort(excluded, axis=1, kind="stable")
            D = np.take_along_axis(D, order, axis=1)
            I = np.take_along_axis(np.where(excluded, -1, I), order, axis=1)
        return D[:, :k], I[:, :k]


FROM_0 = "rows are counted from 0"


def read_labels(path: PathLike, columns: int, queries: Corpus, corpus: Corpus) -> NDArray[np.int64]:
    """Read a tab-separated file of labels, which names queries and documents by their ids.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    columns : int
        How many columns it must have. The first two are a query and a document.
    queries : Corpus
        The queries. Without ids of their own, their rows are their ids.
    corpus : Corpus
        The documents, likewise. The id -1 stands for a document that is not there.

    Returns
    -------
    ndarray of shape (m, columns), int64
        Its lines, with rows of ``queries`` and of ``corpus``. Where there are ids, lines about others are left out, and
        a warning counts them.

    Raises
    ------
    ValueError
        As :func:`read_rows`.
    """
    sizes = (id_bound(queries), id_bound(corpus))
    return to_rows(read_rows(path, columns, sizes, missing=columns == 3), str(path), queries, corpus)


def id_bound(vectors: Corpus) -> int | None:
    """Return the number that ids are below; None if they are not rows."""
    return len(vectors) if vectors.ids is None else None


def to_rows(labels: NDArray[np.int64], what: str, queries: Corpus, corpus: Corpus) -> NDArray[np.int64]:
    """Return ``labels`` (m, columns) with rows in place of ids; ``what`` is their name in the warning.

    A label counts for every vector with its id. Labels of ids that are not there are left out; a warning counts them.
    """
    n, found = len(labels), np.arange(len(labels))
    for column, vectors in enumerate((queries, corpus)):
        if vectors.ids is not None:
            places, rows = vectors.rows_of(labels[:, column])
            labels, found = labels[places], found[places]
            labels[:, column] = rows
    missing = n - len(np.unique(found))
    if missing == n:
        raise ValueError(f"{what}: none of {n:,} pairs names what is there; they are of ids, and --ids says which")
    if missing:
        warnings.warn(f"{what}: {missing:,} of {n:,} pairs name what is not there; they are left out", stacklevel=3)
    return labels


def read_rows(
    path: PathLike, columns: int, sizes: tuple[int | None, int | None], *, missing: bool = False
) -> NDArray[np.int64]:
    """Read a tab-separated file of whole numbers. A first line without a whole number is a header.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    columns : int
        How many columns it must have. The first two are a query row and a corpus row.
    sizes : tuple of int or None
        The number of queries and of documents, which the rows are checked against; None for any number.
    missing : bool
        Whether a corpus row may be -1, which stands for a document that is not in the corpus.

    Returns
    -------
    ndarray of shape (m, columns), int64
        The lines of the file.

    Raises
    ------
    ValueError
        If a line is malformed or names a row that does not exist. The message names the file and the line.
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
            absent = missing and value == -1 and what == "corpus"
            if (value < 0 and not absent) or (size is not None and value >= size):
                raise ValueError(f"{path}: line {number}: {what} row {value}, but there are {size}; {FROM_0}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return np.array(rows, dtype=np.int64)
