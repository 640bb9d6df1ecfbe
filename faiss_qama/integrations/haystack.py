"""Haystack's document store on a QamaIndex, and its retriever (extra ``haystack``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import faiss
import numpy as np
from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
from haystack.utils.filters import document_matches_filter

from faiss_qama.arrays import Floats, scale_to_norm
from faiss_qama.integrations.metadata_json import dump, load
from faiss_qama.integrations.self_fitting import SelfFittingIndex
from faiss_qama.integrations.store_files import beside, load_store, save_store
from faiss_qama.threads import defer_interrupt
from faiss_qama.vectors import PathLike

SIMILARITIES = ("dot_product", "cosine")


class QamaDocumentStore:
    """A store of documents whose embeddings are in a QamaIndex, which fits itself to them.

    Documents without an embedding are kept, and no search finds them. Threads may use a store at the same time.

    Parameters
    ----------
    embedding_similarity_function : str
        ``dot_product``, or ``cosine``, which normalizes embeddings and queries.
    rescore : str
        How the index keeps embeddings, and re-ranks: ``fp16``, ``fp32``, ``sq8`` or ``codes``. Documents get their
        embeddings back as precisely as that; with ``cosine``, normalized.
    return_embedding : bool
        Whether documents come with their embeddings.
    """

    def __init__(
        self,
        embedding_similarity_function: str = "dot_product",
        rescore: str = "fp16",
        return_embedding: bool = True,
    ) -> None:
        if embedding_similarity_function not in SIMILARITIES:
            raise ValueError(f"the similarity is one of {', '.join(SIMILARITIES)}; got {embedding_similarity_function}")
        self.embedding_similarity_function, self.rescore = embedding_similarity_function, rescore
        self.return_embedding = return_embedding
        self._vectors = SelfFittingIndex(faiss.METRIC_INNER_PRODUCT, rescore)
        self._documents: dict[str, Document] = {}  # without embeddings
        self._numbers: dict[str, int] = {}  # ids in the index, of documents with an embedding
        self._next = 0
        self._lock = RLock()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings; documents are not among them."""
        settings = ("embedding_similarity_function", "rescore", "return_embedding")
        as_dict: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in settings})
        return as_dict

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QamaDocumentStore:
        """Return an empty store with the settings of :meth:`to_dict`."""
        store: QamaDocumentStore = default_from_dict(cls, data)
        return store

    def count_documents(self) -> int:
        """Return the number of documents."""
        return len(self._documents)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that pass ``filters``, or all. Raises FilterError or ValueError for wrong filters."""
        with self._lock:
            return self._returned(self._matching(filters), self.return_embedding)

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents, and return their number; by ``policy`` an id that is there is skipped or overwritten.

        Raises ValueError for what is no list of documents, and for embeddings of different dimensions or that are not
        finite; TypeError for metadata that cannot be kept; DuplicateDocumentError for an id that is there, with another
        policy. Nothing is written then.
        """
        if not isinstance(documents, Iterable) or isinstance(documents, str):
            raise ValueError(f"a list of documents is needed; got {type(documents).__name__}")
        documents = list(documents)
        for document in documents:
            if not isinstance(document, Document):
                raise ValueError(f"a list of documents is needed; it holds a {type(document).__name__}")
            try:
                dump(replace(document, embedding=None).to_dict(flatten=False))
            except (TypeError, ValueError) as error:
                raise TypeError(f"document {document.id!r} cannot be kept as JSON: {error}") from None
        with self._lock, defer_interrupt():
            new: dict[str, Document] = {}
            for document in documents:
                if policy != DuplicatePolicy.OVERWRITE and document.id in self._documents.keys() | new.keys():
                    if policy != DuplicatePolicy.SKIP:
                        raise DuplicateDocumentError(f"a document with id {document.id!r} is there already")
                    continue
                new[document.id] = document
            embedded = [document for document in new.values() if document.embedding is not None]
            numbers = np.arange(self._next, self._next + len(embedded))
            if embedded:
                self._vectors.add(self._scaled([document.embedding for document in embedded]), numbers)
            self.delete_documents(list(new))
            self._next += len(embedded)
            self._numbers |= {document.id: int(i) for document, i in zip(embedded, numbers, strict=True)}
            self._documents |= {name: replace(document, embedding=None) for name, document in new.items()}
            return len(documents) if policy == DuplicatePolicy.OVERWRITE else len(new)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Remove the documents of ``document_ids``; ids that are not there are ignored."""
        with self._lock, defer_interrupt():
            gone = [name for name in document_ids if name in self._documents]
            numbers = [self._numbers.pop(name) for name in gone if name in self._numbers]
            if numbers:
                self._vectors.remove(np.array(numbers))
            for name in gone:
                self._documents.pop(name, None)

    def delete_all_documents(self) -> None:
        """Remove all documents."""
        with self._lock:
            self.delete_documents(list(self._documents))

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Remove the documents that pass ``filters``, and return their number."""
        with self._lock:
            names = [document.id for document in self._matching(filters)]
            self.delete_documents(names)
            return len(names)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Add ``meta`` to the metadata of the documents that pass ``filters``, and return their number."""
        with self._lock:
            matching = self._matching(filters)
            self._documents |= {d.id: replace(d, meta={**d.meta, **meta}) for d in matching}
            return len(matching)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Return the number of documents that pass ``filters``."""
        with self._lock:
            return len(self._matching(filters))

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        **options: Any,
    ) -> list[Document]:
        """Return the ``top_k`` documents nearest to an embedding, with scores, largest first.

        Filters act within the search. ``options`` are those of :meth:`~faiss_qama.QamaIndex.search`, such as
        ``recall``. Raises ValueError for an embedding of another dimension, and for wrong filters.
        """
        xq = self._scaled([query_embedding])
        with self._lock:
            names = {number: name for name, number in self._numbers.items()}
            if filters:
                names = {self._numbers[d.id]: d.id for d in self._matching(filters) if d.id in self._numbers}
                options["sel"] = np.array(list(names), np.int64)
            D, I = self._vectors.search(xq, top_k, **options)
            scores = {names[i]: float(score) for i, score in zip(I[0].tolist(), D[0], strict=True) if i >= 0}
            found = self._returned([self._documents[name] for name in scores], return_embedding)
            return [replace(document, score=scores[document.id]) for document in found]

    def save_to_disk(self, path: PathLike) -> None:
        """Write documents and index to the folder of the name ``path`` with ``.qama``, in one atomic step.

        The file ``path`` says that they are there. It holds the documents if none has an embedding.
        """
        path = Path(path)
        with self._lock:
            content = {
                "store": self.to_dict(),
                "numbers": self._numbers,
                "next": self._next,
                "documents": [document.to_dict(flatten=False) for document in self._documents.values()],
            }
            save_store(path, beside(path), self._vectors.index, dump(content))

    @classmethod
    def load_from_disk(cls, path: PathLike) -> QamaDocumentStore:
        """Return the store of :meth:`save_to_disk`. Raises DocumentStoreError for a file that is none."""
        path = Path(path)
        try:
            index, saved = load_store(path, beside(path))
        except ValueError as error:
            raise DocumentStoreError(str(error)) from None
        content = load(saved)
        if not isinstance(content, dict) or "store" not in content:
            raise DocumentStoreError(f"{path}: not a store that save_to_disk has written")
        store = cls.from_dict(content["store"])
        if index is not None:
            store._vectors = SelfFittingIndex(index.metric_type, index.rescore, index)
        store._documents = {fields["id"]: Document.from_dict(fields) for fields in content["documents"]}
        store._numbers, store._next = content["numbers"], content["next"]
        return store

    def _matching(self, filters: dict[str, Any] | None) -> list[Document]:
        """Return the documents that pass ``filters``; they have embeddings if these are asked for."""
        if not filters:
            return list(self._documents.values())
        if "operator" not in filters and "conditions" not in filters:
            raise ValueError(f"a filter has an operator, and a field or conditions; got {filters}")
        documents = self._returned(list(self._documents.values()), "embedding" in _fields(filters))
        return [self._documents[d.id] for d in documents if document_matches_filter(filters, d)]

    def _returned(self, documents: list[Document], embeddings: bool) -> list[Document]:
        """Return copies of ``documents``, with their embeddings if asked for."""
        copies = [replace(document, meta=dict(document.meta)) for document in documents]
        embedded = [document for document in copies if document.id in self._numbers] if embeddings else []
        if embedded and self._vectors.index is not None:
            x = self._vectors.index.reconstruct_batch([self._numbers[document.id] for document in embedded])
            restored = {document.id: row.tolist() for document, row in zip(embedded, x, strict=True)}
            copies = [replace(document, embedding=restored.get(document.id)) for document in copies]
        return copies

    def _scaled(self, embeddings: Any) -> Floats:
        """Return ``embeddings`` (n, d) as float32, with norm 1 for cosines. Raises ValueError for a ragged list."""
        if len({len(embedding) for embedding in embeddings}) > 1:
            raise ValueError(f"embeddings need one dimension; got {sorted({len(e) for e in embeddings})}")
        x = np.array(embeddings, dtype=np.float32)
        return scale_to_norm(x, 1.0) if self.embedding_similarity_function == "cosine" else x


def _fields(filters: dict[str, Any]) -> set[str]:
    """Return the fields that ``filters`` compare."""
    inside = [_fields(one) for one in filters.get("conditions", ())]
    return {str(filters.get("field"))}.union(*inside)


@component
class QamaEmbeddingRetriever:
    """Retrieves the documents of a QamaDocumentStore that are nearest to an embedding.

    Parameters
    ----------
    document_store : QamaDocumentStore
        The store to search.
    filters : dict, optional
        Filters of every search.
    top_k : int
        Documents per query.
    return_embedding : bool
        Whether documents come with their embeddings.
    filter_policy : FilterPolicy
        Whether the filters of a run replace these, or are merged with them.
    """

    def __init__(
        self,
        document_store: QamaDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, QamaDocumentStore):
            raise ValueError(f"a QamaDocumentStore is needed; got {type(document_store).__name__}")
        self.document_store, self.filters, self.top_k = document_store, filters, top_k
        self.return_embedding, self.filter_policy = return_embedding, filter_policy

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, those of the store included."""
        as_dict: dict[str, Any] = default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            return_embedding=self.return_embedding,
            filter_policy=self.filter_policy.value,
        )
        return as_dict

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QamaEmbeddingRetriever:
        """Return a retriever with the settings of :meth:`to_dict`, over an empty store."""
        settings = data["init_parameters"]
        settings["document_store"] = QamaDocumentStore.from_dict(settings["document_store"])
        settings["filter_policy"] = FilterPolicy.from_str(settings["filter_policy"])
        retriever: QamaEmbeddingRetriever = default_from_dict(cls, data)
        return retriever

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Return the documents nearest to ``query_embedding``, best first, under ``documents``."""
        filters = apply_filter_policy(self.filter_policy, self.filters, filters)
        found = self.document_store.embedding_retrieval(
            query_embedding, filters, self.top_k if top_k is None else top_k, self.return_embedding
        )
        return {"documents": found}
