"""The layout of a code: the levels of each component, and the places of its bits.

A layout is written ``BITSxCOMPONENTS``, early components first: ``2x192``, or a hybrid
``2x96,1.5x96,1x96,0.5x96``. A level l of L becomes the thermometer code of L - 1 bits, l of them set, so that
2 bits of information take 3 stored bits, 1.5 take 2, and 1 takes 1. Half a bit is one bit for two components,
in one of two forms:

- ``0.5``: the transform has already merged each pair into one column (linear);
- ``0.5or``: the transform gives both, and the bit is 0 if both lie under their thresholds, else 1.

The layout of a residual code follows a plus sign, ``2x128+2x256``. Only re-ranking reads residual codes.

``t2x192`` is trellis-coded: codes have the same form, and hold more (:mod:`faiss_qama.quantizer.trellis`). The residual
code of ``t2x96,1x64,0x64+1x32,0x128,1x64`` is not a code of its own, but more bits of the same components: one of the
first 32, and of the last 64, which have none in the first code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile, zip_longest

LEVELS = {"2": 4, "1.5": 3, "1": 2, "0.5": 2, "0.5or": 2, "0": 1}
MOST = 1 << 20  # components of a segment
_SEGMENT = re.compile(rf"\s*({'|'.join(map(re.escape, LEVELS))})x([1-9]\d*)\s*")


@dataclass(frozen=True)
class Segment:
    """A run of ``components`` that share one number of bits.

    ``bits`` is a key of :data:`LEVELS`. A *unit* gets one level: a component, or a pair of components at half a bit.
    A *column* is one output of the transform: one per component, or one per pair in the linear half bit.
    """

    bits: str
    components: int

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise ValueError(f"bits must be one of {', '.join(LEVELS)}; got {self.bits!r}")
        if not 1 <= self.components <= MOST:
            raise ValueError(f"a segment has 1 to {MOST:,} components; got {self.components}")
        if self.components % self.group:
            raise ValueError(f"{self}: half a bit takes components in pairs; got {self.components}, an odd number")

    def __str__(self) -> str:
        return f"{self.bits}x{self.components}"

    @property
    def levels(self) -> int:
        """Number of levels of a unit: 2, 3 or 4, or 1 if the code says nothing of it."""
        return LEVELS[self.bits]

    @property
    def group(self) -> int:
        """Components per unit: 1, or 2 at half a bit."""
        return 2 if self.bits.startswith("0.5") else 1

    @property
    def units(self) -> int:
        """Number of units, each with a level of its own."""
        return self.components // self.group

    @property
    def columns(self) -> int:
        """Columns of the transform that the segment reads."""
        return self.units if self.bits == "0.5" else self.components

    @property
    def n_bits(self) -> int:
        """Stored bits: levels - 1 per unit."""
        return self.units * (self.levels - 1)


@dataclass(frozen=True)
class CodeLayout:
    """Segments in order of importance; every prefix of components is a layout too.

    ``residual`` is the layout of the residual code, or None. No count below includes it. ``trellis`` says whether the
    code is trellis-coded; then components have up to two bits in each code, and at least one in both.
    """

    segments: tuple[Segment, ...]
    residual: CodeLayout | None = None
    trellis: bool = False

    def __post_init__(self) -> None:
        if not self.trellis:
            return
        parts = [part for part in (self, self.residual) if part is not None]
        if not all(segment.bits in ("0", "1", "2") for part in parts for segment in part.segments):
            raise ValueError(f"layout {self}: a trellis takes 0, 1 or 2 bits per component in each code")
        if parts[-1].components > self.components:
            raise ValueError(
                f"layout {self}: a trellis refines components of the first code, which has {self.components}; "
                f"the second has {parts[-1].components}"
            )
        if not self.n_bits or not all(map(any, self.bits_of_components)):
            raise ValueError(f"layout {self}: each component needs a bit in either code, and the first code needs one")

    @classmethod
    def parse(cls, text: str) -> CodeLayout:
        """Read a layout string such as ``2x96,1x192`` or ``2x96+1x192``. Raises ValueError on anything else."""
        trellis, listed = text.startswith("t"), text.removeprefix("t")
        parts = [[_SEGMENT.fullmatch(segment) for segment in part.split(",")] for part in listed.split("+")]
        if len(parts) > 2 or not all(all(matches) for matches in parts):
            raise ValueError(
                f"layout {text!r} is not BITSxCOMPONENTS[,...][+BITSxCOMPONENTS[,...]], perhaps after a t, with bits "
                f"{', '.join(LEVELS)}, such as 2x192"
            )
        layouts = [cls(tuple(Segment(m[1], int(m[2])) for m in matches if m)) for matches in parts]
        return cls(layouts[0].segments, layouts[1] if layouts[1:] else None, trellis)

    def __str__(self) -> str:
        text = ",".join(map(str, self.segments)) + (f"+{self.residual}" if self.residual else "")
        return "t" * self.trellis + text

    @cached_property
    def components(self) -> int:
        """Components of the embedding that the code describes."""
        return sum(s.components for s in self.segments)

    @cached_property
    def columns(self) -> int:
        """Columns that the transform must give."""
        return sum(s.columns for s in self.segments)

    @cached_property
    def units(self) -> int:
        """Number of units: components, or pairs of them at half a bit."""
        return sum(s.units for s in self.segments)

    @cached_property
    def columns_per_unit(self) -> list[int]:
        """Number of columns that each unit has the level of: 2 for ``0.5or``, else 1."""
        return [s.columns // s.units for s in self.segments for _ in range(s.units)]

    @cached_property
    def bits_of_components(self) -> list[tuple[int, int]]:
        """Bits of each component of a trellis in the first code and in the residual code."""
        listed = [
            [int(segment.bits) for segment in part.segments for _ in range(segment.components)] if part else []
            for part in (self, self.residual)
        ]
        return [(first, rest) for first, rest in zip_longest(*listed, fillvalue=0)]

    @property
    def empty_start(self) -> int:
        """How many components come before the first that has bits in the first code."""
        return sum(s.components for s in takewhile(lambda segment: not segment.n_bits, self.segments))

    @cached_property
    def n_bits(self) -> int:
        """Bits of the expanded code, padding excluded."""
        return sum(s.n_bits for s in self.segments)

    @cached_property
    def code_size(self) -> int:
        """Bytes per code, ``n_bits`` rounded up to whole bytes."""
        return (self.n_bits + 7) // 8

    @cached_property
    def max_levels(self) -> int:
        """The most levels that any unit has."""
        return max(s.levels for s in self.segments)

    def slices(self) -> Iterator[tuple[Segment, slice, slice]]:
        """Yield each segment with the slice of its columns and the slice of its bits."""
        column = bit = 0
        for segment in self.segments:
            yield segment, slice(column, column + segment.columns), slice(bit, bit + segment.n_bits)
            column, bit = column + segment.columns, bit + segment.n_bits

    def truncate(self, components: int) -> CodeLayout:
        """Return the layout of the first ``components``, without residual code: its bits are the first of this one's.

        Where a trellis has a residual code, the first code alone does not tell the parities, so it is a plain one.

        Raises ValueError for fewer than 1 or more than there are, if a pair of components would be split, and if none
        of them has a bit.
        """
        if not 1 <= components <= self.components:
            raise ValueError(f"components must be from 1 to {self.components}; got {components}")
        kept, left = [], components
        for segment in self.segments:
            if left == 0:
                break
            kept.append(Segment(segment.bits, min(left, segment.components)))
            left -= kept[-1].components
        if components <= self.empty_start:
            raise ValueError(f"layout {self}: the first {components} components have no bits in the first code")
        return CodeLayout(tuple(kept), trellis=self.trellis and self.residual is None)
