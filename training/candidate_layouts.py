"""Layouts that fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.quantizer.layout import CodeLayout, Segment

SMALLEST = CodeLayout((Segment("1", 1),))  # the least that a base index holds per code
EARLY_SHARES = (1.0, 2 / 3, 0.5, 0.0)  # of the bytes, for early components of more than two levels
# Shares of the bytes for the first code, where residual codes are tried. They are tried from MIN_RESIDUAL_SHARE * d
# bytes on: below that the two bytes of the norm cost more than the residual code gains.
FIRST_CODE_SHARES, MIN_RESIDUAL_SHARE = (1 / 3, 1 / 2), 1 / 10


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
