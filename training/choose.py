"""Which layout and which rotation: by measuring the sensible ones on a sample of the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from faiss_qama.bases import DEFAULT, code_bytes
from faiss_qama.calibration import KS, Calibration
from faiss_qama.layout import CodeLayout
from faiss_qama.progress import progress
from faiss_qama.quantizer import lengths
from faiss_qama.residual import residual_bytes
from faiss_qama.training.calibrate import calibrate
from faiss_qama.training.closed_form import are_units, closed_form
from faiss_qama.training.config import FitConfig
from faiss_qama.training.data import Draw
from faiss_qama.training.residual import with_residual
from faiss_qama.training.thresholds import SINGLE
from faiss_qama.tuning import RECALL

K = 10
SAMPLE = 5_000  # documents that a trial is fitted to and measured on: about a second each
SHARES = (1.0, 2 / 3, 0.5, 0.0)  # of the bytes, that go to components of more than two levels
# Of the bytes, what goes to the first of two codes, where codes of a residual are tried: with so many bytes times d or
# more, as of fewer two bytes of length are too many (docs/results). They take more time than one code of as many bytes,
# and must find so much more.
FIRST, LEAST, WORTH = (1 / 2, 1 / 3), 1 / 10, 0.01
SIZES = (1 / 24, 1 / 16, 1 / 12, 1 / 8, 3 / 16, 1 / 4)  # bytes to try where none are asked for, times d
# Where floats rescore, any code reaches any recall if enough candidates are scored. So many are cheap (docs/results).
MOST_CANDIDATES = 400
ROTATIONS = ("itq", "random")


@dataclass(frozen=True, eq=False)
class Trial:
    """A layout and a rotation, as measured on a sample.

    Parameters
    ----------
    layout, rotation : what was fitted
    bytes : a vector, as the base holds its code
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
class Choice:
    """What was tried, and what was taken of it.

    Parameters
    ----------
    trials : all that was measured, by bytes
    chosen : the one of them that is taken
    reason : why, in words
    """

    trials: list[Trial]
    chosen: Trial
    reason: str

    def applied_to(self, config: FitConfig) -> FitConfig:
        """Return ``config`` with the layout and the rotation that were taken."""
        return replace(config, layout=self.chosen.layout, rotation=self.chosen.rotation, bytes=None)


def choose(
    drawn: Draw,
    config: FitConfig,
    metric: int,
    n: int,
    *,
    base: str = DEFAULT,
    rescore: str = "codes",
    recall: float | None = None,
    compare: bool = False,
) -> Choice:
    """Try layouts, and of the best one other rotations, and take what is best for the second stage ``rescore``.

    With ``config.bytes`` that is, where codes rank alone, what finds most, and where floats rescore, what needs the
    fewest candidates. With ``recall`` it is what takes the fewest bytes, of at most ``config.bytes``, to reach it:
    alone, or by ``MOST_CANDIDATES``, or else by the fewest there are. With neither it is the layout of ``config``, and
    the others are for comparison.

    Parameters
    ----------
    drawn : what is fitted on, with held-out queries
    n : vectors in the corpus
    base : what will hold the codes
    compare : try layouts of more and of fewer bytes too, to compare with

    Raises ValueError where nothing fits the bytes or reaches the recall, and where no queries are held out.
    """
    d = drawn.train.shape[1]
    if not len(drawn.calibration):
        raise ValueError(f"a layout is chosen by measuring, on 200 documents or 60 queries; got {len(drawn.train)}")
    small = replace(drawn, train=drawn.train[:: -(-len(drawn.train) // SAMPLE)])
    free, goal = config.bytes is not None or recall is not None, _Goal(rescore, recall)
    own = [] if free else [str(config.layout_in(d))]
    sizes = _sizes(config, d, recall, compare)
    shares = (0.0,) if config.thresholds in SINGLE else SHARES
    layouts = own + [layout for size in sizes for layout in layouts_within(size, d, base, shares)]
    unit = are_units(lengths(small.train))
    if config.residual and rescore == "codes" and config.thresholds not in SINGLE:
        length = residual_bytes(CodeLayout.parse("1x1"), metric, unit) - code_bytes(DEFAULT, CodeLayout.parse("1x1"))
        layouts += [layout for size in sizes for layout in residuals_within(size, d, base, length)]
    if config.bytes is not None and not any(layouts_within(config.bytes, d, base)):
        least = code_bytes(base, CodeLayout.parse("1x1"))
        raise ValueError(f"bytes: base {base} takes {least} a code at least; got {config.bytes}")

    def trial(layout: str, rotation: str) -> Trial:
        settings = replace(config, layout=layout, rotation=rotation, bytes=None, slices=(), train=None)
        parsed = CodeLayout.parse(layout)
        quantizer = with_residual(closed_form(small, settings, metric), parsed.residual, small, settings)
        calibration = calibrate(quantizer, small).calibration
        assert calibration is not None
        size = code_bytes(base, parsed) + residual_bytes(parsed.residual, metric, unit)
        return Trial(layout, rotation, size, calibration, n)

    trials = [trial(layout, config.rotation) for layout in progress(list(dict.fromkeys(layouts)), "choosing a layout")]
    within = [t for t in trials if config.bytes is None or t.bytes <= config.bytes]
    chosen = goal.best(within) if free else trials[0]
    if free and config.rotation != "none":
        trials += [trial(chosen.layout, rotation) for rotation in ROTATIONS if rotation != config.rotation]
        chosen = min((t for t in trials if t.layout == chosen.layout), key=goal.cost)
    rivals = [f"{t.layout} {t.rotation} {goal.worth(t)}" for t in trials if t.bytes == chosen.bytes and t is not chosen]
    reason = goal.worth(chosen) + (f" ({', '.join(rivals)})" if rivals else "")
    return Choice(sorted(trials, key=lambda t: t.bytes), chosen, reason)


@dataclass(frozen=True)
class _Goal:
    """What is best for a second stage, and enough for a recall."""

    rescore: str
    recall: float | None

    @property
    def alone(self) -> bool:
        return self.rescore in ("codes", "none")

    def cost(self, trial: Trial) -> float:
        return -trial.recall(self.rescore) if self.alone else trial.candidates(self.recall or RECALL)

    def worth(self, trial: Trial) -> str:
        return f"recall@{K} {-self.cost(trial):.3f}" if self.alone else f"{self.cost(trial):.0f} candidates"

    def best(self, trials: list[Trial]) -> Trial:
        """Return the best, or with a recall the one of the fewest bytes. Raises ValueError if none reaches it."""
        if self.recall is None:
            return min(trials, key=lambda trial: self.cost(trial) + WORTH * ("+" in trial.layout))
        nearest = min(trials, key=self.cost)
        if self.cost(nearest) > (-self.recall if self.alone else np.finfo(np.float32).max):
            raise ValueError(
                f"recall {self.recall} takes more than the {nearest.bytes} bytes of {nearest.layout}, which comes "
                f"nearest: {self.worth(nearest)}; "
                f"{'rescore from floats, or ' if self.alone else ''}allow more bytes, or less recall"
            )
        enough = [t for t in trials if self.cost(t) <= (-self.recall if self.alone else MOST_CANDIDATES)]
        return min(enough or [nearest], key=lambda trial: (trial.bytes, self.cost(trial)))


def layouts_within(size: int, d: int, base: str = DEFAULT, shares: Sequence[float] = SHARES) -> Iterator[str]:
    """Yield layouts of up to ``d`` components whose codes ``base`` holds in ``size`` bytes or a little less.

    Early components, ``shares`` of the bytes, have four levels, or three where ``base`` holds those in fewer bytes; the
    others have two.
    """
    counts = [*range(8, d, 8), d]

    def text(bits: str, early: int, late: int) -> str:
        return ",".join(f"{b}x{count}" for b, count in ((bits, early), ("1", late)) if count)

    def held(bits: str, early: int, late: int) -> int:
        return code_bytes(base, CodeLayout.parse(text(bits, early, late)))

    for bits in ("2", "1.5"):
        if bits == "1.5" and held("1.5", 32, 0) == held("2", 32, 0):
            continue
        for share in shares:
            early = max((c for c in counts if held(bits, c, 0) <= share * size), default=0)
            late = max((c for c in counts if c <= d - early and held(bits, early, c) <= size), default=0)
            if early + late:
                yield text(bits, early, late)


def residuals_within(size: int, d: int, base: str, length: int) -> Iterator[str]:
    """Yield layouts of two codes, the second of what the first leaves over, in ``size`` bytes or a little less.

    ``length`` is the bytes of the length that is kept beside them.
    """
    for share in FIRST if size >= LEAST * d else ():
        for first in layouts_within(int(share * size), d, base, (1.0,)):
            left = size - code_bytes(base, CodeLayout.parse(first)) - length
            yield from (f"{first}+{second}" for second in layouts_within(left, d, shares=(1.0, 0.0)))


def _sizes(config: FitConfig, d: int, recall: float | None, compare: bool) -> list[int]:
    """Return how many bytes to try."""
    sizes = [round(d * share) for share in SIZES]
    if config.bytes is None:
        return sizes
    fewer = recall is not None
    return sorted({config.bytes, *(s for s in sizes if compare or (fewer and s < config.bytes))})
