"""An index whose ids are rows, and the same index over base ``Flat``."""

from __future__ import annotations

import numpy as np

from faiss_qama.arrays import Mask
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.factory import DEFAULT, make_base
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.two_stage import TwoStageIndex


def by_row(index: QamaIndex, kept: Mask | None = None) -> QamaIndex:
    """Return a read-only index of the same vectors, whose ids are their rows in the order of adding.

    Parameters
    ----------
    index : QamaIndex
        The index, with no vector removed if ``kept`` is given.
    kept : ndarray of shape (n,), bool, optional
        The vectors to search. Ids are rows among them.

    Returns
    -------
    QamaIndex
    """
    core = index._fitted
    alive = core.id_map.alive if kept is None else kept
    rows = IdMap(core.id_map.n, None, None if alive is None else GrowingArray(np.flatnonzero(~alive)))
    return index._view(TwoStageIndex(core.quantizer, core.base, rows, core.rescorer), core.version)


def over_flat(index: QamaIndex) -> QamaIndex:
    """Return a read-only index of the same codes in base ``Flat``, with the same second stage."""
    core = index._fitted
    base = make_base(DEFAULT, core.quantizer.layout)
    base.append(core.base.codes)
    return index._view(core.over(base), core.version)
