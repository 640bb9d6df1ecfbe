"""A base from its name."""

from __future__ import annotations

from typing import Any

from faiss_qama.base import Base
from faiss_qama.faiss_base import FaissBase
from faiss_qama.layout import CodeLayout
from faiss_qama.scan import Scan


def make_base(base: Any, layout: CodeLayout) -> Base:
    """Return an empty base: ``Scan``, a string of ``faiss.index_binary_factory``, or a faiss.IndexBinary of yours.

    Raises TypeError or ValueError for anything else.
    """
    return Scan(layout) if base == "Scan" else FaissBase(base, layout)
