"""What was measured: recall, ranking metrics, speed and bytes, of one search or of a method over several fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from faiss_qama.evaluation.bootstrap import bootstrap_interval
from faiss_qama.evaluation.ranking_metrics import PerQuery


@dataclass(frozen=True, eq=False)
class Result:
    """The quality and the speed of one search.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (nq,), float64
        One value per query, by measure; higher is better. ``recall`` is the share of the exact k nearest that was
        found. With qrels there are also ``ndcg``, ``relevant_recall`` and ``mrr``, for the queries that have a relevant
        document.
    queries_per_second : float
        The speed.
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
        """Return the mean of each measure, and the queries per second.

        Returns
        -------
        dict of str to float
            What JSON can hold.
        """
        means = {measure: float(values.mean()) for measure, values in self.values.items()}
        return means | {"queries_per_second": self.queries_per_second}


@dataclass(frozen=True, eq=False)
class MethodResult:
    """The results of a method, one per fit.

    Parameters
    ----------
    name : str
        What tables call the method.
    bytes : tuple of int
        Bytes per vector of the codes, and of the data kept to re-rank with.
    results : list of Result
        One result per fit; fits differ in their seed.
    config : mapping
        The settings of the method.
    """

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
        """Return the mean over fits, the 95 % interval of each measure, and the result of each fit.

        Returns
        -------
        dict
            What JSON can hold.
        """
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
    """Return the 95 % interval of a mean over queries.

    Parameters
    ----------
    values : ndarray of shape (nq,), float64
        One value per query.

    Returns
    -------
    low, high : float
        The bounds of the interval.
    """
    return bootstrap_interval(lambda rows: float(values[rows].mean()), len(values))
