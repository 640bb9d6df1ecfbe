"""Many readers or one writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

_LOCKS: WeakSet[ReadWriteLock] = WeakSet()


class ReadWriteLock:
    """A lock that searches share and a change holds alone. A change that waits goes before later searches.

    A thread that holds the lock must not ask for it again.
    """

    def __init__(self) -> None:
        self._reset()
        _LOCKS.add(self)

    def _reset(self) -> None:
        self._free = threading.Condition()
        self._readers, self._waiting, self._writing = 0, 0, False

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._free:
            self._free.wait_for(lambda: not self._writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._free:
            self._waiting += 1
            try:
                self._free.wait_for(lambda: not self._writing and not self._readers)
                self._writing = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._free:
                self._writing = False
                self._free.notify_all()


def _after_fork() -> None:
    """Free every lock in a child process, which has none of the threads that may have held them."""
    for lock in _LOCKS:
        lock._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
