"""LlamaIndex' FAISS vector store on a QamaIndex (``pip install llama-index-vector-stores-faiss``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.faiss.base import DEFAULT_PERSIST_PATH

from faiss_qama.index import QamaIndex

NODES = ".nodes.json"  # beside the index: which vectors are of which document


class QamaVectorStore(FaissVectorStore):
    """``llama_index.vector_stores.faiss.FaissVectorStore`` over a QamaIndex, which can also delete.

    Parameters
    ----------
    faiss_index : a trained and empty QamaIndex
    """

    _documents: dict[str, list[int]] = PrivateAttr(default_factory=dict)
    _next: int = PrivateAttr(default=0)

    def __init__(self, faiss_index: QamaIndex) -> None:
        super().__init__(faiss_index)
        if faiss_index.ntotal:
            raise ValueError(f"an empty index is needed; this one holds {faiss_index.ntotal} vectors of unknown nodes")

    def add(self, nodes: list[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add the embeddings of ``nodes``; return the ids of their vectors."""
        if not nodes:
            return []
        ids = np.arange(self._next, self._next + len(nodes))
        self._faiss_index.add_with_ids(np.array([node.get_embedding() for node in nodes], dtype=np.float32), ids)
        self._next += len(nodes)
        for node, i in zip(nodes, ids.tolist(), strict=True):
            self._documents.setdefault(node.ref_doc_id or node.node_id, []).append(i)
        return [str(i) for i in ids]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the vectors of every node of a document."""
        self._faiss_index.remove_ids(self._documents.pop(ref_doc_id, []))

    def persist(self, persist_path: str = DEFAULT_PERSIST_PATH, fs: Any = None) -> None:
        """Write the index to the folder ``persist_path``, and beside it which vectors are of which document."""
        if fs is not None and not _is_local(fs):
            raise NotImplementedError("an index is written to local files")
        Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
        self._faiss_index.save(persist_path)
        nodes = json.dumps({"next": self._next, "documents": self._documents})
        Path(persist_path + NODES).write_text(nodes, encoding="utf-8")

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> QamaVectorStore:
        """Read what :meth:`persist` wrote."""
        if fs is not None and not _is_local(fs):
            raise NotImplementedError("an index is read from local files")
        index = QamaIndex.load(persist_path)
        content = json.loads(Path(persist_path + NODES).read_text(encoding="utf-8"))
        store = cls.model_construct()
        store._faiss_index, store._next, store._documents = index, content["next"], content["documents"]
        return store


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)
