"""An index that is open for writing: commits cost what changed, and are whole; test_sequences.py tries any order."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from kills import KINDS, kills

from faiss_qama import QamaIndex
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.storage import atomic_files, row_file
from faiss_qama.storage.manifest import sign
from faiss_qama.storage.row_file import RowFile
from faiss_qama.storage.writer import Writer

X = make_vectors(1200, seed=41)
QUERIES = make_vectors(20, seed=42)
QUANTIZER = fit_quietly(X, layout="2x18")
TWO = fit_quietly(X, layout="2x18+2x18")
BASES = ("Flat", "IVF8", "BFlat", "BIVF8", "BHNSW8", "BHash6", "BHash2x6")


def saved(path, n=500, rescore="fp16", base="Flat", *, ids=True, quantizer=QUANTIZER):
    index = QamaIndex(quantizer, rescore, base=base)
    index.train(X)
    index.add_with_ids(X[:n], np.arange(n)) if ids else index.add(X[:n])
    index.save(path)
    return index


def same(a, b, k=10, **options):
    for one, other in zip(a.search(QUERIES, k, **options), b.search(QUERIES, k, **options), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("rescore", "quantizer"), [("none", QUANTIZER), ("sq8", QUANTIZER), ("codes", TWO)])
def test_twenty_commits_answer_as_one(tmp_path, base, rescore, quantizer):
    path = tmp_path / "i.qama"
    whole = saved(path, 500, rescore, base, quantizer=quantizer)
    with QamaIndex.open(path) as index:
        for start in range(500, 1200, 35):
            ids = np.arange(start, min(start + 35, 1200))
            for one in (index, whole):
                one.add_with_ids(X[ids], ids)
            index.commit()
        if base != "BHNSW8":  # a graph that is read anew draws other levels for what is added
            same(index, whole)
        for reader in (QamaIndex.load(path), QamaIndex.load(path, mmap=True)):
            same(reader, index)
            np.testing.assert_array_equal(reader.ids, whole.ids)
        with pytest.raises(OSError, match="open for writing"):
            QamaIndex.open(path)
    with QamaIndex.open(path) as index:
        same(index, QamaIndex.load(path))
        index.remove_ids(np.arange(0, 1200, 3))
        index.compact()
        whole.remove_ids(np.arange(0, 1200, 3))
        whole.compact()
        if base in ("Flat", "IVF8", "BFlat"):  # FAISS's other indexes break ties by the order of adding
            same(index, whole, oversample=1e9 if rescore != "none" else None)
        same(index, QamaIndex.load(path))


def test_readers_stay_on_their_commit_until_they_refresh(tmp_path):
    path = tmp_path / "i.qama"
    first = saved(path)
    reader = QamaIndex.load(path, mmap=True)
    with QamaIndex.open(path) as index:
        index.upsert(X[600:610], np.arange(10))
        same(reader, first)
        assert not reader.refresh()
        index.commit()
        same(reader, first)
        assert reader.refresh()
        same(reader, index)
        index.compact()
        same(reader, index)  # on files that are gone
        assert reader.refresh()
        same(reader, index)
    with pytest.raises(ValueError, match=r"refresh is for an index from load\(path, mmap=True\)"):
        first.refresh()
    for what in (first.commit, first.close):
        with pytest.raises(ValueError, match=r"QamaIndex.open\(path\)"):
            what()
    with pytest.raises(ValueError, match="compact must be 'auto' or None; got 'yes'"):
        index.commit(compact="yes")


def test_what_is_not_committed_is_lost_and_what_is_left_over_goes(tmp_path):
    path = tmp_path / "i.qama"
    first = saved(path)
    (path / "vectors-2.npy").write_bytes(b"of a writer that was killed")
    index = QamaIndex.open(path)
    assert not (path / "vectors-2.npy").exists()
    index.add_with_ids(X[500:700], np.arange(500, 700))
    index.close()
    with pytest.raises(ValueError, match="this index is closed: open .*i.qama again"):
        index.add_with_ids(X[:1], [9999])
    assert index.ntotal == 700
    same(QamaIndex.load(path), first)
    with QamaIndex.open(path) as index:
        same(index, first)
        index.add_with_ids(X[700:710], np.arange(700, 710))
        index.commit()
    assert QamaIndex.load(path).ntotal == 510


def test_a_commit_writes_what_changed(tmp_path, monkeypatch):
    """A thousand vectors in ten thousand: their codes, ids and vectors, and the manifest."""
    x = make_vectors(11_000)
    path, index = tmp_path / "i.qama", QamaIndex(QUANTIZER, "fp16")
    index.add_with_ids(x[:10_000], np.arange(10_000))
    index.save(path)
    written, write = [], RowFile.write
    monkeypatch.setattr(RowFile, "write", lambda self, at, rows: (written.append(rows.nbytes), write(self, at, rows)))
    before = {entry.name: entry.stat().st_mtime_ns for entry in path.iterdir()}
    with QamaIndex.open(path) as index:
        index.add_with_ids(x[10_000:], np.arange(10_000, 11_000))
        index.commit()
    new = [entry for entry in path.iterdir() if entry.name not in before]
    assert new == []
    theirs = 1000 * (2 * 36 + 8 + sum(index.bytes_per_vector[:1]) - 8)
    assert sum(written) <= 1.1 * theirs


@pytest.mark.parametrize("base", ["Flat", "IVF8", "BHNSW8"])
@pytest.mark.parametrize("where", ["write", "sync", "replace", "replaced"])
def test_a_disk_that_is_full_keeps_the_last_commit_and_the_next_one_succeeds(tmp_path, monkeypatch, base, where):
    path = tmp_path / "i.qama"
    first = saved(path, base=base)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with QamaIndex.open(path) as index:
        index.remove_ids([3])
        index.add_with_ids(X[500:600], np.arange(500, 600))
        with monkeypatch.context() as patched:
            if where == "write":
                patched.setattr(RowFile, "write", full)
                with pytest.raises(OSError, match="No space"):
                    index.add_with_ids(X[600:700], np.arange(600, 700))
            else:
                replace_it = os.replace
                what = {"sync": (atomic_files, "sync"), "replace": (os, "replace"), "replaced": (os, "replace")}[where]
                patched.setattr(*what, full if where != "replaced" else lambda *names: (replace_it(*names), full()))
                with pytest.raises(OSError, match="No space") as error:
                    index.commit()
                assert error.value.filename is not None
        assert index.ntotal == 599
        if where != "replaced":
            assert QamaIndex.load(path).ntotal == 500
            same(QamaIndex.load(path), first)
        index.commit()
        same(QamaIndex.load(path), index)
        assert QamaIndex.load(path).ntotal == 599


def test_a_compaction_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "i.qama"
    saved(path)
    with QamaIndex.open(path) as index:
        index.remove_ids(np.arange(100))

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(atomic_files, "write_stream", full)
            with pytest.raises(OSError, match="No space"):
                index.compact()
        assert QamaIndex.load(path).ntotal == 500
        assert index.ntotal == 400
        index.compact()
        assert QamaIndex.load(path).ntotal == 400
        same(QamaIndex.load(path), index)


def test_auto_compacts_once_a_quarter_is_removed_or_beside_the_lists(tmp_path):
    for base in ("Flat", "IVF8"):
        path = tmp_path / f"{base}.qama"
        saved(path, base=base)
        with QamaIndex.open(path) as index:
            index.remove_ids(np.arange(100))
            index.commit(compact="auto")
            assert (path / "removed-2.npy").exists()
            index.remove_ids(np.arange(100, 130))
            index.commit(compact="auto")
            assert not list(path.glob("removed-*"))
            if base == "IVF8":
                index.add_with_ids(X[500:700], np.arange(500, 700))
                index.commit()
                assert list(path.glob("newcodes-*"))
                index.commit(compact="auto")
                assert not list(path.glob("newcodes-*"))
        assert QamaIndex.load(path).ntotal == 370 + 200 * (base == "IVF8")


def test_an_index_without_ids_grows_and_gets_ids(tmp_path):
    path = tmp_path / "i.qama"
    whole = saved(path, ids=False)
    with QamaIndex.open(path) as index:
        for one in (index, whole):
            one.add(X[500:520])
            one.remove_ids([0, 7, 519])
        index.commit()
        same(QamaIndex.load(path, mmap=True), whole)
        for one in (index, whole):
            one.upsert(X[600:603], [5, 10**6, 5])
        index.commit()
        same(QamaIndex.load(path, mmap=True), whole)
    assert whole.ntotal == 518
    np.testing.assert_allclose(whole.reconstruct(5), X[602], atol=1e-3)


def test_norms_that_change_the_quantizer_are_committed_with_it(tmp_path):
    path = tmp_path / "i.qama"
    saved(path, rescore="fp16")
    with QamaIndex.open(path) as index:
        with pytest.warns(UserWarning, match="vectors of norm"):
            index.add_with_ids(3 * X[:400], np.arange(1000, 1400))
        index.commit()
        same(QamaIndex.load(path, mmap=True), index, recall=0.9)


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
            other.remove_ids([1])
            other.commit()
        index.remove_ids([2, 3])
        with pytest.raises(OSError, match="another process has written to this index; nothing was committed"):
            index.commit()
    assert QamaIndex.load(path).ntotal == 499


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
        want, stop, faults = index.search(QUERIES, 5), threading.Event(), []

        def search():
            while not stop.is_set():
                faults.extend(np.flatnonzero((index.search(QUERIES, 5)[1] != want[1]).any(axis=1)))

        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            index.compact()
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
    with filelock.FileLock(path / ".lock"), pytest.raises(OSError, match="another process is writing this index"):
        QamaIndex.open(path)
    with pytest.raises(FileNotFoundError, match="no index here"):
        QamaIndex.open(tmp_path / "none.qama")


def test_checksums_of_rows_that_were_there_are_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(row_file, "BLOCK", 256)
    path = Path(tmp_path) / "rows.npy"
    np.save(path, np.zeros((100, 4), np.float32))
    file = RowFile(path, writable=True)
    before = file.entry(100)
    file.write(100, np.ones((50, 4), np.float32))
    after = file.entry(150, 0, before)
    assert after["sha256"] == list(RowFile(path).checksums(150, 0))
    assert after["sha256"][:6] == before["sha256"][:6]
    with monkeypatch.context() as patched:
        starts = []
        patched.setattr(RowFile, "checksums", lambda self, n, lanes, first=0: starts.append(first) or iter(()))
        file.entry(150, 0, before)
    assert starts == [(128 + 1600) // 256]


def test_health_says_what_to_do_and_doing_it_helps(tmp_path):
    path, rng = tmp_path / "i.qama", np.random.default_rng(0)
    x = make_vectors(4000, seed=51)
    index = QamaIndex(fit_quietly(x[:2000], layout="2x18"), "fp32")
    index.add_with_ids(x, np.arange(4000))
    assert index.health().advice == "keep"
    assert index.health(queries=make_vectors(100, seed=52)).recall > 0.9
    other = rng.standard_normal((4000, 36)).astype(np.float32)
    other[:, 18:] *= 5
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    index.save(path)
    with QamaIndex.open(path) as opened:
        for one in (index, opened):
            one.upsert(other, np.arange(4000))
            sick = one.health()
            assert sick.advice == "refit"
            assert "refit() fits a new quantizer" in str(sick)
            assert sick.distortion[1] > 1.2 * sick.distortion[0]
            assert one.quantizer.distortion(other) == pytest.approx(sick.distortion[1], rel=0.2)
            one.refit()
            assert one.health().advice == "keep"
            assert one.health().distortion[1] < sick.distortion[1]
            assert str(one.quantizer.layout) == "2x18"
            exact = np.argsort(-QUERIES @ one.reconstruct_batch(one.ids).T, axis=1)[:, :10]
            found = one.search(QUERIES, 10, recall=0.95)[1]
            shares = [len(set(a) & set(one.ids[b])) / 10 for a, b in zip(found, exact, strict=True)]
            assert np.mean(shares) > 0.9
        assert QamaIndex.load(path).quantizer.fit_record.fitted_on == opened.quantizer.fit_record.fitted_on
        same(QamaIndex.load(path), opened)


def test_a_calibration_that_no_longer_holds_is_measured_anew(tmp_path):
    x = make_vectors(3000, seed=53)
    index = QamaIndex(fit_quietly(x, layout="2x6"), "fp16")
    index.add(x)
    index.save(tmp_path / "i.qama")
    few = index.quantizer.calibration
    with QamaIndex.open(tmp_path / "i.qama") as opened:
        core = opened._fitted
        lying = np.ones_like(few.floats)
        core.quantizer = replace(core.quantizer, calibration=replace(few, floats=lying))
        assert opened.health().advice == "recalibrate"
        opened.recalibrate()
        assert opened.health().advice == "keep"
        opened.commit()
        held = QamaIndex.load(tmp_path / "i.qama").quantizer.calibration
        np.testing.assert_array_equal(held.floats, opened.quantizer.calibration.floats)
        opened.add(x[:5])
        np.testing.assert_array_equal(held.floats, opened.quantizer.calibration.floats)
    for rescore in ("codes", "none"):
        blind = index.with_rescore(rescore)
        with pytest.raises(ValueError, match=f"rescore='{rescore}' keeps no vectors to compare with"):
            blind.health()
    with pytest.raises(ValueError, match="at least 2 vectors are needed; the index holds 0"):
        QamaIndex(index.quantizer, "fp16").health()
    few_vectors = QamaIndex(index.quantizer, "fp16")
    few_vectors.add(x[:50])
    with pytest.raises(ValueError, match="50 vectors are too few to calibrate on; 200 are needed"):
        few_vectors.recalibrate()
    mapped = QamaIndex.load(tmp_path / "i.qama", mmap=True)
    assert mapped.health().advice == "keep"
    for change in (mapped.recalibrate, mapped.refit):
        with pytest.raises(ValueError, match="read-only"):
            change()


@pytest.mark.parametrize("base", ["Flat", "IVF8", "BHNSW8"])
def test_a_bundle_from_before_commits_opens_and_grows(tmp_path, base):
    """Its files have one checksum each, and a mask in place of the removed rows."""
    path = tmp_path / "i.qama"
    whole = saved(path, 500, "fp16", base)
    whole.remove_ids([3, 5])
    whole.save(path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"].pop("removed")
    alive = ~np.isin(np.arange(500), [3, 5])
    np.save(path / "alive-2.npy", alive)
    manifest["files"]["alive"] = {"name": "alive-2.npy"}
    for entry in manifest["files"].values():
        file = path / entry["name"]
        entry |= {"bytes": file.stat().st_size, "sha256": atomic_files.sha256(file)}
        for new in ("rows", "lanes"):
            entry.pop(new, None)
    (path / "manifest.json").write_bytes(sign(manifest))
    for mmap in (False, True):
        same(QamaIndex.load(path, mmap=mmap), whole)
    with QamaIndex.open(path) as index:
        index.add_with_ids(X[500:520], np.arange(500, 520))
        index.remove_ids([7])
        index.commit()
        assert not (path / "alive-2.npy").exists()
        same(QamaIndex.load(path), index)
        assert QamaIndex.load(path).ntotal == 517
        assert not {3, 5, 7} & set(index.ids.tolist())


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


def test_paths_are_those_of_the_moment_when_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("i.qama")
    reader = QamaIndex.load("i.qama", mmap=True)
    with QamaIndex.open("i.qama") as index:
        index.upsert(X[600:601], [7])
        monkeypatch.chdir("/")
        index.commit()
        index.upsert(X[601:602], [8])
        index.search(QUERIES, 3)
        index.compact()
        assert reader.refresh()
        same(reader, index)


@pytest.mark.parametrize("name", ["codes", "vectors", "ids"])
def test_damage_is_not_hidden_by_a_new_checksum(tmp_path, name):
    path = tmp_path / "i.qama"
    saved(path, 320)
    data = bytearray((path / f"{name}-1.npy").read_bytes())
    data[200] ^= 8
    (path / f"{name}-1.npy").write_bytes(data)
    for change in (QamaIndex.commit, QamaIndex.compact):
        with QamaIndex.open(path) as index:
            index.upsert(X[400:401], [3])
            with pytest.raises(ValueError, match=f"{name}-1.npy: damaged: its checksum does not match"):
                change(index)
    with pytest.raises(ValueError, match="damaged"):
        QamaIndex.load(path)


def test_a_view_says_that_its_index_was_built_anew(tmp_path):
    path = tmp_path / "i.qama"
    saved(path)
    with QamaIndex.open(path) as index:
        view = index.with_rescore("codes")
        index.remove_ids([1])
        assert view.ntotal == 499
        index.compact()
        with pytest.raises(ValueError, match="was built anew since: make it again"):
            view.search(QUERIES, 3)
        assert index.with_rescore("codes").ntotal == 499


def test_a_folder_that_was_made_anew_is_noticed(tmp_path):
    path = tmp_path / "i.qama"
    saved(path, 300)
    reader = QamaIndex.load(path, mmap=True)
    shutil.rmtree(path)
    saved(path, 310)
    assert reader.refresh()
    assert reader.ntotal == 310


def test_what_is_added_beside_a_refit_is_encoded_by_the_new_quantizer(monkeypatch):
    index = QamaIndex(QUANTIZER, "fp32")
    index.add_with_ids(X[:600], np.arange(600))
    encode, once = Quantizer.encode, []

    def overtaken(quantizer, x):
        code = encode(quantizer, x)
        if len(x) == 50 and not once:
            once.append(True)
            index.refit()
        return code

    with monkeypatch.context() as patched:
        patched.setattr(Quantizer, "encode", overtaken)
        index.add_with_ids(X[600:650], np.arange(600, 650))
    np.testing.assert_array_equal(index._fitted.base.take(np.arange(600, 650)), index.quantizer.encode(X[600:650]))
