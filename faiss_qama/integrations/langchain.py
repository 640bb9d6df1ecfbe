"""LangChain's FAISS vector store on a QamaIndex (``pip install langchain-community``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from faiss_qama.index import QamaIndex


class QamaVectorStore(FAISS):
    """``langchain_community.vectorstores.FAISS`` over a QamaIndex: made, filled, searched and changed like that.

    A filter is applied within the search, so k documents are found if k match. ``save_local`` writes JSON, not a
    pickle.

    Parameters
    ----------
    embedding_function : the Embeddings of texts
    index : a trained QamaIndex without ids of its own
    docstore, index_to_docstore_id : of what the index holds; empty ones if left out
    """

    def __init__(
        self,
        embedding_function: Embeddings,
        index: QamaIndex,
        docstore: InMemoryDocstore | None = None,
        index_to_docstore_id: dict[int, str] | None = None,
        **options: Any,
    ) -> None:
        inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        strategy = DistanceStrategy.MAX_INNER_PRODUCT if inner_product else DistanceStrategy.EUCLIDEAN_DISTANCE
        options.setdefault("distance_strategy", strategy)
        super().__init__(
            embedding_function, index, docstore or InMemoryDocstore(), index_to_docstore_id or {}, **options
        )
        if index.ntotal != len(self.index_to_docstore_id):
            raise ValueError(
                f"the index holds {index.ntotal} vectors; there are {len(self.index_to_docstore_id)} documents"
            )

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, fetch_k: int = 20, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and scores, best first; ``fetch_k`` means nothing, as a filter acts within the search."""
        threshold = options.pop("score_threshold", None)
        sel = None
        if filter is not None:
            matches = self._create_filter_func(filter)
            ids = [i for i, name in self.index_to_docstore_id.items() if matches(self._document(name).metadata)]
            sel = faiss.IDSelectorBatch(np.array(ids, dtype=np.int64))
        scores, ids = self.index.search(np.array([embedding], dtype=np.float32), k, sel=sel, **options)
        found = [
            (self._document(self.index_to_docstore_id[int(i)]), float(score))
            for score, i in zip(scores[0], ids[0], strict=True)
            if i >= 0
        ]
        if threshold is None:
            return found
        larger = self.index.metric_type == faiss.METRIC_INNER_PRODUCT
        return [(d, score) for d, score in found if (score >= threshold if larger else score <= threshold)]

    def save_local(self, folder_path: str, index_name: str = "index") -> None:
        """Write index and documents to the folder ``folder_path``; metadata must be what JSON can hold."""
        folder = Path(folder_path)
        folder.mkdir(exist_ok=True, parents=True)
        names = [self.index_to_docstore_id[i] for i in range(self.index.ntotal)]
        documents = [self._document(name).model_dump() for name in names]
        text = json.dumps({"ids": names, "documents": documents})  # before anything is written
        self.index.save(folder / f"{index_name}.qama")
        (folder / f"{index_name}.json").write_text(text, encoding="utf-8")

    @classmethod
    def load_local(
        cls, folder_path: str, embeddings: Embeddings, index_name: str = "index", *, mmap: bool = False, **options: Any
    ) -> QamaVectorStore:
        """Read what :meth:`save_local` wrote; with ``mmap`` read-only and without reading the vectors."""
        folder = Path(folder_path)
        content = json.loads((folder / f"{index_name}.json").read_text(encoding="utf-8"))
        documents = [Document(**fields) for fields in content["documents"]]
        docstore = InMemoryDocstore(dict(zip(content["ids"], documents, strict=True)))
        index = QamaIndex.load(folder / f"{index_name}.qama", mmap=mmap)
        options.pop("allow_dangerous_deserialization", None)  # there is nothing dangerous
        return cls(embeddings, index, docstore, dict(enumerate(content["ids"])), **options)

    def _document(self, name: str) -> Document:
        document = self.docstore.search(name)
        if not isinstance(document, Document):
            raise ValueError(f"could not find the document with id {name}: {document}")
        return document
