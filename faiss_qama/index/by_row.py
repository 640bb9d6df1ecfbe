"""An index whose ids are rows."""

from __future__ import annotations

from faiss_qama.index.id_map import IdMap
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.two_stage import TwoStageIndex


def by_row(index: QamaIndex) -> QamaIndex:
    """Return a read-only index of the same vectors, whose ids are their rows in the order of adding."""
    core = index._fitted
    rows = IdMap(core.id_map.n, None, core.id_map.alive)
    return index._view(TwoStageIndex(core.quantizer, core.base, rows, core.rescorer), core.version)
