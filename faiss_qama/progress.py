"""Progress bars: on a terminal, for work of more than two seconds. ``TQDM_DISABLE=1`` turns them off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> tqdm[T]:
    """Return ``items`` to iterate over, with a bar named ``what`` on standard error if that is a terminal."""
    return tqdm(items, desc=what, total=total, delay=2, leave=False, disable=None)


def announced(what: str) -> Any:
    """Show ``what`` on standard error, if that is a terminal, until the returned bar is closed."""
    return tqdm(desc=what, bar_format="{desc}", leave=False, disable=None)
