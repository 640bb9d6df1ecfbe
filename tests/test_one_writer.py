"""One writer and many readers: other processes, threads, forks, kills and locks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest
from kills import KINDS, kills
from stored import QUANTIZER, QUERIES, X, same, saved

from faiss_qama import QamaIndex
from faiss_qama.index import norms, saving
from faiss_qama.storage import bundle
from faiss_qama.storage.writer import Writer


def test_a_save_into_a_folder_that_is_open_is_refused_and_one_elsewhere_is_a_copy(tmp_path):
    path = tmp_path / "i.qama"
    first = saved(path)
    with QamaIndex.open(path) as index:
        with pytest.raises(OSError, match="open for writing"):
            first.save(path)
        index.remove_ids([5])
        index.save(tmp_path / "copy.qama")
        same(QamaIndex.load(tmp_path / "copy.qama"), index)
    (path / ".lock").unlink()
    with QamaIndex.open(path) as index:
        (path / ".lock").unlink()  # as on a disk that several machines share
        with QamaIndex.open(path) as other:
            other.add_with_ids(X[600:620], np.arange(600, 620))
            changes = (lambda: index.add_with_ids(X[700:720], np.arange(700, 720)), lambda: index.remove_ids([2]))
            for committed in (False, True):
                for change in (*changes, index.commit, index.compact):
                    with pytest.raises(OSError, match="another process has written to this index, or removed its lock"):
                        change()
                if not committed:
                    other.commit()
            same(QamaIndex.load(path), other)
    assert QamaIndex.load(path).ntotal == 520


def test_closing_waits_for_a_commit(tmp_path, monkeypatch):
    path, write, closing = tmp_path / "i.qama", bundle.write_generation, []
    saved(path)
    index = QamaIndex.open(path)
    index.remove_ids([1])

    def meanwhile(*arguments, **options):
        closing.append(threading.Thread(target=index.close))
        closing[0].start()
        with pytest.raises(OSError, match="open for writing"):
            QamaIndex.open(path)
        write(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(bundle, "write_generation", meanwhile)
        index.commit()
    closing[0].join()
    with QamaIndex.open(path) as index:
        assert index.ntotal == 499


def test_a_slower_refresh_does_not_go_back(tmp_path, monkeypatch):
    path, read = tmp_path / "i.qama", saving.read
    saved(path)
    reader = QamaIndex.load(path, mmap=True)
    with QamaIndex.open(path) as index:
        index.add_with_ids(X[500:501], [500])
        index.commit()

        def overtaken(*arguments, **options):
            core = read(*arguments, **options)
            if index.ntotal == 501:
                index.add_with_ids(X[501:502], [501])
                index.commit()
                assert reader.refresh()
            return core

        with monkeypatch.context() as patched:
            patched.setattr(saving, "read", overtaken)
            reader.refresh()
        assert reader.ntotal == 502


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_child_does_not_write(tmp_path):
    path = tmp_path / "i.qama"
    saved(path)
    with QamaIndex.open(path) as index:
        pid = os.fork()
        if pid == 0:
            try:
                index.add_with_ids(X[:1], [7777])
            except ValueError as error:
                os._exit(7 if "opened for writing before a fork" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        pid = os.fork()
        if pid == 0:
            try:
                index.close()
                del index
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(OSError, match="open for writing"):
            QamaIndex.open(path)
        program = f"from faiss_qama import QamaIndex; QamaIndex.open({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "open for writing" in other.stderr
        index.commit()


def test_readers_in_other_processes_see_whole_commits_alone(tmp_path):
    """Each commit replaces all vectors by copies of another one; a reader never finds both."""
    path = tmp_path / "i.qama"
    index = QamaIndex(QUANTIZER, "fp32")
    index.add_with_ids(np.tile(X[0], (40, 1)), np.arange(40))
    index.save(path)
    np.save(tmp_path / "last.npy", X[60])
    program = """
import sys
import numpy as np
from faiss_qama import QamaIndex
reader, last, seen = QamaIndex.load(sys.argv[1], mmap=True), np.load(sys.argv[2]), set()
print("ready", flush=True)
while last.tobytes() not in seen:
    reader.refresh()
    x = reader.reconstruct_batch(np.arange(40))
    assert (x == x[0]).all() and reader.ntotal == 40
    assert len(set(reader.search(x[:1], 40)[1][0].tolist())) == 40
    seen.add(x[0].tobytes())
print(len(seen))
"""
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "last.npy")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    try:
        with QamaIndex.open(path) as index:
            for turn in range(1, 61):
                index.upsert(np.tile(X[turn], (40, 1)), np.arange(40))
                index.commit(compact="auto")
        for reader in readers:
            assert int(reader.communicate(timeout=60)[0]) > 1
            assert reader.returncode == 0
    finally:
        for reader in readers:
            reader.kill()


def test_threads_search_while_another_compacts(tmp_path):
    path = tmp_path / "i.qama"
    saved(path)
    with QamaIndex.open(path) as index:
        index.remove_ids(np.arange(250, 500))
        want, stop, faults, searched = index.search(QUERIES, 5, oversample=1e9), threading.Event(), [], []

        def search():
            while not stop.is_set():
                searched.append(1)
                faults.extend(np.flatnonzero((index.search(QUERIES, 5, oversample=1e9)[1] != want[1]).any(axis=1)))

        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        for turn in range(5):
            index.remove_ids(np.setdiff1d(np.arange(250), want[1])[turn::5])
            before = len(searched)
            index.compact()
            while len(searched) == before and all(thread.is_alive() for thread in threads):
                time.sleep(0.001)
        assert all(thread.is_alive() for thread in threads)  # none has raised
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind))
def test_a_killed_process_loses_and_tears_nothing(tmp_path, kind):
    assert kills(34, kind, tmp_path) > 20


def test_a_lock_that_another_holds_is_said(tmp_path):
    path = tmp_path / "i.qama"
    saved(path)
    with (
        filelock.FileLock(path / ".lock"),
        pytest.raises(OSError, match="open for writing already, in this or another process"),
    ):
        QamaIndex.open(path)
    with pytest.raises(FileNotFoundError, match="no index here"):
        QamaIndex.open(tmp_path / "none.qama")


def test_any_thread_changes_commits_and_closes_it(tmp_path):
    saved(tmp_path / "i.qama")
    opened = []

    def work():
        index = QamaIndex.open(tmp_path / "i.qama")
        index.remove_ids([1])
        opened.append(index)

    def close():
        opened[0].upsert(X[600:601], [2])
        opened[0].commit()
        opened[0].close()

    for do in (work, close):
        thread = threading.Thread(target=do)
        thread.start()
        thread.join()
    with QamaIndex.open(tmp_path / "i.qama") as index:
        assert index.ntotal == 499


@pytest.mark.parametrize("base", ["Flat", "IVF8"])
@pytest.mark.parametrize("rescore", ["none", "fp16"])
def test_an_interrupted_compaction_loses_nothing_and_closes_the_index(tmp_path, monkeypatch, base, rescore):
    path = tmp_path / "i.qama"
    saved(path, 300, rescore, base)
    index = QamaIndex.open(path)
    index.upsert(X[300:400], np.arange(250, 350))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.compact()
    for change in (index.commit, lambda: index.upsert(X[:1], [1])):
        with pytest.raises(ValueError, match="this index is closed: open .*i.qama again"):
            change()
    with QamaIndex.open(path) as again:
        assert set(again.ids.tolist()) == set(range(350))
        again.add_with_ids(X[500:501], [9999])
        again.commit()
    assert QamaIndex.load(path).ntotal == 351


@pytest.mark.parametrize("change", ["compact", "refit", "commit", "recalibrate"])
def test_searches_go_on_while_an_index_is_written(tmp_path, monkeypatch, change):
    path, found = tmp_path / "i.qama", []
    saved(path)
    with QamaIndex.open(path) as index:
        index.remove_ids(np.arange(100))
        want = index.search(QUERIES, 5, oversample=1e9)

        def search():
            thread = threading.Thread(target=lambda: found.append(index.search(QUERIES, 5, oversample=1e9)))
            thread.start()
            thread.join(20)

        owner, name = (norms, "calibration") if change == "recalibrate" else (bundle, "write_generation")
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **b: (search(), real(*a, **b))[1])
        getattr(index, change)()
        assert found
        for one in found:
            np.testing.assert_array_equal(one[1], want[1])
