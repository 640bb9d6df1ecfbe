"""Progress bars: on a terminal, for what takes more than two seconds. ``TQDM_DISABLE=1`` turns them off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> tqdm[T]:
    """Yield ``items``, drawing a bar on standard error if that is a terminal."""
    return tqdm(items, desc=what, total=total, delay=2, leave=False, disable=None)
