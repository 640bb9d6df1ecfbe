"""Points of trellis-coded components: those of a normal distribution, moved to the means of what is coded by them."""

from __future__ import annotations

import numpy as np

from faiss_qama.arrays import Floats
from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.quantizer.trellis import Trellis, bits, n_points

# The upper half of the points for 1 to 4 bits, optimal for a normal distribution of standard deviation 1; the lower
# half mirrors them. ``train`` makes them.
NORMAL_POINTS: dict[int, tuple[float, ...]] = {
    1: (0.2570, 1.2253),
    2: (0.1752, 0.5789, 1.0621, 1.8775),
    3: (0.0866, 0.2950, 0.4860, 0.7163, 0.9695, 1.3054, 1.7616, 2.4644),
    4: (
        *(0.0336, 0.1339, 0.2023, 0.3040, 0.3798, 0.4844, 0.5723, 0.6848),
        *(0.7958, 0.9313, 1.0874, 1.2834, 1.5242, 1.8301, 2.2382, 2.8650),
    ),
}
ERRORS = (1, 0.2916, 0.0822, 0.0225, 0.0063)  # mean squared ones of 0 to 4 bits, of these points
ROUNDS, VECTORS, COMPONENTS = 40, 8000, 128
FIT_ROUNDS, FIT_VECTORS = 3, 5000
QUANTILES = (0.1587, 0.5, 0.8413)  # of a normal distribution one standard deviation below the mean, there, and above
FAR = 1.0  # standard deviations, in distances of the outer two quantiles, of which a normal distribution has half a one
PRIOR = 4  # weight of a point of the normal distribution, in vectors


def fit(z: Floats, layout: CodeLayout) -> Trellis:
    """Return the trellis of columns ``z`` (n, columns), as Lloyd's algorithm finds points.

    The points of a normal distribution, scaled to each column, go to the means of the values that are coded by them.
    Means vary less than values do, most where bits are few. What points decode to is spread until it varies as much, as
    of a normal distribution, so that each component counts in scores as it did before (docs/results/README.md#trellis).
    """
    z = z[:: -(-len(z) // FIT_VECTORS)]
    targets = np.zeros((layout.columns, n_points(layout)), np.float32)
    (mean, deviation), held = _center(z), bits(layout).sum(axis=1)
    for own, middle, spread, stored in zip(targets, mean, deviation, held, strict=True):
        own[: 2 << stored] = middle + spread * normal_points(stored)
    for _ in range(FIT_ROUNDS):
        points = Trellis(targets, targets).encode(z, layout)
        for own, column, p, stored in zip(targets, z.T, points.T, held, strict=True):
            n = 2 << stored
            sums, counts = np.bincount(p, column, n), np.bincount(p, minlength=n)
            own[:n] = np.sort((sums + PRIOR * own[:n]) / (counts + PRIOR))
    there = np.arange(targets.shape[1]) < (2 << held)[:, None]
    gain = 1 / np.sqrt(1 - np.array(ERRORS)[held, None])
    values = np.where(there, mean[:, None] + gain * (targets - mean[:, None]), 0).astype(np.float32)
    return Trellis(values, targets)


def _center(z: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of columns, of those with far outliers by their quantiles."""
    mean, deviation = z.mean(axis=0), z.std(axis=0)
    low, middle, high = np.quantile(z, QUANTILES, axis=0)
    far = (high > low) & (deviation > FAR * (high - low))
    return np.where(far, middle, mean), np.where(far, (high - low) / 2, deviation)


def normal_points(held: int) -> Floats:
    """Return the points (2 << held,) of ``held`` bits for a normal distribution of standard deviation 1."""
    upper = np.array(NORMAL_POINTS[held], np.float32)
    return np.concatenate([-upper[::-1], upper])


def train(held: int, start: Floats | None = None, rounds: int = ROUNDS) -> tuple[Floats, float]:
    """Return the upper points for ``held`` bits, and their mean squared error, by encoding and averaging in turn.

    They begin at the quantiles of a normal distribution, or at all points ``start`` (2 << held,).
    """
    rng = np.random.default_rng(0)
    segment = Segment(str(min(held, 2)), COMPONENTS)
    rest = CodeLayout((Segment(str(held - 2), COMPONENTS),)) if held > 2 else None
    layout = CodeLayout((segment,), rest, trellis=True)
    n = 2 << held
    points = np.sort(rng.standard_normal(n * 10_000))[5000::10_000].astype(np.float32) if start is None else start
    for _ in range(rounds):
        z = rng.standard_normal((VECTORS, COMPONENTS), dtype=np.float32)
        tiled = np.tile(points, (COMPONENTS, 1))
        p = Trellis(tiled, tiled).encode(z, layout).ravel()
        z = z.ravel()
        error = float(np.mean((z - points[p]) ** 2))
        means = np.bincount(p, z, n) / np.maximum(np.bincount(p, minlength=n), 1)
        points = ((means - means[::-1]) / 2).astype(np.float32)
    return points[n // 2 :], error
