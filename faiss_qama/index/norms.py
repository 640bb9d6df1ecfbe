"""Vectors that are added to an index, but have other norms than those that its quantizer was fitted on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, row_norms
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.vectors import Corpus

FEW = 20  # vectors that do not tell how long vectors are, where those of the fit have no norm of 1
NEAR_ONE = 0.01  # difference of a norm from 1 that does not show in a recall
NORM_RATIO = 2.0  # of norms to those of the fit; beyond it codes lose the order of distances
SAMPLE = 20_000  # vectors to calibrate on: a second or two


def other_norms(quantizer: Quantizer, x: Floats, rescore: str) -> str | None:
    """Return what to warn of before ``x`` (n, d) is added; None if its norms are those of the fit.

    ``rescore`` is the kind of the second stage.
    """
    norms = row_norms(x)
    if quantizer.normalized:
        alike, fitted = not _odd(norms).any(), "norm 1"
    else:
        ratio, fitted = np.sqrt(np.mean(norms**2)) / quantizer.rms_norm, f"norm {quantizer.rms_norm:.3g} in the mean"
        alike = len(x) < FEW or 1 / NORM_RATIO <= ratio <= NORM_RATIO
    if alike or not norms.any():
        return None
    codes = ", and codes re-rank as if norms were 1" if quantizer.normalized and rescore == "codes" else ""
    return (
        f"vectors of norm {norms.min():.4g} to {norms.max():.4g} are added, but the quantizer was fitted on "
        f"vectors of {fitted}: a recall needs more candidates{codes}; fit on vectors like these, or scale them"
    )


def adapted(quantizer: Quantizer, x: Floats) -> Quantizer | None:
    """Return the quantizer for vectors with the norms of ``x`` (n, d), calibrated on a sample of it.

    None if most of ``x`` have norm 1, as those of the fit, or if they are too few to calibrate on. The codes of
    documents stay. Under the inner product, queries of a quantizer for norm 1 are encoded for any norm.
    """
    from faiss_qama.training.calibrate import calibrate  # here, because run time does not depend on training
    from faiss_qama.training.split import split_corpus

    if len(x) < 2 or (quantizer.normalized and np.mean(_odd(row_norms(x))) <= 0.5):
        return None
    split = split_corpus(Corpus(x), None, SAMPLE, 0)
    if not len(split.validation):
        return None
    prefixes = [] if quantizer.calibration is None else list(quantizer.calibration.prefixes)
    with np.errstate(over="ignore", invalid="ignore"):  # what cannot be stored is refused where it is stored
        return calibrate(quantizer.of_any_norm() if quantizer.normalized else quantizer, split, prefixes)


def _odd(norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which ``norms`` (n,) are not near 1; zero vectors are near enough."""
    odd: NDArray[np.bool_] = (norms > 0) & (np.abs(norms - 1) >= NEAR_ONE)
    return odd
