"""The LlamaIndex store, beside LlamaIndex' own SimpleVectorStore."""

from __future__ import annotations

import zlib
from datetime import date
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, in_threads, make_vectors

from faiss_qama import QamaIndex

pytest.importorskip("llama_index.core")

from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode  # noqa: E402
from llama_index.core.vector_stores import SimpleVectorStore  # noqa: E402
from llama_index.core.vector_stores.types import (  # noqa: E402
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from faiss_qama.integrations.llama_index import QamaVectorStore  # noqa: E402

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


@pytest.fixture
def parts():
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


def build(parts, store):
    document, context, index, _, embeddings = parts
    documents = [document(text=text, doc_id=text) for text in TEXTS[:50]]
    context = context.from_defaults(vector_store=store)
    return index.from_documents(documents, storage_context=context, embed_model=embeddings)


def ask(made, text, k=1):
    return [hit.node.get_content() for hit in made.as_retriever(similarity_top_k=k).retrieve(text)]


def test_add_search_delete_persist(parts, index, tmp_path):
    document, context, _, load, embeddings = parts
    made = build(parts, QamaVectorStore(index))
    assert index.ntotal == 50
    assert ask(made, "like text 7") == ["text 7"]
    made.delete_ref_doc("text 7", delete_from_docstore=True)
    assert index.ntotal == 49
    assert "text 7" not in ask(made, "text 7", 10)
    some = ["text 30", "text 31", "text 32"]
    filtered = made.as_retriever(similarity_top_k=2, doc_ids=some).retrieve("text 1")
    assert {hit.node.get_content() for hit in filtered} < set(some)
    assert len(filtered) == 2
    made.insert(document(text="text 77", doc_id="text 77"))
    assert ask(made, "like text 77") == ["text 77"]
    made.storage_context.persist(str(tmp_path))
    store = QamaVectorStore.from_persist_dir(str(tmp_path))
    loaded = load(context.from_defaults(vector_store=store, persist_dir=str(tmp_path)), embed_model=embeddings)
    for i in (3, 49, 77):
        assert ask(loaded, f"like text {i}") == [f"text {i}"]
    loaded.delete_ref_doc("text 77", delete_from_docstore=True)
    assert "text 77" not in ask(loaded, "text 77", 10)


def test_an_index_of_unknown_nodes_is_refused(parts, index):
    index.add(POOL[:3])
    with pytest.raises(ValueError, match="an empty index is needed; this one holds 3 vectors"):
        QamaVectorStore(index)


def test_their_own_store_on_the_stock_export(parts, index):
    FaissVectorStore = pytest.importorskip("llama_index.vector_stores.faiss").FaissVectorStore

    index.add(POOL[:1])
    stock = index.to_faiss()
    stock.reset()
    made = build(parts, FaissVectorStore(faiss_index=stock))
    assert ask(made, "like text 7") == ["text 7"]


def node(i, text=None, **metadata):
    """Node ``node i``, the vector and by default the text of ``text i``, from document ``document i // 3``."""
    return TextNode(
        id_=f"node {i}",
        text=text or f"text {i}",
        embedding=vector(f"text {i}"),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document {i // 3}")},
        metadata=metadata,
    )


def nodes(n=60):
    qualities = [["medium", "high"], ["medium"], ["low", "medium", "high"], []]
    return [
        node(
            i,
            weight=float(i % 7),
            rank="abc"[i % 3],
            quality=qualities[i % 4],
            identifier=f"6FTR78{'Yy'[i % 2]}{i}",
            note=None if i % 5 else "there",
        )
        for i in range(n)
    ]


@pytest.fixture
def store(index):
    made = QamaVectorStore(index)
    assert made.add(nodes()) == [f"node {i}" for i in range(60)]
    return made


@pytest.fixture
def simple():
    made = SimpleVectorStore()
    made.add(nodes())
    return made


def found(store, query="text 7", k=60, **options):
    mode = options.pop("mode", VectorStoreQueryMode.DEFAULT)
    settings = {name: options.pop(name) for name in ("mmr_threshold", "oversample") if name in options}
    asked = VectorStoreQuery(query_embedding=vector(query), similarity_top_k=k, mode=mode, **options)
    return store.query(asked, **settings)


OPERATORS = [
    ("weight", FilterOperator.EQ, 2.0),
    ("weight", FilterOperator.NE, 2.0),
    ("weight", FilterOperator.GT, 2.0),
    ("weight", FilterOperator.GTE, 2.0),
    ("weight", FilterOperator.LT, 2.0),
    ("weight", FilterOperator.LTE, 2.0),
    ("rank", FilterOperator.IN, ["a", "c"]),
    ("rank", FilterOperator.NIN, ["a", "c"]),
    ("quality", FilterOperator.ANY, ["high", "low"]),
    ("quality", FilterOperator.ALL, ["high", "medium"]),
    ("quality", FilterOperator.CONTAINS, "high"),
    ("quality", FilterOperator.IS_EMPTY, None),
    ("note", FilterOperator.IS_EMPTY, None),
    ("note", FilterOperator.NE, "there"),
    ("missing", FilterOperator.EQ, 1),
    ("missing", FilterOperator.NIN, [1]),
    ("identifier", FilterOperator.TEXT_MATCH, "8Y"),
    ("identifier", FilterOperator.TEXT_MATCH_INSENSITIVE, "8y"),
    ("ref_doc_id", FilterOperator.EQ, "document 3"),
]
assert {operator for _, operator, _ in OPERATORS} == set(FilterOperator)


class TestFilters:
    """Every answer is that of SimpleVectorStore, whose vectors have norm 1 here, so that its cosines rank alike."""

    @pytest.mark.parametrize("condition", FilterCondition)
    @pytest.mark.parametrize("case", OPERATORS, ids=[f"{key} {operator.value}" for key, operator, _ in OPERATORS])
    def test_operators(self, case, condition, store, simple):
        key, operator, value = case
        filters = MetadataFilters(
            filters=[
                MetadataFilter(key=key, operator=operator, value=value),
                MetadataFilter(key="weight", operator=FilterOperator.LT, value=5.0),
            ],
            condition=condition,
        )
        want = found(simple, filters=filters, k=8)
        assert found(store, filters=filters, k=8).ids == want.ids
        wanted = set(found(simple, filters=filters).ids)
        assert {n.node_id for n in store.get_nodes(filters=filters)} == wanted
        simple.delete_nodes(filters=filters)
        store.delete_nodes(filters=filters)
        assert set(found(store).ids) == set(found(simple).ids) == {f"node {i}" for i in range(60)} - wanted

    def test_nested(self, store):
        def is_(key, value, operator=FilterOperator.EQ):
            return MetadataFilter(key=key, value=value, operator=operator)

        inner = MetadataFilters(filters=[is_("rank", "a"), is_("weight", 3.0)], condition=FilterCondition.OR)
        neither = MetadataFilters(filters=[inner, is_("note", "there")], condition=FilterCondition.NOT)
        both = MetadataFilters(filters=[neither, is_("weight", 5.0, FilterOperator.LT), MetadataFilters(filters=[])])
        wanted = {
            f"node {i}"
            for i, n in enumerate(nodes())
            if not (n.metadata["rank"] == "a" or n.metadata["weight"] == 3 or n.metadata["note"]) and i % 7 < 5
        }
        assert 5 < len(wanted) < 30
        assert set(found(store, filters=both).ids) == wanted

    def test_with_ids_of_nodes_and_documents(self, store, simple):
        rank = MetadataFilters(filters=[MetadataFilter(key="rank", value="b")])
        some = [f"node {i}" for i in (1, 2, 4, 40)] + ["node 999"]
        for filters in (None, rank):
            options = {"filters": filters, "node_ids": some}
            assert found(store, **options).ids == found(simple, **options).ids
        assert set(found(store, doc_ids=["document 0", "document 1"], filters=rank).ids) == {"node 1", "node 4"}
        assert found(store, doc_ids=[]).ids == []
        assert {n.node_id for n in store.get_nodes(some, rank)} == {"node 1", "node 4", "node 40"}
        store.delete_nodes(some, rank)
        assert len(found(store).ids) == 57
        store.delete_nodes([])
        with pytest.raises(ValueError, match=r"pass node_ids or filters; clear\(\) removes every node"):
            store.delete_nodes()
        assert len(store.get_nodes()) == 57


class TestNodes:
    def test_come_back_as_they_went_in(self, store):
        (one,) = store.get_nodes(["node 7"])
        assert one.to_dict() == {**nodes()[7].to_dict(), "embedding": None}
        assert one.ref_doc_id == "document 2"
        ids = found(store, "like text 7", k=3).ids
        assert [n.node_id for n in store.get_nodes(ids)] == ids
        assert ids[0] == "node 7"

    def test_the_same_node_twice_is_one_hit(self, store):
        again = node(7, "anew", weight=70.0)
        assert store.add([again, node(100), again]) == ["node 7", "node 100", "node 7"]
        assert store.client.ntotal == len(store.get_nodes()) == 61
        ids = found(store, k=99).ids
        assert len(ids) == len(set(ids)) == 61
        assert [n.get_content() for n in store.get_nodes(["node 7"])] == ["anew"]
        store.delete_nodes(["node 7"])
        assert "node 7" not in found(store, k=99).ids

    def test_a_document_without_source_is_its_own(self, index):
        store = QamaVectorStore(index)
        store.add([TextNode(id_="alone", text="text 1", embedding=vector("text 1")), node(2)])
        assert found(store, doc_ids=["alone"]).ids == ["alone"]
        store.delete("alone")
        store.delete("unknown")
        assert found(store).ids == ["node 2"]

    def test_clear(self, store):
        store.clear()
        assert store.client.ntotal == 0
        assert found(store).ids == store.get_nodes() == []
        assert found(store, mode=VectorStoreQueryMode.MMR).ids == []
        store.add(nodes(3))
        assert found(store, "text 2", k=1).ids == ["node 2"]

    def test_what_is_refused_changes_nothing(self, store):
        nan = node(8)
        nan.embedding = [float("nan")] * len(nan.embedding)
        with pytest.raises(ValueError, match="row 1 holds NaN"):
            store.add([node(7, "anew"), nan])
        with pytest.raises(ValueError, match="Unable to serialize unknown type"):
            store.add([node(7, "anew", number=np.int64(3))])
        assert store.client.ntotal == 60
        assert store.get_nodes(["node 7"])[0].get_content() == "text 7"
        store.add([node(7, day=date(2024, 2, 29))])
        assert store.get_nodes(["node 7"])[0].metadata == {"day": "2024-02-29"}

    def test_threads_keep_nodes_and_vectors_together(self, index):
        store = QamaVectorStore(index)

        def work(part):
            for i in range(part, 160, 8):
                store.add([node(i, "another"), node(i + 160)])
                store.add([node(i)])
                store.delete_nodes([f"node {i + 160}"])
                assert found(store, f"text {i}", k=3).ids

        in_threads(work)
        assert store.client.ntotal == 160
        for i in range(160):
            assert found(store, f"text {i}", k=1, oversample=160).ids == [f"node {i}"]
            assert store.get_nodes([f"node {i}"])[0].get_content() == f"text {i}"


class TestModes:
    @pytest.mark.parametrize("threshold", [None, 0.1, 0.5, 1.0])
    def test_marginal_relevance_is_theirs(self, threshold, store, simple):
        options = {} if threshold is None else {"mmr_threshold": threshold}
        for query in ("like text 7", "like text 9", "text 333"):  # none a node itself, as all others would tie then
            want, got = (found(s, query, k=6, mode=VectorStoreQueryMode.MMR, **options) for s in (simple, store))
            assert got.ids == want.ids
            assert got.similarities == pytest.approx(want.similarities, abs=2e-3)
        assert (
            found(store, "text 333", k=6).ids
            != found(store, "text 333", k=6, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.1).ids
        )

    def test_others_are_refused(self, store):
        for mode in set(VectorStoreQueryMode) - {VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR}:
            with pytest.raises(ValueError, match=f"the mode is default or mmr; got {mode.value}"):
                found(store, mode=mode)


class TestFiles:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_a_path_or_its_name(self, kind, store, tmp_path):
        path = kind(tmp_path / "folder" / "store.json")
        store.delete_nodes(["node 0"])
        store.persist(path)
        assert {p.name for p in (tmp_path / "folder").iterdir()} == {"store.json", "store.json.qama"}
        loaded = QamaVectorStore.from_persist_path(path)
        assert [n.to_dict() for n in loaded.get_nodes()] == [n.to_dict() for n in store.get_nodes()]
        for query in ("text 7", "like text 30"):
            want, got = found(store, query), found(loaded, query)
            assert (got.ids, got.similarities) == (want.ids, want.similarities)
        loaded.add([node(7, "anew"), node(90)])
        assert loaded.client.ntotal == 60
        store.persist(path)
        loaded.client.save(f"{path}.qama")  # and then the process died
        with pytest.raises(ValueError, match="are of different saves"):
            QamaVectorStore.from_persist_path(path)
        with pytest.raises(FileNotFoundError, match="elsewhere"):
            QamaVectorStore.from_persist_path(tmp_path / "elsewhere.json")

    def test_only_local_files(self, store, tmp_path):
        import fsspec

        memory = fsspec.filesystem("memory")
        with pytest.raises(NotImplementedError, match="local files"):
            store.persist(str(tmp_path / "store.json"), fs=memory)
        with pytest.raises(NotImplementedError, match="local files"):
            QamaVectorStore.from_persist_dir(str(tmp_path), fs=memory)

    def test_a_context_without_the_store_says_what_to_do(self, parts, index, tmp_path):
        _, context, *_ = parts
        build(parts, QamaVectorStore(index)).storage_context.persist(str(tmp_path))
        with pytest.raises(ValueError, match=r"pass vector_store=QamaVectorStore.from_persist_dir\(persist_dir\)"):
            context.from_defaults(persist_dir=str(tmp_path))

    def test_the_mode_of_a_retriever_and_nodes_of_two_kinds(self, parts, index):
        _, context, vector_index, _, embeddings = parts
        pointer = IndexNode(index_id="elsewhere", text="text 7", id_="pointer", embedding=vector("like text 7"))
        made = vector_index(
            [node(1), node(30), pointer],
            storage_context=context.from_defaults(vector_store=QamaVectorStore(index)),
            embed_model=embeddings,
        )
        assert set(ask(made, "text 7", 3)) == {"text 1", "text 30", "text 7"}
        assert isinstance(made.as_retriever(similarity_top_k=1).retrieve("text 7")[0].node, IndexNode)
        retriever = made.as_retriever(
            similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.2}
        )
        assert len(retriever.retrieve("text 7")) == 2


def test_another_index_is_refused():
    with pytest.raises(TypeError, match="a QamaIndex is needed; got IndexFlatL2"):
        QamaVectorStore(faiss.IndexFlatL2(4))
