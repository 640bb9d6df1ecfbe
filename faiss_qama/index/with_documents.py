"""An index and the documents of its vectors in one bundle, which one atomic step replaces."""

from __future__ import annotations

from faiss_qama.index import saving
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.vectors import PathLike


def save(path: PathLike, index: QamaIndex, documents: str) -> None:
    """Write ``index`` as :meth:`~faiss_qama.QamaIndex.save` does, and ``documents``, JSON, with it."""
    with index._lock.read():
        saving.write(path, index._fitted, documents=documents)


def load(path: PathLike, *, mmap: bool = False) -> tuple[QamaIndex, str | None]:
    """Return the index of :meth:`~faiss_qama.QamaIndex.load`, and the documents that were saved with it, or None."""
    core, documents = saving.read_with_documents(path, mmap=mmap)
    return QamaIndex.__new__(QamaIndex)._set(core, ReadWriteLock(), mmap), documents
