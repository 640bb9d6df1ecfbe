"""LangChain's FAISS vector store on a QamaIndex (``pip install langchain-community``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy, maximal_marginal_relevance
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from faiss_qama.arrays import Floats
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.storage import atomic_files, bundle


class QamaVectorStore(FAISS):
    """``langchain_community.vectorstores.FAISS`` over a QamaIndex, with the same methods.

    Filters act within the search, so a search finds k documents if k match. ``save_local`` writes JSON, no pickle.
    Scores are inner products, larger is better, or squared L2 distances, smaller is better, by the metric of the index.

    Parameters
    ----------
    embedding_function : Embeddings
        The model that embeds texts.
    index : QamaIndex
        A trained index without ids of its own.
    docstore : InMemoryDocstore, optional
        The documents of the index, by name. The default is an empty one.
    index_to_docstore_id : dict of int to str, optional
        The name of each document in the index, by id. The default is an empty one.
    **options : object
        Further options of ``langchain_community.vectorstores.FAISS``.

    Raises
    ------
    TypeError, ValueError
        For another index, and for an index with another number of vectors than documents.
    """

    def __init__(
        self,
        embedding_function: Embeddings,
        index: QamaIndex,
        docstore: InMemoryDocstore | None = None,
        index_to_docstore_id: dict[int, str] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(index, QamaIndex):
            raise TypeError(f"a QamaIndex is needed; got {type(index).__name__}")
        inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        options["distance_strategy"] = (
            DistanceStrategy.MAX_INNER_PRODUCT if inner_product else DistanceStrategy.EUCLIDEAN_DISTANCE
        )
        super().__init__(
            embedding_function, index, docstore or InMemoryDocstore(), index_to_docstore_id or {}, **options
        )
        documents = len(self.index_to_docstore_id)
        if index.ntotal != documents:
            raise ValueError(f"the index holds {index.ntotal} vectors; there are {documents} documents")

    @classmethod
    def from_embeddings(
        cls,
        text_embeddings: Iterable[tuple[str, list[float]]],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: list[str] | None = None,
        *,
        index: QamaIndex | None = None,
        **options: Any,
    ) -> QamaVectorStore:
        """Return a store of texts and embeddings; without ``index`` fit one to them, for the inner product."""
        pairs = list(text_embeddings)
        if index is None:
            from faiss_qama.training import fit  # here, because run time does not depend on training

            index = QamaIndex(fit(np.array([x for _, x in pairs], dtype=np.float32)))
        store = cls(embedding, index, **options)
        store.add_embeddings(pairs, None if metadatas is None else list(metadatas), ids)
        return store

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[str] | None = None,
        **options: Any,
    ) -> QamaVectorStore:
        """Return a store of texts, as :meth:`from_embeddings`."""
        vectors = embedding.embed_documents(texts)
        return cls.from_embeddings(zip(texts, vectors, strict=True), embedding, metadatas, ids, **options)

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        ids: list[str] | None = None,
        **options: Any,
    ) -> QamaVectorStore:
        """Return a store of texts, as :meth:`from_embeddings`."""
        vectors = await embedding.aembed_documents(texts)
        return cls.from_embeddings(zip(texts, vectors, strict=True), embedding, metadatas, ids, **options)

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, fetch_k: int = 20, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return ``k`` documents and scores, best first. Filters act within the search; ``fetch_k`` is ignored."""
        threshold = options.pop("score_threshold", None)
        scores, ids = self.index.search(self._query(embedding), k, sel=self._allowed(filter), **options)
        found = [
            (self._document(self.index_to_docstore_id[int(i)]), float(score))
            for score, i in zip(scores[0], ids[0], strict=True)
            if i >= 0
        ]
        if threshold is None:
            return found
        larger = self.index.metric_type == faiss.METRIC_INNER_PRODUCT
        return [(d, score) for d, score in found if (score >= threshold if larger else score <= threshold)]

    def max_marginal_relevance_search_with_score_by_vector(
        self,
        embedding: list[float],
        *,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
    ) -> list[tuple[Document, float]]:
        """Return ``k`` of the ``fetch_k`` nearest documents that pass the filter, both near and unlike each other."""
        xq = self._query(embedding)
        scores, ids, vectors = self.index.search_and_reconstruct(xq, fetch_k, sel=self._allowed(filter))
        there = ids[0] >= 0
        chosen = maximal_marginal_relevance(xq, list(vectors[0, there]), lambda_mult=lambda_mult, k=k)
        return [(self._document(self.index_to_docstore_id[int(ids[0, i])]), float(scores[0, i])) for i in chosen]

    def save_local(self, folder_path: str, index_name: str = "index") -> None:
        """Write index and documents to the folder ``folder_path``. Raises TypeError for metadata that are not JSON."""
        folder = Path(folder_path)
        folder.mkdir(exist_ok=True, parents=True)
        names = [self.index_to_docstore_id[i] for i in range(self.index.ntotal)]
        content = {"ids": names, "documents": [self._document(name).model_dump() for name in names]}
        json.dumps(content)  # raises before anything is written
        self.index.save(folder / f"{index_name}.qama")
        content["index"] = bundle.fingerprint(folder / f"{index_name}.qama")
        atomic_files.write_text(folder / f"{index_name}.json", json.dumps(content))

    @classmethod
    def load_local(
        cls, folder_path: str, embeddings: Embeddings, index_name: str = "index", *, mmap: bool = False, **options: Any
    ) -> QamaVectorStore:
        """Return the store that :meth:`save_local` wrote; with ``mmap`` read-only and memory-mapped.

        Raises ValueError if index and documents are of two saves, as an interrupted save leaves them.
        """
        path = Path(folder_path) / f"{index_name}.qama"
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if content["index"] != bundle.fingerprint(path):
            raise ValueError(f"{path} and {path.with_suffix('.json')} are of different saves; the last was interrupted")
        documents = [Document(**fields) for fields in content["documents"]]
        docstore = InMemoryDocstore(dict(zip(content["ids"], documents, strict=True)))
        options.pop("allow_dangerous_deserialization", None)  # nothing here is dangerous
        index = QamaIndex.load(path, mmap=mmap)
        return cls(embeddings, index, docstore, dict(enumerate(content["ids"])), **options)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return a function from score to relevance, 0 to 1, for vectors of norm 1."""
        if self.override_relevance_score_fn is not None:
            return self.override_relevance_score_fn
        if self.index.metric_type == faiss.METRIC_INNER_PRODUCT:
            return lambda product: min(1.0, max(0.0, (1 + product) / 2))
        return lambda distance: min(1.0, max(0.0, 1 - distance / 4))

    def _query(self, embedding: list[float]) -> Floats:
        xq = np.array([embedding], dtype=np.float32)
        if self._normalize_L2:
            faiss.normalize_L2(xq)
        return xq

    def _allowed(self, filter: Any) -> Any:
        """Return the ids (m,) int64 of the documents that pass ``filter``, or None for all."""
        if filter is None:
            return None
        matches = self._create_filter_func(filter)
        ids = [i for i, name in self.index_to_docstore_id.items() if matches(self._document(name).metadata)]
        return np.array(ids, dtype=np.int64)

    def _document(self, name: str) -> Document:
        document = self.docstore.search(name)
        if not isinstance(document, Document):
            raise ValueError(f"could not find the document with id {name}: {document}")
        return document
