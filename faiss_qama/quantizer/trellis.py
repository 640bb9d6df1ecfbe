"""Trellis-coded quantization: each component has one bit more than is stored; stored bits of earlier ones determine it.

A component of k stored bits has 2^(k + 1) points, ascending. Its stored bits are the upper k of the number p of its
point, so they are a level, and Hamming distances and prefixes are those of any other code. The lowest bit of p is not
stored: it is the parity of earlier bits of other components, by a convolutional code. The encoder looks for the best
whole sequence of points (Viterbi's algorithm) among those in which every parity is right. That is nearer to the limit
of rate-distortion theory than any choice component by component.

See Marcellin and Fischer, "Trellis Coded Quantization of Memoryless and Gauss-Markov Sources", 1990, with the codes of
Ungerboeck, "Trellis-Coded Modulation with Redundant Signal Sets", part II, 1987, table I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats
from faiss_qama.kernels import kernel
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.transform import Transform
from faiss_qama.threads import parallel_map, slices

# Parity checks of the code. For each component j, the exclusive or over i of bit i of PARITY[0] times the parity of
# component j - i, and of bit i of PARITY[1] times its lowest stored bit, is 0. They are part of the file format.
PARITY, MEMORY = (0o515, 0o362), 8
STATES = 1 << MEMORY
CHUNK = 1024  # vectors that a thread encodes at a time, in some ten milliseconds
OUTSIDE = np.float32(1024)  # ranges of a component's points, beyond which its values are taken to be there
FAR = np.float32(np.inf)  # the error of what is impossible

Points = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Trellis:
    """The points of each component.

    Parameters
    ----------
    values : ndarray of shape (columns, points), float32
        What points decode to; columns with fewer points have 0 behind them.
    targets : ndarray of shape (columns, points), float32
        What the encoder compares components with, ascending.
    """

    values: Floats
    targets: Floats

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Trellis | None:
        """Return the trellis of ``trellis.values`` and ``trellis.targets``, None without values."""
        return cls(arrays["trellis.values"], arrays["trellis.targets"]) if "trellis.values" in arrays else None

    def encode(self, z: Floats, layout: CodeLayout, levels: Points | None = None) -> Points:
        """Return the best sequences of points.

        Parameters
        ----------
        z : ndarray of shape (n, columns), float32
            Columns of the transform.
        layout : CodeLayout
            The layout of the code.
        levels : ndarray of shape (n, columns), uint8, optional
            The levels of the first code, where those are known.

        Returns
        -------
        ndarray of shape (n, columns), uint8
            The number of each point.
        """
        known, held = np.empty((0, 0), np.uint8) if levels is None else levels, bits(layout)
        # Farther outside, a difference from a point would lose the point's digits.
        low = self.targets[:, 0]
        high = self.targets[np.arange(len(low)), (2 << held.sum(axis=1)) - 1]
        reach = OUTSIDE * (high - low)
        z = np.ascontiguousarray(np.clip(z, low - reach, high + reach), np.float32)
        out = np.empty(z.shape, np.uint8)
        compiled = kernel("trellis")
        if compiled is not None:
            compiled.encode(z, self.targets, held, known, _labels(), out)
        else:
            for part in slices(len(z), CHUNK):
                _encode(z[part], self.targets, held, known[part], out[part])
        return out

    def check(self, layout: CodeLayout) -> None:
        """Raise ValueError unless the points are those of ``layout``."""
        shape = layout.columns, n_points(layout)
        for name, array in (("values", self.values), ("targets", self.targets)):
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(
                    f"trellis.{name} has shape {array.shape} {array.dtype}; layout {layout} needs {shape} float32"
                )
        there = np.arange(1, shape[1]) < (2 << bits(layout).sum(axis=1))[:, None]
        steps = np.diff(self.targets, axis=1)[there]
        if not (np.isfinite(self.values).all() and np.isfinite(self.targets).all() and (steps >= 0).all()):
            raise ValueError("trellis.values and trellis.targets must be finite, and the targets ascending")

    def codes(
        self, x: Floats, transform: Transform, layout: CodeLayout, code: Codes | None = None
    ) -> tuple[Codes, Codes | None]:
        """Return the codes of vectors ``x`` (n, d), and their residual codes, those of the first ``code`` if known."""
        out = np.empty((len(x), layout.code_size), np.uint8)
        finer = None if layout.residual is None else np.empty((len(x), layout.residual.code_size), np.uint8)

        def encode(chunk: slice) -> None:
            known = None if code is None else bit_packing.levels(code[chunk], layout)
            first, rest = levels_of(self.encode(transform(x[chunk]), layout, known), layout)
            out[chunk] = bit_packing.of_levels(first, layout)
            if finer is not None and layout.residual is not None and rest is not None:
                finer[chunk] = bit_packing.of_levels(rest, layout.residual)

        parallel_map(encode, slices(len(x), CHUNK))
        return out, finer

    def decode(self, code: Codes, layout: CodeLayout, residual: Codes | None = None) -> Floats:
        """Return the values of codes.

        Parameters
        ----------
        code : ndarray of shape (n, code_size), uint8
            First codes.
        layout : CodeLayout
            The layout of both codes.
        residual : ndarray of shape (n, residual code_size), uint8, optional
            Residual codes, if ``layout`` has one.

        Returns
        -------
        ndarray of shape (n, columns), float32
            The value of each column's point.
        """
        rest = None
        if layout.residual is not None:
            assert residual is not None
            rest = bit_packing.levels(residual, layout.residual)
        p = points(bit_packing.levels(code, layout), rest, layout)
        out: Floats = np.take_along_axis(self.values.T, p.astype(np.intp), axis=0)
        return out

    def truncate(self, columns: int, layout: CodeLayout) -> Trellis:
        """Return the trellis of the first ``columns``, whose layout is ``layout``."""
        points = n_points(layout)
        return Trellis(*(np.ascontiguousarray(own[:columns, :points]) for own in (self.values, self.targets)))

    def thresholds(self, layout: CodeLayout) -> Floats:
        """Return where levels of the first code meet, (columns, max_levels - 1) float32; +inf for fewer levels."""
        cuts = np.full((layout.columns, layout.max_levels - 1), np.inf, np.float32)
        for own, (first, rest), out in zip(self.targets, bits(layout), cuts, strict=True):
            at = np.arange(1, 1 << first) << (1 + rest)
            out[: len(at)] = (own[at - 1] + own[at]) / 2
        return cuts


def bits(layout: CodeLayout) -> NDArray[np.int64]:
    """Return how many bits of each component the first code and the residual code of ``layout`` hold, (columns, 2)."""
    return np.array(layout.bits_of_components, np.int64)


def n_points(layout: CodeLayout) -> int:
    """Return the most points of a component of ``layout``: twice those that its stored bits can tell apart."""
    return 2 << int(bits(layout).sum(axis=1).max())


def levels_of(p: Points, layout: CodeLayout) -> tuple[Points, Points | None]:
    """Return the levels, (n, columns) and (n, residual columns), that are stored of points ``p`` (n, columns)."""
    rest = bits(layout)[:, 1].astype(np.uint8)
    first: Points = p >> (1 + rest)
    if layout.residual is None:
        return first, None
    kept = layout.residual.columns
    masks = np.left_shift(1, rest[:kept], dtype=np.uint8) - np.uint8(1)
    return first, np.bitwise_and(p[:, :kept] >> 1, masks, dtype=np.uint8)


def points(levels: Points, rest: Points | None, layout: CodeLayout) -> Points:
    """Return the points (n, columns) of stored levels, as :func:`levels_of` gives them."""
    stored = np.left_shift(levels, bits(layout)[:, 1].astype(np.uint8), dtype=np.uint8)
    if rest is not None:
        stored[:, : rest.shape[1]] |= rest
    return np.left_shift(stored, 1, dtype=np.uint8) | parities(np.bitwise_and(stored, 1, dtype=np.uint8))


def parities(low: Points) -> Points:
    """Return the bits (n, columns) that are not stored, from the lowest stored bits ``low`` (n, columns)."""
    out, state = np.empty_like(low), np.zeros(len(low), np.uint16)
    for j in range(low.shape[1]):
        out[:, j] = state & 1
        state = _next(state, low[:, j])
    return out


def _next(state: NDArray[np.uint16], low: Points) -> NDArray[np.uint16]:
    """Return the states after a component: bit i is what components so far add to the parity of the next but i."""
    feedback, fed = (np.uint16(check >> 1) for check in PARITY)
    after: NDArray[np.uint16] = np.bitwise_xor(state >> 1 ^ (state & 1) * feedback, low * fed, dtype=np.uint16)
    return after


@cache
def _labels() -> Points:
    """Return, for each state u < STATES / 2, 2 * low + parity of the step from u to state 2 u, (STATES / 2,) uint8."""
    states = np.arange(STATES // 2) << 1
    low, parity = (np.bitwise_count(states & check) & 1 for check in PARITY)
    labels: Points = (2 * low + parity).astype(np.uint8)
    return labels


@cache
def checks() -> NDArray[np.uint16]:
    """Return eight parities, and the next state in the upper byte: of each state, and of eight lowest bits, (2, 256).

    Both are linear: of a state and of bits together, it is the exclusive or of the two.
    """
    every = np.arange(STATES, dtype=np.uint8)
    out: NDArray[np.uint16] = np.zeros((2, STATES), np.uint16)
    state: NDArray[np.uint16] = np.stack([every, 0 * every]).astype(np.uint16)
    for i in range(8):
        out |= np.left_shift(state & 1, i, dtype=np.uint16)
        state = _next(state, np.stack([0 * every, every >> i & 1]))
    out |= state << 8
    return out


def _encode(z: Floats, values: Floats, held: NDArray[np.int64], known: Points, out: Points) -> None:
    """Fill ``out`` as the compiled loop does, all vectors at a time."""
    n, m = z.shape
    labels = _labels()
    half = STATES // 2
    cost = np.full((n, STATES), FAR)
    cost[:, 0] = 0
    came = np.empty((m, n, STATES), bool)
    nearest = np.empty((m, n, 4), np.uint8)
    for j in range(m):
        first, rest = held[j]
        error = (z[:, j, None] - values[j, : 2 << first + rest]) ** 2
        if known.size:
            cells = np.arange(error.shape[1]) >> 1 + rest
            error[cells != known[:, j, None]] = FAR
        parts = error.reshape(n, -1, 4)
        best = parts.argmin(axis=1)
        nearest[j] = 4 * best + np.arange(4)
        e = np.take_along_axis(parts, best[:, None], axis=1)[:, 0]
        same, other = e[:, labels], e[:, labels ^ 2]
        a, b = cost[:, :half], cost[:, half:]
        new = np.empty_like(cost)
        for k, (stay, come) in enumerate(((a + same, b + other), (a + other, b + same))):
            came[j, :, k::2] = come < stay
            new[:, k::2] = np.minimum(stay, come)
        cost = new
    rows, state = np.arange(n), cost.argmin(axis=1)
    for j in range(m - 1, -1, -1):
        top, newest, before = came[j, rows, state], state & 1, state >> 1
        out[:, j] = nearest[j, rows, labels[before] ^ 2 * (newest ^ top)]
        state = before + half * top
