"""How many candidates a recall target needs: measured once when fitting, looked up by every search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RECALL, K = 0.95, 10  # what is measured and promised unless another recall or k is named
KS = (1, 10, 100)
OVERSAMPLES = tuple(float(2 ** (i / 4)) for i in range(41))  # 1 to 1024, in steps of 19 %
MAX_CANDIDATES = 12_800  # more are neither measured nor taken by a search that names no oversample

# A search aims at half of the misses it may have: queries to come differ from those that were measured.
MISSES = 1 / 2
# What a search aims at that names no recall, as a share of the most that the second stage can reach. Rescoring from
# codes is cheap and levels off early, so there the last percent is worth having.
DEFAULT_AIM = {"floats": 0.975, "codes": 0.99}
# Candidates needed grow with the corpus, slowly: by at most 41 % each time it grows fourfold (docs/results).
GROWTH = 0.25


@dataclass(frozen=True, eq=False)
class Calibration:
    """Recall@k of the second stage on held-out queries, by k and oversample.

    Parameters
    ----------
    n : vectors in the corpus it was measured on
    floats : (len(KS), len(OVERSAMPLES)) float64, recall@k when a store of floats rescores the candidates
    codes : the same when the codes themselves do; it levels off below 1, but for what was trained on pairs, where it is
        recall of what an exhaustive search by the same scores finds
    prefixes : by number of components, the same for prefixes of the code
    """

    n: int
    floats: NDArray[np.float64]
    codes: NDArray[np.float64]
    prefixes: Mapping[int, Calibration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("floats", "codes"):
            if getattr(self, name).shape != (len(KS), len(OVERSAMPLES)):
                raise ValueError(
                    f"calibration.{name} has shape {getattr(self, name).shape}; {(len(KS), len(OVERSAMPLES))} is needed"
                )

    def oversample(self, k: int, ntotal: int, stage: str, recall: float | None = None) -> float:
        """Return the smallest measured oversample that reaches ``recall``, with a margin.

        Parameters
        ----------
        k : neighbours wanted; the curve of the nearest calibrated k at or below is used, which asks for no less
        ntotal : vectors in the index
        stage : ``floats`` or ``codes``, what rescores
        recall : the target; None stands for ``DEFAULT_AIM``

        Raises
        ------
        ValueError
            if the target is not in (0, 1), or out of reach, with the reason and the remedy
        """
        curve = getattr(self, stage)[max(i for i, calibrated in enumerate(KS) if calibrated <= k)]
        ceiling = 1.0 if stage == "floats" else float(curve.max())
        if recall is None:
            aim = DEFAULT_AIM[stage] * ceiling
        elif not 0 < recall < 1:
            raise ValueError(f"recall must be between 0 and 1; got {recall}")
        elif recall >= ceiling:
            raise ValueError(
                f"recall {recall} is out of reach of rescore='codes': {ceiling:.3f} was measured at best; "
                "use rescore='fp16', or fit more bytes"
            )
        else:
            aim = ceiling - MISSES * (ceiling - recall)
        reached = np.flatnonzero(curve >= aim)
        if recall is not None and not len(reached):
            raise ValueError(
                f"recall {recall} is out of reach: {curve[-1]:.3f} was measured at the most candidates, and {aim:.3f} "
                "is aimed at; fit more bytes, or pass oversample="
            )
        found = OVERSAMPLES[reached[0]] if len(reached) else OVERSAMPLES[-1]
        return float(min(found * max(1.0, ntotal / self.n) ** GROWTH, max(1.0, MAX_CANDIDATES / k)))
