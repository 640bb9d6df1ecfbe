"""How sure a figure is that was measured on a few queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Rows = NDArray[np.int64]


def interval(statistic: Callable[[Rows], float], n: int, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of ``statistic(rows)``, the figure that rows of ``n`` queries make.

    A difference or a quotient of two methods is paired when both are read at the same rows (Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 13).
    """
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
