"""How a quantizer was fitted, as typed facts that travel with it into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

Quality: TypeAlias = dict[str, dict[str, float]]
"""Figures on the validation queries, larger meaning better: by stage, then by measure such as ``recall@10``."""

LEADING_HALF = 0.6  # share of the variance; a model that is not trained for it has .5, give or take a few hundredths
MIN_HALF = 16  # dimensions; of fewer, halves differ by chance
SMOOTHING = 0.001  # added to what is compared, so that a stage which finds next to nothing does not decide alone
MAY_LOSE = 0.005  # of a stage, where a training gains in the mean: some hundred queries cannot tell it from none


def quality_ratios(quality: Quality, reference: Quality, measure: str) -> list[float]:
    """Return how good ``quality`` is in each stage of ``reference``, which is 1."""
    pairs = [(quality[stage][measure], reference[stage][measure]) for stage in reference]
    return [(ours + SMOOTHING) / (theirs + SMOOTHING) for ours, theirs in pairs]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The result of a training.

    Parameters
    ----------
    kept : bool
        Whether the trained quantizer is used; otherwise it was no better, and the untrained one is.
    adapter : str
        The trained transform, one of :data:`faiss_qama.training.train_config.ADAPTERS`.
    measure : str
        The measure that decided, ``recall@10`` or ``nDCG@10``.
    untrained, trained : dict of str to dict of str to float
        What was measured on the validation queries before the training, and of its best epoch.
    gain : float
        How much better the best epoch is in ``measure``, as a share: the mean over the stages.
    seconds : float
        Duration of all epochs.
    log : sequence of mapping
        One entry per epoch.
    """

    kept: bool
    adapter: str
    measure: str
    untrained: Quality
    trained: Quality
    gain: float
    seconds: float
    log: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """The settings of a fit, and what the fit found out.

    Parameters
    ----------
    config : mapping of str to object
        :meth:`FitConfig.to_dict() <faiss_qama.training.FitConfig.to_dict>` of all settings, for people to read; empty
        for a quantizer that no fit made.
    center : bool
        Whether the mean of the corpus was subtracted first.
    projection : str
        ``pca`` if components are ordered by their variance, ``none`` if they are the embedding's own.
    rotation : str
        ``itq``, ``random`` or ``none``.
    thresholds : str
        Name of the rule that set the thresholds.
    matryoshka_dims : sequence of int, or str
        Component counts that rotations do not cross, or ``nested``; empty if there are none.
    fitted_on : int
        Vectors that the quantizer was fitted to.
    real_queries : bool
        Whether real queries have calibrated the quantizer; otherwise documents stood in for them.
    query_gain : float
        How far encoded queries spread around their centre; documents have 1.
    training : TrainingRecord, optional
        The result of the training, if there was one.
    explained_variance : sequence of (int, float, float)
        Numbers of leading dimensions, the share of the variance that they hold, and the share that as many principal
        components hold; empty without centring and PCA.
    distortion : float
        As :meth:`~faiss_qama.Quantizer.distortion`, of vectors that were fitted on; 0 if unknown.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    center: bool = True
    projection: str = "pca"
    rotation: str = "itq"
    thresholds: str = "lloyd"
    matryoshka_dims: Sequence[int] | str = ()
    fitted_on: int = 0
    real_queries: bool = False
    query_gain: float = 1.0
    training: TrainingRecord | None = None
    explained_variance: Sequence[tuple[int, float, float]] = ()
    distortion: float = 0.0

    @property
    def of_matryoshka_model(self) -> bool:
        """Whether leading dimensions hold most of the variance. Models that are not Matryoshka spread it evenly."""
        half, share, _ = self.explained_variance[-1] if self.explained_variance else (0, 0.0, 0.0)
        return half >= MIN_HALF and share > LEADING_HALF

    @property
    def trained(self) -> bool:
        """Whether the quantizer is a trained one."""
        return self.training is not None and self.training.kept

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FitRecord:
        """Return the record of :meth:`to_dict`. Raises TypeError for parts that are missing or unknown."""
        training, dims = record["training"], record["matryoshka_dims"]
        typed: dict[str, Any] = {"training": None if training is None else TrainingRecord(**training)}
        typed["explained_variance"] = tuple(map(tuple, record.get("explained_variance", ())))
        return cls(**{**record, **typed, "matryoshka_dims": dims if isinstance(dims, str) else tuple(dims)})
