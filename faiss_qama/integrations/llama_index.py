"""LlamaIndex' vector store on a QamaIndex, on llama-index-core alone (extra ``llama-index``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    FilterCondition,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import (
    build_metadata_filter_fn,
    metadata_dict_to_node,
    node_to_metadata_dict,
)

from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.integrations.store_files import beside, load_store, save_store
from faiss_qama.threads import defer_interrupt
from faiss_qama.vectors import PathLike

DEFAULT_PERSIST_PATH = f"{DEFAULT_PERSIST_DIR}/{DEFAULT_VECTOR_STORE}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
MMR_CANDIDATES = 100  # nodes that the MMR mode chooses from, if no more are asked for
# A StorageContext without vector_store= reads the file of any store as SimpleVectorStore's, whose numbers it expects
# here: so its error says what to do.
HINT = "pass vector_store=QamaVectorStore.from_persist_dir(persist_dir) to StorageContext.from_defaults too"
NOT_SIMPLE = {"embedding_dict": {"": [HINT]}}


class QamaVectorStore(BasePydanticVectorStore):
    """A vector store with the methods of SimpleVectorStore, and ``get_nodes``, over a QamaIndex.

    A node replaces the one that has its id. Filters act within the search, so a search finds k nodes if k pass.
    Metadata are kept as JSON, so dates become strings. Threads may search and change a store at the same time.

    Parameters
    ----------
    faiss_index : QamaIndex
        A trained and empty index.

    Raises
    ------
    TypeError, ValueError
        For another index, and for one that holds vectors.
    """

    stores_text: bool = False  # as SimpleVectorStore: LlamaIndex keeps the nodes in its docstore too

    _index: QamaIndex = PrivateAttr()
    # By id of the node: the id of its vector, and the node as LlamaIndex puts it into metadata.
    _nodes: dict[str, tuple[int, dict[str, Any]]] = PrivateAttr(default_factory=dict)
    _names: dict[int, str] = PrivateAttr(default_factory=dict)  # ids of the nodes, by id of the vector
    _next: int = PrivateAttr(default=0)  # no id of a vector is used twice
    _lock: ReadWriteLock = PrivateAttr(default_factory=ReadWriteLock)  # over all of these

    def __init__(self, faiss_index: QamaIndex) -> None:
        super().__init__(stores_text=False)
        if not isinstance(faiss_index, QamaIndex):
            raise TypeError(f"a QamaIndex is needed; got {type(faiss_index).__name__}")
        if faiss_index.ntotal:
            raise ValueError(f"an empty index is needed; this one holds {faiss_index.ntotal} vectors of unknown nodes")
        self._index = faiss_index

    @property
    def client(self) -> QamaIndex:
        """The index."""
        return self._index

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add ``nodes`` with their embeddings, each in place of the one that has its id; return their ids."""
        new = {node.node_id: node for node in nodes}
        if new:
            kept = [node_to_metadata_dict(n) | {"ref_doc_id": n.ref_doc_id or n.node_id} for n in new.values()]
            x = np.array([node.get_embedding() for node in new.values()], dtype=np.float32)
            with self._lock.write(), defer_interrupt():
                ids = range(self._next, self._next + len(new))
                self._index.add_with_ids(x, np.array(ids))  # first, as it may refuse the vectors
                self._next += len(new)
                self._remove([name for name in new if name in self._nodes])
                self._names.update(zip(ids, new, strict=True))
                self._nodes.update(zip(new, zip(ids, kept, strict=True), strict=True))
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove every node of a document."""
        with self._lock.write(), defer_interrupt():
            self._remove(self._passing(None, None, [ref_doc_id]))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Remove the nodes ``node_ids`` that pass ``filters``. Raises ValueError without both."""
        if node_ids is None and filters is None:
            raise ValueError("pass node_ids or filters; clear() removes every node")
        with self._lock.write(), defer_interrupt():
            self._remove(self._passing(node_ids, filters))

    def clear(self) -> None:
        """Remove every node."""
        with self._lock.write(), defer_interrupt():
            self._remove(list(self._nodes))

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes ``node_ids`` that pass ``filters``, without their embeddings; by default all."""
        with self._lock.read():
            return [metadata_dict_to_node(self._nodes[name][1]) for name in self._passing(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to ``query.query_embedding``, best first.

        Parameters
        ----------
        query : VectorStoreQuery
            The query. Its modes are ``DEFAULT`` and ``MMR``. ``filters`` may be nested.
        **kwargs : object
            ``mmr_threshold``, and options of :meth:`~faiss_qama.QamaIndex.search`, such as ``recall`` or ``nprobe``.

        Returns
        -------
        VectorStoreQueryResult
            Ids of nodes, and similarities: by the metric of the index inner products, larger is better, or squared L2
            distances, smaller is better. In the mode ``MMR`` they are marginal relevances, as in SimpleVectorStore.

        Raises
        ------
        ValueError
            For another mode, and as in :meth:`~faiss_qama.QamaIndex.search`.
        """
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise ValueError(f"the mode is default or mmr; got {VectorStoreQueryMode(query.mode).value}")
        threshold = kwargs.pop("mmr_threshold", query.mmr_threshold)
        mmr, k = query.mode == VectorStoreQueryMode.MMR, query.similarity_top_k
        xq = np.array([query.query_embedding], dtype=np.float32)
        with self._lock.read():
            sel = None
            if not (query.node_ids is None and query.doc_ids is None and query.filters is None):
                nodes, passing = self._nodes, self._passing(query.node_ids, query.filters, query.doc_ids)
                sel = [nodes[name][0] for name in passing] if len(passing) < len(nodes) else None
            D, I, R = self._index.search_and_reconstruct(xq, max(k, MMR_CANDIDATES) if mmr else k, sel=sel, **kwargs)
            hits = {int(i): float(score) for i, score in zip(I[0], D[0], strict=True) if i >= 0}
            if mmr:
                vectors = [vector.tolist() for vector in R[0, : len(hits)]]
                scores, ids = get_top_k_mmr_embeddings(
                    xq[0].tolist(), vectors, similarity_top_k=k, embedding_ids=list(hits), mmr_threshold=threshold
                )
                hits = dict(zip(ids, scores, strict=True))
            names = [self._names[i] for i in hits]
        return VectorStoreQueryResult(similarities=list(hits.values()), ids=names)

    def persist(self, persist_path: PathLike = DEFAULT_PERSIST_PATH, fs: Any = None) -> None:
        """Write nodes and index to a folder, in one atomic step: ``persist_path`` with ``.qama`` at its end.

        The file ``persist_path`` says that they are there.
        """
        _check_local(fs)
        path = Path(persist_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.read():
            content = {"next": self._next, "nodes": self._nodes}
            save_store(path, beside(path), self._index, json.dumps(content), NOT_SIMPLE)

    @classmethod
    def from_persist_path(cls, persist_path: PathLike, fs: Any = None) -> QamaVectorStore:
        """Return the store that :meth:`persist` wrote.

        Raises ValueError if the index was saved without nodes.
        """
        _check_local(fs)
        path = Path(persist_path)
        index, saved = load_store(path, beside(path))
        if index is None:
            raise ValueError(f"{path}: not written by QamaVectorStore.persist")
        content = json.loads(saved)
        store = cls.model_construct()
        store._index, store._next = index, content["next"]
        store._nodes = {name: (i, node) for name, (i, node) in content["nodes"].items()}
        store._names = {i: name for name, (i, _) in store._nodes.items()}
        return store

    @classmethod
    def from_persist_dir(
        cls, persist_dir: PathLike = DEFAULT_PERSIST_DIR, namespace: str = DEFAULT_VECTOR_STORE, fs: Any = None
    ) -> QamaVectorStore:
        """Return the store that ``StorageContext.persist`` wrote to the folder ``persist_dir``."""
        return cls.from_persist_path(Path(persist_dir) / f"{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}", fs)

    def _passing(
        self, node_ids: list[str] | None, filters: MetadataFilters | None, doc_ids: list[str] | None = None
    ) -> list[str]:
        """Return the ids of the nodes among ``node_ids`` that pass ``filters``, of the documents ``doc_ids``."""
        nodes = self._nodes  # as attributes of a pydantic model are slow
        names = list(nodes) if node_ids is None else [name for name in dict.fromkeys(node_ids) if name in nodes]
        passes = _make_filter(filters, lambda name: nodes[name][1])
        documents = None if doc_ids is None else set(doc_ids)
        return [n for n in names if passes(n) and (documents is None or nodes[n][1]["ref_doc_id"] in documents)]

    def _remove(self, names: list[str]) -> None:
        """Remove nodes that are there."""
        if names:
            self._index.remove_ids([self._nodes[name][0] for name in names])
            for name in names:
                del self._names[self._nodes.pop(name)[0]]


def _make_filter(
    filters: MetadataFilters | None, metadata: Callable[[str], Mapping[str, Any]]
) -> Callable[[str], bool]:
    """Return a function that tells whether the ``metadata`` of a node pass ``filters``, which may be nested."""
    if filters is None or not filters.filters:
        return lambda name: True
    parts = [
        _make_filter(part, metadata)
        if isinstance(part, MetadataFilters)
        else build_metadata_filter_fn(metadata, MetadataFilters(filters=[part]))
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return lambda name: any(part(name) for part in parts)
    if filters.condition == FilterCondition.NOT:
        return lambda name: not any(part(name) for part in parts)
    return lambda name: all(part(name) for part in parts)


def _check_local(fs: Any) -> None:
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(fs, LocalFileSystem | None):
        raise NotImplementedError("an index is kept in local files")
