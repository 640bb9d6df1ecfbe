"""LangChain's vector store on a QamaIndex, on langchain-core alone (extra ``langchain``)."""

from __future__ import annotations

import operator
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from faiss_qama.arrays import Floats, row_norms, scale_to_norm
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.integrations.langchain_documents import Metadatas, Names, Pairs, make_documents, make_filter
from faiss_qama.integrations.metadata_json import dump, load
from faiss_qama.integrations.self_fitting import SelfFittingIndex
from faiss_qama.integrations.store_files import load_store, save_store
from faiss_qama.threads import defer_interrupt
from faiss_qama.vectors import PathLike

NORMS = 1000  # vectors that tell whether an index holds normalized ones
STRATEGIES = {  # the metric of the index, and whether vectors are normalized
    "EUCLIDEAN_DISTANCE": (faiss.METRIC_L2, False),
    "MAX_INNER_PRODUCT": (faiss.METRIC_INNER_PRODUCT, False),
    "COSINE": (faiss.METRIC_INNER_PRODUCT, True),
}


class QamaVectorStore(VectorStore):
    """A vector store with the methods of ``langchain_community.vectorstores.FAISS``, over a QamaIndex.

    A text replaces the one that has its id. Filters act within the search, so a search finds k documents if k pass.
    Metadata are what JSON holds, dates and times; numbers of numpy become Python's. Hits are copies. Threads may search
    and change a store at the same time.

    Parameters
    ----------
    embedding_function : Embeddings
        The model that embeds texts.
    index : QamaIndex, optional
        A trained index without ids of its own. Without one, the attribute ``index`` is None until the store fits it to
        the first texts. It compares every vector while there are fewer than 10,000. Then it fits the index anew, if
        that was fitted to fewer than 5,000.
    documents : sequence of Document
        The documents of the vectors in ``index``, in the order of its rows.
    relevance_score_fn : callable, optional
        Takes a score and returns a relevance from 0 to 1. The default suits vectors of norm 1.
    normalize_L2 : bool
        Whether vectors and queries are scaled to norm 1.
    distance_strategy : str, optional
        ``EUCLIDEAN_DISTANCE``: scores are squared L2 distances, smaller is better. ``MAX_INNER_PRODUCT``: inner
        products, larger is better. ``COSINE``: cosines, larger is better; it normalizes. By default the metric of
        ``index`` decides, and without an index it is the inner product.

    Raises
    ------
    TypeError, ValueError
        For another ``index``: in type, metric, norms, ids or number of vectors, or with ``rescore="none"``; for an
        unknown strategy.
    """

    def __init__(
        self,
        embedding_function: Embeddings,
        index: QamaIndex | None = None,
        documents: Sequence[Document] = (),
        *,
        relevance_score_fn: Callable[[float], float] | None = None,
        normalize_L2: bool = False,  # noqa: N803 - the name in the FAISS store
        distance_strategy: str | None = None,
    ) -> None:
        if not isinstance(index, QamaIndex | None):
            raise TypeError(f"a QamaIndex is needed; got {type(index).__name__}")
        l2 = index is not None and index.metric_type == faiss.METRIC_L2
        strategy = distance_strategy or ("EUCLIDEAN_DISTANCE" if l2 else "MAX_INNER_PRODUCT")
        self.distance_strategy = str(getattr(strategy, "value", strategy))  # it may be an Enum's
        if self.distance_strategy not in STRATEGIES:
            raise ValueError(f"distance_strategy is one of {', '.join(STRATEGIES)}; got {self.distance_strategy}")
        self._metric, normalize = STRATEGIES[self.distance_strategy]
        self.normalize_L2 = normalize or normalize_L2
        self.embedding_function = embedding_function
        self._vectors = SelfFittingIndex(self._metric, index=index, own=index is None)
        self.override_relevance_score_fn = relevance_score_fn
        self._documents = make_documents(
            [d.page_content for d in documents], [d.metadata for d in documents], [d.id for d in documents]
        )
        self._names = list(self._documents)  # by row of the index
        self._lock = ReadWriteLock()  # over vectors, names and documents
        self._check_index()

    @property
    def embeddings(self) -> Embeddings:
        """The model that embeds texts."""
        return self.embedding_function

    @property
    def index(self) -> QamaIndex | None:
        """The index; None before the first texts, if none was given."""
        return self._vectors.index

    @property
    def index_to_docstore_id(self) -> dict[int, str]:
        """The id of each document, by row of the index."""
        return dict(enumerate(self._names))

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], embedding: Embeddings, metadatas: Metadatas = None, ids: Names = None, **options: Any
    ) -> QamaVectorStore:
        """Return a store of ``texts``, also of one or none; ``options`` are those of the class."""
        store = cls(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls, texts: Iterable[str], embedding: Embeddings, metadatas: Metadatas = None, ids: Names = None, **options: Any
    ) -> QamaVectorStore:
        """Return a store of texts, as :meth:`from_texts`."""
        store = cls(embedding, **options)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_embeddings(
        cls,
        text_embeddings: Pairs,
        embedding: Embeddings,
        metadatas: Metadatas = None,
        ids: Names = None,
        **options: Any,
    ) -> QamaVectorStore:
        """Return a store of texts and their embeddings, as :meth:`from_texts`."""
        store = cls(embedding, **options)
        store.add_embeddings(text_embeddings, metadatas, ids)
        return store

    def add_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, ids: Names = None, **options: Any
    ) -> list[str]:
        """Add ``texts``, each in place of the one that has its id, and return their ids.

        Raises TypeError for metadata that cannot be kept, and ValueError for other numbers of metadata or ids than
        texts and for an id that is there twice. Nothing is changed then.
        """
        new = make_documents(texts, metadatas, ids)
        return self._add(new, self.embeddings.embed_documents([d.page_content for d in new.values()]) if new else [])

    async def aadd_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, ids: Names = None, **options: Any
    ) -> list[str]:
        """Add ``texts``, as :meth:`add_texts`."""
        new = make_documents(texts, metadatas, ids)
        vectors = await self.embeddings.aembed_documents([d.page_content for d in new.values()]) if new else []
        return await run_in_executor(None, self._add, new, vectors)

    def add_embeddings(self, text_embeddings: Pairs, metadatas: Metadatas = None, ids: Names = None) -> list[str]:
        """Add texts with their embeddings, as :meth:`add_texts`."""
        pairs = list(text_embeddings)
        return self._add(make_documents([text for text, _ in pairs], metadatas, ids), [vector for _, vector in pairs])

    def delete(self, ids: Iterable[str] | None = None, **options: Any) -> bool:
        """Remove the documents of ``ids``, or all if it is None; ids that are not there are ignored."""
        if options:
            raise TypeError(f"delete takes ids, not {', '.join(options)}")
        with self._lock.write(), defer_interrupt():
            self._remove(self._names if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of ``ids``, in that order, without those that are not there."""
        with self._lock.read():
            return [self._documents[name].model_copy(deep=True) for name in ids if name in self._documents]

    def merge_from(self, target: QamaVectorStore) -> None:
        """Add the documents and vectors of ``target``, which stays as it is."""
        with target._lock.read():
            new = {name: target._documents[name] for name in target._names}
            vectors = target.index.reconstruct_n() if target.index is not None and new else np.empty((0, 0))
        self._add(new, vectors)

    def similarity_search(self, query: str, *args: Any, **options: Any) -> list[Document]:
        """Return documents, as :meth:`similarity_search_with_score_by_vector`."""
        return [document for document, _ in self.similarity_search_with_score(query, *args, **options)]

    async def asimilarity_search(self, query: str, *args: Any, **options: Any) -> list[Document]:
        """Return documents, as :meth:`similarity_search_with_score_by_vector`."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, *args, **options)]

    def similarity_search_by_vector(self, embedding: Sequence[float], *args: Any, **options: Any) -> list[Document]:
        """Return documents, as :meth:`similarity_search_with_score_by_vector`."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, *args, **options)]

    def similarity_search_with_score(self, query: str, *args: Any, **options: Any) -> list[tuple[Document, float]]:
        """Return documents and scores, as :meth:`similarity_search_with_score_by_vector`."""
        return self.similarity_search_with_score_by_vector(self.embeddings.embed_query(query), *args, **options)

    async def asimilarity_search_with_score(
        self, query: str, *args: Any, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and scores, as :meth:`similarity_search_with_score_by_vector`."""
        vector = await self.embeddings.aembed_query(query)
        return await run_in_executor(None, self.similarity_search_with_score_by_vector, vector, *args, **options)

    def similarity_search_with_score_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        filter: Any = None,
        fetch_k: int = 20,
        score_threshold: float | None = None,
        **settings: Any,
    ) -> list[tuple[Document, float]]:
        """Return ``k`` documents and scores, best first.

        ``filter`` is a function that takes metadata and returns whether they pass, or a dict such as
        ``{"year": {"$gte": 2020}, "language": ["de", "fr"]}``, with ``$eq``, ``$neq``, ``$gt``, ``$gte``, ``$lt``,
        ``$lte``, ``$in``, ``$nin``, ``$and``, ``$or`` and ``$not``. ``fetch_k`` is ignored, as filters act within the
        search. ``score_threshold`` is the worst score that is returned. ``settings`` are options of
        :meth:`~faiss_qama.QamaIndex.search`, such as ``recall`` or ``nprobe``. Raises ValueError for another filter.
        """
        found, _ = self._nearest(embedding, k, filter, settings)
        better = operator.ge if self._metric == faiss.METRIC_INNER_PRODUCT else operator.le
        return [hit for hit in found if score_threshold is None or better(hit[1], score_threshold)]

    def max_marginal_relevance_search(self, query: str, *args: Any, **options: Any) -> list[Document]:
        """Return ``k`` documents, as :meth:`max_marginal_relevance_search_by_vector`."""
        return self.max_marginal_relevance_search_by_vector(self.embeddings.embed_query(query), *args, **options)

    async def amax_marginal_relevance_search(self, query: str, *args: Any, **options: Any) -> list[Document]:
        """Return ``k`` documents, as :meth:`max_marginal_relevance_search_by_vector`."""
        vector = await self.embeddings.aembed_query(query)
        return await run_in_executor(None, self.max_marginal_relevance_search_by_vector, vector, *args, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
        **settings: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` nearest documents that pass the filter, both near and unlike each other."""
        found, vectors = self._nearest(embedding, fetch_k, filter, settings)
        chosen = maximal_marginal_relevance(self._scaled([embedding]), list(vectors), lambda_mult, k)
        return [found[i][0] for i in chosen]

    def save_local(self, folder_path: PathLike, index_name: str = "index") -> None:
        """Write index and documents to the folder ``folder_path``, in one atomic step and without a pickle."""
        path = Path(folder_path) / f"{index_name}.qama"
        path.parent.mkdir(exist_ok=True, parents=True)
        with self._lock.read():
            content = {
                "own_index": self._vectors.own,
                "options": {"distance_strategy": self.distance_strategy, "normalize_L2": self.normalize_L2},
                "documents": [self._documents[name].model_dump() for name in self._names],
            }
            save_store(path.with_suffix(".json"), path, self.index, dump(content))

    @classmethod
    def load_local(
        cls,
        folder_path: PathLike,
        embeddings: Embeddings,
        index_name: str = "index",
        *,
        mmap: bool = False,
        **options: Any,
    ) -> QamaVectorStore:
        """Return the store that :meth:`save_local` wrote; with ``mmap`` read-only and memory-mapped.

        ``options`` of the class go before the saved ones. Raises ValueError if the index was saved without documents.
        """
        options.pop("allow_dangerous_deserialization", None)  # nothing here is dangerous
        path = Path(folder_path) / f"{index_name}.qama"
        index, saved = load_store(path.with_suffix(".json"), path, mmap=mmap)
        content = load(saved)
        documents = [Document(**fields) for fields in content["documents"]]
        store = cls(embeddings, index, documents, **{**content["options"], **options})
        store._vectors.own = content["own_index"]
        return store

    def serialize_to_bytes(self) -> bytes:
        """Return the files of :meth:`save_local` as one zip archive."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_local(f"{folder}/store")
            return Path(shutil.make_archive(f"{folder}/store", "zip", f"{folder}/store")).read_bytes()

    @classmethod
    def deserialize_from_bytes(cls, serialized: bytes, embeddings: Embeddings, **options: Any) -> QamaVectorStore:
        """Return the store of :meth:`serialize_to_bytes`; ``options`` are those of :meth:`load_local`."""
        with tempfile.TemporaryDirectory() as folder:
            Path(f"{folder}/store.zip").write_bytes(serialized)
            shutil.unpack_archive(f"{folder}/store.zip", f"{folder}/store")
            return cls.load_local(f"{folder}/store", embeddings, **options)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return a function from score to relevance, 0 to 1, for vectors of norm 1."""
        if self.override_relevance_score_fn is not None:
            return self.override_relevance_score_fn
        if self._metric == faiss.METRIC_INNER_PRODUCT:
            return lambda product: min(1.0, max(0.0, (1 + product) / 2))
        return lambda distance: min(1.0, max(0.0, 1 - distance / 4))

    def _check_index(self) -> None:
        """Raise ValueError for an index that contradicts the options or the documents."""
        index, held = self.index, 0 if self.index is None else self.index.ntotal
        if held != len(self._names):
            raise ValueError(f"the index holds {held} vectors; there are {len(self._names)} documents")
        if index is None:
            return
        if index.metric_type != self._metric:
            raise ValueError(f"{self.distance_strategy} contradicts {index!r}: leave it out, or fit with metric=")
        if index.rescore == "none":
            raise ValueError(f"Hamming distances are no such scores: rescore='codes' is needed; got {index!r}")
        if held and not np.array_equal(index.ids, np.arange(held)):
            raise ValueError(f"an index without ids of its own is needed; {index!r} has ids")
        if self.normalize_L2 and not index.quantizer.normalized:
            norms = row_norms(index.reconstruct_n(0, min(held, NORMS))) if held else np.zeros(1)
            if not held or not np.allclose(norms[norms > 0], 1, atol=0.01):  # else it began with empty texts
                raise ValueError(f"this store normalizes, but {index!r} was fitted on vectors of other norms than 1")

    def _add(self, new: dict[str, Document], vectors: Any) -> list[str]:
        """Add documents by id, each in place of the one that has its id, and their vectors; return the ids."""
        if len(vectors) != len(new):
            raise ValueError(f"{len(new)} texts need as many embeddings; got {len(vectors)}")
        if not new:
            return []
        x = self._scaled(vectors)
        with self._lock.write(), defer_interrupt():
            self._vectors.add(x)  # first, as it may refuse the vectors
            self._remove(new)
            self._names += new
            self._documents |= new
        return list(new)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove the documents of ``names`` that are there."""
        gone = self._documents.keys() & names
        if gone:
            self._vectors.remove(np.array([row for row, name in enumerate(self._names) if name in gone]))
            self._names = [name for name in self._names if name not in gone]
            for name in gone:
                del self._documents[name]

    def _nearest(
        self, embedding: Sequence[float], k: int, filter: Any, settings: dict[str, Any]
    ) -> tuple[list[tuple[Document, float]], Floats]:
        """Return ``k`` documents and scores, best first, and their vectors (k, d)."""
        xq, passing = self._scaled([embedding]), None
        if filter is not None:
            passes = make_filter(filter)
            with self._lock.read():
                documents = list(self._documents.items())
            passing = {name: d for name, d in documents if passes(d.metadata)}  # no lock: it is the user's function
        with self._lock.read():
            sel = None
            if passing is not None:
                sel = [row for row, name in enumerate(self._names) if passing.get(name) is self._documents[name]]
            D, I = self._vectors.search(xq, k, sel=sel, **settings)
            rows = I[I >= 0]
            x = xq[:0] if self.index is None else self.index.reconstruct_batch(rows)
            found = [self._documents[self._names[row]].model_copy(deep=True) for row in rows]
            return list(zip(found, D[I >= 0].tolist(), strict=True)), x

    def _scaled(self, vectors: Any) -> Floats:
        """Return ``vectors`` (n, d) as float32, with norm 1 if the store normalizes."""
        x = np.array(vectors, dtype=np.float32)
        return scale_to_norm(x, 1.0) if self.normalize_L2 else x
