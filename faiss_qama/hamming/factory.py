"""A base from its name."""

from __future__ import annotations

import re
from typing import Any

from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.faiss_binary import FaissCodeIndex
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.hamming.ivf import IVFCodeIndex
from faiss_qama.quantizer.layout import CodeLayout

DEFAULT, AUTO = "Flat", "auto"


def code_bytes(base: Any, layout: CodeLayout) -> int:
    """Return the bytes that ``base``, or base ``auto``, takes to hold a code, without links and lists."""
    ours = isinstance(base, str) and base.startswith((DEFAULT, AUTO))
    return FlatCodeIndex(layout).bytes_per_vector if ours else layout.code_size


def make_base(base: Any, layout: CodeLayout) -> CodeIndex:
    """Return an empty base.

    That is ``Flat``, ``IVFn``, a string of ``faiss.index_binary_factory``, or a faiss.IndexBinary of yours.

    Raises TypeError or ValueError for anything else.
    """
    lists = re.fullmatch(r"IVF(\d+)", base) if isinstance(base, str) else None
    if lists:
        return IVFCodeIndex(layout, int(lists[1]))
    return FlatCodeIndex(layout) if base == "Flat" else FaissCodeIndex(base, layout)
