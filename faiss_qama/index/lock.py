"""Many readers or one writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakSet

_LOCKS: WeakSet[ReadWriteLock] = WeakSet()


class ReadWriteLock:
    """A lock that searches share and a change holds alone. A change that waits goes before later searches.

    A long change prepares first, beside searches, while other changes wait.

    A thread that holds the lock must not ask for it again. Ctrl-C while a thread waits, holds or leaves frees the lock.
    """

    def __init__(self) -> None:
        self._reset()
        _LOCKS.add(self)

    def _reset(self) -> None:
        # Entered as it is: Ctrl-C at the start of Condition.__exit__, which is Python, would never free it.
        self._mutex = threading.RLock()
        self._free = threading.Condition(self._mutex)
        # A token per holder, as unlike a count it is set and dropped in one step, and may be dropped twice.
        self._readers: set[object] = set()
        self._writers: set[object] = set()  # those that wait too
        self._writing: object = None
        self._preparing: object = None  # the one that writes, while searches go on beside it

    def read(self) -> AbstractContextManager[object]:
        """Hold the lock together with other readers."""
        return self._held(self._read)

    def write(self) -> AbstractContextManager[object]:
        """Hold the lock alone."""
        return self._held(self._write)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[], None]]:
        """Hold the lock beside readers, but alone among changes. What this yields takes it alone from there on."""
        with self._held(self._prepare) as token:

            def alone() -> None:
                with self._mutex:
                    self._preparing = None
                    self._writers.add(token)
                    self._free.wait_for(lambda: not self._readers)

            yield alone

    @contextmanager
    def _held(self, take: Callable[[object], None]) -> Iterator[object]:
        token = object()
        try:
            try:
                with self._mutex:
                    take(token)
                yield token
            finally:
                self._leave(token)
        finally:
            self._leave(token)  # again: Ctrl-C may have ended the first

    def _read(self, token: object) -> None:
        self._free.wait_for(lambda: not self._writers or self._preparing is not None)
        self._readers.add(token)

    def _write(self, token: object) -> None:
        self._writers.add(token)
        self._free.wait_for(lambda: self._writing is None and not self._readers)
        self._writing = token

    def _prepare(self, token: object) -> None:
        self._free.wait_for(lambda: self._writing is None)
        self._writing = self._preparing = token

    def _leave(self, token: object) -> None:
        with self._mutex:
            self._readers.discard(token)
            self._writers.discard(token)
            if self._preparing is token:
                self._preparing = None
            if self._writing is token:
                self._writing = None
            self._free.notify_all()


def _after_fork() -> None:
    """Free every lock in a child process, which has none of the threads that may have held them."""
    for lock in _LOCKS:
        lock._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
