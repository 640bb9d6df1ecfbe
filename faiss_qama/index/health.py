"""Whether the vectors that an index holds are like those that its quantizer was fitted on, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Floats, row_norms
from faiss_qama.corpus import Corpus
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.factory import make_base
from faiss_qama.index import norms
from faiss_qama.index.norms import SAMPLE
from faiss_qama.index.saving import pieces
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.quantizer.calibration import KS, OVERSAMPLES, RECALL, K
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import make_rescorer
from faiss_qama.rescore.stored_vectors import StoredVectors

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig

LESS_RECALL, MORE_DISTORTION = 0.02, 0.2  # that change nothing; the second as a share of the fit's


@dataclass(frozen=True)
class Health:
    """What an index holds beside what its quantizer was fitted on. ``str`` says it in a line.

    Parameters
    ----------
    norms : tuple of float
        The root of the mean squared norm: of the fit, now.
    shift : float
        Distance of the mean from that of the fit, the spread of the vectors about their mean being 1.
    distortion : tuple of float
        As :meth:`~faiss_qama.Quantizer.distortion`: of the fit, now.
    recall : float or None
        Recall@10 that ``recall=0.95`` gets now, before what lists or a graph lose; None if the quantizer has no
        calibration.
    reachable : float
        The highest recall@10 that any number of candidates gets after ``recalibrate()``.
    """

    norms: tuple[float, float]
    shift: float
    distortion: tuple[float, float]
    recall: float | None
    reachable: float = 1.0

    @property
    def advice(self) -> str:
        """``keep``, ``recalibrate`` or ``refit``."""
        fitted, now = self.distortion
        if fitted and now > (1 + MORE_DISTORTION) * fitted:
            return "refit"
        if self.recall is not None and self.recall >= RECALL - LESS_RECALL:
            return "keep"
        return "recalibrate" if self.reachable >= RECALL else "refit"

    def __str__(self) -> str:
        recall = "no calibration" if self.recall is None else f"recall={RECALL} finds {self.recall:.3f}"
        norm, distortion = (f"{now:.3g} (fitted on {fitted:.3g})" for fitted, now in (self.norms, self.distortion))
        what = {
            "keep": "keep the quantizer",
            "recalibrate": "recalibrate() finds how many candidates are needed now",
            "refit": "refit() fits a new quantizer to what the index holds",
        }[self.advice]
        return f"{recall}, distortion {distortion}, norms {norm}, mean moved by {self.shift:.2f}: {what}"


def measured(core: TwoStageIndex, queries: ArrayLike | None) -> Health:
    """Return the health of an index that keeps vectors. Raises ValueError for others, and for too few to measure on."""
    quantizer, x = core.quantizer, sample(core, SAMPLE)
    mean = x.mean(axis=0)
    spread = float(np.mean(row_norms(x - mean) ** 2)) or 1.0
    made = _calibrated(quantizer, x, real_queries(quantizer, queries))
    recall, now, best = None, made[0].calibration, min(made, key=_candidates).calibration
    assert now is not None
    assert best is not None
    if quantizer.calibration is not None:
        at = np.searchsorted(OVERSAMPLES, _candidates(quantizer, now.n))
        recall = float(now.floats[KS.index(K)][min(at, len(OVERSAMPLES) - 1)])
    return Health(
        norms=(quantizer.rms_norm, float(np.sqrt(np.mean(row_norms(x) ** 2)))),
        shift=float(np.sqrt(np.sum((mean - quantizer.decoder.offset) ** 2) / spread)),
        distortion=(quantizer.fit_record.distortion, quantizer.distortion(x)),
        recall=recall,
        reachable=float(best.floats[KS.index(K)].max()),
    )


def real_queries(quantizer: Quantizer, queries: ArrayLike | None) -> Corpus | None:
    """Return queries (nq, d) as a corpus, if there are any."""
    asked = None if queries is None else Corpus(queries, quantizer.d, "queries", queries=True)
    return asked.normalized() if asked is not None and quantizer.cosine else asked


def recalibrated(quantizer: Quantizer, x: Floats, queries: Corpus | None) -> Quantizer:
    """Return the quantizer calibrated on vectors ``x`` (n, d); of any norm if that takes fewer candidates.

    Raises ValueError if too few vectors are there to hold any out.
    """
    return min(_calibrated(quantizer, x, queries), key=_candidates)


def _calibrated(quantizer: Quantizer, x: Floats, queries: Corpus | None) -> list[Quantizer]:
    """Return the quantizer calibrated on ``x`` as it is, and if norms are other than those of the fit, of any norm."""
    made = [quantizer]
    if norms.other_norms(quantizer, x, "none") is not None:
        made.append(quantizer.of_any_norm())
    found = [norms.calibration(one, x, queries) for one in made]
    if found[0] is None:
        raise ValueError(f"{len(x)} vectors are too few to calibrate on; 200 are needed")
    return [one.recalibrated(c, real_queries=queries is not None) for one, c in zip(made, found, strict=True) if c]


def _candidates(quantizer: Quantizer, n: int = 0) -> float:
    """Return the oversample that ``recall=0.95`` gets among ``n`` vectors; inf if none is enough."""
    assert quantizer.calibration is not None
    try:
        return quantizer.calibration.oversample(K, n, "floats", RECALL)
    except ValueError:
        return np.inf


def refitted(core: TwoStageIndex, config: FitConfig | None, queries: ArrayLike | None) -> Quantizer:
    """Return a quantizer fitted to the vectors that an index keeps, by default of the same layout and settings."""
    from faiss_qama.training import FitConfig, fit

    old, record = core.quantizer, core.quantizer.fit_record
    dims = record.matryoshka_dims
    config = config or FitConfig(
        layout=str(old.layout),
        matryoshka_dims=dims if isinstance(dims, str) else tuple(dims),
        center=record.center,
        projection=record.projection,
        rotation=record.rotation,
        thresholds=record.thresholds,
    )
    x = sample(core, config.sample_in(old.d), config.seed)
    return fit(x, config=config, metric="cosine" if old.cosine else old.metric, queries=queries, rescore=core.rescore)


def rebuilt(core: TwoStageIndex, quantizer: Quantizer) -> tuple[CodeIndex, StoredVectors, Iterator[NDArray[Any]]]:
    """Return an empty base and rescorer of a new quantizer, and the rows of the rescorer, which fill the base."""
    base = make_base(str(core.base), quantizer.layout)
    if not base.is_trained:
        base.train(quantizer.encode(sample(core, max(SAMPLE, 4 * getattr(base, "nlist", 0)))))
    base.set(core.base.settings)
    rescorer = make_rescorer(core.rescore, quantizer, base)
    assert isinstance(rescorer, StoredVectors)
    rows = core.id_map.live_rows

    def stored() -> Iterator[NDArray[Any]]:
        for some in pieces(rows, "encoding"):
            code, encoded = rescorer.encode_both(core.take(some))
            base.append(code)
            yield encoded

    return base, rescorer, stored()


def sample(core: TwoStageIndex, n: int, seed: int = 0) -> Floats:
    """Return up to ``n`` of the vectors that an index keeps, (n, d). Raises ValueError if it keeps none."""
    if not isinstance(core.rescorer, StoredVectors):
        raise ValueError(f"rescore={core.rescore!r} keeps no vectors to compare with; rescore='fp16' does")
    rows = core.id_map.live_rows
    if len(rows) < 2:
        raise ValueError(f"at least 2 vectors are needed; the index holds {len(rows)}")
    return core.take(np.sort(np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False)))
