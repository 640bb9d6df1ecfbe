"""TrainConfig: the settings of a training, in FitConfig under ``train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.training.settings import as_number, check_types, from_mapping
from faiss_qama.vectors import PathLike

SCORE_LOSSES = ("mse", "kl", "distillation", "rank", "correlation", "contrastive")
STAGES = ("float", "adc", "hamming")
CODE_LOSSES = (
    "information_bottleneck",
    "orthogonality",
    "variance",
    "quantization",
    "balance",
    "decorrelation",
    "reconstruction",
)
LOSSES = (*(f"{stage}.{loss}" for stage in STAGES for loss in SCORE_LOSSES), *CODE_LOSSES)
ADAPTERS = ("none", "linear", "residual", "feedforward", "bottleneck")
QUANTIZERS = ("straight-through", "sigmoid", "tanh", "stochastic")
THRESHOLD_UPDATES = ("learned", "moving", "fixed")

MIN_POSITIVE = 1e-8  # of what must be above 0

Schedule: TypeAlias = tuple[float, float]  # at the start and at the end, linear between
DEFAULT_LOSSES = {
    "adc.contrastive": (1.0, 1.0),
    "adc.distillation": (1.0, 1.0),
    "hamming.contrastive": (0.1, 0.1),
    "hamming.distillation": (0.1, 0.1),
}


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Settings of adaptive pruning, for layouts of 1 bit; see :mod:`faiss_qama.training.published.pruning`.

    Parameters
    ----------
    base, decay : float
        Component i is pruned if its importance is below base * (1 + epoch / epochs) * exp(decay * i).
    start : float
        Share of the epochs after which pruning begins.
    gradient, magnitude : float
        Weights of the gradient and the magnitude in the importance.
    regularisation : float
        Weight of the loss on scales and thresholds.
    """

    base: float = 0.1
    decay: float = 0.01
    start: float = 0.5
    gradient: float = 0.5
    magnitude: float = 0.5
    regularisation: float = 0.001

    def __post_init__(self) -> None:
        check_types(self, "pruning.")
        for f in fields(self):
            most = 1 if f.name == "start" else 1e6
            if not 0 <= getattr(self, f.name) <= most:
                raise ValueError(f"pruning.{f.name} must be from 0 to {most:g}; got {getattr(self, f.name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training, which starts from the quantizer without training.

    Weights and temperatures are one number, or [first, last] for one that moves linearly from step to step.

    Parameters
    ----------
    adapter : str
        The map before the thresholds, of ``ADAPTERS``. With ``none`` documents keep their codes, and only the query
        side is trained.
    expansion : float
        Hidden units of ``residual`` and ``feedforward``, as a multiple of the dimension.
    query_side : bool
        Whether queries get maps of their own: one to their codes, and one for scoring decoded documents.
    losses : mapping of str to float
        Weights by name, of ``LOSSES``: a score loss on ``float``, ``adc`` or ``hamming`` scores, or a code loss.
    score_temperature : float
        Divisor of scores in the softmaxes of score losses, in units of the corpus' variance.
    matryoshka_power : float
        The weight of a Matryoshka dimension is its number of components to this power.
    quantizer : str
        How gradients pass the thresholds, of ``QUANTIZERS``.
    temperature : float
        Width of soft thresholds, in standard deviations of a column.
    thresholds : str
        ``learned``; ``moving`` keeps the share of documents below each threshold; or ``fixed``.
    momentum : float
        Momentum of the average behind ``moving``.
    batch_size : int
        Queries per step, real or documents.
    hard_negatives : int
        Documents per query that are taken from its nearest ones.
    random_negatives : int
        Random documents per step.
    documents_as_queries : float
        Share of the queries of a step that are documents, where there are real queries; otherwise all are.
    noise : float
        How far documents that stand in for queries are moved, as a multiple of their distance from the centre.
    learning_rate, weight_decay : float
        Of AdamW.
    warmup_steps : int
        Steps in which the learning rate rises linearly.
    max_grad_norm : float
        Norm that gradients are clipped to.
    epochs, steps_per_epoch : int
        Length of the training, at most. After each epoch the validation queries are measured.
    patience : int
        Epochs without improvement after which the training stops.
    pruning : PruningConfig, or mapping, optional
        Adaptive pruning.
    checkpoint : str or Path, optional
        Folder for a checkpoint and a log. A training that was interrupted resumes from there. It changes no result, so
        it is no part of the record of a fit.
    """

    adapter: str = "linear"
    expansion: float = 2.0
    query_side: bool = True
    losses: Mapping[str, Schedule] = field(default_factory=lambda: DEFAULT_LOSSES)
    score_temperature: Schedule = (0.06, 0.06)
    matryoshka_power: float = 0.5
    quantizer: str = "straight-through"
    temperature: Schedule = (1.0, 1.0)
    thresholds: str = "learned"
    momentum: float = 0.99
    batch_size: int = 512
    hard_negatives: int = 1
    random_negatives: int = 1024
    documents_as_queries: float = 0.0
    noise: float = 0.0
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    warmup_steps: int = 50
    max_grad_norm: float = 1.0
    epochs: int = 30
    steps_per_epoch: int = 50
    patience: int = 6
    pruning: PruningConfig | None = None
    checkpoint: PathLike | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.losses, Mapping):
            raise TypeError(f"losses: a mapping of weights by name is needed; got {self.losses!r}")
        losses = {name: _schedule(f"losses.{name}", weight) for name, weight in self.losses.items()}
        object.__setattr__(self, "losses", losses)
        for name in ("score_temperature", "temperature"):
            object.__setattr__(self, name, _schedule(name, getattr(self, name)))
        if self.pruning is not None and not isinstance(self.pruning, PruningConfig):
            object.__setattr__(self, "pruning", from_mapping(PruningConfig, self.pruning, "pruning"))
        check_types(self, "train.")
        if not isinstance(self.checkpoint, str | os.PathLike | None):
            raise TypeError(f"train.checkpoint must be the path of a folder; got {self.checkpoint!r}")
        self._check_names()
        self._check_ranges()
        if self.adapter == "none" and not self.query_side:
            raise ValueError("adapter none without query_side leaves nothing to train")
        if not any(first > 0 for first, _ in losses.values()):
            raise ValueError("losses: at least one weight above 0 is needed at the start")
        if self.adapter == "none" and not any("." in name for name in losses):
            raise ValueError("adapter none trains queries alone, and losses of codes do not look at them")
        if self.pruning is not None and self.thresholds != "learned":
            raise ValueError(f"pruning learns its thresholds; got thresholds {self.thresholds}")
        if self.hard_negatives + self.random_negatives < 1:
            raise ValueError("hard_negatives and random_negatives are both 0, so a step would have no documents")

    def check(self, layout: CodeLayout, d: int) -> None:
        """Raise ValueError if ``layout``, for vectors of dimension ``d``, cannot be trained with these settings."""
        for what in ("pruning", "bottleneck"):
            wanted = self.pruning is not None if what == "pruning" else self.adapter == what
            if wanted and (layout.trellis or {segment.bits for segment in layout.segments} != {"1"}):
                raise ValueError(f"{what} needs a layout of 1 bit that is not trellis-coded; got {layout}")
        if self.adapter == "feedforward" and self.expansion * d < 2 * layout.columns:
            raise ValueError(
                f"adapter feedforward needs two hidden units per column, {2 * layout.columns} for {layout}; "
                f"expansion {self.expansion:g} of {d} dimensions gives {self.expansion * d:.0f}"
            )

    def _check_names(self) -> None:
        for name, known, values in (
            ("loss", LOSSES, list(self.losses)),
            ("adapter", ADAPTERS, [self.adapter]),
            ("quantizer", QUANTIZERS, [self.quantizer]),
            ("thresholds", THRESHOLD_UPDATES, [self.thresholds]),
        ):
            for value in values:
                if value not in known:
                    raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}")

    def _check_ranges(self) -> None:
        infinite = float("inf")
        for names, least, most in (
            (("batch_size", "epochs", "steps_per_epoch", "patience"), 1, 1e9),
            (("hard_negatives", "random_negatives", "warmup_steps", "noise", "weight_decay"), 0, infinite),
            (("matryoshka_power",), -10, 10),
            (("learning_rate", "max_grad_norm", "expansion"), MIN_POSITIVE, infinite),
            (("temperature", "score_temperature"), MIN_POSITIVE, infinite),
            (("documents_as_queries", "momentum"), 0, 1),
        ):
            for name in names:
                value = getattr(self, name)
                low = float(min(value) if isinstance(value, tuple) else value)
                if not least <= low <= most or low == infinite:
                    raise ValueError(f"{name} must be from {least} to {most}, and finite; got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON and YAML can hold them, without the checkpoint, which changes no result."""
        return {name: value for name, value in asdict(self).items() if name != "checkpoint"}

    @property
    def decodes(self) -> bool:
        """Whether a loss looks at decoded documents."""
        return any(name.startswith("adc.") or name == "reconstruction" for name in self.losses)

    @property
    def steps(self) -> int:
        """The most steps."""
        return self.epochs * self.steps_per_epoch


def interpolate(schedule: Schedule, done: float) -> float:
    """Return the value of a schedule when the share ``done`` (0 to 1) of the training is over."""
    return schedule[0] + (schedule[1] - schedule[0]) * done


def _schedule(name: str, value: Any) -> Schedule:
    ends: list[Any] = [as_number(v) for v in (value if isinstance(value, list | tuple) else (value, value))]
    if len(ends) != 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in ends):
        raise TypeError(f"{name} must be a number, or [first, last]; got {value!r}")
    if not all(0 <= v < float("inf") for v in ends):
        raise ValueError(f"{name} must be at least 0; got {value!r}")
    return float(ends[0]), float(ends[1])
