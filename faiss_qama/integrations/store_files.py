"""The store of a framework on disk: a JSON file, and a folder with the index, in which the documents lie too.

So one atomic step replaces both. The documents of a store without an index lie in the JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faiss_qama.index import with_documents
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.storage import atomic_files

IN_THE_INDEX = {"documents": "in the index"}


def beside(path: Path) -> Path:
    """Return the folder of the index of the store ``path``: a name of its own for each store."""
    return path.with_name(path.name + ".qama")


def save_store(
    path: Path, folder: Path, index: QamaIndex | None, documents: str, beside: Mapping[str, Any] | None = None
) -> None:
    """Write a store, replacing one there in one atomic step.

    Parameters
    ----------
    path : Path
        The JSON file.
    folder : Path
        The folder of the index.
    index : QamaIndex, optional
        The index.
    documents : str
        The documents, and what else the store needs, as a JSON object whose ``documents`` is no str.
    beside : mapping of str to object, optional
        What the JSON file is to hold for others if the documents lie in the index.

    Raises
    ------
    OSError
        If writing fails. The store is then the old one or the new one.
    """
    if index is not None:
        with_documents.save(folder, index, documents)
        documents = json.dumps({**(beside or {}), **IN_THE_INDEX})
    atomic_files.write_text(path, documents)


def load_store(path: Path, folder: Path, *, mmap: bool = False) -> tuple[QamaIndex | None, str]:
    """Return the index and the documents of :func:`save_store`. Raises as :meth:`~faiss_qama.QamaIndex.load`."""
    documents = path.read_text(encoding="utf-8")
    try:
        content = json.loads(documents)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or not the file of a store ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not the file of a store")
    if not content.items() >= IN_THE_INDEX.items():
        return None, documents
    index, in_index = with_documents.load(folder, mmap=mmap)
    if in_index is None:
        raise ValueError(f"{path} and {folder} are of different saves: the index has no documents")
    return index, in_index
