"""How many candidates a recall target needs: measured once when fitting, looked up by every search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.quantizer.depth import MARGINS, Depth

RECALL, K = 0.95, 10  # what is measured and promised unless another recall or k is named
KS = (1, 10, 100)  # what searches ask for, in steps that one curve serves
OVERSAMPLES = tuple(float(2 ** (i / 4)) for i in range(41))  # 1 to 1024, in steps of 19 %
MAX_CANDIDATES = 12_800  # the most that are measured, and that a search without oversample re-ranks

# A search aims at half of the misses that it may have, because later queries differ from those that were measured.
MISSES = 1 / 2
# A search that reads only some of its candidates aims at fewer misses, both of the candidates and of what it reads.
MISSES_OF_STOPS = 1 / 8
# The aim of a search that names no recall, as a share of the highest recall of the second stage. Re-ranking by codes is
# cheap and levels off early, so the last percent is worth having there.
DEFAULT_AIM = {"floats": 0.975, "codes": 0.99}
# Candidates needed grow with the corpus, slowly: by up to a quarter each time it grows fourfold (docs/results). This
# power adds 41 %.
GROWTH = 0.25


@dataclass(frozen=True, eq=False)
class Calibration:
    """Recall@k of the second stage on validation queries, by k and oversample.

    Parameters
    ----------
    n : int
        Vectors that it was measured on, or that they stand for where texts repeat.
    floats : ndarray of shape (len(KS), len(OVERSAMPLES)), float64
        Recall@k if floats re-rank the candidates.
    codes : ndarray of shape (len(KS), len(OVERSAMPLES)), float64
        Recall@k if the codes re-rank them; it levels off below 1. After a training on pairs it is the share of the
        results of an exhaustive search by the same scores.
    prefixes : mapping of int to Calibration
        The same for prefixes of the code, by number of components.
    depth : Depth, optional
        How far down the candidates vectors must be read.
    """

    n: int
    floats: NDArray[np.float64]
    codes: NDArray[np.float64]
    prefixes: Mapping[int, Calibration] = field(default_factory=dict)
    depth: Depth | None = None

    def __post_init__(self) -> None:
        curve = (len(KS), len(OVERSAMPLES))
        wanted: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
            "floats": (self.floats, curve),
            "codes": (self.codes, curve),
        }
        if self.depth is not None:
            wanted |= {"depth.line": (self.depth.line, (3,))}
            wanted |= {"depth.recall": (self.depth.recall, (len(KS), len(MARGINS)))}
        for name, (array, shape) in wanted.items():
            if array.shape != shape:
                raise ValueError(f"calibration.{name} has shape {array.shape}; {shape} is needed")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return its arrays by name, ``calibration.*``, and ``calibration.8.*`` of the prefix of 8 components."""
        named = {"calibration": self} | {f"calibration.{prefix}": c for prefix, c in self.prefixes.items()}
        arrays: dict[str, NDArray[Any]] = {}
        for name, own in named.items():
            arrays |= {f"{name}.n": np.array([own.n]), f"{name}.floats": own.floats, f"{name}.codes": own.codes}
        return arrays | ({} if self.depth is None else self.depth.arrays())

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Calibration | None:
        """Return the calibration of :meth:`arrays`, None if there is none among them."""
        found = {}
        for name in (n.removesuffix(".n") for n in arrays if n.startswith("calibration") and n.endswith(".n")):
            found[name] = Calibration(int(arrays[f"{name}.n"][0]), arrays[f"{name}.floats"], arrays[f"{name}.codes"])
        own = found.pop("calibration", None)
        prefixes = {int(name.removeprefix("calibration.")): c for name, c in found.items()}
        return None if own is None else replace(own, prefixes=prefixes, depth=Depth.from_arrays(arrays))

    def bounds(self, scores: NDArray[np.floating[Any]], k: int, recall: float | None) -> NDArray[np.floating[Any]]:
        """Return what vectors may score at most, as :meth:`Depth.bounds`, if ``recall`` (None: a default) is asked."""
        assert self.depth is not None
        aim = 1 - MISSES_OF_STOPS * (1 - (RECALL if recall is None else recall))
        return self.depth.bounds(scores, max(i for i, calibrated in enumerate(KS) if calibrated <= k), aim)

    def oversample(
        self, k: int, ntotal: int, stage: str, recall: float | None = None, *, misses: float = MISSES
    ) -> float:
        """Return the smallest measured oversample that reaches ``recall``, with a margin.

        Parameters
        ----------
        k : int
            Number of neighbours. The curve of the nearest calibrated k at or below it is used, or where that one ends
            too early the next: as many candidates hold a larger share of fewer neighbours.
        ntotal : int
            Vectors in the index.
        stage : str
            What re-ranks: ``floats`` or ``codes``.
        recall : float, optional
            The recall to reach; None stands for ``DEFAULT_AIM``.
        misses : float
            The share of the allowed misses to aim at.

        Returns
        -------
        float
            Candidates divided by k, at least 1.

        Raises
        ------
        ValueError
            If the recall is not in (0, 1), or out of reach, with the reason and the remedy.
        """
        curves, first = getattr(self, stage), max(i for i, calibrated in enumerate(KS) if calibrated <= k)
        ceiling = 1.0 if stage == "floats" else float(curves[first].max())
        if recall is None:
            aim = (1 - (1 - DEFAULT_AIM[stage]) * misses / MISSES) * ceiling
        elif not 0 < recall < 1:
            raise ValueError(f"recall must be between 0 and 1; got {recall}")
        elif recall >= ceiling:
            raise ValueError(
                f"recall {recall} is out of reach of rescore='codes': {ceiling:.3f} was measured at best, with queries "
                "or with documents and noise, which are harder; name no recall, fit with queries or more bytes, or "
                "build with rescore='fp16'"
            )
        else:
            aim = ceiling - misses * (ceiling - recall)
        reached = (
            OVERSAMPLES[int(np.argmax(curve >= aim))] * max(1.0, calibrated / k)
            for calibrated, curve in zip(KS[first:], curves[first:], strict=True)
            if curve.max() >= aim
        )
        found = next(reached, None)
        if recall is not None and found is None:
            raise ValueError(
                f"recall {recall} is out of reach: {curves[first:].max():.3f} was measured at the most candidates, and "
                f"{aim:.3f} is aimed at; fit more bytes, or pass oversample="
            )
        found = OVERSAMPLES[-1] if found is None else found
        return float(min(found * max(1.0, ntotal / self.n) ** GROWTH, max(1.0, MAX_CANDIDATES / k)))
