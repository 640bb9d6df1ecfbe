"""How far down its candidates a search reads vectors: until no other is likely to be among the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGINS = tuple(i / 4 for i in range(25))  # standard deviations that are tried


@dataclass(frozen=True, eq=False)
class Depth:
    """Recall@k of searches that read vectors in the order of their codes' scores, and stop, by their margin.

    The score of a code is a guess of the score of its vector. A search stops before a vector whose guess plus a margin
    is worse than the k-th best score so far. The margin counts standard deviations of scores about their guesses.

    Parameters
    ----------
    line : ndarray of shape (3,), float64
        Slope, intercept and standard deviation of scores about scores of codes; of L2 distances those of the negatives.
    recall : ndarray of shape (ks, len(MARGINS)), float64
        Recall@k by margin, of all vectors, for each k of the calibration.
    """

    line: NDArray[np.float64]
    recall: NDArray[np.float64]

    def bounds(self, scores: NDArray[np.floating[Any]], k: int, aim: float) -> NDArray[np.floating[Any]]:
        """Return what vectors may score at most, if a search is to find a share ``aim`` of the neighbours.

        Parameters
        ----------
        scores : ndarray of any shape
            Scores of codes, larger is better.
        k : int
            The place of k among the calibrated ones.
        aim : float
            The recall to reach. If no margin reaches it, there is no bound.

        Returns
        -------
        ndarray of the shape of ``scores``
            The most that is likely.
        """
        enough = self.recall[k] >= aim
        margin = MARGINS[int(np.argmax(enough))] if enough.any() else np.inf
        slope, intercept, deviation = self.line
        bounds: NDArray[np.floating[Any]] = slope * scores + intercept + margin * deviation
        return bounds

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return its arrays by name."""
        return {"calibration.depth.line": self.line, "calibration.depth.recall": self.recall}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Depth | None:
        """Return the depth of :meth:`arrays`, None if there is none among them."""
        line, recall = (arrays.get(f"calibration.depth.{name}") for name in ("line", "recall"))
        return None if line is None or recall is None else Depth(line, recall)
