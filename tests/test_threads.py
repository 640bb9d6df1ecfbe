"""Tasks among threads: each once, in order, whatever goes wrong; Ctrl-C where it does no harm."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from threadpoolctl import threadpool_info, threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.threads import defer_interrupt, even_slices, one_thread, parallel_map


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_what_is_returned_is_in_the_order_of_the_tasks(threads, n):
    assert parallel_map(lambda task: task * task, range(n)) == [task * task for task in range(n)]
    assert faiss.omp_get_max_threads() == threads
    assert [i for share in even_slices(n) for i in range(n)[share]] == list(range(n))
    assert len(even_slices(n)) <= threads


def test_a_task_may_have_tasks_of_its_own(threads):
    assert parallel_map(lambda task: sum(parallel_map(lambda i: task * i, range(5))), range(9)) == [
        10 * task for task in range(9)
    ]


@pytest.mark.parametrize("here", [True, False])
def test_an_error_anywhere_is_raised_once_nobody_works_any_more(threads, here):
    caller, running = threading.get_ident(), []

    def work(task):
        running.append(task)
        time.sleep(0.001)
        running.remove(task)
        if threads == 1 or (threading.get_ident() == caller) == here:
            raise KeyError(task)

    with pytest.raises(KeyError):
        parallel_map(work, range(50))
    assert running == []
    assert faiss.omp_get_max_threads() == threads


def test_a_short_search_does_not_wait_for_a_long_one():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    go_on, done = threading.Event(), []

    def long():
        faiss.omp_set_num_threads(2)  # each thread has a number of its own
        done.append(parallel_map(lambda _: go_on.wait(60), range(2)))

    searching = threading.Thread(target=long)
    searching.start()
    try:
        while not any(thread.name.startswith("faiss-qama") for thread in threading.enumerate()):
            time.sleep(0.001)
        assert parallel_map(lambda task: task, range(5)) == list(range(5))
        assert done == []
    finally:
        go_on.set()
        searching.join()
        faiss.omp_set_num_threads(before)
    assert done == [[True, True]]


def test_the_last_thread_to_leave_lifts_the_limit_of_blas():
    def threads() -> list[int]:
        return [lib["num_threads"] for lib in threadpool_info() if lib.get("threading_layer") == "pthreads"]

    with threadpool_limits(2):
        before, first, second = threads(), one_thread(), one_thread()
        assert 2 in before
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert threads() == before


FORKS = """
import os, signal, sys, time
import faiss
from conftest import D, fit_quietly, make_vectors
from faiss_qama import QamaIndex
x = make_vectors(3000)
faiss.omp_set_num_threads(2)
flat = faiss.IndexFlatIP(D)
flat.add(x)
index = QamaIndex(fit_quietly(x, layout="2x18"), flat, base=sys.argv[1])
index.train(x)
index.add(x[:2000])
index.search(x[:100], 10)
for work in (
    lambda: index.add(x[2000:]),
    lambda: fit_quietly(x, layout="2x18"),
    lambda: index.reconstruct_n(),
    lambda: index.search(x[:100], 10),
    lambda: index.range_search(x[:9], 0.5),
    lambda: index.remove_ids(range(9)),
    lambda: QamaIndex.wrap(flat),
):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(7)
    end = time.monotonic() + 30
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.02)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(done[1]) == 7, work
assert faiss.omp_get_max_threads() == 2
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("base", ["Flat", "BIVF4", "BHNSW8"])
def test_a_forked_child_does_not_wait_for_its_parents_threads(base):
    """In a process of its own, which uses two threads of FAISS and forks; a child that hangs is killed."""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS, base], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_is_held_until_the_outermost_end(ctrl_c):
    reached = []

    @defer_interrupt()
    def inner():
        ctrl_c()
        reached.append("inner")

    @defer_interrupt()
    def outer():
        inner()
        reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert reached == ["inner", "outer"]
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


@pytest.mark.parametrize("base", ["Flat", "IVF4", "BFlat"])
def test_ctrl_c_in_a_removal_comes_after_it(ctrl_c, monkeypatch, base):
    x = make_vectors(300)
    index = QamaIndex(fit_quietly(x, layout="2x18+1x18"), "codes", base=base)
    index.train(x)
    index.add_with_ids(x, np.arange(300) + 1000)
    keep = type(index._core.base).keep

    def interrupted(self, kept):
        ctrl_c()
        keep(self, kept)

    with monkeypatch.context() as patched:
        patched.setattr(type(index._core.base), "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.remove_ids(np.arange(1000, 1100))
    assert index.ntotal == 200
    assert (index.search(x[100:], 1, oversample=1e9)[1][:, 0] == np.arange(1100, 1300)).mean() > 0.9


def test_ctrl_c_comes_after_what_was_being_compiled(ctrl_c):
    event = pytest.importorskip("numba.core.event")
    from faiss_qama.kernels.scanning import jitted

    class Interrupts(event.Listener):
        def on_start(self, _):
            ctrl_c()

        def on_end(self, _):
            pass

    code: dict = {}
    exec("def twice(x): return 2 * x", code)  # what has no file has no cache: it is compiled each time
    twice = jitted()(code["twice"])
    with event.install_listener("numba:compile", Interrupts()), pytest.raises(KeyboardInterrupt):
        twice(3)
    assert len(twice.signatures) == 1
    assert twice(3) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_killed_child_does_not_keep_the_lock_of_progress_bars():
    """Nor does a thread of the parent keep it in a child."""
    script = """
import os, signal, threading
from faiss_qama.progress import _Bar, progress
child = os.fork()
if child == 0:
    _Bar.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
assert list(progress([1, 2], "after a kill")) == [1, 2]
taken, done = threading.Event(), threading.Event()
def hold():
    with _Bar.get_lock():
        taken.set()
        done.wait()
threading.Thread(target=hold).start()
taken.wait()
child = os.fork()
if child == 0:
    os._exit(list(progress([1, 2], "in a child")) != [1, 2])
assert os.waitpid(child, 0)[1] == 0
done.set()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
