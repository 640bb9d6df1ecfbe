"""Quantizers without training: centring, PCA, a rotation, thresholds and a decoder, in closed form."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, are_normalized, row_norms, scale_to_norm
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.decoder import Decoder
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import COSINE, LINEAR_GAIN, METRICS, Quantizer
from faiss_qama.quantizer.transform import Linear
from faiss_qama.quantizer.trellis import levels_of
from faiss_qama.training import rotation, thresholds, trellis_points
from faiss_qama.training.calibrate import choose_query_side
from faiss_qama.training.config import FitConfig
from faiss_qama.training.split import Split

Explained: TypeAlias = tuple[tuple[int, float, float], ...]  # as FitRecord has them

# How far real queries spread, documents being 1: a level at the edge tells near from far more often (docs/results).
QUERY_GAIN = 1.25
CODED = 10_000  # vectors whose trellis codes tell what a level is worth alone: half a second
# The L1 distance to a query whose levels lie at the edges is an inner product with its signs. So where norms of
# documents differ, which is where inner product and L2 distance rank differently, far out and not centred is best.
LINEAR_GAINS = (2.0, 4.0, LINEAR_GAIN)


def closed_form(split: Split, config: FitConfig, metric: int) -> Quantizer:
    """Fit a quantizer without training and without a residual code.

    Parameters
    ----------
    split : Split
        The sample to fit on.
    config : FitConfig
        Settings of the fit.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.

    Returns
    -------
    Quantizer
        Not calibrated.

    Raises
    ------
    ValueError
        For another metric, a layout that the dimension cannot have, and vectors too long or too short for float32.
    """
    if metric not in METRICS.values():
        raise ValueError(f"metric must be '{COSINE}', METRIC_INNER_PRODUCT or METRIC_L2; got {metric!r}")
    x = split.train
    layout = config.layout_in(x.shape[1])
    if not layout.trellis:
        layout = replace(layout, residual=None)
    if len(x) < 4 * layout.components:
        warnings.warn(
            f"fitted on {len(x)} vectors; {layout.components} components need {4 * layout.components} or more: "
            f"fit on more, or name a layout of fewer, such as 2x{max(1, len(x) // 4)}",
            stacklevel=4,
        )
    norms = row_norms(x)
    if norms.max() > 1e18 or 0 < norms.max() < 1e-18:
        raise ValueError(f"the longest vector has norm {norms.max():.3g}; 1e-18 to 1e18 is possible: rescale them")

    # Centre, project, rotate: one matrix.
    center = x.mean(axis=0, dtype=np.float64).astype(np.float32) if config.center else np.zeros_like(x[0])
    matrix, explained = _components(x, center, layout, config)
    matrix = merge_pairs(matrix, layout)
    transform = Linear(matrix, -matrix @ center)
    matrix = transform.matrix  # which all parts share

    # Cut into levels.
    z, trellis, coded = transform(x), None, slice(None)
    if layout.trellis:
        trellis = trellis_points.fit(z, layout)
        cuts, coded = trellis.thresholds(layout), slice(None, None, -(-len(x) // CODED))
        levels, _ = levels_of(trellis.encode(z[coded], layout), layout)
    else:
        cuts = _cuts(z, layout, config.thresholds)
        levels = bit_packing.levels(bit_packing.encode(z, cuts, layout), layout)

    # Back to floats.
    decoder = fit_decoder(x[coded], z[coded], levels, center, matrix, layout, config.decoder)
    scale = float(np.sqrt(np.mean(norms**2))) or 1.0

    # Queries spread around a centre of their own, which is moved to the documents' mean.
    middle = own = x.mean(axis=0)
    if split.train_queries is not None:
        q = scale_to_norm(split.train_queries, scale) if metric == faiss.METRIC_INNER_PRODUCT else split.train_queries
        own = middle + config.query_center * (q.mean(axis=0) - middle)

    quantizer = Quantizer(
        transform=transform,
        layout=layout,
        thresholds=cuts,
        decoder=decoder,
        metric=metric,
        normalized=are_normalized(norms),
        rms_norm=scale,
        query_transform=transform,
        trellis=trellis,
        fit_record=FitRecord(
            config=config.to_dict(),
            center=config.center,
            projection=config.projection,
            rotation=config.rotation,
            thresholds=config.thresholds,
            matryoshka_dims=config.matryoshka_dims,
            fitted_on=len(x),
            real_queries=split.train_queries is not None,
            explained_variance=explained,
        ),
    )

    def with_query_side(own: Floats, gain: float) -> Quantizer:
        shift = matrix @ (middle - center) - gain * (matrix @ (own - center))
        record = replace(quantizer.fit_record, query_gain=gain)
        return replace(quantizer, query_transform=transform.then(gain, shift.astype(np.float32)), fit_record=record)

    gain = config.query_gain or (1.0 if split.train_queries is None else QUERY_GAIN)
    sides = [with_query_side(own, gain)]
    if metric == faiss.METRIC_INNER_PRODUCT and not quantizer.normalized and config.query_gain is None:
        sides += [with_query_side(np.zeros_like(own), gain) for gain in LINEAR_GAINS]
    return choose_query_side(sides, split)


def _cuts(z: Floats, layout: CodeLayout, rule: str) -> Floats:
    """Return the thresholds (columns, max_levels - 1) of columns ``z`` (n, columns); +inf for those that are not."""
    cuts = np.full((layout.columns, layout.max_levels - 1), np.inf, dtype=np.float32)
    for segment, columns, _ in layout.slices():
        if segment.n_bits:
            cuts[columns, : segment.levels - 1] = thresholds.RULES[rule](z[:, columns], segment.levels)
    return cuts


def merge_pairs(matrix: Floats, layout: CodeLayout) -> Floats:
    """Turn one row per component, (components, d), into one per column: the linear half bit sums its pairs."""
    parts, row = [], 0
    for segment in layout.segments:
        rows = matrix[row : row + segment.components]
        parts.append((rows[0::2] + rows[1::2]) / np.float32(np.sqrt(2)) if segment.bits == "0.5" else rows)
        row += segment.components
    return np.concatenate(parts)


def fit_decoder(
    x: Floats, z: Floats, levels: NDArray[np.uint8], center: Floats, matrix: Floats, layout: CodeLayout, kind: str
) -> Decoder:
    """Return the decoder of ``levels``: the mean of each level, then the rotation's transpose or a fitted map.

    With orthogonal rows the transpose and the means are the least-squares solution for a fixed map. Fitting the map as
    well lowers the squared error but also the recall, because it shrinks uncertain directions (docs/results).

    Parameters
    ----------
    x : ndarray of shape (n, d), float32
        Vectors.
    z : ndarray of shape (n, columns), float32
        Their columns.
    levels : ndarray of shape (n, units), uint8
        The levels of their codes.
    center : ndarray of shape (d,), float32
        What was subtracted from the vectors.
    matrix : ndarray of shape (columns, d), float32
        What they were then multiplied with.
    layout : CodeLayout
        The layout of the codes.
    kind : str
        ``transpose`` or ``least-squares``.

    Returns
    -------
    Decoder
        The decoder.
    """
    levels = np.repeat(levels, layout.columns_per_unit, axis=1)
    means = z.mean(axis=0)
    values = np.tile(means[:, None], (1, layout.max_levels))  # a level that nobody has stays at the mean
    for level in range(layout.max_levels):
        there = levels == level
        count = there.sum(axis=0)
        sums = np.where(there, z, 0).sum(axis=0, dtype=np.float64)
        values[:, level] = np.where(count > 0, sums / np.maximum(count, 1), values[:, level])
    if kind == "transpose":
        return Decoder(values.astype(np.float32), matrix, center)
    design = np.take_along_axis(values.T, levels.astype(np.intp), axis=0) - means
    offset = x.mean(axis=0)
    free, *_ = np.linalg.lstsq(design, x - offset, rcond=None)
    return Decoder(values.astype(np.float32), free.astype(np.float32), (offset - means @ free).astype(np.float32))


def _components(x: Floats, center: Floats, layout: CodeLayout, config: FitConfig) -> tuple[Floats, Explained]:
    """Return an orthonormal row per component, (components, d), and the variance that leading dimensions explain."""
    rng = np.random.default_rng(config.seed)
    matrix: Floats = np.eye(layout.components, x.shape[1], dtype=np.float32)
    explained: Explained = ()
    if config.projection == "pca":
        scatter = rotation.scatter_matrix(x, center)
        matrix, variances = rotation.pca(scatter, layout.components)
        if config.center:
            explained = _explained(np.diag(scatter), variances)
    if config.rotation == "none":
        return matrix, explained
    some = rng.permutation(len(x))[: rotation.ITQ_VECTORS if config.rotation == "itq" else 0]
    return _rotate(matrix, x[some] - center, layout, config, rng), explained


def _explained(own: NDArray[np.float64], components: NDArray[np.float64]) -> Explained:
    """Return what an eighth, a quarter and a half of the dimensions hold of the variance, and as many components."""
    d, whole = len(own), own.sum() or 1
    dims = sorted({n for n in (d // 8, d // 4, d // 2) if n})
    return tuple((n, float(own[:n].sum() / whole), float(components[:n].sum() / whole)) for n in dims)


def _rotate(matrix: Floats, centred: Floats, layout: CodeLayout, config: FitConfig, rng: np.random.Generator) -> Floats:
    """Rotate the rows of ``matrix`` between the borders that no rotation crosses; ITQ reads the vectors ``centred``."""
    ends = np.cumsum([s.components for s in layout.segments])
    borders = [0, *config.rotation_borders(layout)]
    rows = []
    for start, end in zip(borders, borders[1:], strict=False):
        part = matrix[start:end]
        levels = layout.segments[int(np.searchsorted(ends, start, side="right"))].levels
        if levels == 1 and not layout.trellis:
            rows.append(part)
            continue
        if layout.trellis:
            levels = min(max(thresholds.NORMAL_CENTROIDS), 1 << sum(layout.bits_of_components[start]))
        if config.rotation == "itq":
            centroids = np.array(thresholds.NORMAL_CENTROIDS[levels], dtype=np.float32)
            rows.append(rotation.itq(centred @ part.T, centroids, rng) @ part)
        else:
            rows.append(rotation.random_rotation(end - start, rng) @ part)
    return np.concatenate(rows)
