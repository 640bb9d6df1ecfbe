"""FitConfig: the settings of a fit, from Python or from YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.training.candidate_layouts import default_layout
from faiss_qama.training.settings import check_types, from_mapping
from faiss_qama.training.thresholds import RULES
from faiss_qama.training.train_config import TrainConfig
from faiss_qama.vectors import PathLike

# Layouts by name, for any dimension.
LAYOUTS: dict[str, Callable[[int], str]] = {
    "binary": lambda d: f"1x{d}",
    "ternary": lambda d: f"1.5x{d}",
    "2-bit": lambda d: f"2x{d}",
    "hybrid": lambda d: ",".join(f"{bits}x{max(2, d // 8 * 2)}" for bits in ("2", "1.5", "1", "0.5")),
    "half-bit": lambda d: f"0.5x{d // 2 * 2}",
}
NESTED = (8, 4, 3, 2)  # QAMA's Matryoshka dimensions: the components divided by these, and all of them
PROJECTIONS = ("pca", "none")
ROTATIONS = ("itq", "random", "none")
THRESHOLDS = tuple(RULES)
DECODERS = ("transpose", "least-squares")
# Vectors that a fit reads by default, and values of more dimensions than 768: 300 MB of floats.
MOST_VECTORS, FEWEST_VECTORS, MOST_VALUES = 100_000, 25_000, 100_000 * 768


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit.

    Parameters
    ----------
    layout : str, optional
        Bits and components of the code, such as ``2x192`` or ``2x96,1x192``; ``2x128+2x256`` has a residual code,
        and ``t2x192`` is trellis-coded. Or a name in ``LAYOUTS``: ``binary``, ``ternary`` and ``2-bit`` (every
        component at 1, 1.5 or 2 bits), ``half-bit`` (every pair at 1), ``hybrid`` (quarters at 2, 1.5, 1 and 0.5 bits).
        The default is 2 bits for the first half.
    bytes : int, optional
        Bytes per vector, instead of ``layout``, as base ``Flat`` holds them. The layout is chosen by measuring, if
        there are 200 documents or 60 queries to measure with.
    center : bool
        Subtract the mean of the corpus first.
    projection : str
        ``pca`` orders components by variance. ``none`` keeps the order of the embedding, for Matryoshka models.
    rotation : str
        Rotation of the kept components: ``itq`` (the one that quantization loses least by), ``random`` or ``none``.
    matryoshka_dims : tuple of int, or str
        Component counts, ascending, or ``nested`` for an eighth, a quarter, a third and half of the components.
        Rotations do not cross them, so that the code of each prefix is a whole smaller code, and a training optimises
        each prefix. Rotations do not cross the segments of a hybrid layout either.
    thresholds : str
        The rule that sets the thresholds between levels: ``lloyd``, ``normal``, ``uniform``, ``quantile``, ``log``; for
        two levels also ``zero``, ``mean``, ``median``.
    decoder : str
        ``transpose`` of the rotation, or a linear map fitted by ``least-squares``.
    query_center : float
        Where the centre of queries goes, from the mean of the documents (0) to their own mean (1). Most of the way
        gains the nDCG without costing recall (docs/results). It matters only if real queries are given.
    query_gain : float, optional
        How far queries spread around that centre; documents have 1. By default 1, or 1.25 for real queries. For the
        inner product of documents whose norms vary, the default is the best of several gains, by measuring.
    sample : int, optional
        Vectors to read and fit on. By default 100,000 of up to 768 dimensions, and fewer of more: as many as take
        300 MB, but at least 25,000.
    seed : int
        Seed of every random choice.
    train : TrainConfig, or mapping, optional
        Settings of a training (extra ``train``); None for a fit without training.

    Examples
    --------
    >>> from faiss_qama.training import FitConfig
    >>> config = FitConfig(layout="2x96,1x192", decoder="least-squares")
    >>> layout = config.layout_in(384)
    >>> str(layout), layout.code_size
    ('2x96,1x192', 60)
    """

    layout: str | None = None
    bytes: int | None = None
    center: bool = True
    projection: str = "pca"
    rotation: str = "itq"
    matryoshka_dims: tuple[int, ...] | str = ()
    thresholds: str = "lloyd"
    decoder: str = "transpose"
    query_center: float = 0.75
    query_gain: float | None = None
    sample: int | None = None
    seed: int = 0
    train: TrainConfig | None = None

    def __post_init__(self) -> None:
        listed = _listed(self.matryoshka_dims)
        object.__setattr__(self, "matryoshka_dims", "nested" if self.matryoshka_dims == "nested" else listed)
        if self.train is not None and not isinstance(self.train, TrainConfig):
            object.__setattr__(self, "train", from_mapping(TrainConfig, self.train, "train"))
        check_types(self)
        if self.layout is not None and self.layout not in LAYOUTS:
            _check_layout(CodeLayout.parse(self.layout), self.thresholds)
        if self.layout is not None and self.bytes is not None:
            raise ValueError(f"give layout or bytes, not both; got {self.layout} and {self.bytes}")
        for name, known in (
            ("projection", PROJECTIONS),
            ("rotation", ROTATIONS),
            ("thresholds", THRESHOLDS),
            ("decoder", DECODERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name, possible, good in (
            ("bytes", "at least 1", self.bytes is None or self.bytes >= 1),
            ("query_center", "from 0 to 1", 0 <= self.query_center <= 1),
            ("query_gain", "above 0 and finite", self.query_gain is None or 0 < self.query_gain < float("inf")),
            ("sample", "at least 2", self.sample is None or self.sample >= 2),
            ("seed", "from 0 to 4294967295", 0 <= self.seed < 2**32),
        ):
            if not good:
                raise ValueError(f"{name} must be {possible}; got {getattr(self, name)}")
        if any(s < 1 for s in listed) or any(a >= b for a, b in pairwise(listed)):
            raise ValueError(f"matryoshka_dims must be ascending and at least 1; got {self.matryoshka_dims}")

    def sample_in(self, d: int) -> int:
        """Return how many vectors of dimension ``d`` to read and fit on."""
        return self.sample or min(MOST_VECTORS, max(FEWEST_VECTORS, MOST_VALUES // d))

    @classmethod
    def from_yaml(cls, path: PathLike) -> FitConfig:
        """Read settings from a YAML file.

        Parameters
        ----------
        path : str or Path
            A mapping of the parameters above; those it leaves out have their defaults.

        Returns
        -------
        FitConfig

        Raises
        ------
        ValueError
            For anything else, naming the file and the setting.
        OSError
            If the file cannot be read.
        """
        try:
            with open(path, encoding="utf-8") as file:
                settings = yaml.load(file, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 99 is a ValueError
            raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        try:
            return from_mapping(cls, {} if settings is None else settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON and YAML can hold them."""
        dims = self.matryoshka_dims if isinstance(self.matryoshka_dims, str) else list(self.matryoshka_dims)
        return asdict(self) | {"matryoshka_dims": dims, "train": None if self.train is None else self.train.to_dict()}

    def at(self, layout: CodeLayout) -> FitConfig:
        """Return these settings with ``layout``, whatever they said of layout or bytes."""
        return replace(self, layout=str(layout), bytes=None)

    @property
    def has_residual(self) -> bool:
        """Whether the named layout has a residual code of its own, not one that refines a trellis."""
        return "+" in (self.layout or "") and not self.has_trellis

    @property
    def has_trellis(self) -> bool:
        """Whether the named layout is trellis-coded."""
        return self.layout not in LAYOUTS and (self.layout or "").startswith("t")

    def for_pairs(self) -> FitConfig:
        """Return these settings with those of a training, because pairs are always trained on.

        Raises ValueError for a layout with a residual code.
        """
        if self.has_residual:
            raise ValueError(
                f"layout {self.layout}: a residual code would undo a training on pairs: remove the part after +"
            )
        return replace(self, train=self.train or TrainConfig())

    def layout_in(self, d: int) -> CodeLayout:
        """Return the layout for vectors of dimension ``d``, by rule if ``bytes`` are given.

        Parameters
        ----------
        d : int
            Dimension of the vectors.

        Returns
        -------
        CodeLayout

        Raises
        ------
        ValueError
            If the layout has more components than ``d``, if a Matryoshka dimension splits a pair of components or lies
            beyond the last, and if it cannot be trained as ``train`` says.
        """
        if self.bytes is not None:
            layout = default_layout(self.bytes, d)
        elif self.layout is None:
            layout = CodeLayout((Segment("2", max(1, d // 2)),))
        else:
            layout = CodeLayout.parse(LAYOUTS[self.layout](d) if self.layout in LAYOUTS else self.layout)
        for part in (layout, layout.residual):
            if part is not None and part.components > d:
                raise ValueError(f"layout {part} has {part.components} components; the vectors have {d}")
        for end in self.dims_in(layout):
            if end > layout.components:
                raise ValueError(f"matryoshka_dims end at {end}; layout {layout} has {layout.components} components")
            layout.truncate(end)  # raises where that would split a pair
        if self.train is not None:
            self.train.check(layout, d)
        return layout

    def dims_in(self, layout: CodeLayout) -> list[int]:
        """Return the Matryoshka dimensions of ``layout``, ascending."""
        if not isinstance(self.matryoshka_dims, str):
            return list(self.matryoshka_dims)
        pairs = any(segment.group == 2 for segment in layout.segments)
        ends = [layout.components // part for part in NESTED]
        return sorted({end - end % 2 if pairs else end for end in ends} - {0})

    def rotation_borders(self, layout: CodeLayout) -> list[int]:
        """Return the component counts that no rotation crosses; the last is all of them."""
        ends = np.cumsum([segment.components for segment in layout.segments]).tolist()
        if layout.trellis:  # components of as many bits are alike, whichever code has them
            held = [sum(bits) for bits in layout.bits_of_components]
            ends = [end for end, (a, b) in enumerate(pairwise([*held, 0]), 1) if a != b]
        return sorted({*self.dims_in(layout), *ends})


def _check_layout(layout: CodeLayout, thresholds: str) -> None:
    """Raise ValueError for codes without bits, and for thresholds that a trellis does not have."""
    if not all(part.n_bits for part in (layout, layout.residual) if part is not None):
        raise ValueError(f"layout {layout}: each code needs a component with bits")
    if layout.trellis and thresholds != "lloyd":
        raise ValueError(f"layout {layout}: a trellis has thresholds lloyd; got {thresholds}")


def _listed(dims: Iterable[int] | str) -> tuple[int, ...]:
    """Return the component counts that are given as numbers."""
    if dims != "nested" and (isinstance(dims, str) or not isinstance(dims, Iterable)):
        raise ValueError(f"matryoshka_dims must be component counts, or 'nested'; got {dims!r}")
    listed = () if isinstance(dims, str) else tuple(dims)
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in listed):
        raise TypeError(f"matryoshka_dims must be component counts, or 'nested'; got {dims!r}")
    return listed


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, as YAML does; SafeLoader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key.value in [before.value for before in keys[:i]]:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
        return node
