"""The clients themselves, as installed: LangChain, LlamaIndex, sentence-transformers."""

from __future__ import annotations

import asyncio
import zlib

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors

from faiss_qama import QamaIndex

pytestmark = pytest.mark.slow

POOL = make_vectors(600, seed=31)
TEXTS = [f"text {i}" for i in range(200)]


def vector(text: str) -> list[float]:
    """A made-up embedding: a document of the pool, or for ``like text 7`` one close to text 7's."""
    i = int(text.split()[-1])
    x = POOL[i]
    if text.startswith("like"):
        x = x + 0.01 * make_vectors(1, seed=zlib.crc32(text.encode()))[0]
    return x.tolist()


@pytest.fixture(params=[faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def index(request):
    return QamaIndex(fit_quietly(POOL, layout="2x36", metric=request.param))


class TestLangChain:
    @pytest.fixture
    def embeddings(self):
        core = pytest.importorskip("langchain_core.embeddings")

        class Embeddings(core.Embeddings):
            def embed_documents(self, texts):
                return [vector(text) for text in texts]

            def embed_query(self, text):
                return vector(text)

        return Embeddings()

    @pytest.fixture
    def store(self, embeddings, index):
        from faiss_qama.integrations.langchain import QamaVectorStore

        store = QamaVectorStore(embeddings, index)
        names = store.add_texts(TEXTS, [{"even": i % 2 == 0, "number": i} for i in range(200)])
        assert len(names) == 200
        return store

    def test_add_search_delete(self, store):
        assert [d.page_content for d in store.similarity_search("like text 7", k=1)] == ["text 7"]
        document, score = store.similarity_search_with_score("text 7", k=3)[0]
        assert document.page_content == "text 7"
        best = np.dot(POOL[7], POOL[7]) if store.index.metric_type == faiss.METRIC_INNER_PRODUCT else 0
        assert score == pytest.approx(best, abs=1e-2)
        gone = [store.index_to_docstore_id[i] for i in range(10)]
        assert store.delete(gone)
        assert store.index.ntotal == 190
        assert store.similarity_search("text 7", k=1)[0].page_content != "text 7"
        for i in (10, 55, 199):
            assert store.similarity_search(f"like text {i}", k=1)[0].page_content == f"text {i}"
        assert len(store.max_marginal_relevance_search("text 50", k=4, fetch_k=12)) == 4
        assert store.as_retriever(search_kwargs={"k": 3}).invoke("text 99")[0].page_content == "text 99"

    def test_a_filter_that_few_pass_still_finds_k(self, store):
        found = store.similarity_search("text 7", k=2, filter={"number": [150, 151]})
        assert {d.page_content for d in found} == {"text 150", "text 151"}
        assert all(d.metadata["even"] for d in store.similarity_search("text 7", k=20, filter={"even": True}))
        assert len(store.similarity_search("text 7", k=20, filter=lambda metadata: metadata["number"] < 20)) == 20

    def test_relevance_is_larger_for_nearer_documents(self, store):
        found = store.similarity_search_with_relevance_scores("text 7", k=5)
        relevances = [relevance for _, relevance in found]
        assert found[0][0].page_content == "text 7"
        assert relevances[0] == pytest.approx(1, abs=1e-2)
        assert relevances == sorted(relevances, reverse=True)
        assert 0 < relevances[-1] < relevances[0]
        keen = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
        assert [d.page_content for d in keen.invoke("text 7")] == ["text 7"]

    def test_made_from_texts(self, store, embeddings):
        made = type(store).from_texts(TEXTS, embeddings, [{"number": i} for i in range(200)])
        assert made.index.ntotal == 200
        assert made.similarity_search("like text 7", k=1)[0].page_content == "text 7"
        pairs = [(text, vector(text)) for text in TEXTS[:50]]
        made = type(store).from_embeddings(pairs, embeddings, index=QamaIndex(store.index.quantizer))
        assert made.similarity_search("like text 30", k=1)[0].page_content == "text 30"
        made = asyncio.run(type(store).afrom_texts(TEXTS, embeddings))
        assert made.similarity_search("like text 9", k=1)[0].page_content == "text 9"
        with pytest.raises(TypeError, match="a QamaIndex is needed; got IndexFlatL2"):
            type(store)(embeddings, faiss.IndexFlatL2(D))

    def test_vectors_normalised_on_both_sides(self, embeddings):
        from faiss_qama.integrations.langchain import QamaVectorStore

        index = QamaIndex(fit_quietly(POOL, layout="2x36", metric=faiss.METRIC_L2), "fp32")
        store = QamaVectorStore(embeddings, index, normalize_L2=True)
        store.add_embeddings([(text, (5 * np.array(vector(text))).tolist()) for text in TEXTS])
        document, distance = store.similarity_search_with_score_by_vector((3 * POOL[7]).tolist(), k=1)[0]
        assert (document.page_content, distance) == ("text 7", pytest.approx(0, abs=1e-6))

    def test_marginal_relevance_within_a_filter(self, store):
        found = store.max_marginal_relevance_search("text 7", k=2, fetch_k=5, filter={"number": [150, 151]})
        assert {d.page_content for d in found} == {"text 150", "text 151"}

    def test_an_interrupted_save_is_noticed(self, store, embeddings, tmp_path):
        store.save_local(str(tmp_path))
        store.index.save(tmp_path / "index.qama")  # and then the process died
        with pytest.raises(ValueError, match="are of different saves"):
            type(store).load_local(str(tmp_path), embeddings)

    def test_saved_and_loaded_without_a_pickle(self, store, embeddings, tmp_path):
        store.delete([store.index_to_docstore_id[0]])
        store.save_local(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"index.qama", "index.json"}
        loaded = type(store).load_local(str(tmp_path), embeddings)
        for query in ("text 7", "like text 120"):
            want, got = (s.similarity_search_with_score(query, k=5) for s in (store, loaded))
            assert [(d.page_content, d.metadata, score) for d, score in got] == [
                (d.page_content, d.metadata, score) for d, score in want
            ]
        loaded.add_texts(["text 300"])
        assert loaded.similarity_search("like text 300", k=1)[0].page_content == "text 300"

    def test_two_stores_merged(self, store, embeddings):
        other = type(store)(embeddings, QamaIndex(store.index.quantizer))
        other.add_texts(["text 400", "text 401"])
        store.merge_from(other)
        assert store.similarity_search("like text 401", k=1)[0].page_content == "text 401"

    def test_documents_and_vectors_must_be_as_many(self, store, embeddings):
        with pytest.raises(ValueError, match="the index holds 200 vectors; there are 0 documents"):
            type(store)(embeddings, store.index)

    @pytest.mark.parametrize("kind", ["hamming", "fastscan"])
    def test_their_own_store_on_the_stock_export(self, embeddings, index, kind, tmp_path):
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS
        from langchain_core.documents import Document

        index.add(POOL[:200])
        names = {i: str(i) for i in range(200)}
        documents = InMemoryDocstore({str(i): Document(page_content=text) for i, text in enumerate(TEXTS)})
        store = FAISS(embeddings, index.to_faiss(kind), documents, names)
        store.add_texts(["text 300"])
        store.save_local(str(tmp_path))
        loaded = FAISS.load_local(str(tmp_path), embeddings, allow_dangerous_deserialization=True)
        for i in (7, 120, 300):
            assert loaded.similarity_search(f"like text {i}", k=1)[0].page_content == f"text {i}"


class TestLlamaIndex:
    @pytest.fixture
    def parts(self):
        pytest.importorskip("llama_index.vector_stores.faiss")
        from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
        from llama_index.core.embeddings import BaseEmbedding

        class Embeddings(BaseEmbedding):
            def _get_text_embedding(self, text):
                return vector(text)

            def _get_query_embedding(self, query):
                return vector(query)

            async def _aget_query_embedding(self, query):
                return vector(query)

        return Document, StorageContext, VectorStoreIndex, load_index_from_storage, Embeddings()

    def build(self, parts, store):
        document, context, index, _, embeddings = parts
        documents = [document(text=text, doc_id=text) for text in TEXTS[:50]]
        context = context.from_defaults(vector_store=store)
        return index.from_documents(documents, storage_context=context, embed_model=embeddings)

    def ask(self, made, text, k=1):
        return [hit.node.get_content() for hit in made.as_retriever(similarity_top_k=k).retrieve(text)]

    def test_add_search_delete_persist(self, parts, index, tmp_path):
        from faiss_qama.integrations.llama_index import QamaVectorStore

        document, context, _, load, embeddings = parts
        made = self.build(parts, QamaVectorStore(index))
        assert index.ntotal == 50
        assert self.ask(made, "like text 7") == ["text 7"]
        made.delete_ref_doc("text 7", delete_from_docstore=True)
        assert index.ntotal == 49
        assert "text 7" not in self.ask(made, "text 7", 10)
        some = ["text 30", "text 31", "text 32"]
        filtered = made.as_retriever(similarity_top_k=2, doc_ids=some).retrieve("text 1")
        assert {hit.node.get_content() for hit in filtered} < set(some)
        assert len(filtered) == 2
        made.insert(document(text="text 77", doc_id="text 77"))
        assert self.ask(made, "like text 77") == ["text 77"]
        made.storage_context.persist(str(tmp_path))
        store = QamaVectorStore.from_persist_dir(str(tmp_path))
        loaded = load(context.from_defaults(vector_store=store, persist_dir=str(tmp_path)), embed_model=embeddings)
        for i in (3, 49, 77):
            assert self.ask(loaded, f"like text {i}") == [f"text {i}"]
        loaded.delete_ref_doc("text 77", delete_from_docstore=True)
        assert "text 77" not in self.ask(loaded, "text 77", 10)

    def test_an_index_of_unknown_nodes_is_refused(self, parts, index):
        from faiss_qama.integrations.llama_index import QamaVectorStore

        index.add(POOL[:3])
        with pytest.raises(ValueError, match="an empty index is needed; this one holds 3 vectors"):
            QamaVectorStore(index)

    def test_their_own_store_on_the_stock_export(self, parts, index):
        from llama_index.vector_stores.faiss import FaissVectorStore

        index.add(POOL[:1])
        stock = index.to_faiss()
        stock.reset()
        made = self.build(parts, FaissVectorStore(faiss_index=stock))
        assert self.ask(made, "like text 7") == ["text 7"]


class TestSentenceTransformers:
    @pytest.mark.parametrize("precision", ["float32", "uint8", "ubinary"])
    @pytest.mark.parametrize("exact", [True, False])
    def test_hits_are_theirs(self, precision, exact):
        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        queries = make_vectors(9, seed=41)
        hits, seconds, index = semantic_search_faiss(
            queries, POOL, corpus_precision=precision, top_k=10, exact=exact, output_index=True
        )
        assert seconds > 0
        assert index.rescore == {"float32": "fp32", "uint8": "sq8", "ubinary": "codes"}[precision]
        truth = np.argsort(-(queries @ POOL.T), axis=1)[:, :10]
        found = [[hit["corpus_id"] for hit in row] for row in hits]
        overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.tolist(), strict=True)])
        assert overlap > (0.6 if precision == "ubinary" else 0.9)
        assert all(row == sorted(row, key=lambda hit: -hit["score"]) for row in hits)
        if precision == "float32":
            for query, row in zip(queries, hits, strict=True):
                for hit in row:
                    assert hit["score"] == pytest.approx(float(query @ POOL[hit["corpus_id"]]), abs=1e-5)
        again, _ = semantic_search_faiss(queries, corpus_index=index, corpus_precision=precision, top_k=10)
        assert again == hits

    def test_beside_the_original(self):
        original = pytest.importorskip("sentence_transformers.util.quantization")
        import inspect

        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        ours, theirs = (
            list(inspect.signature(f).parameters) for f in (semantic_search_faiss, original.semantic_search_faiss)
        )
        assert ours == theirs
        queries = make_vectors(9, seed=41)
        want, _ = original.semantic_search_faiss(queries, POOL, rescore=False, top_k=5)
        got, _ = semantic_search_faiss(queries, POOL, top_k=5, rescore_multiplier=100)
        for a, b in zip(got, want, strict=True):
            assert [hit["corpus_id"] for hit in a] == [hit["corpus_id"] for hit in b]
            assert [hit["score"] for hit in a] == pytest.approx([hit["score"] for hit in b], abs=1e-5)

    def test_without_rescoring_and_wrong_arguments(self):
        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        hits, _ = semantic_search_faiss(POOL[:3], POOL, top_k=4, rescore=False)
        assert [row[0]["corpus_id"] for row in hits] == [0, 1, 2]
        assert hits[0][0]["score"] == 0
        with pytest.raises(ValueError, match="pass corpus_embeddings or corpus_index, one of them"):
            semantic_search_faiss(POOL[:3])
        with pytest.raises(ValueError, match="corpus_precision must be one of float32, uint8, ubinary; got 'int8'"):
            semantic_search_faiss(POOL[:3], POOL, corpus_precision="int8")
        with pytest.raises(TypeError, match="float32 is needed"):
            semantic_search_faiss(POOL[:3], (POOL > 0).astype(np.uint8))
