"""The whole method in plain numpy: slow, short, and independent of the rest of the library.

Read this file to learn what a code is and what a search does; the tests compare the library with it. It needs the
arrays of a fitted quantizer, as ``Quantizer.to_state()`` returns them, and shares no code with the library.

A vector becomes a code in four steps: transform, cut each unit into a level, write the level as a thermometer code,
pack the bits. A search finds candidates by Hamming distance and re-ranks them with the float query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Unit(NamedTuple):
    """What has one level: components of the layout, columns of the transform that they take, and possible levels."""

    components: int
    columns: int
    levels: int


UNITS = {"2": Unit(1, 1, 4), "1.5": Unit(1, 1, 3), "1": Unit(1, 1, 2), "0.5": Unit(2, 1, 2), "0.5or": Unit(2, 2, 2)}
UNITS["0"] = Unit(1, 1, 1)  # of a trellis


def parse_layout(text: str) -> list[Unit]:
    """Return the units of a layout ``BITSxCOMPONENTS,...``, in the order of their columns and bits.

    At ``0.5`` the transform has merged two components into one column; at ``0.5or`` two columns share one bit.

    >>> parse_layout("2x1,0.5orx2")
    [Unit(components=1, columns=1, levels=4), Unit(components=2, columns=2, levels=2)]
    """
    units = []
    for segment in text.split(","):
        bits, _, components = segment.partition("x")
        if bits not in UNITS or not components.isdecimal() or int(components) % UNITS[bits].components:
            raise ValueError(f"{segment!r} is not BITSxCOMPONENTS with bits {', '.join(UNITS)}; half a bit takes pairs")
        units += [UNITS[bits]] * (int(components) // UNITS[bits].components)
    return units


def transform(x: Array, arrays: Mapping[str, Array], name: str) -> Array:
    """Map vectors (n, d) to columns (n, columns): ``gain * matrix @ x + bias``, plus ``out @ gelu(hidden(x))``.

    The latter is of transforms that were trained so. GELU has its tanh form (Hendrycks and Gimpel, arXiv 1606.08415,
    section 2).
    """
    matrix, gain = arrays.get(f"{name}.matrix", arrays["transform.matrix"]), arrays.get(f"{name}.gain", 1)
    z: Array = gain * (x @ matrix.T) + arrays[f"{name}.bias"]
    if f"{name}.out" in arrays:
        hidden = transform(x, arrays, f"{name}.hidden")
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        z = z + gelu @ arrays[f"{name}.out"].T
    return z


def cut(z: Array, thresholds: Array, units: list[Unit]) -> Array:
    """Return the levels (n, units): how many thresholds t have z >= t.

    ``z`` is (n, columns); ``thresholds`` are (columns, most levels - 1), ascending, +inf where a column has fewer.
    Two columns that share a bit have the larger of their levels.

    >>> cut(np.array([[-2.0, 0.0, 0.5, 2.0]]).T, np.array([[-1.0, 0.0, 1.0]]), parse_layout("2x1")).ravel()
    array([0, 2, 2, 3])
    """
    per_column = (z[:, :, None] >= thresholds).sum(axis=2)
    starts = np.cumsum([0] + [unit.columns for unit in units[:-1]])
    levels: Array = np.maximum.reduceat(per_column, starts, axis=1)
    return levels


def thermometer(levels: Array, units: list[Unit]) -> Array:
    """Write level l of L as L - 1 bits, the first l of them 1: (n, units) to (n, bits) of 0 and 1.

    Two codes then differ in as many bits as their levels are apart.

    >>> thermometer(np.array([[0], [1], [2], [3]]), parse_layout("2x1"))
    array([[0, 0, 0],
           [1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    bits = [levels[:, i] > place for i, unit in enumerate(units) for place in range(unit.levels - 1)]
    return np.stack(bits, axis=1).astype(int)


def pack(bits: Array) -> Array:
    """Pack bits (n, bits) into bytes (n, code size) uint8, the lowest bit of a byte first, zeros at the end.

    >>> pack(np.array([[1, 1, 0, 0, 0, 0, 0, 0, 1]]))  # 1 + 2, and 1
    array([[3, 1]], dtype=uint8)
    """
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    packed: Array = padded.reshape(len(bits), -1, 8) @ 2 ** np.arange(8)
    return packed.astype(np.uint8)


def levels_of(code: Array, units: list[Unit]) -> Array:
    """Return the levels (n, units) of codes (n, code size): how many bits of each unit are 1.

    >>> levels_of(np.array([[0b0100111]], np.uint8), parse_layout("2x1,1.5x1,1x1"))
    array([[3, 0, 1]])
    """
    bits = (code[:, :, None] >> np.arange(8) & 1).reshape(len(code), -1)
    widths = [unit.levels - 1 for unit in units]
    ends = np.cumsum(widths)
    total = np.pad(np.cumsum(bits, axis=1), ((0, 0), (1, 0)))  # bits before each place
    levels: Array = total[:, ends] - total[:, ends - widths]
    return levels.astype(int)


def hamming(a: Array, b: Array) -> Array:
    """Return in how many bits codes ``a`` (m, code size) differ from codes ``b`` (n, code size): (m, n), 0 is best.

    >>> units = parse_layout("2x2")
    >>> a, b = (pack(thermometer(np.array([levels]), units)) for levels in ([3, 1], [1, 2]))
    >>> hamming(a, b)  # |3 - 1| + |1 - 2|
    array([[3]])
    """
    differ = a[:, None] ^ b[None]
    counts: Array = (differ[..., None] >> np.arange(8) & 1).sum(axis=(2, 3))
    return counts


def scale_to_norm(x: Array, norm: float) -> Array:
    """Return the rows of ``x`` (n, d) scaled to Euclidean ``norm``; rows of zeros stay."""
    x = x.astype(np.float64)
    norms = np.sqrt((x**2).sum(axis=1, keepdims=True))
    return x * norm / np.where(norms > 0, norms, 1)


def float_scores(xq: Array, x: Array, metric: str) -> Array:
    """Return (nq, n) scores: inner products (largest is best), or squared L2 distances (smallest is best)."""
    xq, x = xq.astype(np.float64), x.astype(np.float64)
    scores: Array = xq @ x.T if metric == "inner product" else ((xq[:, None] - x[None]) ** 2).sum(axis=2)
    return scores


def parities(low: Array) -> Array:
    """Return the bits that a trellis does not store, from the lowest stored bits ``low`` (n, columns).

    The parity p and the low bit b of column j obey a check of Ungerboeck's code (1987): the sum of p[j - i] over the
    ones i of 515 (octal), and of b[j - i] over those of 362, is even.

    >>> parities(np.array([[1, 0, 0, 1]]))
    array([[0, 1, 0, 1]])
    """
    out = np.zeros_like(low)
    for j in range(low.shape[1]):
        of = range(1, min(j, 8) + 1)
        terms = [out[:, j - i] for i in of if 0o515 >> i & 1] + [low[:, j - i] for i in of if 0o362 >> i & 1]
        out[:, j] = sum(terms, np.zeros(len(low), int)) % 2
    return out


def best_points(z: Array, values: Array, held: list[int]) -> Array:
    """Return the points (n, columns) nearest to ``z`` (n, columns) of all whose lowest bits are the right parities.

    Viterbi's algorithm: of all ways into a state, only the best goes on. Bit i of a state is what the check of the next
    column but i will have had from the columns before it. ``values`` (columns, points) has the points of a column, of
    which it takes 2 ** (1 + held).
    """
    states = np.arange(256)
    cost, ways = np.where(states == 0, 0, np.inf) + np.zeros((len(z), 1)), []
    for column, points, bits in zip(z.T, values, held, strict=True):
        error = (column[:, None] - points[: 2 << bits]) ** 2
        best, way = np.full(cost.shape, np.inf), np.zeros((2, *cost.shape), int)
        for point in range(2 << bits):
            start = states[states & 1 == point & 1]
            end = start >> 1 ^ (start & 1) * (0o515 >> 1) ^ (point >> 1 & 1) * (0o362 >> 1)
            total = cost[:, start] + error[:, [point]]
            better = total < best[:, end]
            best[:, end] = np.where(better, total, best[:, end])
            way[:, :, end] = np.where(
                better, [np.broadcast_to(start, total.shape), np.full(total.shape, point)], way[:, :, end]
            )
        cost = best
        ways.append(way)
    rows, state, out = np.arange(len(z)), cost.argmin(axis=1), []
    for came, point in reversed(ways):
        out.append(point[rows, state])
        state = came[rows, state]
    return np.stack(out[::-1], axis=1)


class ReferenceQuantizer:
    """A fitted quantizer. All its floats are float64.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        ``transform.matrix`` (columns, d), ``.bias`` (columns,) and ``.gain`` (1,), the same of ``query_transform`` and
        perhaps of ``query_adapter``; ``thresholds``; ``decoder.values`` (columns, most levels), ``decoder.matrix``
        (columns, d) and ``decoder.offset`` (d,); the same under ``residual.`` if the layout has a residual code, or
        ``trellis.values`` and ``trellis.targets`` (columns, points) if it is trellis-coded. A missing matrix is
        ``transform.matrix``, a missing gain 1.
    settings : mapping
        ``layout``, ``metric`` (``inner product``, ``L2``, or ``cosine``, which is the inner product of vectors that are
        scaled to norm 1 first), ``normalized`` (whether the vectors have norm 1),
        ``rms_norm`` (the root mean square norm of the vectors), and ``residual``, its own settings.

    Examples
    --------
    >>> identity = {"matrix": np.eye(2), "bias": np.zeros(2)}
    >>> arrays = {f"{name}.{key}": a for name in ("transform", "query_transform") for key, a in identity.items()}
    >>> arrays |= {"thresholds": np.tile([-1.0, 0.0, 1.0], (2, 1)), "decoder.matrix": np.eye(2)}
    >>> arrays |= {"decoder.values": np.tile([-1.5, -0.5, 0.5, 1.5], (2, 1)), "decoder.offset": np.zeros(2)}
    >>> quantizer = ReferenceQuantizer(arrays, {"layout": "2x2", "metric": "L2", "normalized": False, "rms_norm": 1.0})
    >>> code = quantizer.encode(np.array([[0.3, -2.0]]))  # levels 2 and 0, bits 110 000
    >>> code, quantizer.decode(code)
    (array([[3]], dtype=uint8), array([[ 0.5, -1.5]]))
    """

    def __init__(self, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> None:
        self.arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        self.metric, self.normalized, self.rms_norm = settings["metric"], settings["normalized"], settings["rms_norm"]
        self.cosine = self.metric == "cosine"
        if self.cosine:
            self.metric = "inner product"
        first, _, rest = settings["layout"].partition("+")
        self.units = parse_layout(first.removeprefix("t"))
        # The bits of a trellis-coded column in each code.
        self.trellis, self.rest = first.startswith("t"), parse_layout(rest) if rest else []
        self.residual: ReferenceQuantizer | None = None
        if "residual" in settings:
            own = {name[len("residual.") :]: a for name, a in arrays.items() if name.startswith("residual.")}
            self.residual = ReferenceQuantizer(own, settings["residual"])

    def encode(self, x: Array, name: str = "transform") -> Array:
        """Return the codes (n, code size) uint8 of documents (n, d)."""
        z = transform(scale_to_norm(x, 1.0) if self.cosine and name == "transform" else x, self.arrays, name)
        if self.trellis and name == "transform":
            levels = self._points(z) >> 1 + self._rest_bits()
        else:
            levels = cut(z, self.arrays["thresholds"], self.units)
        return pack(thermometer(levels, self.units))

    def encode_queries(self, xq: Array) -> Array:
        """Return the codes of queries: under the inner product their norm is brought to that of the documents first."""
        if self.metric == "inner product":
            xq = scale_to_norm(xq, self.rms_norm)
        return self.encode(xq, "query_transform")

    def encode_residual(self, x: Array, code: Array) -> Array:
        """Return the residual codes of documents: the codes of ``x`` less its decoded first ``code``.

        Chen et al., "Approximate Nearest Neighbor Search by Residual Vector Quantization", 2010.
        """
        if self.trellis:
            points = self._points(transform(x, self.arrays, "transform"))
            return pack(thermometer((points >> 1 & (1 << self._rest_bits()) - 1)[:, : len(self.rest)], self.rest))
        assert self.residual is not None
        return self.residual.encode(x - self.decode_unnormalized(code))

    def _rest_bits(self) -> Array:
        """Return the bits of each column in the residual code of a trellis."""
        held = [unit.levels // 2 for unit in self.rest]
        return np.pad(np.array(held, int), (0, len(self.units) - len(held)))

    def _points(self, z: Array) -> Array:
        held = [unit.levels // 2 for unit in self.units] + self._rest_bits()
        targets, there = self.arrays["trellis.targets"], np.arange(len(held))
        low, high = targets[:, 0], targets[there, 2 * 2**held - 1]
        reach = 1024 * (high - low)
        return best_points(np.clip(z, low - reach, high + reach), targets, held.tolist())

    def decode_unnormalized(self, code: Array, residual_code: Array | None = None) -> Array:
        """Return offset + sum over columns of value[column, level] * matrix[column], (n, d).

        Of a trellis it is value[column, point], unless a residual code is missing.
        """
        values, columns = self.arrays["decoder.values"], [unit.columns for unit in self.units]
        level = np.repeat(levels_of(code, self.units), columns, axis=1)  # of each column
        if self.trellis and (residual_code is not None or not self.rest):
            stored = level << self._rest_bits()
            if residual_code is not None:
                stored[:, : len(self.rest)] += levels_of(residual_code, self.rest)
            values, level = self.arrays["trellis.values"], 2 * stored + parities(stored % 2)
        matrix = self.arrays.get("decoder.matrix", self.arrays["transform.matrix"])
        decoded: Array = values[np.arange(len(values)), level] @ matrix
        return decoded + self.arrays["decoder.offset"]

    def decode(self, code: Array, residual_code: Array | None = None) -> Array:
        """Return the vectors (n, d) that codes, and residual codes if given, stand for."""
        x = self.decode_unnormalized(code, residual_code)
        if self.residual is not None and residual_code is not None:
            x = x + self.residual.decode_unnormalized(residual_code)
        return scale_to_norm(x, 1.0) if self.normalized else x

    def decoded_scores(self, xq: Array, code: Array, residual_code: Array | None = None) -> Array:
        """Return the scores (nq, n) of float queries with decoded codes, in the directions of :func:`float_scores`.

        Only the documents are rounded (Jégou et al., "Product Quantization for Nearest Neighbor Search", 2011, III.B).
        """
        if "query_adapter.matrix" in self.arrays:
            xq = transform(xq, self.arrays, "query_adapter")
        return float_scores(xq, self.decode(code, residual_code), self.metric)

    def search(self, xq: Array, x: Array, k: int, rescore: str = "none", oversample: float = 10) -> tuple[Array, Array]:
        """Return the ``k`` best of documents ``x`` (n, d) for queries ``xq`` (nq, d), of equal ones the first.

        Parameters
        ----------
        xq : ndarray of shape (nq, d)
            Queries.
        x : ndarray of shape (n, d)
            Documents.
        k : int
            Neighbours.
        rescore : str
            ``none``: D is the Hamming distance; ``codes``: the asymmetric score; ``fp32``: the score of floats.
        oversample : float
            ``k * oversample`` candidates are re-ranked.

        Returns
        -------
        D : ndarray of shape (nq, k)
            Scores, best first.
        I : ndarray of shape (nq, k)
            Row numbers.
        """
        if rescore not in ("none", "codes", "fp32"):
            raise ValueError(f"rescore must be none, codes or fp32; got {rescore!r}")
        if self.cosine:
            xq, x = scale_to_norm(xq, 1.0), scale_to_norm(x, 1.0)
        code = self.encode(x)
        D = hamming(self.encode_queries(xq), code)
        I = np.argsort(D, axis=1, kind="stable")[:, : int(np.ceil(k * oversample))]
        if rescore == "codes":
            finer = None if self.residual is None and not self.rest else self.encode_residual(x, code)
            D = self.decoded_scores(xq, code, finer)
        elif rescore == "fp32":
            D = float_scores(xq, x, self.metric)
        larger = rescore != "none" and self.metric == "inner product"
        D = np.take_along_axis(D, I, axis=1)
        best = np.argsort(-D if larger else D, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(D, best, axis=1), np.take_along_axis(I, best, axis=1)
