"""An index that is open for writing: commits cost what changed, and are whole; test_sequences.py tries any order."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from stored import QUANTIZER, QUERIES, X, same, saved

from faiss_qama import QamaIndex
from faiss_qama.index import with_documents
from faiss_qama.index.id_map import IdMap
from faiss_qama.storage import atomic_files, row_file
from faiss_qama.storage.manifest import sign
from faiss_qama.storage.row_file import RowFile

TWO = fit_quietly(X, layout="2x18+2x18")
BASES = ("Flat", "IVF8", "BFlat", "BIVF8", "BHNSW8", "BHash6", "BHash2x6")


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
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir()}
    index.add_with_ids(X[500:700], np.arange(500, 700))
    index.close()
    assert sizes != {entry.name: entry.stat().st_size for entry in path.iterdir()}
    QamaIndex.open(path).close()
    assert sizes == {entry.name: entry.stat().st_size for entry in path.iterdir()}
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
    before = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
    with QamaIndex.open(path) as index:
        index.add_with_ids(x[10_000:], np.arange(10_000, 11_000))
        index.commit()
    after = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
    assert after.pop("manifest.json") != before.pop("manifest.json")
    assert after == before
    theirs = 1000 * sum(index.bytes_per_vector)
    assert theirs <= sum(written) <= 1.1 * theirs
    manifest = (path / "manifest.json").read_bytes()
    with QamaIndex.open(path) as index:
        index.commit()  # of nothing
    assert (path / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("base", ["Flat", "IVF8", "BHNSW8"])
def test_what_a_manifest_names_is_on_the_disk_before_it(tmp_path, monkeypatch, base):
    """No kill shows that, as only a power cut loses what was written and not synced."""
    path, done = tmp_path / "i.qama", []
    sync, replace = atomic_files.sync, os.replace
    monkeypatch.setattr(atomic_files, "sync", lambda of: (done.append(of.absolute()), sync(of))[1])
    monkeypatch.setattr(os, "replace", lambda *of: (done.append("replace"), replace(*of))[1])

    def check(changed):
        manifest = json.loads((path / "manifest.json").read_text())
        at = done.index("replace")
        named = {path / manifest["files"][name]["name"] for name in changed} | {path / "manifest.json.new", path}
        assert named <= set(done[:at])
        assert path in done[at:]
        done.clear()
        return manifest["files"].keys()

    saved(path, 500, "fp16", base)
    assert tmp_path in done
    check(json.loads((path / "manifest.json").read_text())["files"])
    with QamaIndex.open(path) as index:
        index.upsert(X[600:650], np.arange(50))
        index.commit()
        codes = {"Flat": {"codes"}, "IVF8": {"newcodes", "newlists"}, "BHNSW8": {"codes"}}[base]
        check({"vectors", "ids", "removed"} | codes)
        index.compact()
        check({"vectors", "ids", "codes"})


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
        if where == "sync":  # to sync again would not show that rows are lost
            with pytest.raises(ValueError, match="this index is closed"):
                index.commit()
            return
        index.commit()
        same(QamaIndex.load(path), index)
        assert QamaIndex.load(path).ntotal == 599


@pytest.mark.parametrize("base", ["Flat", "IVF8"])
@pytest.mark.parametrize(("rescore", "quantizer"), [("fp16", QUANTIZER), ("codes", TWO)])
def test_an_add_that_fails_leaves_the_rows_in_their_files(tmp_path, monkeypatch, base, rescore, quantizer):
    path, write = tmp_path / "i.qama", RowFile.write
    saved(path, 490, rescore, base, quantizer=quantizer)
    with QamaIndex.open(path) as index:
        index.add_with_ids(X[490:500], np.arange(490, 500))

        def full(file, at, rows):
            if file.path.name.startswith("ids-"):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file, at, rows)

        with monkeypatch.context() as patched:
            patched.setattr(RowFile, "write", full)
            for change in (index.add_with_ids, index.upsert):
                with pytest.raises(OSError, match="No space"):
                    change(X[600:700], np.arange(400, 500) if change == index.upsert else np.arange(600, 700))
        names = {entry.name for entry in path.iterdir()}
        index.add_with_ids(X[500:505], np.arange(500, 505))
        index.commit()
        if base == "Flat":
            assert {entry.name for entry in path.iterdir()} == names
    same(QamaIndex.load(path), saved(tmp_path / "j.qama", 505, rescore, base, quantizer=quantizer))


@pytest.mark.parametrize("change", ["add_with_ids", "upsert"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_ctrl_c_in_a_change_leaves_all_as_it_was_or_all_changed(monkeypatch, ctrl_c, change, own, step):
    index = QamaIndex(QUANTIZER, "fp32")
    index.add_with_ids(X[:50], np.arange(50)) if own else index.add(X[:50])
    left, changed = [step], IdMap._changed

    def interrupted(id_map):
        changed(id_map)
        left[0] -= 1
        if left[0] == -1:
            ctrl_c()

    with monkeypatch.context() as patched:
        patched.setattr(IdMap, "_changed", interrupted)
        try:
            getattr(index, change)(X[100:110], np.arange(45, 55) if change == "upsert" else np.arange(50, 60))
        except KeyboardInterrupt:
            pass
    whole = index.ntotal == (55 if change == "upsert" else 60)
    assert whole or index.ntotal == 50
    for i in range(50):
        np.testing.assert_array_equal(
            index.reconstruct(i), X[i + 55] if i >= 45 and whole and change == "upsert" else X[i]
        )
    if not whole:
        assert index.has_own_ids == own


def test_a_change_that_fails_gives_no_ids(monkeypatch):
    index = QamaIndex(QUANTIZER, "fp32")
    index.add(X[:50])

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(IdMap, "_changed", no_memory)
        for change in (index.add_with_ids, index.upsert):
            with pytest.raises(MemoryError):
                change(X[50:60], np.arange(50, 60))
    assert not index.has_own_ids
    index.add(X[50:60])
    assert index.ntotal == 60


def test_documents_beside_an_index_outlive_its_changes(tmp_path):
    path = tmp_path / "i.qama"
    with_documents.save(path, saved(path), '{"documents": [1]}')
    with QamaIndex.open(path) as index:
        index.remove_ids(np.arange(200))
        index.commit()
        index.compact()
        index.refit()
    index, documents = with_documents.load(path)
    assert documents == '{"documents": [1]}'
    assert index.ntotal == 300


@pytest.mark.parametrize("base", ["IVF8", "BHNSW8"])
def test_a_reader_keeps_its_search_settings(tmp_path, base):
    path, name = tmp_path / "i.qama", "nprobe" if base == "IVF8" else "efSearch"
    saved(path, base=base)
    reader = QamaIndex.load(path, mmap=True)
    setattr(reader, name, 5)
    with QamaIndex.open(path) as index:
        index.remove_ids([1])
        index.commit()
    assert reader.refresh()
    assert getattr(reader, name) == 5


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
