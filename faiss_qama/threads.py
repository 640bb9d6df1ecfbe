"""A pool of as many threads as FAISS may use, contexts that use one, and one that holds Ctrl-C back."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import faiss
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the end: where LLVM calls Python back, its exception is lost or ends the process."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # here Python raises nothing
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


class _OneBlasThread:
    """Limits the BLAS of numpy to one thread: in small products more wait busily for each other.

    The limit is the process's. The first of several threads that enter sets it, and the last that leaves lifts it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:  # FAISS's BLAS is of another threading layer
                self._limit = ThreadpoolController().select(threading_layer="pthreads").limit(limits=1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()


one_blas_thread = _OneBlasThread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit the BLAS of numpy, and FAISS in this thread, to one thread."""
    threads = faiss.omp_get_max_threads()
    with one_blas_thread:
        try:
            faiss.omp_set_num_threads(1)
            yield
        finally:
            faiss.omp_set_num_threads(threads)


def parallel_map(do: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
    """Call ``do`` with each task, in as many threads as FAISS may use; in a thread of the pool, one after another.

    Parameters
    ----------
    do : callable
        Takes a task and returns its result.
    tasks : sequence
        The tasks.

    Returns
    -------
    list
        The results, in the order of the tasks.

    Raises
    ------
    BaseException
        The first error of a task. Tasks that have not begun are dropped.
    """
    threads = faiss.omp_get_max_threads()
    if len(tasks) <= 1 or threads == 1:
        return [do(task) for task in tasks]
    done: list[Any] = [None] * len(tasks)
    left = iter(range(len(tasks)))

    def work() -> None:
        for number in left:
            done[number] = do(tasks[number])

    helpers = [_threads(threads - 1).submit(work) for _ in range(min(threads, len(tasks)) - 1)]
    try:
        faiss.omp_set_num_threads(1)  # as in the helpers
        work()
    finally:
        faiss.omp_set_num_threads(threads)
        deque(left, maxlen=0)  # after an error or Ctrl-C here, no task begins
        wait([helper for helper in helpers if not helper.cancel()])  # some may still wait for another search's
    for helper in helpers:
        if not helper.cancelled():
            helper.result()
    return done


def slices(n: int, step: int) -> list[slice]:
    """Return slices of ``step``, the last of what is left, that divide 0 to ``n``."""
    return [slice(start, start + step) for start in range(0, n, step)]


def even_slices(n: int) -> list[slice]:
    """Return slices that divide 0 to ``n`` evenly, as many as FAISS may use threads."""
    return slices(n, -(-n // faiss.omp_get_max_threads()) or 1)


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    # Each thread counts as one of FAISS's, so FAISS uses one thread in it.
    return ThreadPoolExecutor(number, "faiss-qama", initializer=faiss.omp_set_num_threads, initargs=(1,))


def _after_fork() -> None:
    """Forget the parent's threads, which a child does not have: FAISS would wait for its own for ever."""
    _threads.cache_clear()
    one_blas_thread.__init__()  # type: ignore[misc]
    faiss.omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
