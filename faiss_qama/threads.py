"""A pool of as many threads as FAISS may use, and a context that holds Ctrl-C back."""

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


def even_slices(n: int) -> list[slice]:
    """Return slices that divide 0 to ``n`` evenly, as many as FAISS may use threads."""
    step = -(-n // faiss.omp_get_max_threads()) or 1
    return [slice(start, start + step) for start in range(0, n, step)]


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    # Each thread counts as one of FAISS's, so FAISS uses one thread in it.
    return ThreadPoolExecutor(number, "faiss-qama", initializer=faiss.omp_set_num_threads, initargs=(1,))


def _after_fork() -> None:
    """Forget the parent's threads, which a child does not have: FAISS would wait for its own for ever."""
    _threads.cache_clear()
    faiss.omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
