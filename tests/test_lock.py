"""Ctrl-C at any moment leaves the lock of an index free."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time

import pytest

from faiss_qama.index import lock as lock_module
from faiss_qama.index.lock import ReadWriteLock

KINDS = ("read", "write", "prepare")


def interrupt_at(moment):
    """Return a profile function that raises KeyboardInterrupt where Python looks for signals the ``moment``-th time.

    It does so where a function begins, and where one in C has returned.
    """
    moments = itertools.count(1)

    def profile(frame, event, argument):
        ours = frame.f_code.co_filename in (lock_module.__file__, threading.__file__, contextlib.__file__)
        if ours and event in ("call", "c_return") and next(moments) == moment:
            raise KeyboardInterrupt

    return profile


def is_free(lock):
    """Return whether readers, writers and those that prepare get the lock, each within two seconds."""
    for kind in KINDS:
        held = []

        def take(kind=kind, held=held):
            with getattr(lock, kind)():
                held.append(kind)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(2)
        if not held:
            return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_any_moment_it_is_free(kind):
    for moment in itertools.count(1):
        lock, previous = ReadWriteLock(), sys.getprofile()
        try:
            sys.setprofile(interrupt_at(moment))
            with getattr(lock, kind)():
                pass
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.setprofile(previous)
        assert is_free(lock), f"moment {moment}"
        if not interrupted:
            assert moment > 15
            return


def test_readers_behind_an_interrupted_writer_go_on(monkeypatch):
    """A writer waits for a reader, others wait behind it; then it is interrupted, and nobody else wakes them."""
    lock, behind = ReadWriteLock(), threading.Event()
    wait = threading.Condition.wait

    def interrupted(condition, timeout=None):
        if condition is lock._free and threading.current_thread().name == "writer":
            later.start()
            while not condition._waiters:
                condition.release()
                time.sleep(0.001)
                condition.acquire()
            raise KeyboardInterrupt
        return wait(condition, timeout)

    def write():
        with pytest.raises(KeyboardInterrupt), lock.write():
            pytest.fail("a reader holds it")

    def read():
        with lock.read():
            behind.set()

    later = threading.Thread(target=read, daemon=True)
    monkeypatch.setattr(threading.Condition, "wait", interrupted)
    with lock.read():
        writer = threading.Thread(target=write, name="writer", daemon=True)
        writer.start()
        writer.join(5)
        assert behind.wait(2)
    assert is_free(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_forked_by_a_holder_has_a_free_lock(kind):
    lock = ReadWriteLock()
    with getattr(lock, kind)():
        child = os.fork()
    if child == 0:
        os._exit(0 if is_free(lock) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_searches_go_on_beside_a_change_that_prepares_though_another_waits():
    lock, done, ready = ReadWriteLock(), [], threading.Event()

    def enters(kind, note):
        def work():
            with getattr(lock, kind)():
                done.append(note)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def search():
        with lock.read():
            ready.set()
            time.sleep(0.2)
            done.append("search")

    with lock.prepare() as alone:
        changes = [enters("write", "change"), enters("prepare", "change")]
        time.sleep(0.05)
        enters("read", "read").join(2)
        assert done == ["read"]
        searching = threading.Thread(target=search)
        searching.start()
        ready.wait()
        alone()  # waits for that search
        assert done == ["read", "search"]
        later = enters("read", "later")
        time.sleep(0.05)
        assert done == ["read", "search"]
    for thread in (searching, later, *changes):
        thread.join(2)
    assert sorted(done) == ["change", "change", "later", "read", "search"]
