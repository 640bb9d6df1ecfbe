"""Save a two-stage index to a bundle on disk, load it, and commit its changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Ids
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.progress import progress
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import make_rescorer, read_rescorer
from faiss_qama.rescore.stored_vectors import DTYPES, StoredVectors
from faiss_qama.rescore.user_vectors import UserVectors
from faiss_qama.storage import bundle
from faiss_qama.storage.atomic_files import Stream
from faiss_qama.storage.bundle import Bundle
from faiss_qama.storage.parts import Parts
from faiss_qama.storage.writer import Writer
from faiss_qama.vectors import PathLike

CHUNK = 16_384  # rows that are read at a time


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
    kept = _arrays({} if core.rescorer is None else core.rescorer.growing())
    if isinstance(core.rescorer, UserVectors):
        chunks = (core.take(np.arange(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK))
        rescore, vectors = "fp32", Stream((n, core.quantizer.d), DTYPES["fp32"], chunks)
    if vectors is not None:
        kept = {"vectors": vectors}
    if documents is not None:
        kept = {**kept, "documents": documents}
    parts = {**kept, **_arrays(core.id_map.growing())}
    bundle.write(path, Bundle(core.quantizer, rescore, core.base, parts))


def read(path: PathLike, *, mmap: bool) -> TwoStageIndex:
    """Return the index in the folder ``path``, memory-mapped or read. Raises the errors of ``bundle.read``."""
    return bundle.read(path, make, mmap=mmap)


def read_with_documents(path: PathLike, *, mmap: bool) -> tuple[TwoStageIndex, str | None]:
    """Return the index in the folder ``path`` and the documents saved with it, as :func:`read`."""

    def both(quantizer: Quantizer, rescore: str, base: CodeIndex, parts: Parts) -> tuple[TwoStageIndex, str | None]:
        documents = parts.path("documents").read_text(encoding="utf-8") if parts.has("documents") else None
        return make(quantizer, rescore, base, parts), documents

    return bundle.read(path, both, mmap=mmap)


def make(quantizer: Quantizer, rescore: str, base: CodeIndex, parts: Parts) -> TwoStageIndex:
    """Return the index of a bundle's parts, as ``bundle.read`` asks for it."""
    rescorer = read_rescorer(rescore, quantizer, base, parts)
    core = TwoStageIndex(quantizer, base, IdMap.from_parts(len(base), parts), rescorer)
    core.manifest_sha256 = parts.manifest_sha256
    return core


def commit(writer: Writer, core: TwoStageIndex) -> None:
    """Make the changes of an index that is open for writing durable. Raises the errors of ``Writer.commit``."""
    growing = {} if core.rescorer is None else core.rescorer.growing()
    growing = {**growing, **(core.base.growing() or {}), **core.id_map.growing()}
    writer.commit(Bundle(core.quantizer, core.rescore, core.base, {}), growing)


def compact(writer: Writer, core: TwoStageIndex) -> None:
    """Write an index anew without the rows that were removed, as a commit. The index itself stays as it was.

    Codes are held in memory, vectors are copied piece by piece. Raises the errors of ``Writer.rewrite``.
    """
    rows = core.id_map.live_rows
    base, parts = core.base.copy(rows), _arrays(core.id_map.live().growing())
    compacted = pieces(rows, "compacting")
    if isinstance(core.rescorer, StoredVectors):
        stored = core.rescorer
        parts["vectors"] = stream(stored, len(rows), (stored.encoded(some) for some in compacted))
    elif core.rescorer is not None:
        rescorer = make_rescorer(core.rescore, core.quantizer, base)
        assert rescorer is not None
        for some in compacted:
            rescorer.append(core.rescorer.encoded(some))
        parts |= _arrays(rescorer.growing())
    writer.rewrite(Bundle(core.quantizer, core.rescore, base, parts))


def rewrite(writer: Writer, core: TwoStageIndex, quantizer: Quantizer, base: CodeIndex, vectors: Stream) -> None:
    """Write an index anew with another quantizer, as a commit; ``vectors`` fill ``base``. Errors as for compact."""
    parts = {"vectors": vectors, **_arrays(core.id_map.live().growing())}
    writer.rewrite(Bundle(quantizer, core.rescore, base, parts))


def pieces(rows: Ids, what: str) -> Iterable[Ids]:
    """Return ``rows`` (n,) in runs of ``CHUNK``, with a progress bar that says ``what``."""
    return progress([rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)], what)


def _arrays(growing: dict[str, GrowingArray]) -> dict[str, Any]:
    return {name: rows.array for name, rows in growing.items()}


def stream(stored: StoredVectors, n: int, chunks: Iterable[NDArray[Any]]) -> Stream:
    """Return ``n`` rows of a rescorer, which ``chunks`` make, to write to a file."""
    return Stream((n, stored.width), stored.dtype, chunks)
