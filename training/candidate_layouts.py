"""Which layouts fit into so many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.quantizer.layout import CodeLayout

SHARES = (1.0, 2 / 3, 0.5, 0.0)  # of the bytes, that go to components of more than two levels
# Of the bytes, what goes to the first of two codes, where codes of a residual are tried: with so many bytes times d or
# more, as of fewer the two bytes of a length are too many.
FIRST, LEAST = (1 / 3, 1 / 2), 1 / 10


def layouts_of_size(size: int, d: int, base: str = DEFAULT, shares: Sequence[float] = SHARES) -> Iterator[str]:
    """Yield layouts of up to ``d`` components whose codes ``base`` holds in ``size`` bytes or a little less.

    Early components, ``shares`` of the bytes, have four levels, or three where ``base`` holds those in fewer bytes; the
    others have two.
    """
    counts = [*range(8, d, 8), d]

    def text(bits: str, early: int, late: int) -> str:
        return ",".join(f"{b}x{count}" for b, count in ((bits, early), ("1", late)) if count)

    def held(bits: str, early: int, late: int) -> int:
        return code_bytes(base, CodeLayout.parse(text(bits, early, late)))

    for bits in ("2", "1.5"):
        if bits == "1.5" and held("1.5", 32, 0) == held("2", 32, 0):
            continue
        for share in shares:
            early = max((c for c in counts if held(bits, c, 0) <= share * size), default=0)
            late = max((c for c in counts if c <= d - early and held(bits, early, c) <= size), default=0)
            if early + late:
                yield text(bits, early, late)


def residual_layouts_of_size(size: int, d: int, base: str, length: int) -> Iterator[str]:
    """Yield layouts of two codes, the second of what the first leaves over, in ``size`` bytes or a little less.

    ``length`` is the bytes of the length that is kept beside them.
    """
    for share in FIRST if size >= LEAST * d else ():
        for first in layouts_of_size(int(share * size), d, base, (1.0,)):
            left = size - code_bytes(base, CodeLayout.parse(first)) - length
            yield from (f"{first}+{second}" for second in layouts_of_size(left, d, shares=(1.0, 0.0)))


def default_layout(size: int, d: int, base: str = DEFAULT) -> str:
    """Return the layout for ``size`` bytes a vector where nothing can be measured: two bits, where there is room.

    Raises ValueError where ``base`` holds no code in so few bytes.
    """
    layout = next(layouts_of_size(size, d, base), None)
    if layout is None:
        least = code_bytes(base, CodeLayout.parse("1x1"))
        raise ValueError(f"bytes: base {base} takes {least} a code at least; got {size}")
    return layout
