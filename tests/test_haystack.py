"""The Haystack store: Haystack's own suites, and searches beside its store in memory."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("haystack", reason="extra haystack")

import numpy as np
from conftest import make_vectors
from haystack import Pipeline
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.testing.document_store import CountDocumentsByFilterTest, DocumentStoreBaseExtendedTests

from faiss_qama.integrations.haystack import QamaDocumentStore, QamaEmbeddingRetriever


class TestHaystacksSuite(DocumentStoreBaseExtendedTests, CountDocumentsByFilterTest):
    """All of Haystack's tests of a store, with embeddings as precise as float16 keeps them."""

    @pytest.fixture
    def document_store(self):
        return QamaDocumentStore()

    def test_write_documents(self, document_store):
        document = Document(content="text", id="1")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])

    @staticmethod
    def assert_documents_are_equal(received, expected):
        assert [d.to_dict() | {"embedding": None} for d in received] == [
            d.to_dict() | {"embedding": None} for d in expected
        ]
        for got, wanted in zip(received, expected, strict=True):
            assert (got.embedding is None) == (wanted.embedding is None)
            if got.embedding is not None:
                np.testing.assert_allclose(got.embedding, wanted.embedding, rtol=1e-3, atol=1e-6)


def documents(n: int, seed: int = 0) -> list[Document]:
    x = make_vectors(n, seed=seed)
    return [
        Document(id=f"{seed}-{i}", content=f"text {i}", meta={"even": i % 2 == 0}, embedding=row.astype(float).tolist())
        for i, row in enumerate(x)
    ]


@pytest.fixture
def both():
    """Our store and Haystack's own, with the same documents."""
    stores = QamaDocumentStore(rescore="fp32"), InMemoryDocumentStore()
    for store in stores:
        store.write_documents(documents(400))
    return stores


QUERY = make_vectors(1, seed=5)[0].astype(float).tolist()
EVEN = {"field": "meta.even", "operator": "==", "value": True}


@pytest.mark.parametrize("filters", [None, EVEN, {"field": "meta.even", "operator": "==", "value": 7}])
@pytest.mark.parametrize("top_k", [1, 10, 500])
def test_finds_what_the_store_in_memory_finds(both, filters, top_k):
    ours, theirs = (store.embedding_retrieval(QUERY, filters, top_k, return_embedding=True) for store in both)
    assert [d.id for d in ours] == [d.id for d in theirs]
    np.testing.assert_allclose([d.score for d in ours], [d.score for d in theirs], atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-6)
        assert a.meta == b.meta


def test_an_overwritten_document_is_found_where_it_is_now(both):
    for store in both:
        store.write_documents(documents(5, seed=0)[:1], DuplicatePolicy.OVERWRITE)
        moved = Document(id="0-3", content="moved", embedding=QUERY)
        store.write_documents([moved, Document(id="0-4", content="bare")], DuplicatePolicy.OVERWRITE)
        store.delete_documents(["0-7", "nobody"])
    ours, theirs = (store.embedding_retrieval(QUERY, top_k=400) for store in both)
    assert [d.id for d in ours] == [d.id for d in theirs]
    assert ours[0].content == "moved"
    assert len(ours) == 398
    assert both[0].count_documents() == 399


def test_cosines_are_of_normalized_vectors():
    ours, theirs = (kind(embedding_similarity_function="cosine") for kind in (QamaDocumentStore, InMemoryDocumentStore))
    for store in (ours, theirs):
        stretched = [(d, i) for i, d in enumerate(documents(50), start=1)]
        store.write_documents([Document(id=d.id, embedding=[i * v for v in d.embedding]) for d, i in stretched])
    found, wanted = (store.embedding_retrieval(QUERY, top_k=50) for store in (ours, theirs))
    assert [d.id for d in found][:5] == [d.id for d in wanted][:5]
    np.testing.assert_allclose([d.score for d in found], [d.score for d in wanted], atol=2e-3)


def test_nothing_is_written_if_one_document_is_wrong(both):
    store = both[0]
    with pytest.raises(DuplicateDocumentError, match="a document with id '0-0' is there already"):
        store.write_documents([*documents(3, seed=1), *documents(1)])
    with pytest.raises(ValueError, match=r"embeddings need one dimension; got \[2, 36\]"):
        store.write_documents([*documents(3, seed=1), Document(embedding=[0.5, 0.5])])
    with pytest.raises(ValueError, match="dimension 2, but 36 is needed"):
        store.write_documents([Document(embedding=[0.5, 0.5])])
    with pytest.raises(ValueError, match="a list of documents is needed; it holds a int"):
        store.write_documents([*documents(3, seed=1), 5])
    assert store.count_documents() == 400
    assert len(store.embedding_retrieval(QUERY, top_k=500)) == 400
    with pytest.raises(ValueError, match="the similarity is one of dot_product, cosine; got l2"):
        QamaDocumentStore("l2")


@pytest.mark.parametrize("held", [0, 1, 400])
def test_saved_and_loaded(tmp_path, held):
    store = QamaDocumentStore(embedding_similarity_function="cosine")
    store.write_documents([*documents(held), Document(id="bare", content="no embedding")])
    store.save_to_disk(tmp_path / "store.json")
    loaded = QamaDocumentStore.load_from_disk(tmp_path / "store.json")
    assert loaded.filter_documents() == store.filter_documents()
    assert loaded.embedding_retrieval(QUERY, EVEN, 3) == store.embedding_retrieval(QUERY, EVEN, 3)
    loaded.write_documents(documents(2, seed=1))
    assert loaded.count_documents() == held + 3


def test_two_saves_are_not_mixed(tmp_path, both):
    store = both[0]
    store.save_to_disk(tmp_path / "store.json")
    old = (tmp_path / "store.json").read_text()
    store.delete_documents(["0-0"])
    store.save_to_disk(tmp_path / "store.json")
    (tmp_path / "store.json").write_text(old)  # it says where the documents are, and no more
    assert QamaDocumentStore.load_from_disk(tmp_path / "store.json").filter_documents() == store.filter_documents()
    store._vectors.index.save(tmp_path / "store.json.qama")
    with pytest.raises(DocumentStoreError, match="are of different saves"):
        QamaDocumentStore.load_from_disk(tmp_path / "store.json")


def test_a_pipeline_retrieves_and_is_serialized(both):
    retriever = QamaEmbeddingRetriever(both[0], EVEN, top_k=3, filter_policy=FilterPolicy.MERGE)
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    found = pipeline.run({"retriever": {"query_embedding": QUERY}})["retriever"]["documents"]
    assert [d.id for d in found] == [d.id for d in both[1].embedding_retrieval(QUERY, EVEN, 3)]
    again = QamaEmbeddingRetriever.from_dict(retriever.to_dict())
    assert again.to_dict() == retriever.to_dict()
    with pytest.raises(ValueError, match="a QamaDocumentStore is needed; got InMemoryDocumentStore"):
        QamaEmbeddingRetriever(both[1])


def test_two_stores_in_one_folder_keep_their_own(tmp_path):
    for name in ("kb.en", "kb.de", "kb.qama"):
        store = QamaDocumentStore()
        store.write_documents([Document(id=name, embedding=QUERY)])
        store.save_to_disk(tmp_path / name)
    for name in ("kb.en", "kb.de", "kb.qama"):
        found = QamaDocumentStore.load_from_disk(tmp_path / name).embedding_retrieval(QUERY)
        assert [document.id for document in found] == [name]


@pytest.mark.parametrize("rescore", ["none", "fp8"])
def test_a_second_stage_without_scores_is_refused(rescore):
    with pytest.raises(ValueError, match=f"rescore must be one of codes, sq8, fp16, fp32, .*; got '{rescore}'"):
        QamaDocumentStore(rescore=rescore)


@pytest.mark.parametrize("change", ["write", "delete"])
def test_an_interrupt_comes_after_a_change_not_within(both, monkeypatch, ctrl_c, change):
    """Ctrl-C while the index changes: documents and vectors stay in step."""
    store = both[0]
    index = store._vectors.index
    name = "_append" if change == "write" else "remove_ids"
    whole = getattr(type(index), name)

    def interrupted(self, *arguments):
        out = whole(self, *arguments)
        ctrl_c()
        return out

    monkeypatch.setattr(type(index), name, interrupted)
    do, argument = store.write_documents, documents(3, seed=1)
    if change == "delete":
        do, argument = store.delete_documents, ["0-0", "0-1"]
    with pytest.raises(KeyboardInterrupt):
        do(argument)
    monkeypatch.undo()
    assert store.count_documents() == index.ntotal == (403 if change == "write" else 398)
    assert len(store.embedding_retrieval(QUERY, top_k=500)) == index.ntotal
    assert len(store.filter_documents()) == index.ntotal


def test_filters_on_embeddings_are_those_of_the_store_in_memory():
    ours, theirs = QamaDocumentStore(rescore="fp32"), InMemoryDocumentStore()
    for store in (ours, theirs):
        store.write_documents([Document(id="a", embedding=[1.0, 2.0, 3.0]), Document(id="b", content="x")])
    for operator in ("==", "!="):
        for value in (None, [1.0, 2.0, 3.0]):
            one = {"field": "embedding", "operator": operator, "value": value}
            for filters in (one, {"operator": "AND", "conditions": [one]}):
                found, want = ([d.id for d in store.filter_documents(filters)] for store in (ours, theirs))
                assert found == want
    assert ours.delete_by_filter({"field": "embedding", "operator": "==", "value": None}) == 1
    assert [d.id for d in ours.filter_documents()] == ["a"]


def test_metadata_are_kept_or_refused_before_anything_is_written(tmp_path):
    store, now = QamaDocumentStore(), datetime(2020, 1, 2, 3)
    meta = {"at": now, "day": now.date(), "n": np.float32(0.5), "m": np.int64(7)}
    store.write_documents([Document(id="a", meta=meta, embedding=[1.0, 0.0])])
    store.save_to_disk(tmp_path / "s")
    assert QamaDocumentStore.load_from_disk(tmp_path / "s").filter_documents()[0].meta == meta
    for wrong in ({1}, b"x", Path("y")):
        with pytest.raises(TypeError, match="document 'b' cannot be kept as JSON"):
            store.write_documents([Document(id="c"), Document(id="b", meta={"m": wrong})])
    assert store.count_documents() == 1


def test_cosines_of_very_long_and_very_short_vectors():
    store = QamaDocumentStore("cosine", rescore="fp32")
    store.write_documents([Document(id=str(norm), embedding=[norm] * 16) for norm in (3.0, 1e30, 1e-25)])
    assert [d.score for d in store.embedding_retrieval([1.0] * 16)] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "s").write_text(text)
    with pytest.raises(DocumentStoreError, match=re.escape(str(tmp_path / "s"))):
        QamaDocumentStore.load_from_disk(tmp_path / "s")


def test_a_retriever_takes_its_own_number_unless_another_is_given(both):
    retriever = QamaEmbeddingRetriever(both[0], top_k=3)
    assert len(retriever.run(QUERY)["documents"]) == 3
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        retriever.run(QUERY, top_k=0)
