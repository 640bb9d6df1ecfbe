"""LlamaIndex' FAISS vector store on a QamaIndex (``pip install llama-index-vector-stores-faiss``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.faiss.base import DEFAULT_PERSIST_PATH

from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.storage import atomic_files, bundle

NODES = ".nodes.json"  # beside the index: the node and the document of each vector


class QamaVectorStore(FaissVectorStore):
    """``llama_index.vector_stores.faiss.FaissVectorStore`` over a QamaIndex, which can also delete and filter by node.

    Parameters
    ----------
    faiss_index : QamaIndex
        A trained and empty index.

    Raises
    ------
    ValueError
        For an index that holds vectors.
    """

    _nodes: dict[int, tuple[str, str]] = PrivateAttr(default_factory=dict)  # by id of the vector: node, document
    _next: int = PrivateAttr(default=0)

    def __init__(self, faiss_index: QamaIndex) -> None:
        super().__init__(faiss_index)
        if faiss_index.ntotal:
            raise ValueError(f"an empty index is needed; this one holds {faiss_index.ntotal} vectors of unknown nodes")

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add the embeddings of ``nodes``; return the ids of the nodes."""
        if not nodes:
            return []
        ids = np.arange(self._next, self._next + len(nodes))
        self._faiss_index.add_with_ids(np.array([node.get_embedding() for node in nodes], dtype=np.float32), ids)
        self._next += len(nodes)
        for i, node in zip(ids.tolist(), nodes, strict=True):
            self._nodes[i] = node.node_id, node.ref_doc_id or node.node_id
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the vectors of every node of a document."""
        self._remove([i for i, (_, document) in self._nodes.items() if document == ref_doc_id])

    def delete_nodes(self, node_ids: list[str] | None = None, filters: Any = None, **delete_kwargs: Any) -> None:
        """Remove the vectors of the nodes ``node_ids``. Raises ValueError for ``filters``."""
        _refuse(filters)
        wanted = set(node_ids or ())
        self._remove([i for i, (node, _) in self._nodes.items() if node in wanted])

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to ``query.query_embedding``, best first, among its ``node_ids`` and ``doc_ids``.

        Similarities are the scores of the index, as in FaissVectorStore: inner products, larger is better, or squared
        L2 distances, smaller is better. Raises ValueError for ``query.filters``.
        """
        _refuse(query.filters)
        sel = None
        if query.node_ids is not None or query.doc_ids is not None:
            nodes, documents = (None if wanted is None else set(wanted) for wanted in (query.node_ids, query.doc_ids))
            sel = [
                i
                for i, (node, document) in self._nodes.items()
                if (nodes is None or node in nodes) and (documents is None or document in documents)
            ]
        xq = np.array([query.query_embedding], dtype=np.float32)
        scores, ids = self._faiss_index.search(xq, query.similarity_top_k, sel=sel, **kwargs)
        hits = [(float(score), int(i)) for score, i in zip(scores[0], ids[0], strict=True) if i >= 0]
        return VectorStoreQueryResult(
            similarities=[score for score, _ in hits], ids=[self._nodes[i][0] for _, i in hits]
        )

    def persist(self, persist_path: str = DEFAULT_PERSIST_PATH, fs: Any = None) -> None:
        """Write the index to the folder ``persist_path``, and the node of each vector to a file beside it."""
        if fs is not None and not _is_local(fs):
            raise NotImplementedError("an index is written to local files")
        Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
        self._faiss_index.save(persist_path)
        content = {"next": self._next, "nodes": self._nodes, "index": bundle.fingerprint(persist_path)}
        atomic_files.write_text(persist_path + NODES, json.dumps(content))

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None) -> QamaVectorStore:
        """Return the store that :meth:`persist` wrote.

        Raises ValueError if index and nodes are of two saves, as an interrupted save leaves them.
        """
        if fs is not None and not _is_local(fs):
            raise NotImplementedError("an index is read from local files")
        index = QamaIndex.load(persist_path)
        content = json.loads(Path(persist_path + NODES).read_text(encoding="utf-8"))
        if content["index"] != bundle.fingerprint(persist_path):
            raise ValueError(f"{persist_path} and its {NODES} are of different saves; the last was interrupted")
        store = cls.model_construct()
        store._faiss_index, store._next = index, content["next"]
        store._nodes = {int(i): (node, document) for i, (node, document) in content["nodes"].items()}
        return store

    def _remove(self, ids: list[int]) -> None:
        self._faiss_index.remove_ids(ids)
        for i in ids:
            del self._nodes[i]


def _refuse(filters: Any) -> None:
    if filters is not None:
        raise ValueError("this store keeps no metadata to filter by; pass node_ids or doc_ids")


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)
