"""Save a two-stage index to a bundle on disk, and load it."""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import read_rescorer
from faiss_qama.rescore.stored_vectors import DTYPES
from faiss_qama.rescore.user_vectors import UserVectors
from faiss_qama.storage import bundle
from faiss_qama.storage.atomic_files import Stream
from faiss_qama.storage.bundle import Parts
from faiss_qama.vectors import PathLike

CHUNK = 16_384  # the user's vectors that are read at a time


def write(path: PathLike, core: TwoStageIndex, vectors: Stream | None = None, documents: str | None = None) -> None:
    """Write an index to a folder, replacing an index there in one atomic step.

    Parameters
    ----------
    path : str or path
        The folder.
    core : TwoStageIndex
        The index. Vectors that the user keeps are written too, as float32.
    vectors : Stream, optional
        Vectors to write in place of those of the rescorer. They may fill the codes while they are consumed.
    documents : str, optional
        JSON to keep beside the index, for :func:`read_with_documents`.

    Raises
    ------
    OSError
        If the index cannot be written. An index at ``path`` stays as it was.
    """
    rescore, n = core.rescore, core.id_map.n
    kept: dict[str, Any] = {} if core.rescorer is None else dict(core.rescorer.parts())
    if isinstance(core.rescorer, UserVectors):
        chunks = (core.take(np.arange(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK))
        rescore, vectors = "fp32", Stream((n, core.quantizer.d), DTYPES["fp32"], chunks)
    if vectors is not None:
        kept = {"vectors": vectors}
    if documents is not None:
        kept = {**kept, "documents": documents}
    bundle.write(path, bundle.Bundle(core.quantizer, rescore, core.base, {**kept, **core.id_map.parts()}))


def read(path: PathLike, *, mmap: bool) -> TwoStageIndex:
    """Return the index in the folder ``path``, memory-mapped or read. Raises the errors of ``bundle.read``."""
    return bundle.read(path, _core, mmap=mmap)


def read_with_documents(path: PathLike, *, mmap: bool) -> tuple[TwoStageIndex, str | None]:
    """Return the index in the folder ``path`` and the documents saved with it, as :func:`read`."""

    def make(quantizer: Quantizer, rescore: str, base: CodeIndex, parts: Parts) -> tuple[TwoStageIndex, str | None]:
        documents = parts.path("documents").read_text(encoding="utf-8") if parts.has("documents") else None
        return _core(quantizer, rescore, base, parts), documents

    return bundle.read(path, make, mmap=mmap)


def _core(quantizer: Quantizer, rescore: str, base: CodeIndex, parts: PartReader) -> TwoStageIndex:
    rescorer = read_rescorer(rescore, quantizer, base, parts)
    return TwoStageIndex(quantizer, base, IdMap.from_parts(len(base), parts), rescorer)
