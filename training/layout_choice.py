"""The layout of a code: named, by rule for a number of bytes, or the best of those measured on a sample."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeAlias

import numpy as np

from faiss_qama.arrays import are_normalized, row_norms
from faiss_qama.hamming.factory import AUTO, DEFAULT, check_memory, code_bytes
from faiss_qama.index_spec import IndexSpec
from faiss_qama.progress import progress
from faiss_qama.quantizer.calibration import KS, RECALL, Calibration, K
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.residual import residual_bytes
from faiss_qama.threads import one_blas_thread, parallel_map
from faiss_qama.training.calibrate import calibrate
from faiss_qama.training.candidate_layouts import (
    EARLY_SHARES,
    SMALLEST,
    default_layout,
    layouts_of_size,
    residual_layouts_of_size,
    trellis_layouts_of_size,
)
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.config import ROTATIONS, FitConfig
from faiss_qama.training.residual import with_residual
from faiss_qama.training.rotation import scatter_matrix
from faiss_qama.training.split import Split
from faiss_qama.training.thresholds import SINGLE

TRIAL_DOCUMENTS = 5_000  # that a layout is fitted to and measured on: about a second each
# Recalls closer than this are equal to some hundred queries. Among equals the first is taken: two bits, one code, which
# are the simplest and the fastest (the rule of one standard error; Breiman et al., "CART", 1984, section 3.4.3).
# A trellis that is best is taken.
SAME_RECALL = 0.01
SIZES = (1 / 24, 1 / 16, 1 / 12, 1 / 8, 3 / 16, 1 / 4)  # bytes to try, times d, where none are given
# If floats re-rank, any code reaches any recall with enough candidates. This many are cheap (docs/results).
MOST_CANDIDATES = 400

Candidate: TypeAlias = tuple[CodeLayout, str]  # a layout and a rotation


@dataclass(frozen=True, eq=False)
class LayoutTrial:
    """A layout and a rotation, as measured on a sample.

    Parameters
    ----------
    layout : CodeLayout
        The layout that was fitted.
    rotation : str
        The rotation inside its components: ``itq``, ``random`` or ``none``.
    bytes : int
        Bytes per vector: the code as the base index holds it, and the residual code.
    calibration : Calibration
        What was measured, at k = ``K`` alone.
    n : int
        Vectors in the corpus that the sample is of.
    """

    layout: CodeLayout
    rotation: str
    bytes: int
    calibration: Calibration
    n: int

    def recall(self, rescore: str = "codes") -> float:
        """Return the highest recall@10 without floats: of decoded codes, or with ``none`` of Hamming distances."""
        row = KS.index(K)
        return float(self.calibration.floats[row, 0] if rescore == "none" else self.calibration.codes[row].max())

    def candidates(self, recall: float = RECALL) -> float:
        """Return how many candidates floats must re-rank for this recall@10; inf if no number is enough."""
        try:
            return K * self.calibration.oversample(K, self.n, "floats", recall)
        except ValueError:
            return np.inf


@dataclass(frozen=True, eq=False)
class LayoutChoice:
    """The layouts that were tried, and the one that was taken.

    Parameters
    ----------
    trials : list of LayoutTrial
        All that was measured, by bytes.
    chosen : LayoutTrial
        The one of them that is taken.
    reason : str
        Why, in words.
    """

    trials: list[LayoutTrial]
    chosen: LayoutTrial
    reason: str

    def larger(self, recall: float, reached: float, most: int | None) -> LayoutChoice:
        """Return the next larger choice, after a fit whose codes alone reached less than on the sample.

        Parameters
        ----------
        recall : float
            The recall@10 to reach.
        reached : float
            The recall@10 of the fit of the chosen layout.
        most : int, optional
            The most bytes per vector.

        Returns
        -------
        LayoutChoice
            The same trials, and a chosen one of more bytes.

        Raises
        ------
        ValueError
            If no larger layout reached the recall on the sample.
        """
        larger = [t for t in self.trials if self.chosen.bytes < t.bytes <= (most or np.inf)]
        enough = [t for t in larger if t.recall() >= recall]
        if not enough:
            raise ValueError(
                f"recall {recall} takes more than the {self.chosen.bytes} bytes of {self.chosen.layout}, whose codes "
                f"reach {reached:.3f}; rescore from floats, or allow more bytes, or less recall"
            )
        chosen = min(enough, key=lambda t: (t.bytes, -t.recall()))
        why = f"recall@{K} {chosen.recall():.3f}; {self.chosen.layout} reached {reached:.3f} on the whole sample"
        return replace(self, chosen=chosen, reason=why)

    def applied_to(self, config: FitConfig) -> FitConfig:
        """Return ``config`` with the layout and the rotation that were taken."""
        return replace(config.at(self.chosen.layout), rotation=self.chosen.rotation)


def byte_budget(config: FitConfig, spec: IndexSpec) -> int | None:
    """Return the most bytes per vector of a layout that is to be chosen; None if there is no bound."""
    if config.layout is not None or spec.memory is None or (config.bytes is None and spec.recall is None):
        return config.bytes
    return int(min(spec.memory, config.bytes or spec.memory))


def planned_layout(config: FitConfig, spec: IndexSpec, d: int) -> CodeLayout:
    """Return the layout that is taken without measuring, and refuse settings that contradict each other.

    Parameters
    ----------
    config : FitConfig
        Settings of the fit.
    spec : IndexSpec
        The index that will hold the codes.
    d : int
        Dimension of the vectors.

    Returns
    -------
    CodeLayout
        The layout that ``config`` names, or the default one of so many bytes. A recall alone needs measuring: for it,
        the smallest layout.

    Raises
    ------
    ValueError
        For a recall, a memory or a number of bytes that cannot be, for settings that exclude each other, for a layout
        that ``d`` dimensions cannot have, and for a residual code that nothing reads.
    """
    if spec.recall is not None and not 0 < spec.recall < 1:
        raise ValueError(f"recall must be above 0 and below 1; got {spec.recall}")
    if spec.base == AUTO and spec.settings:
        raise ValueError(f"base auto sets {', '.join(spec.settings)} itself")
    if spec.base != AUTO and spec.memory is not None:
        raise ValueError(f"memory is for base auto; the base is {spec.base}")
    if spec.base != AUTO and spec.recall is not None and config.layout is not None:
        raise ValueError(
            f"recall chooses the layout, or base auto; the layout is {config.layout}, the base {spec.base}"
        )
    budget = byte_budget(config, spec)
    if budget is not None or (spec.recall is not None and config.layout is None):
        check_memory(SMALLEST, spec.memory)
        return SMALLEST if budget is None else default_layout(budget, d, spec.base)
    layout = config.layout_in(d)
    check_memory(layout, spec.memory)
    if layout.residual is not None and spec.rescore != "codes":
        raise ValueError(f"layout {layout}: only rescore codes reads its residual code, not {spec.rescore}")
    return layout


def choose_layout(
    split: Split, config: FitConfig, metric: int, n: int, spec: IndexSpec, *, compare: bool = False
) -> LayoutChoice | None:
    """Measure layouts on a sample, and two rotations of the best one, and take the best for the second stage.

    A number of bytes (``config.bytes``) gives the layout of highest recall if codes rank alone, and the one that needs
    the fewest candidates if floats re-rank. A recall gives the layout of fewest bytes that reaches it: alone, or with
    ``MOST_CANDIDATES``, or else with the fewest candidates. Takes about a second per layout.

    Parameters
    ----------
    split : Split
        The sample to fit on, and the queries to measure with.
    config : FitConfig
        Settings of the fit.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.
    n : int
        Vectors in the corpus.
    spec : IndexSpec
        The index that will hold the codes, and the recall that is wanted.
    compare : bool
        Measure other sizes too, for a report; also beside a layout that ``config`` names. Of each size it is the layout
        that is most like the chosen one.

    Returns
    -------
    LayoutChoice or None
        None if there is nothing to measure: the layout is given, or no queries are held out to measure with.

    Raises
    ------
    ValueError
        If no layout has so few bytes or reaches the recall, and for a recall if no queries are held out.
    """
    planned_layout(config, spec, split.train.shape[1])
    recall = spec.recall if config.layout is None else None
    budget = byte_budget(config, spec)
    free = budget is not None or recall is not None
    if not len(split.validation) and recall is not None:
        raise ValueError(f"a layout is chosen by measuring, on 200 documents or 60 queries; got {len(split.train)}")
    if not len(split.validation) or not (free or compare):
        return None
    d = split.train.shape[1]
    step = -(-len(split.train) // TRIAL_DOCUMENTS)
    small = replace(split, train=split.train[::step], share=split.share / step)
    sizes = _sizes(budget, d, spec.base, fewer=recall is not None, more=compare)
    of_size = _layouts_of_sizes(sizes, small, config, metric, spec)
    measure = partial(_measure, small=small, config=config, metric=metric, n=n, base=spec.base)
    goal = _Goal(spec.rescore, recall)
    if not free:
        layouts = [config.layout_in(d)]
    elif recall is None:
        assert budget is not None
        layouts = of_size.pop(budget)
    else:
        layouts = [layout for found in of_size.values() for layout in found]

    trials = measure([(layout, config.rotation) for layout in _with_dims(layouts, config, d)])
    chosen = trials[0]
    more: list[Candidate] = []
    if free:
        chosen = goal.best([t for t in trials if budget is None or t.bytes <= budget])
        if config.rotation != "none":
            more = [(chosen.layout, r) for r in ROTATIONS if r not in ("none", config.rotation)]
    if recall is None:  # other sizes, for a report
        alike = [_most_alike(layouts, chosen.layout) for layouts in of_size.values()]
        more += [(layout, config.rotation) for layout in _with_dims([chosen.layout, *alike], config, d)[1:]]
    trials += measure(more)
    chosen = min((t for t in trials if t.layout == chosen.layout), key=goal.cost)
    rivals = [
        f"{t.layout} {t.rotation}: {goal.worth(t)}" for t in trials if t.bytes == chosen.bytes and t is not chosen
    ]
    reason = goal.worth(chosen) + (f" ({', '.join(rivals)})" if rivals else "")
    return LayoutChoice(sorted(trials, key=lambda t: t.bytes), chosen, reason)


def _sizes(budget: int | None, d: int, base: str, *, fewer: bool, more: bool) -> list[int]:
    """Return the numbers of bytes to try: the budget, and others below it or on both sides."""
    sizes = {max(round(d * share), code_bytes(base, SMALLEST)) for share in SIZES}
    if budget is None:
        return sorted(sizes)
    return sorted({budget, *(size for size in sizes if more or (fewer and size < budget))})


def _layouts_of_sizes(
    sizes: list[int], small: Split, config: FitConfig, metric: int, spec: IndexSpec
) -> dict[int, list[CodeLayout]]:
    """Return the layouts to try for each number of bytes per vector."""
    x, single = small.train, config.thresholds in SINGLE
    d, shares = x.shape[1], (0.0,) if single else EARLY_SHARES
    found = {size: list(layouts_of_size(size, d, spec.base, shares)) for size in sizes}
    # After a training on pairs a residual code would bring documents back to what they were before.
    if spec.rescore == "codes" and not single and not len(small.train_qrels):
        smallest = replace(SMALLEST, residual=SMALLEST)
        norm_bytes = residual_bytes(smallest, metric, are_normalized(row_norms(x))) - code_bytes(DEFAULT, SMALLEST)
        scatter = scatter_matrix(x, x.mean(axis=0) * config.center)
        variances = np.linalg.eigvalsh(scatter)[::-1] if config.projection == "pca" else np.diag(scatter)
        for size, layouts in found.items():
            layouts += residual_layouts_of_size(size, d, spec.base, norm_bytes)
            if config.thresholds == "lloyd":
                layouts += trellis_layouts_of_size(size, variances, spec.base)
    return found


def _most_alike(layouts: list[CodeLayout], chosen: CodeLayout) -> CodeLayout:
    """Return the first of ``layouts`` whose segments have the bits of those of ``chosen``, or else the first."""

    def bits(layout: CodeLayout) -> list[list[str]]:
        return [[s.bits for s in part.segments] for part in (layout, layout.residual) if part is not None]

    return next((layout for layout in layouts if bits(layout) == bits(chosen)), layouts[0])


def _with_dims(layouts: list[CodeLayout], config: FitConfig, d: int) -> list[CodeLayout]:
    """Return each layout once that has the Matryoshka dimensions of ``config``. Raises ValueError if none has."""
    fitting, refused = [], None
    for layout in dict.fromkeys(layouts):
        try:
            fitting.append(config.at(layout).layout_in(d))
        except ValueError as error:
            refused = error
    if not fitting and refused is not None:
        raise refused
    return fitting


def _measure(
    candidates: list[Candidate], *, small: Split, config: FitConfig, metric: int, n: int, base: str
) -> list[LayoutTrial]:
    """Return a trial of each layout and rotation, as many at a time as FAISS may use threads."""
    config, normalized = replace(config, matryoshka_dims=(), train=None), are_normalized(row_norms(small.train))

    @cache  # one first code is tried with several residual codes
    def first_code(layout: CodeLayout, rotation: str) -> Quantizer:
        return closed_form(small, replace(config.at(layout), rotation=rotation), metric)

    def trial(candidate: Candidate) -> LayoutTrial:
        layout, rotation = candidate
        first = first_code(layout if layout.trellis else replace(layout, residual=None), rotation)
        quantizer = with_residual(first, layout.residual, small, replace(config, rotation=rotation))
        calibration = calibrate(quantizer, small, ks=(K,)).calibration
        assert calibration is not None
        bar.update()
        size = code_bytes(base, layout) + residual_bytes(layout, metric, normalized)
        return LayoutTrial(layout, rotation, size, calibration, n)

    # A trial keeps one thread busy; FAISS's are counted by FAISS.
    with one_blas_thread, progress(candidates, "choosing a layout") as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")  # the fit that follows says it once
        return parallel_map(trial, candidates)


@dataclass(frozen=True)
class _Goal:
    """What is best for a second stage, and enough for a recall."""

    rescore: str
    recall: float | None

    @property
    def codes_alone(self) -> bool:
        return self.rescore in ("codes", "none")

    def cost(self, trial: LayoutTrial) -> float:
        """Return what is to be small: minus the recall of codes alone, or the candidates that floats re-rank."""
        return -trial.recall(self.rescore) if self.codes_alone else trial.candidates(self.recall or RECALL)

    def worth(self, trial: LayoutTrial) -> str:
        return f"recall@{K} {-self.cost(trial):.3f}" if self.codes_alone else f"{self.cost(trial):.0f} candidates"

    def best(self, trials: list[LayoutTrial]) -> LayoutTrial:
        """Return the first of the best, or with a recall that of fewest bytes. Raises ValueError if none reaches it."""
        nearest = min(trials, key=self.cost)
        if self.recall is None:
            if nearest.layout.trellis:
                return nearest
            near = self.cost(nearest) + SAME_RECALL * self.codes_alone
            return next(t for t in trials if self.cost(t) <= near and not t.layout.trellis)
        if self.cost(nearest) > (-self.recall if self.codes_alone else np.finfo(np.float64).max):
            raise ValueError(
                f"recall {self.recall} takes more than the {nearest.bytes} bytes of {nearest.layout}, which comes "
                f"nearest: {self.worth(nearest)}; "
                f"{'rescore from floats, or ' if self.codes_alone else ''}allow more bytes, or less recall"
            )
        enough = [t for t in trials if self.cost(t) <= (-self.recall if self.codes_alone else MOST_CANDIDATES)]
        return min(enough or [nearest], key=lambda trial: (trial.bytes, self.cost(trial)))
