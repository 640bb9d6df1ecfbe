"""Layouts that fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.hamming.bit_planes import WORD
from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.rescore.residual import residual_bytes
from faiss_qama.training.trellis_points import ERRORS

SMALLEST = CodeLayout((Segment("1", 1),))  # the least that a base index holds per code
EARLY_SHARES = (1.0, 2 / 3, 0.5, 0.0)  # of the bytes, for early components of more than two levels
# Shares of the bytes for the first code, where residual codes are tried. They are tried from MIN_RESIDUAL_SHARE * d
# bytes on: below that the two bytes of the norm cost more than the residual code gains.
FIRST_CODE_SHARES, MIN_RESIDUAL_SHARE = (1 / 3, 1 / 2), 1 / 10

FIRST_WORDS = 10  # of a trellis' first code, in which candidates are found
TRELLIS_POWERS = (1.15, 1.3, 1.5)


def layouts_of_size(
    size: int, d: int, base: str = DEFAULT, shares: Sequence[float] = EARLY_SHARES
) -> Iterator[CodeLayout]:
    """Yield layouts whose codes take ``size`` bytes in ``base``, or a little less.

    Early components have four levels, or three if ``base`` holds those in fewer bytes; the others have two.

    Parameters
    ----------
    size : int
        Bytes per code.
    d : int
        The most components.
    base : str
        The base index that will hold the codes.
    shares : sequence of float
        Shares of the bytes to give to early components.

    Yields
    ------
    CodeLayout
        Without a residual code, those with most early components first.
    """
    counts = [*range(8, d, 8), d]
    for bits in ("2", "1.5"):
        if bits == "1.5" and _bytes(base, bits, 32, 0) == _bytes(base, "2", 32, 0):
            continue
        for share in shares:
            early = max((c for c in counts if _bytes(base, bits, c, 0) <= share * size), default=0)
            late = max((c for c in counts if c <= d - early and _bytes(base, bits, early, c) <= size), default=0)
            if early + late:
                yield _layout(bits, early, late)


def residual_layouts_of_size(size: int, d: int, base: str, norm_bytes: int) -> Iterator[CodeLayout]:
    """Yield layouts with a residual code that take ``size`` bytes together, or a little less.

    Parameters
    ----------
    size : int
        Bytes per vector: the code in ``base``, the residual code, and the norm.
    d : int
        The most components of each code.
    base : str
        The base index that will hold the first codes.
    norm_bytes : int
        Bytes of the norm that is kept beside the residual code.

    Yields
    ------
    CodeLayout
        None if ``size`` is below ``MIN_RESIDUAL_SHARE * d``.
    """
    for share in FIRST_CODE_SHARES if size >= MIN_RESIDUAL_SHARE * d else ():
        for first in layouts_of_size(int(share * size), d, base, (1.0,)):
            left = size - code_bytes(base, first) - norm_bytes
            yield from (replace(first, residual=second) for second in layouts_of_size(left, d, shares=(1.0, 0.0)))


def trellis_layouts_of_size(size: int, variances: NDArray[np.floating[Any]], base: str) -> Iterator[CodeLayout]:
    """Yield trellis-coded layouts that take ``size`` bytes, or a little less.

    Each word of bits goes to the 32 components whose error it lowers most (reverse water-filling; Cover and Thomas,
    "Elements of Information Theory", section 10.3.3). The error of a component counts as a power of its variance: 1 for
    the squared error of vectors, and more for that of scores, as queries spread as documents do.

    Parameters
    ----------
    size : int
        Bytes per vector, of both codes.
    variances : ndarray of shape (d,)
        The variance of each component.
    base : str
        The base index that will hold the first codes.

    Yields
    ------
    CodeLayout
        One for each of ``TRELLIS_POWERS``, if there are so many components; some may be the same.
    """
    d, gains = len(variances), -np.diff(ERRORS)
    starts = np.arange(0, d, WORD)
    for power in TRELLIS_POWERS:
        weight = np.add.reduceat(np.maximum(variances, 0) ** power, starts)
        # Words in the order of what they gain: of which block of components, and which bit of theirs.
        gain = gains[:, None] * weight
        order = np.stack(np.unravel_index(np.argsort(-gain, axis=None, kind="stable"), gain.shape), axis=1)
        firsts = (order[:words] for words in range(len(order), 0, -1))
        # Up to the last block that has words each has one, as it has where variances fall.
        layouts = (_trellis_layout(own, d) for own in firsts if len(np.unique(own[:, 1])) == own[:, 1].max() + 1)
        yield from islice((own for own in layouts if _trellis_bytes(own, base) <= size), 1)


def _trellis_layout(words: NDArray[np.int64], d: int) -> CodeLayout:
    """Return the layout of the first ``words``, (n, 2) pairs of a bit's number and a block of components.

    The first code has at most ``FIRST_WORDS`` of them, but what the residual code has no room for; more find little.
    """
    blocks = words[:, 1].max() + 1
    held = np.bincount(words[:, 1], minlength=blocks)
    first = np.maximum(held - 2, 0)
    for bit, block in words:
        if bit < 2 and first[block] == bit and first.sum() < FIRST_WORDS:
            first[block] += 1
    rest = np.trim_zeros(held - first, "b")
    return CodeLayout(_segments(first, d), CodeLayout(_segments(rest, d)) if len(rest) else None, True)


def _segments(bits: NDArray[np.int64], d: int) -> tuple[Segment, ...]:
    """Return the segments of blocks of ``WORD`` components, of ``d`` in all, with these ``bits``."""
    ends = [i for i in range(1, len(bits) + 1) if i == len(bits) or bits[i] != bits[i - 1]]
    return tuple(Segment(str(bits[end - 1]), min(d, WORD * end) - WORD * start) for start, end in pairwise([0, *ends]))


def _trellis_bytes(layout: CodeLayout, base: str) -> int:
    return code_bytes(base, layout) + residual_bytes(layout, faiss.METRIC_INNER_PRODUCT, False)


def default_layout(size: int, d: int, base: str = DEFAULT) -> CodeLayout:
    """Return the layout for ``size`` bytes where nothing can be measured: two bits, as far as there is room.

    Raises ValueError if ``base`` holds no code in so few bytes.
    """
    layout = next(layouts_of_size(size, d, base), None)
    if layout is None:
        raise ValueError(f"bytes: base {base} takes {code_bytes(base, SMALLEST)} per code at least; got {size}")
    return layout


def _layout(bits: str, early: int, late: int) -> CodeLayout:
    """Return ``early`` components at ``bits`` and ``late`` at one bit."""
    return CodeLayout(tuple(Segment(b, count) for b, count in ((bits, early), ("1", late)) if count))


def _bytes(base: str, bits: str, early: int, late: int) -> int:
    return code_bytes(base, _layout(bits, early, late))
