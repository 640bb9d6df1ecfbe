"""Bootstrap confidence intervals of figures that were measured on a few queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000  # the usual number for percentile intervals: bounds move by less than a tenth of the interval
Resample = NDArray[np.int64]


def bootstrap_interval(statistic: Callable[[Resample], float], n: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic over queries.

    To compare two methods, compute the difference or the quotient inside ``statistic``: both are then read at the same
    queries, which makes the interval a paired one (Efron and Tibshirani, "An introduction to the bootstrap", 1993,
    chapter 13).

    Parameters
    ----------
    statistic : callable
        Takes rows of queries, (n,) int64 drawn with replacement, and returns a float. NaN is left out.
    n : int
        The number of queries.

    Returns
    -------
    low, high : float
        The bounds of the interval. The same every time, as the seed is fixed.
    """
    rng = np.random.default_rng(0)
    found = np.array([statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)])
    known = found[~np.isnan(found)]
    low, high = np.quantile(known if len(known) else found, [0.025, 0.975])
    return float(low), float(high)


def percent(part: float, whole: float) -> float:
    """Return a share in percent.

    Parameters
    ----------
    part : float
        Numerator of the share.
    whole : float
        Denominator of the share.

    Returns
    -------
    float
        The share in percent; NaN where ``whole`` is 0, as in a resample in which no query has a hit.
    """
    return 100 * float(part) / float(whole) if whole else float("nan")
