"""Array types, two constants that kernels and indexes share, and norms."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.uint8]  # (n, code_size): packed bits
Words: TypeAlias = NDArray[np.uint32]  # (n, words): bit planes
Ids: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Distances: TypeAlias = NDArray[np.int32]  # Hamming distances
Hits: TypeAlias = tuple[NDArray[Any], Ids]  # scores and ids, (nq, k) each

WORST = np.iinfo(np.int32).max  # the Hamming distance of a missing hit
LANES = 16  # codes whose words lie side by side: one word of each code fills a register of 512 bits


def row_norms(x: Floats) -> NDArray[np.float64]:
    """Return the norms (n,) float64 of the rows of ``x`` (n, d); float32 would overflow on squares."""
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return np.sqrt(squares)


def scale_to_norm(x: Floats, norm: float) -> Floats:
    """Return the rows of ``x`` (n, d) float32 scaled to ``norm``; zero rows stay zero."""
    own = row_norms(x)[:, None]
    out = np.empty(x.shape, dtype=np.float32)
    np.multiply(x, norm / np.where(own > 0, own, 1), out=out, casting="same_kind")  # no copy in float64
    return out


def are_normalized(norms: NDArray[np.float64]) -> bool:
    """Return whether ``norms`` (n,) are 1, up to float16's rounding; zero vectors do not count."""
    return bool(norms.any() and np.abs(norms[norms > 0] - 1).max() < 2e-3)
