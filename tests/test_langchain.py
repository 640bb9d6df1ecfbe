"""The LangChain store, beside exact search and the FAISS store of langchain-community."""

from __future__ import annotations

import asyncio
import re
import zlib
from datetime import date, datetime, timezone

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, in_threads, make_vectors

from faiss_qama import QamaIndex

pytest.importorskip("langchain_core")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402

from faiss_qama.integrations import langchain, self_fitting  # noqa: E402
from faiss_qama.integrations.langchain import QamaVectorStore  # noqa: E402

pytestmark = pytest.mark.slow

POOL = make_vectors(600, seed=31)
TEXTS = [f"text {i}" for i in range(200)]
METRICS = {"MAX_INNER_PRODUCT": faiss.METRIC_INNER_PRODUCT, "EUCLIDEAN_DISTANCE": faiss.METRIC_L2}


def vector(text: str) -> list[float]:
    """A made-up embedding: a document of the pool, or for ``like text 7`` one close to text 7's."""
    i = int(text.split()[-1])
    x = POOL[i]
    if text.startswith("like"):
        x = x + 0.01 * make_vectors(1, seed=zlib.crc32(text.encode()))[0]
    return x.tolist()


class Embedder(Embeddings):
    """Embeds with ``vector``, times a number per text if ``uneven``."""

    def __init__(self, uneven=False):
        self.uneven = uneven

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        scale = 1 + zlib.crc32(text.encode()) % 9 if self.uneven else 1
        return (scale * np.array(vector(text))).tolist()


@pytest.fixture
def embeddings():
    return Embedder()


@pytest.fixture(params=[faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def index(request):
    return QamaIndex(fit_quietly(POOL, layout="2x36", metric=request.param))


@pytest.fixture
def store(embeddings, index):
    store = QamaVectorStore(embeddings, index)
    names = store.add_texts(TEXTS, [{"even": i % 2 == 0, "number": i} for i in range(200)])
    assert len(names) == 200
    return store


def test_add_search_delete(store):
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


def test_a_filter_that_few_pass_still_finds_k(store):
    found = store.similarity_search("text 7", k=2, filter={"number": [150, 151]})
    assert {d.page_content for d in found} == {"text 150", "text 151"}
    assert all(d.metadata["even"] for d in store.similarity_search("text 7", k=20, filter={"even": True}))
    assert len(store.similarity_search("text 7", k=20, filter=lambda metadata: metadata["number"] < 20)) == 20


def test_relevance_is_larger_for_nearer_documents(store):
    found = store.similarity_search_with_relevance_scores("text 7", k=5)
    relevances = [relevance for _, relevance in found]
    assert found[0][0].page_content == "text 7"
    assert relevances[0] == pytest.approx(1, abs=1e-2)
    assert relevances == sorted(relevances, reverse=True)
    assert 0 < relevances[-1] < relevances[0]
    keen = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99})
    assert [d.page_content for d in keen.invoke("text 7")] == ["text 7"]


def test_made_from_texts(store, embeddings):
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


def test_vectors_normalised_on_both_sides(embeddings):
    index = QamaIndex(fit_quietly(POOL, layout="2x36", metric=faiss.METRIC_L2), "fp32")
    store = QamaVectorStore(embeddings, index, normalize_L2=True)
    store.add_embeddings([(text, (5 * np.array(vector(text))).tolist()) for text in TEXTS])
    document, distance = store.similarity_search_with_score_by_vector((3 * POOL[7]).tolist(), k=1)[0]
    assert (document.page_content, distance) == ("text 7", pytest.approx(0, abs=1e-6))


def test_marginal_relevance_within_a_filter(store):
    found = store.max_marginal_relevance_search("text 7", k=2, fetch_k=5, filter={"number": [150, 151]})
    assert {d.page_content for d in found} == {"text 150", "text 151"}


def test_an_interrupted_save_is_noticed(store, embeddings, tmp_path):
    store.save_local(str(tmp_path))
    store.index.save(tmp_path / "index.qama")  # and then the process died
    with pytest.raises(ValueError, match="are of different saves"):
        type(store).load_local(str(tmp_path), embeddings)


def test_saved_and_loaded_without_a_pickle(store, embeddings, tmp_path):
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


def test_two_stores_merged(store, embeddings):
    other = type(store)(embeddings, QamaIndex(store.index.quantizer))
    other.add_texts(["text 400", "text 401"])
    store.merge_from(other)
    assert store.similarity_search("like text 401", k=1)[0].page_content == "text 401"


def test_documents_and_vectors_must_be_as_many(store, embeddings):
    with pytest.raises(ValueError, match="the index holds 200 vectors; there are 0 documents"):
        type(store)(embeddings, store.index)


@pytest.mark.parametrize("kind", ["hamming", "fastscan"])
def test_their_own_store_on_the_stock_export(embeddings, index, kind, tmp_path):
    pytest.importorskip("langchain_community")
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS

    index.add(POOL[:200])
    names = {i: str(i) for i in range(200)}
    documents = InMemoryDocstore({str(i): Document(page_content=text) for i, text in enumerate(TEXTS)})
    store = FAISS(embeddings, index.to_faiss(kind), documents, names)
    store.add_texts(["text 300"])
    store.save_local(str(tmp_path))
    loaded = FAISS.load_local(str(tmp_path), embeddings, allow_dangerous_deserialization=True)
    for i in (7, 120, 300):
        hits = [document.page_content for document in loaded.similarity_search(f"like text {i}", k=3)]
        # The inner product with decoded vectors, whose norms differ, may be larger for another text.
        rounded = kind == "fastscan" and index.metric_type == faiss.METRIC_INNER_PRODUCT
        assert f"text {i}" in (hits if rounded else hits[:1])


def agree(store, texts):
    """Assert that every text is found by its own vector."""
    assert store.index.ntotal == len(store.index_to_docstore_id) == len(texts)
    found = [store.similarity_search(text, k=1, oversample=len(texts))[0].page_content for text in texts]
    assert found == texts


class TestReplacing:
    def test_an_id_that_is_there_is_replaced(self, store, embeddings, tmp_path):
        names = list(store.index_to_docstore_id.values())
        assert store.add_texts(["text 300", "text 301"], [{"new": 1}, {"new": 2}], ids=[names[7], "another"]) == [
            names[7],
            "another",
        ]
        agree(store, [text for text in TEXTS if text != "text 7"] + ["text 300", "text 301"])
        assert store.get_by_ids([names[7]]) == [Document(id=names[7], page_content="text 300", metadata={"new": 1})]
        store.add_texts(["text 302"])
        store.save_local(str(tmp_path))
        loaded = QamaVectorStore.load_local(str(tmp_path), embeddings)
        agree(loaded, [text for text in TEXTS if text != "text 7"] + ["text 300", "text 301", "text 302"])

    @pytest.mark.parametrize(
        ("texts", "options", "error", "message"),
        [
            (["text 1", "text 2"], {"ids": ["a", "a"]}, ValueError, "text 1: the id 'a' is there twice"),
            (["text 1", "text 2"], {"ids": ["a"]}, ValueError, "2 texts need as many metadata and ids; got 2 and 1"),
            (["text 1"], {"metadatas": [{}, {}]}, ValueError, "1 texts need as many metadata and ids; got 2 and 1"),
            (["text 1"], {"metadatas": [{"of": {1, 2}}]}, TypeError, "metadata of text 0: {1, 2} is a set"),
            (["text 1"], {"metadatas": [{(1, 2): 3}]}, TypeError, "metadata of text 0: keys must be str"),
        ],
    )
    def test_what_is_refused_changes_nothing(self, store, texts, options, error, message):
        with pytest.raises(error, match=message):
            store.add_texts(texts, **options)
        with pytest.raises(ValueError, match="row 1 holds NaN"):
            store.add_embeddings(
                [("text 300", vector("text 300")), ("nan", [np.nan] * D)], ids=[store.index_to_docstore_id[0], None]
            )
        agree(store, TEXTS)

    def test_all_are_deleted_or_some_or_none(self, store):
        first = store.index_to_docstore_id[0]
        assert store.delete([first, "not there"])
        assert store.delete([])
        with pytest.raises(TypeError, match="delete takes ids, not filter"):
            store.delete(filter={"number": 1})
        agree(store, TEXTS[1:])
        assert store.delete()
        assert store.similarity_search("text 1") == []
        store.add_texts(TEXTS)
        agree(store, TEXTS)

    def test_threads_keep_texts_and_vectors_together(self, store):
        names = list(store.index_to_docstore_id.values())

        def work(part):
            for i in range(part, 160, 8):
                store.add_texts([f"text {200 + i}"], ids=[f"new {i}"])
                store.add_texts([f"text {360 + i}"], ids=[names[i]])
                store.delete([f"new {i}"])
                for document in store.similarity_search(f"text {360 + i}", k=3):
                    assert document.page_content in {f"text {n}" for n in range(520)}

        in_threads(work)
        agree(store, TEXTS[160:] + [f"text {360 + i}" for i in range(160)])

    def test_a_hit_is_a_copy(self, store):
        hit = store.similarity_search("text 7", k=1)[0]
        hit.metadata["score"] = {1}
        assert store.get_by_ids([hit.id])[0].metadata == {"even": False, "number": 7}

    def test_a_filter_may_use_the_store(self, store):
        names = list(store.index_to_docstore_id.values())
        found = store.similarity_search(
            "text 7", 1, lambda metadata: bool(store.get_by_ids(names[:1])) and metadata["even"]
        )
        assert found[0].metadata["even"]


def exact(x, xq, metric, k):
    index = faiss.IndexFlat(x.shape[1], metric)
    index.add(x)
    return index.search(xq, k)


class TestStrategies:
    """Vectors of various norms, so that the three strategies find different documents."""

    x = np.array(Embedder(uneven=True).embed_documents(TEXTS), np.float32)
    queries = [f"text {i}" for i in range(200, 230)]
    xq = np.array(Embedder(uneven=True).embed_documents(queries), np.float32)

    def found(self, store, k=5):
        hits = [store.similarity_search_with_score(query, k=k) for query in self.queries]
        return np.array([[score for _, score in row] for row in hits]), [
            [TEXTS.index(d.page_content) for d, _ in row] for row in hits
        ]

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("strategy", ["EUCLIDEAN_DISTANCE", "COSINE", "MAX_INNER_PRODUCT", None])
    @pytest.mark.parametrize("given", [False, True])
    def test_as_exact_search(self, strategy, normalize, given, tmp_path):
        x, xq = self.x.copy(), self.xq.copy()
        if normalize or strategy == "COSINE":
            faiss.normalize_L2(x)
            faiss.normalize_L2(xq)
        metric = METRICS.get(strategy, faiss.METRIC_INNER_PRODUCT)
        options = {"index": QamaIndex(fit_quietly(x, layout="2x36", metric=metric), "fp32")} if given else {}
        store = QamaVectorStore.from_texts(
            TEXTS, Embedder(uneven=True), distance_strategy=strategy, normalize_L2=normalize, **options
        )
        D, I = exact(x, xq, metric, 5)
        scores, found = self.found(store)
        overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, I.tolist(), strict=True)])
        assert overlap >= (0.9 if given else 0.99)  # an index of its own is compared whole
        assert scores[:, 0] == pytest.approx(D[:, 0], rel=0.01, abs=0.01)
        store.save_local(tmp_path)
        assert self.found(QamaVectorStore.load_local(tmp_path, Embedder(uneven=True)))[1] == found

    def test_strategies_of_their_enum(self):
        strategies = pytest.importorskip("langchain_community.vectorstores.utils").DistanceStrategy
        for strategy in strategies:
            if strategy.value in langchain.STRATEGIES:
                store = QamaVectorStore(Embedder(), distance_strategy=strategy)
                assert store.distance_strategy == strategy
            else:
                with pytest.raises(ValueError, match="distance_strategy is one of .*; got (JACCARD|DOT_PRODUCT)"):
                    QamaVectorStore(Embedder(), distance_strategy=strategy)

    def test_what_contradicts_the_index_is_refused(self, index, embeddings):
        inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        for strategy, (metric, _) in langchain.STRATEGIES.items():
            if metric != index.metric_type:
                with pytest.raises(ValueError, match=f"{strategy} contradicts Qama.*, (inner|L2)"):
                    QamaVectorStore(embeddings, index, distance_strategy=strategy)
        uneven = QamaIndex(fit_quietly(self.x, metric=index.metric_type))
        options = {"distance_strategy": "COSINE"} if inner_product else {"normalize_L2": True}
        with pytest.raises(ValueError, match="was fitted on vectors of other norms than 1"):
            QamaVectorStore(embeddings, uneven, **options)
        with pytest.raises(ValueError, match="rescore='codes' is needed"):
            QamaVectorStore(embeddings, QamaIndex(index.quantizer, "none"))
        index.add_with_ids(POOL[:2], [5, 3])
        with pytest.raises(ValueError, match="an index without ids of its own is needed"):
            QamaVectorStore(embeddings, index, [Document(page_content=text) for text in TEXTS[:2]])

    def test_relevance_follows_the_strategy(self):
        for strategy in langchain.STRATEGIES:
            store = QamaVectorStore.from_texts(TEXTS, Embedder(), distance_strategy=strategy)
            found = store.similarity_search_with_relevance_scores("text 7", k=200)
            cosines = np.array([POOL[7] @ POOL[TEXTS.index(d.page_content)] for d, _ in found])
            wanted = (1 + cosines) / 2  # for unit vectors 1 - |x - y|^2 / 4 is the same
            assert [relevance for _, relevance in found] == pytest.approx(wanted, abs=2e-3)

    def test_a_threshold_keeps_the_better_scores(self, store):
        every = store.similarity_search_with_score("text 7", k=200)
        kept = store.similarity_search_with_score("text 7", k=200, score_threshold=every[9][1])
        assert [d.id for d, _ in kept] == [d.id for d, _ in every[:10]]


class TestFewTexts:
    @pytest.mark.parametrize("strategy", [None, *langchain.STRATEGIES])
    def test_none_then_one_then_more(self, strategy, embeddings, tmp_path):
        store = QamaVectorStore.from_texts([], embeddings, distance_strategy=strategy)
        assert store.add_texts([]) == []
        assert store.similarity_search("text 1") == store.max_marginal_relevance_search("text 1") == []
        assert store.get_by_ids(["a"]) == []
        assert store.delete(["a"])
        assert QamaVectorStore.from_embeddings([], embeddings).index is None
        for size in (0, 1, 2, 5, 60):
            store.add_texts(TEXTS[len(store.index_to_docstore_id) : size])
            for made in (store, QamaVectorStore.from_texts(TEXTS[:size], embeddings, distance_strategy=strategy)):
                made.save_local(tmp_path / str(size))
                made = QamaVectorStore.load_local(tmp_path / str(size), embeddings)
                made = QamaVectorStore.deserialize_from_bytes(made.serialize_to_bytes(), embeddings)
                assert made.distance_strategy == store.distance_strategy
                found = [d.page_content for d in made.similarity_search("text 3", k=10)]
                truth = np.argsort(-(POOL[:size] @ POOL[3]), kind="stable")[:10]
                assert found == [TEXTS[i] for i in truth]

    def test_the_index_is_fitted_anew_once_there_are_enough(self, embeddings, monkeypatch, tmp_path):
        monkeypatch.setattr(self_fitting, "SMALL", 150)
        monkeypatch.setattr(self_fitting, "FEW", 75)
        store = QamaVectorStore.from_texts(TEXTS[:1], embeddings)
        store.add_texts(TEXTS[1:100])
        store.save_local(tmp_path)
        store = QamaVectorStore.load_local(tmp_path, embeddings)
        assert store.index.quantizer.fit_record.fitted_on == 2
        with pytest.raises(ValueError, match="read-only"):
            QamaVectorStore.load_local(tmp_path, embeddings, mmap=True).add_texts(TEXTS[100:])
        store.add_texts(TEXTS[100:])
        assert store.index.quantizer.fit_record.fitted_on > 100
        agree(store, TEXTS)
        quantizer = store.index.quantizer
        store.add_texts([f"text {i}" for i in range(200, 600)])
        assert store.index.quantizer is quantizer
        whole = QamaVectorStore.from_texts(TEXTS, embeddings)
        assert whole.index.quantizer.fit_record.fitted_on > 100

    def test_a_given_index_is_never_replaced(self, store, monkeypatch):
        monkeypatch.setattr(self_fitting, "SMALL", 10)
        index = store.index
        store.add_texts(["text 300"])
        assert store.index is index

    def test_a_given_index_is_searched_as_it_is(self, store, embeddings, tmp_path, monkeypatch):
        """An index of the store's own compares every vector while they are few; a given one as many as recall needs."""
        store.save_local(tmp_path / "given")
        own = QamaVectorStore.from_texts(TEXTS, embeddings)
        own.save_local(tmp_path / "own")
        asked, search = [], QamaIndex.search
        monkeypatch.setattr(
            QamaIndex, "search", lambda *args, **options: asked.append(options) or search(*args, **options)
        )
        for name, made in (("given", store), ("own", own)):
            for each in (made, QamaVectorStore.load_local(tmp_path / name, embeddings)):
                each.similarity_search("text 7")
                each.similarity_search("text 7", recall=0.9)
                assert asked.pop()["recall"] == 0.9
                assert asked.pop().get("oversample") == {"given": None, "own": 200}[name]
        assert asked == []

    def test_stores_of_their_own_indexes_merged(self, embeddings):
        store = QamaVectorStore.from_texts(TEXTS[:5], embeddings, ids=["a", "b", "c", "d", "e"])
        other = QamaVectorStore.from_texts(TEXTS[5:20], embeddings, ids=["a", *map(str, range(14))])
        store.merge_from(other)
        agree(store, TEXTS[1:20])
        agree(other, TEXTS[5:20])
        store.merge_from(QamaVectorStore(embeddings))
        agree(store, TEXTS[1:20])


METADATA = {
    "float32": np.float32(0.1),
    "int64": np.int64(2**40),
    "bool": np.bool_(True),
    "array": np.arange(3),
    "day": date(2024, 2, 29),
    "moment": datetime(2024, 2, 29, 12, 30, 0, 5, tzinfo=timezone.utc),
    "stamp": np.datetime64("2024-02-29T12:30"),
    "text": "päper",
    "none": None,
    "nested": {"dates": [date(2020, 1, 1)], "nan": [1.5, float("inf")]},
}


def test_metadata_are_kept_as_they_are_saved(embeddings, tmp_path):
    store = QamaVectorStore.from_texts(TEXTS[:3], embeddings, [METADATA, {}, {}])
    kept = store.similarity_search("text 0", k=1)[0].metadata
    assert kept == {
        **METADATA,
        "array": [0, 1, 2],
        "stamp": datetime(2024, 2, 29, 12, 30),  # noqa: DTZ001 - numpy knows no zones
    }
    assert {type(value) for value in kept.values()} == {float, int, bool, list, date, datetime, str, type(None), dict}
    store.save_local(tmp_path)
    loaded = QamaVectorStore.load_local(tmp_path, embeddings)
    assert loaded.get_by_ids(list(store.index_to_docstore_id.values())) == store.get_by_ids(
        list(store.index_to_docstore_id.values())
    )
    assert loaded.similarity_search("text 1", k=3, filter={"day": {"$gte": date(2024, 1, 1)}})[0].metadata == kept


NUMBER = {"$in": [3, 5], "$nin": [3], "$eq": 5, "$neq": 3, "$gt": 2, "$gte": 5, "$lt": 7, "$lte": 5}
FILTERS = [
    {"number": 5},
    {"number": [3, 5, 500]},
    *({"number": {name: value}} for name, value in NUMBER.items()),
    {"number": NUMBER},
    {"number": {"$gt": 10, "$lt": 20}, "even": True},
    {"$and": [{"even": True}, {"number": {"$lt": 9}}]},
    {"$or": [{"number": 1}, {"$and": [{"even": True}, {"number": {"$gt": 195}}]}]},
    {"$not": {"$or": [{"even": True}, {"number": {"$gte": 9}}]}},
    {"missing": None},
    {"missing": {"$neq": 1}},
    lambda metadata: metadata["number"] % 50 == 0,
]


@pytest.mark.parametrize("filter", FILTERS, ids=["function" if callable(each) else str(each) for each in FILTERS])
def test_filters_are_those_of_the_faiss_store(filter, store):
    theirs = pytest.importorskip("langchain_community.vectorstores").FAISS._create_filter_func(filter)
    wanted = {text for i, text in enumerate(TEXTS) if theirs({"even": i % 2 == 0, "number": i})}
    assert {d.page_content for d in store.similarity_search("text 7", k=200, filter=filter)} == wanted
    some = store.max_marginal_relevance_search("text 7", k=3, filter=filter)
    assert {d.page_content for d in some} <= wanted
    assert len(some) == min(3, len(wanted))


def test_what_filters_do_better(store):
    assert store.similarity_search("text 7", filter={"missing": {"$gt": 3}}) == []
    both = store.similarity_search("text 7", k=200, filter={"$or": [{"number": 1}, {"number": 2}], "even": True})
    assert [d.page_content for d in both] == ["text 2"]  # theirs forgets what stands beside $or
    for wrong in ({"number": {"$near": 3}}, {"$nor": []}, {"number": {"plain": 3}}):
        with pytest.raises(ValueError, match="unknown operator in the filter"):
            store.similarity_search("text 7", filter=wrong)
    with pytest.raises(ValueError, match="a filter is a dict or a function of the metadata; got str"):
        store.similarity_search("text 7", filter="even")


def test_marginal_relevance_is_langchains(embeddings):
    from langchain_core.vectorstores import InMemoryVectorStore

    store, theirs = (kind.from_texts(TEXTS, embeddings) for kind in (QamaVectorStore, InMemoryVectorStore))
    for query in ("text 7", "like text 9", "text 333"):
        for lambda_mult in (0.0, 0.3, 1.0):
            options = {"k": 6, "fetch_k": 30, "lambda_mult": lambda_mult}
            want, got = (s.max_marginal_relevance_search(query, **options) for s in (theirs, store))
            assert [d.page_content for d in got] == [d.page_content for d in want]


def test_async_calls_the_asynchronous_model(index):
    class Model(Embedder):
        async def aembed_documents(self, texts):
            return [vector(text) for text in texts]

        async def aembed_query(self, text):
            return vector(text)

        def embed_query(self, text):
            raise AssertionError("the synchronous model was called")

    async def run():
        store = await QamaVectorStore.afrom_texts(TEXTS[:100], Model(), index=index)
        await asyncio.gather(*(store.aadd_texts([text]) for text in TEXTS[100:]))
        found = await asyncio.gather(*(store.asimilarity_search(text, k=1, oversample=200) for text in TEXTS))
        assert [hits[0].page_content for hits in found] == TEXTS
        assert len(await store.amax_marginal_relevance_search("text 3", k=3, fetch_k=9)) == 3
        assert len(await store.asimilarity_search_with_relevance_scores("text 3", k=3)) == 3
        retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 5, "lambda_mult": 0.9})
        assert (await retriever.ainvoke("text 3"))[0].page_content == "text 3"
        await store.adelete(list(store.index_to_docstore_id.values())[:50])
        assert (await store.asimilarity_search("text 3", k=1))[0].page_content != "text 3"

    asyncio.run(run())


@pytest.mark.parametrize("options", [{"distance_strategy": "COSINE"}, {"normalize_L2": True}])
def test_a_store_that_began_with_an_empty_text_is_loaded_again(tmp_path, options):
    class Empty(Embedder):
        def embed_query(self, text):
            return super().embed_query(text) if text else [0.0] * D

    store = QamaVectorStore.from_texts([""], Empty(uneven=True), **options)
    for texts in ([], TEXTS[:20]):
        store.add_texts(texts)
        store.save_local(str(tmp_path / "s"))
        again = QamaVectorStore.load_local(str(tmp_path / "s"), Empty(uneven=True))
        found, want = (s.similarity_search_with_score(TEXTS[3], k=1) for s in (again, store))
        assert found == want


def test_cosines_of_very_long_vectors():
    class Long(Embedder):
        def embed_documents(self, texts):
            return [[1e30] * 16 for _ in texts]

        def embed_query(self, text):
            return [1.0] * 16

    store = QamaVectorStore.from_texts(["a"], Long(), distance_strategy="COSINE")
    assert store.similarity_search_with_score("a")[0][1] == pytest.approx(1, abs=1e-3)


def test_ids_may_be_an_array(tmp_path):
    store = QamaVectorStore.from_texts(TEXTS[:2], Embedder(), ids=np.array(["x", "y"]))
    assert [d.id for d in store.get_by_ids(["x", "y"])] == ["x", "y"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_file_is_named(tmp_path, text):
    store = QamaVectorStore.from_texts(TEXTS[:2], Embedder())
    store.save_local(str(tmp_path / "s"))
    file = tmp_path / "s" / "index.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        QamaVectorStore.load_local(str(tmp_path / "s"), Embedder())
