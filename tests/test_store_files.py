"""A store is saved in one atomic step: whenever the process dies, the old store is there or the new one."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.integrations.store_files import load_store, save_store

X = make_vectors(300)
QUANTIZER = fit_quietly(X, layout="2x18")


class Killed(BaseException):
    """The process is gone: nothing that it would have done to the disk happens any more."""


def die_at(monkeypatch, last):
    """Let the ``last``-th step that changes a name or waits for the disk, and all later ones, not happen."""
    steps = itertools.count(1)

    def dying(do):
        def step(*arguments, **options):
            if next(steps) >= last:
                raise Killed
            return do(*arguments, **options)

        return step

    for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    return steps


def states_after_death(monkeypatch, save, load):
    """Yield what ``load`` returns after ``save`` died at its first step, at its second and so on, and at none."""
    for last in itertools.count(1):
        with monkeypatch.context() as patched:
            die_at(patched, last)
            try:
                save()
                whole = True
            except Killed:
                whole = False
        yield load()
        if whole:
            return


def store(n):
    """An index of ``n`` vectors and the documents of it; none without vectors."""
    documents = json.dumps({"documents": [f"text {i}" for i in range(n)]})
    if n == 0:
        return None, documents
    index = QamaIndex(QUANTIZER, "fp32")
    index.add(X[:n])
    return index, documents


@pytest.mark.parametrize(("old", "new"), [(20, 30), (20, 0), (0, 30), (0, 0)])
def test_a_killed_save_leaves_the_old_store_or_the_new_one(tmp_path, monkeypatch, old, new):
    path, folder = tmp_path / "s.json", tmp_path / "s.qama"
    save_store(path, folder, *store(old))
    found = []
    for index, documents in states_after_death(
        monkeypatch, lambda: save_store(path, folder, *store(new)), lambda: load_store(path, folder)
    ):
        held = 0 if index is None else index.ntotal
        assert len(json.loads(documents)["documents"]) == held
        found.append(held)
        if held:
            assert index.search(X[:held], 1, oversample=held)[1].ravel().tolist() == list(range(held))
        if found[-1] == new and old != new:
            break
    assert set(found) == {old, new}
    assert found == sorted(found, key=lambda held: held == new)


def test_the_first_save_is_there_or_not(tmp_path, monkeypatch):
    path, folder = tmp_path / "s.json", tmp_path / "s.qama"
    save = lambda: save_store(path, folder, *store(20))  # noqa: E731
    states = list(states_after_death(monkeypatch, save, lambda: path.exists() and load_store(path, folder)[0].ntotal))
    assert set(states) == {False, 20}


@pytest.fixture
def langchain():
    pytest.importorskip("langchain_core")
    from langchain_core.embeddings import DeterministicFakeEmbedding

    from faiss_qama.integrations.langchain import QamaVectorStore

    embedding = DeterministicFakeEmbedding(size=16)

    def make(texts, path):
        QamaVectorStore.from_texts(texts, embedding).save_local(path)

    def load(path):
        return [d.page_content for d in QamaVectorStore.load_local(path, embedding).similarity_search("a", k=99)]

    return make, load


@pytest.fixture
def llama_index():
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import TextNode

    from faiss_qama.integrations.llama_index import QamaVectorStore

    def make(texts, path):
        made = QamaVectorStore(QamaIndex(QUANTIZER, "fp32"))
        made.add([TextNode(text=t, id_=t, embedding=x.tolist()) for t, x in zip(texts, X, strict=False)])
        made.persist(path / "store.json")

    return make, lambda path: [
        n.get_content() for n in QamaVectorStore.from_persist_path(path / "store.json").get_nodes()
    ]


@pytest.fixture
def haystack():
    pytest.importorskip("haystack")
    from haystack.dataclasses import Document

    from faiss_qama.integrations.haystack import QamaDocumentStore

    def make(texts, path):
        made = QamaDocumentStore()
        made.write_documents([Document(id=t, content=t, embedding=x.tolist()) for t, x in zip(texts, X, strict=False)])
        made.save_to_disk(path / "store.json")

    return make, lambda path: [
        d.content for d in QamaDocumentStore.load_from_disk(path / "store.json").filter_documents()
    ]


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_frameworks_lose_no_store(request, framework, tmp_path, monkeypatch):
    make, load = request.getfixturevalue(framework)
    old, new = [f"old {i}" for i in range(20)], [f"new {i}" for i in range(30)]
    make(old, tmp_path)
    states = []
    for state in states_after_death(monkeypatch, lambda: make(new, tmp_path), lambda: sorted(load(tmp_path))):
        states.append(state)
        assert state in (sorted(old), sorted(new))
        if state == sorted(new):
            make(old, tmp_path)
    assert states[0] == sorted(old)
    assert states[-1] == sorted(new)
