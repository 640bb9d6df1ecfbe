"""Which layout and which rotation: by measuring the sensible ones on a sample of the corpus."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from threadpoolctl import ThreadpoolController

from faiss_qama.arrays import row_norms
from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.progress import progress
from faiss_qama.quantizer.calibration import KS, RECALL, Calibration
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.residual import residual_bytes
from faiss_qama.threads import parallel_map
from faiss_qama.training.calibrate import calibrate
from faiss_qama.training.candidate_layouts import SHARES, default_layout, layouts_of_size, residual_layouts_of_size
from faiss_qama.training.closed_form import are_normalized, closed_form
from faiss_qama.training.config import FitConfig
from faiss_qama.training.residual import with_residual
from faiss_qama.training.split import Split
from faiss_qama.training.thresholds import SINGLE

K = 10
SAMPLE = 5_000  # documents that a trial is fitted to and measured on: about a second each
# Recalls that some hundred queries tell apart. Of what is as good but for that the first is taken: two bits, one code,
# which are the simplest and the fastest (the rule of one standard error; Breiman et al., "CART", 1984, section 3.4.3).
WORTH = 0.01
SIZES = (1 / 24, 1 / 16, 1 / 12, 1 / 8, 3 / 16, 1 / 4)  # bytes to try where none are asked for, times d
# Where floats rescore, any code reaches any recall if enough candidates are scored. So many are cheap (docs/results).
MOST_CANDIDATES = 400
ROTATIONS = ("itq", "random")


@dataclass(frozen=True, eq=False)
class LayoutTrial:
    """A layout and a rotation, as measured on a sample.

    Parameters
    ----------
    layout, rotation : what was fitted
    bytes : a vector, of its code as the base holds it and of a second code
    calibration : what was measured
    n : vectors in the corpus that the sample is of
    """

    layout: str
    rotation: str
    bytes: int
    calibration: Calibration
    n: int

    def recall(self, rescore: str = "codes") -> float:
        """Return recall@10 of all that codes can do alone: decoded, or with ``none`` by their Hamming distance."""
        row = KS.index(K)
        return float(self.calibration.floats[row, 0] if rescore == "none" else self.calibration.codes[row].max())

    def candidates(self, recall: float = RECALL) -> float:
        """Return how many candidates have to be scored again by their floats for this recall@10; inf if none do."""
        try:
            return K * self.calibration.oversample(K, self.n, "floats", recall)
        except ValueError:
            return np.inf


@dataclass(frozen=True, eq=False)
class LayoutChoice:
    """What was tried, and what was taken of it.

    Parameters
    ----------
    trials : all that was measured, by bytes
    chosen : the one of them that is taken
    reason : why, in words
    """

    trials: list[LayoutTrial]
    chosen: LayoutTrial
    reason: str

    def larger(self, recall: float, reached: float, most: int | None) -> LayoutChoice:
        """Return the next choice, for a ``recall`` of codes alone of which the fit of the chosen one ``reached`` less.

        Raises ValueError if there is none of more bytes, and of ``most`` at most.
        """
        larger = [t for t in self.trials if self.chosen.bytes < t.bytes <= (most or np.inf)]
        rest = [t for t in larger if t.recall() >= recall]
        if not rest:
            raise ValueError(
                f"recall {recall} takes more than the {self.chosen.bytes} bytes of {self.chosen.layout}, whose codes "
                f"reach {reached:.3f}; rescore from floats, or allow more bytes, or less recall"
            )
        chosen = min(rest, key=lambda t: (t.bytes, -t.recall()))
        why = f"recall@{K} {chosen.recall():.3f}; {self.chosen.layout} reached {reached:.3f} on all that was split"
        return replace(self, chosen=chosen, reason=why)

    def applied_to(self, config: FitConfig) -> FitConfig:
        """Return ``config`` with the layout and the rotation that were taken."""
        return replace(config, layout=self.chosen.layout, rotation=self.chosen.rotation, bytes=None)


def choose(
    split: Split,
    config: FitConfig,
    metric: int,
    n: int,
    *,
    base: str = DEFAULT,
    rescore: str = "codes",
    recall: float | None = None,
    compare: bool = False,
) -> LayoutChoice:
    """Try layouts, and of the best one other rotations, and take what is best for the second stage ``rescore``.

    With ``config.bytes`` that is, where codes rank alone, what finds most, and where floats rescore, what needs the
    fewest candidates. With ``recall`` it is what takes the fewest bytes, of at most ``config.bytes``, to reach it:
    alone, or by ``MOST_CANDIDATES``, or else by the fewest there are. With neither it is the layout of ``config``, and
    the others are for comparison.

    Parameters
    ----------
    split : what is fitted on, with held-out queries
    n : vectors in the corpus
    base : what will hold the codes
    compare : try layouts of more and of fewer bytes too, to compare with

    Raises ValueError where nothing fits the bytes or reaches the recall, and where no queries are held out.
    """
    d = split.train.shape[1]
    if not len(split.validation):
        raise ValueError(f"a layout is chosen by measuring, on 200 documents or 60 queries; got {len(split.train)}")
    small = replace(split, train=split.train[:: -(-len(split.train) // SAMPLE)])
    free, goal = config.bytes is not None or recall is not None, _Goal(rescore, recall)
    own = [] if free else [str(config.layout_in(d))]
    sizes = [max(size, code_bytes(base, CodeLayout.parse("1x1"))) for size in _sizes(config, d, recall, compare)]
    unit = are_normalized(row_norms(small.train))

    def of_size(size: int) -> list[str]:
        single = config.thresholds in SINGLE
        found = list(layouts_of_size(size, d, base, (0.0,) if single else SHARES))
        if config.residual and rescore == "codes" and not single:
            one = CodeLayout.parse("1x1")
            found += residual_layouts_of_size(
                size, d, base, residual_bytes(one, metric, unit) - code_bytes(DEFAULT, one)
            )
        return found

    layouts = own + [layout for size in sizes for layout in of_size(size)]
    if config.bytes is not None:
        default_layout(config.bytes, d, base)  # raises where there is none
    layouts = _with_slices(list(dict.fromkeys(layouts)), config, d)

    tried = partial(_tried, small=small, config=config, metric=metric, base=base, n=n)
    trials = tried([(layout, config.rotation) for layout in layouts])
    within = [t for t in trials if config.bytes is None or t.bytes <= config.bytes]
    if config.bytes is not None and recall is None:
        wanted = of_size(config.bytes)
        within = [t for t in within if t.layout in wanted]
    chosen = goal.best(within) if free else trials[0]
    if free and config.rotation != "none":
        trials += tried([(chosen.layout, rotation) for rotation in ROTATIONS if rotation != config.rotation])
        chosen = min((t for t in trials if t.layout == chosen.layout), key=goal.cost)
    rivals = [f"{t.layout} {t.rotation} {goal.worth(t)}" for t in trials if t.bytes == chosen.bytes and t is not chosen]
    reason = goal.worth(chosen) + (f" ({', '.join(rivals)})" if rivals else "")
    return LayoutChoice(sorted(trials, key=lambda t: t.bytes), chosen, reason)


def _tried(
    names: list[tuple[str, str]], *, small: Split, config: FitConfig, metric: int, base: str, n: int
) -> list[LayoutTrial]:
    """Return a trial of each layout and rotation, as many at a time as FAISS may use threads."""
    config, unit = replace(config, bytes=None, matryoshka_dims=(), train=None), are_normalized(row_norms(small.train))

    @cache  # alone and before different second codes
    def first(layout: CodeLayout, rotation: str) -> Quantizer:
        return closed_form(small, replace(config, layout=str(layout), rotation=rotation), metric)

    def trial(name: tuple[str, str]) -> LayoutTrial:
        layout, rotation = CodeLayout.parse(name[0]), name[1]
        alone = first(replace(layout, residual=None), rotation)
        quantizer = with_residual(alone, layout.residual, small, replace(config, rotation=rotation))
        calibration = calibrate(quantizer, small).calibration
        assert calibration is not None
        bar.update()
        size = code_bytes(base, layout) + residual_bytes(layout.residual, metric, unit)
        return LayoutTrial(*name, size, calibration, n)

    # A trial keeps one thread busy. Numpy's would wait for each other; FAISS's are counted by FAISS.
    one_thread = ThreadpoolController().select(threading_layer="pthreads").limit(limits=1)
    with one_thread, progress(names, "choosing a layout") as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")  # the fit that follows says it once
        return parallel_map(trial, names)


@dataclass(frozen=True)
class _Goal:
    """What is best for a second stage, and enough for a recall."""

    rescore: str
    recall: float | None

    @property
    def alone(self) -> bool:
        return self.rescore in ("codes", "none")

    def cost(self, trial: LayoutTrial) -> float:
        return -trial.recall(self.rescore) if self.alone else trial.candidates(self.recall or RECALL)

    def worth(self, trial: LayoutTrial) -> str:
        return f"recall@{K} {-self.cost(trial):.3f}" if self.alone else f"{self.cost(trial):.0f} candidates"

    def best(self, trials: list[LayoutTrial]) -> LayoutTrial:
        """Return the first of the best, or with a recall that of fewest bytes. Raises ValueError if none reaches it."""
        nearest = min(trials, key=self.cost)
        if self.recall is None:
            return next(t for t in trials if self.cost(t) <= self.cost(nearest) + WORTH * self.alone)
        if self.cost(nearest) > (-self.recall if self.alone else np.finfo(np.float64).max):
            raise ValueError(
                f"recall {self.recall} takes more than the {nearest.bytes} bytes of {nearest.layout}, which comes "
                f"nearest: {self.worth(nearest)}; "
                f"{'rescore from floats, or ' if self.alone else ''}allow more bytes, or less recall"
            )
        enough = [t for t in trials if self.cost(t) <= (-self.recall if self.alone else MOST_CANDIDATES)]
        return min(enough or [nearest], key=lambda trial: (trial.bytes, self.cost(trial)))


def _with_slices(layouts: list[str], config: FitConfig, d: int) -> list[str]:
    """Return the layouts that have a border at each slice. Raises ValueError if none has."""
    fitting, refused = [], None
    for layout in layouts:
        try:
            replace(config, layout=layout, bytes=None).layout_in(d)
            fitting.append(layout)
        except ValueError as error:
            refused = error
    if not fitting and refused is not None:
        raise refused
    return fitting


def _sizes(config: FitConfig, d: int, recall: float | None, compare: bool) -> list[int]:
    """Return how many bytes to try."""
    sizes = [round(d * share) for share in SIZES]
    if config.bytes is None:
        return sizes
    fewer = recall is not None
    return sorted({config.bytes, *(s for s in sizes if compare or (fewer and s < config.bytes))})
