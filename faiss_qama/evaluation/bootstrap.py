"""How sure a figure is that was measured on a few queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Resample = NDArray[np.int64]


def bootstrap_interval(statistic: Callable[[Resample], float], n: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of ``statistic(picks)``, a figure of picks of ``n`` queries.

    A difference or a quotient of two methods is paired when both are read at the same picks (Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 13).
    """
    rng = np.random.default_rng(0)
    found = np.array([statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)])
    known = found[~np.isnan(found)]
    low, high = np.quantile(known if len(known) else found, [0.025, 0.975])
    return float(low), float(high)


def percent(part: float, whole: float) -> float:
    """Return ``part`` in % of ``whole``; NaN of nothing, as a few queries may have no hit at all when resampled."""
    return 100 * float(part) / float(whole) if whole else float("nan")
