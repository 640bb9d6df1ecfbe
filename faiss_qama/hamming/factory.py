"""A base from its name."""

from __future__ import annotations

import re
from typing import Any

from faiss_qama.hamming.code_index import Base
from faiss_qama.hamming.faiss_binary import FaissBase
from faiss_qama.hamming.flat import Scan
from faiss_qama.hamming.ivf import ScanIVF
from faiss_qama.quantizer.layout import CodeLayout

DEFAULT, AUTO = "Scan", "auto"


def code_bytes(base: Any, layout: CodeLayout) -> int:
    """Return the bytes that ``base``, or base ``auto``, takes to hold a code, without links and lists."""
    ours = isinstance(base, str) and base.startswith((DEFAULT, AUTO))
    return Scan(layout).bytes_per_vector if ours else layout.code_size


def make_base(base: Any, layout: CodeLayout) -> Base:
    """Return an empty base.

    That is ``Scan``, ``ScanIVFn``, a string of ``faiss.index_binary_factory``, or a faiss.IndexBinary of yours.

    Raises TypeError or ValueError for anything else.
    """
    lists = re.fullmatch(r"ScanIVF(\d+)", base) if isinstance(base, str) else None
    if lists:
        return ScanIVF(layout, int(lists[1]))
    return Scan(layout) if base == "Scan" else FaissBase(base, layout)
