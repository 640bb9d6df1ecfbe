"""Progress bars: on a terminal, for work of more than two seconds. ``TQDM_DISABLE=1`` turns them off."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any, TypeVar
from weakref import WeakSet

from tqdm import tqdm

T = TypeVar("T")


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar whose lock is of the threads of one process.

    The lock of tqdm is shared with forked processes: one that is killed while it holds it would stop all others for
    ever.
    """

    _lock = threading.RLock()
    _instances: WeakSet[Any] = WeakSet()


def progress(items: Iterable[T], what: str, total: int | None = None) -> tqdm[T]:
    """Return ``items`` to iterate over, with a bar named ``what`` on standard error if that is a terminal."""
    return _Bar(items, desc=what, total=total, delay=2, leave=False, disable=None)


def announced(what: str) -> Any:
    """Show ``what`` on standard error, if that is a terminal, until the returned bar is closed."""
    return _Bar(desc=what, bar_format="{desc}", leave=False, disable=None)


def _after_fork() -> None:
    """Forget who held the lock: a thread of the parent, which a child does not have, would hold it for ever."""
    _Bar._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
