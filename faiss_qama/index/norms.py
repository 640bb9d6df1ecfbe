"""Vectors that are added to an index, but have other norms than those that its quantizer was fitted on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, row_norms
from faiss_qama.corpus import Corpus
from faiss_qama.quantizer.calibration import Calibration
from faiss_qama.quantizer.quantizer import Quantizer

FEW = 20  # vectors that do not tell how long vectors are, where those of the fit have no norm of 1
NEAR_ONE = 0.01  # difference of a norm from 1 that does not show in a recall
NORM_RATIO = 2.0  # of norms to those of the fit; beyond it codes lose the order of distances
SAMPLE = 20_000  # vectors to calibrate on: a second or two
MANY = 200  # vectors of which enough can be held out to calibrate
ENOUGH = 2000  # vectors to calibrate on, after which more change little


@dataclass(frozen=True)
class Watch:
    """The vectors that an index got since their norms were last looked at, however many calls brought them.

    It is a value, so that vectors that are refused change nothing.

    Parameters
    ----------
    fitted : Quantizer
        The quantizer as it was fitted.
    quantizer : Quantizer
        The quantizer to go on with: ``fitted``, or adapted to the norms of what was added.
    told : bool
        Whether a warning was given.
    looked : bool
        Whether vectors that the index held before were looked at.
    rows : tuple of ndarray of shape (n, d), float32
        The vectors.
    n : int
        Number of these vectors.
    due : int or None
        Number of vectors at which their norms are looked at next; None for never.
    """

    fitted: Quantizer
    quantizer: Quantizer
    told: bool = False
    looked: bool = False
    rows: tuple[Floats, ...] = ()
    n: int = 0
    due: int | None = 0

    def after(self, x: Floats, rescore: str, latest: Callable[[], Floats]) -> Watch:
        """Return the state once ``x`` (n, d) is added; warn once of norms unlike those of the fit.

        The quantizer is adapted to 200 or more vectors of such norms, and again when these are twice as many, up to
        2,000. ``rescore`` is the kind of the second stage, and ``latest`` returns the vectors (m, d) that the index got
        last: those of such norms count too, as an index may have been closed since.
        """
        if self.due is None:
            return self
        n = self.n + len(x)
        if n < self.due or (n < FEW and not self.fitted.normalized):
            return replace(self, rows=(*self.rows, x.copy()), n=n)
        x = np.concatenate((*self.rows, x)) if self.rows else x
        message = other_norms(self.fitted, x, rescore)
        if message is not None and not self.looked:
            earlier = latest()
            earlier = earlier[_unlike(self.fitted, row_norms(earlier))]
            if self.fitted.is_of_any_norm and len(earlier) >= ENOUGH:
                return replace(self, due=None)
            x = np.concatenate((earlier, x[self.n :]))
            n = len(x)
        told, looked = self.told or message is not None, self.looked or message is not None
        if message is not None and not self.told:
            warnings.warn(message, stacklevel=4)
        if message is not None and n < MANY:
            return replace(self, told=told, looked=looked, rows=(x.copy(),), n=n, due=MANY)
        quantizer = None if message is None else adapted(self.fitted, x)
        if quantizer is None:
            return Watch(self.fitted, self.quantizer, told, looked, due=max(self.due, MANY) if told else 0)
        if n < ENOUGH:
            return Watch(self.fitted, quantizer, told, looked, (x.copy(),), n, due=2 * n)
        return Watch(self.fitted, quantizer, told, looked, due=None)


def other_norms(quantizer: Quantizer, x: Floats, rescore: str) -> str | None:
    """Return what to warn of before ``x`` (n, d) is added; None if its norms are those of the fit.

    ``rescore`` is the kind of the second stage.
    """
    norms = row_norms(x)
    norms = norms[norms > 0]
    if quantizer.normalized:
        alike, fitted = not _odd(norms).any(), "norm 1"
    else:
        fitted = f"norm {quantizer.rms_norm:.3g} in the mean"
        alike = len(norms) < FEW or not _unlike(quantizer, np.sqrt(np.mean(norms**2, keepdims=True))).any()
    if alike:
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
    if len(x) < 2 or (quantizer.normalized and np.mean(_odd(row_norms(x))) <= 0.5):
        return None
    quantizer = quantizer.of_any_norm() if quantizer.normalized else quantizer
    with np.errstate(over="ignore", invalid="ignore"):  # what cannot be stored is refused where it is stored
        found = calibration(quantizer, x)
    return None if found is None else quantizer.recalibrated(found)


def calibration(quantizer: Quantizer, x: Floats, queries: Corpus | None = None) -> Calibration | None:
    """Return a calibration of ``quantizer`` on vectors ``x`` (n, d); None if too few can be held out."""
    from faiss_qama.training.calibrate import calibrate  # here, because run time does not depend on training
    from faiss_qama.training.split import split_corpus

    split = split_corpus(Corpus(x), queries, SAMPLE, 0)
    prefixes = [] if quantizer.calibration is None else list(quantizer.calibration.prefixes)
    return calibrate(quantizer, split, prefixes).calibration if len(split.validation) else None


def _unlike(quantizer: Quantizer, norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which ``norms`` (n,) are unlike those of the fit."""
    if quantizer.normalized:
        return _odd(norms)
    ratio = norms / quantizer.rms_norm
    return (ratio < 1 / NORM_RATIO) | (ratio > NORM_RATIO)


def _odd(norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which ``norms`` (n,) are not near 1; zero vectors are near enough."""
    odd: NDArray[np.bool_] = (norms > 0) & (np.abs(norms - 1) >= NEAR_ONE)
    return odd
