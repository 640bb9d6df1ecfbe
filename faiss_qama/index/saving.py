"""A two-stage index to a bundle on disk and back."""

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
from faiss_qama.vectors import PathLike

CHUNK = 16_384  # vectors of the user's that are read at a time


def write(path: PathLike, core: TwoStageIndex, vectors: Stream | None = None) -> None:
    """Write ``core`` to the folder ``path``, replacing an index there in one atomic step.

    Vectors that the user keeps are written too, as float32. ``vectors`` are written in place of those of the rescorer,
    and may fill the codes while they are consumed.
    """
    rescore, n = core.rescore, core.id_map.n
    kept: dict[str, Any] = {} if core.rescorer is None else dict(core.rescorer.parts())
    if isinstance(core.rescorer, UserVectors):
        chunks = (core.take(np.arange(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK))
        rescore, vectors = "fp32", Stream((n, core.quantizer.d), DTYPES["fp32"], chunks)
    if vectors is not None:
        kept = {"store": vectors}
    bundle.write(path, bundle.Bundle(core.quantizer, rescore, core.base, {**kept, **core.id_map.parts()}))


def read(path: PathLike, *, mmap: bool) -> TwoStageIndex:
    """Return the index in the folder ``path``, its arrays memory-mapped or read. Raises what ``bundle.read`` raises."""

    def make(quantizer: Quantizer, rescore: str, base: CodeIndex, reader: PartReader) -> TwoStageIndex:
        rescorer = read_rescorer(rescore, quantizer, base, reader)
        return TwoStageIndex(quantizer, base, IdMap.from_parts(len(base), reader), rescorer)

    return bundle.read(path, make, mmap=mmap)
