"""Semantic similarity and classification on compressed vectors (extra ``eval``).

The tasks are those of the study of rotated ternary codes (M. Nemlaghi, "Squeezing embeddings: a journey from classic to
rotated ternary quantization", 2024), which measured STS-B and Banking77.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, scale_to_norm
from faiss_qama.comparison.methods import codec
from faiss_qama.corpus import Corpus, load_vectors
from faiss_qama.evaluation.bootstrap import Resample, bootstrap_interval, percent
from faiss_qama.evaluation.ranking_metrics import PerQuery
from faiss_qama.formats.numpy_files import open_npy
from faiss_qama.vectors import PathLike

Features: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Pairs of vectors, and how similar people found their texts.

    Parameters
    ----------
    train : ndarray of shape (n, d), float32
        Both sides of the train pairs, which methods are fitted to.
    a, b : ndarray of shape (m, d), float32
        The test pairs.
    scores : ndarray of shape (m,), float64
        Larger is more similar.
    """

    measure: ClassVar[str] = "Spearman"
    train: Floats
    a: Floats
    b: Floats
    scores: PerQuery

    @classmethod
    def load(cls, folder: Path) -> Similarity:
        """Read {train,test}_{a,b}.npy and test_scores.npy.

        Parameters
        ----------
        folder : Path
            The data set folder.

        Returns
        -------
        Similarity
            The task.

        Raises
        ------
        OSError
            If a file is missing.
        ValueError
            If a file is malformed, sizes differ, or all scores are equal.
        """
        first = load_vectors(folder / "train_a.npy")
        second, a, b = (
            load_vectors(folder / f"{name}.npy", first.shape[1]) for name in ("train_b", "test_a", "test_b")
        )
        path = folder / "test_scores.npy"
        scores = _values(path, "biuf", len(a), len(b))
        if len(scores) < 2 or (scores == scores[0]).all():
            raise ValueError(f"{path}: two scores that differ are needed, as nothing correlates with one")
        return cls(np.concatenate([first, second]), a, b, scores)

    def items(self, features: Features) -> PerQuery:
        """Return the cosine of each test pair.

        Parameters
        ----------
        features : callable
            Takes vectors (m, d) float32 and returns the vectors to compare.

        Returns
        -------
        ndarray of shape (m,), float64
            Larger is more similar.
        """
        a, b = (scale_to_norm(features(side), 1.0) for side in (self.a, self.b))
        cosines: PerQuery = np.einsum("nd,nd->n", a, b, dtype=np.float64)
        return cosines

    def score(self, items: PerQuery, rows: Resample) -> float:
        """Return Spearman's correlation of cosines and scores.

        Parameters
        ----------
        items : ndarray of shape (m,), float64
            What :meth:`items` returned.
        rows : ndarray of shape (r,), int64
            The test pairs to count.

        Returns
        -------
        float
            From -1 to 1, higher is better.
        """
        spearmanr = _needed("scipy.stats").spearmanr
        return float(spearmanr(items[rows], self.scores[rows]).statistic)


@dataclass(frozen=True, eq=False)
class Classification:
    """Vectors of labelled texts.

    Parameters
    ----------
    train : ndarray of shape (n, d), float32
        Vectors that methods and the classifier are fitted to.
    train_labels : ndarray of shape (n,)
        Their labels.
    test : ndarray of shape (m, d), float32
        Vectors to classify.
    test_labels : ndarray of shape (m,)
        Their labels.
    """

    measure: ClassVar[str] = "accuracy"
    train: Floats
    train_labels: NDArray[Any]
    test: Floats
    test_labels: NDArray[Any]

    @classmethod
    def load(cls, folder: Path) -> Classification:
        """Read {train,test}.npy and {train,test}_labels.npy.

        Parameters
        ----------
        folder : Path
            The data set folder.

        Returns
        -------
        Classification
            The task.

        Raises
        ------
        OSError
            If a file is missing.
        ValueError
            If a file is malformed, sizes differ, or there is only one class.
        """
        train = load_vectors(folder / "train.npy")
        test = load_vectors(folder / "test.npy", train.shape[1])
        path = folder / "train_labels.npy"
        train_labels = _values(path, "biu", len(train))
        if (train_labels == train_labels[0]).all():
            raise ValueError(f"{path}: labels of two classes or more are needed; got {train_labels[0]} alone")
        return cls(train, train_labels, test, _values(folder / "test_labels.npy", "biu", len(test)))

    def items(self, features: Features) -> PerQuery:
        """Return which test vectors a logistic regression on the train vectors labels correctly.

        Parameters
        ----------
        features : callable
            Takes vectors (n, d) float32 and returns the vectors to classify.

        Returns
        -------
        ndarray of shape (m,), float64
            1 where the label is correct, else 0.
        """
        regression = _needed("sklearn.linear_model").LogisticRegression(max_iter=1000)
        regression.fit(features(self.train), self.train_labels)
        right: PerQuery = (regression.predict(features(self.test)) == self.test_labels).astype(np.float64)
        return right

    def score(self, items: PerQuery, rows: Resample) -> float:
        """Return the accuracy.

        Parameters
        ----------
        items : ndarray of shape (m,), float64
            What :meth:`items` returned.
        rows : ndarray of shape (r,), int64
            The test vectors to count.

        Returns
        -------
        float
            From 0 to 1.
        """
        return float(items[rows].mean())


Task: TypeAlias = Similarity | Classification


@dataclass(frozen=True, eq=False)
class TaskResult:
    """The results of a method on a task.

    Parameters
    ----------
    name : str
        The method.
    bytes : int
        Bytes per vector.
    task : Task
        The task.
    items : list of ndarray of shape (m,), float64
        One value per test item, for each fit.
    floats : ndarray of shape (m,), float64
        The same for exact floats.
    config : dict
        The settings of the method.
    """

    name: str
    bytes: int
    task: Task
    items: list[PerQuery]
    floats: PerQuery
    config: dict[str, Any]

    @property
    def score(self) -> float:
        """The mean over fits."""
        return self._score(np.arange(len(self.floats)))

    @property
    def retained(self) -> tuple[float, tuple[float, float]]:
        """The score in percent of that of exact floats, and its 95 % interval over test items."""
        n = len(self.floats)
        return self._share(np.arange(n)), bootstrap_interval(self._share, n)

    def to_dict(self) -> dict[str, Any]:
        """Return the score, its intervals and the score of each fit.

        Returns
        -------
        dict
            What JSON can hold.
        """
        share, (low, high) = self.retained
        every = np.arange(len(self.floats))
        return {
            "method": self.name,
            "bytes": self.bytes,
            "score": self.score,
            "interval": bootstrap_interval(self._score, len(self.floats)),
            "retained": share,
            "retained_interval": [low, high],
            "each": [self.task.score(items, every) for items in self.items],
            "config": self.config,
        }

    def _score(self, rows: Resample) -> float:
        return float(np.mean([self.task.score(items, rows) for items in self.items]))

    def _share(self, rows: Resample) -> float:
        return percent(self._score(rows), self.task.score(self.floats, rows))


def load_task(folder: PathLike) -> Task | None:
    """Load the task of a data set folder, whichever it is by the files in it.

    Parameters
    ----------
    folder : str or os.PathLike
        The data set folder.

    Returns
    -------
    Similarity, Classification or None
        None if the folder holds neither ``test_scores.npy`` nor ``test_labels.npy``.

    Raises
    ------
    ImportError
        If scipy or scikit-learn is not installed. The message has the command that installs it.
    OSError
        If a file of the task is missing.
    ValueError
        If a file of the task is malformed.
    """
    path = Path(folder)
    kinds = ("test_scores.npy", Similarity, "scipy.stats"), ("test_labels.npy", Classification, "sklearn.linear_model")
    for file, task, module in kinds:
        if (path / file).exists():
            _needed(module)  # before anything is fitted
            return task.load(path)
    return None


def measure(task: Task, names: list[str], *, seeds: int = 1) -> list[TaskResult]:
    """Measure exact floats and methods on a task.

    Parameters
    ----------
    task : Similarity or Classification
        The task.
    names : list of str
        The methods, see :mod:`faiss_qama.comparison.methods`.
    seeds : int
        Fits to average over, with the seeds 0, 1, ...

    Returns
    -------
    list of TaskResult
        Exact floats first, then one for each name.

    Raises
    ------
    ValueError
        If a name is unknown, or a method keeps floats.
    """
    floats = task.items(lambda x: x)
    measured = [TaskResult("exact floats", 4 * task.train.shape[1], task, [floats], floats, {})]
    corpus = Corpus(task.train)
    for name in names:
        codecs = [codec(name, corpus, seed=seed) for seed in range(seeds)]
        items = [task.items(one.features) for one in codecs]
        measured.append(TaskResult(name, codecs[0].bytes, task, items, floats, codecs[0].config))
    return measured


def _values(path: Path, kinds: str, *sizes: int) -> NDArray[Any]:
    """Read one number per row, of one of numpy's ``kinds``. Raises ValueError unless there are as many as ``sizes``."""
    values = open_npy(path, mmap=False)
    if values.dtype.kind not in kinds:
        wanted = "whole numbers" if "f" not in kinds else "numbers"
        raise ValueError(f"{path}: {wanted} are needed; got {values.dtype}")
    if values.ndim != 1 or any(len(values) != n for n in sizes):
        raise ValueError(
            f"{path}: a number for each of {' and '.join(map(str, sizes))} vectors is needed; got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: row {np.flatnonzero(~np.isfinite(values))[0]} holds NaN or infinity")
    return values


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this data set needs scipy and scikit-learn: pip install '.[eval]' in the clone ({error})"
        ) from None
