"""Rules for thresholds between levels: one function per rule, (n, m) samples to (m, levels - 1) thresholds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.threads import parallel_map

# Max, "Quantizing for Minimum Distortion", 1960, table I: optimal for a normal distribution of standard deviation 1.
NORMAL_CUTS = {2: (0.0,), 3: (-0.6120, 0.6120), 4: (-0.9816, 0.0, 0.9816)}
NORMAL_CENTROIDS = {2: (-0.7979, 0.7979), 3: (-1.2240, 0.0, 1.2240), 4: (-1.5104, -0.4528, 0.4528, 1.5104)}
LLOYD_ITERATIONS = 30
COLUMN_VALUES = 1 << 22  # that are sorted at a time


def zero(z: Floats, levels: int) -> Floats:
    """Cut at 0."""
    return _single(np.zeros(z.shape[1]), levels, "zero")


def mean(z: Floats, levels: int) -> Floats:
    """Cut at the mean."""
    return _single(z.mean(axis=0), levels, "mean")


def median(z: Floats, levels: int) -> Floats:
    """Cut at the median."""
    return _single(np.median(z, axis=0), levels, "median")


def quantile(z: Floats, levels: int) -> Floats:
    """Cut so that every level is as frequent (QAMA, section 3; the 33/66 % of ternary codes)."""
    return np.quantile(z, np.arange(1, levels) / levels, axis=0).T.astype(np.float32)


def uniform(z: Floats, levels: int) -> Floats:
    """Cut into equal distances between two standard deviations either side of the mean."""
    return _standardised(z, np.linspace(-2, 2, levels + 1)[1:-1])


def normal(z: Floats, levels: int) -> Floats:
    """Cut where the distortion is least if the component is normally distributed (Max 1960)."""
    return _standardised(z, np.array(NORMAL_CUTS[levels]))


def log(z: Floats, levels: int) -> Floats:
    """Cut into equal distances of sign(u) log(1 + abs(u)), u in standard deviations, up to 4 either side."""
    steps = np.linspace(-1, 1, levels + 1)[1:-1] * np.log(5)
    return _standardised(z, np.sign(steps) * np.expm1(np.abs(steps)))


def lloyd(z: Floats, levels: int) -> Floats:
    """Cut where the distortion is least on the sample (Lloyd, "Least squares quantization in PCM", 1982, method I)."""
    cuts = normal(z, levels).astype(np.float64)
    step = max(1, COLUMN_VALUES // len(z))

    def improve(start: int) -> None:
        t = cuts[start : start + step]  # a view
        # With values sorted and summed once, a level's centroid is a difference of two sums.
        ordered = np.sort(np.ascontiguousarray(z[:, start : start + step].T), axis=1)
        sums = np.zeros((len(t), len(z) + 1))
        np.cumsum(ordered, axis=1, dtype=np.float64, out=sums[:, 1:])
        ends = np.zeros((len(t), levels + 1), np.int64)
        ends[:, -1] = len(z)
        for _ in range(LLOYD_ITERATIONS):
            for column, own, out in zip(ordered, t, ends, strict=True):
                out[1:-1] = column.searchsorted(own)
            counts = np.diff(ends)
            centroids = np.diff(np.take_along_axis(sums, ends, axis=1)) / np.maximum(counts, 1)
            # A cut beside an empty level has no centroid to move to.
            known = (counts[:, 1:] > 0) & (counts[:, :-1] > 0)
            np.copyto(t, (centroids[:, 1:] + centroids[:, :-1]) / 2, where=known)

    parallel_map(improve, range(0, len(cuts), step))
    return cuts.astype(np.float32)


def _single(cut: NDArray[np.floating], levels: int, name: str) -> Floats:
    if levels != 2:
        raise ValueError(f"thresholds {name!r} is one cut, for 1 and 0.5 bit; the layout has {levels} levels")
    return cut[:, None].astype(np.float32)


def _standardised(z: Floats, cuts: NDArray[np.float64]) -> Floats:
    out: Floats = (z.mean(axis=0)[:, None] + z.std(axis=0)[:, None] * cuts).astype(np.float32)
    return out


SINGLE = ("zero", "mean", "median")  # rules of one cut
RULES = {f.__name__: f for f in (lloyd, normal, uniform, quantile, log, zero, mean, median)}
