"""A code index from its factory string: the one place that knows the strings of this package."""

from __future__ import annotations

import re
from typing import Any

from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.hamming.faiss_binary import FaissCodeIndex
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.hamming.ivf import IVFCodeIndex
from faiss_qama.quantizer.layout import CodeLayout

DEFAULT, AUTO = "Flat", "auto"


def make_base(base: Any, layout: CodeLayout) -> CodeIndex:
    """Return an empty index of codes.

    Parameters
    ----------
    base : str or faiss.IndexBinary
        ``Flat``, ``IVF1024``, a string of ``faiss.index_binary_factory``, or an empty faiss.IndexBinary.
    layout : CodeLayout
        Layout of the codes.

    Returns
    -------
    CodeIndex
        The index. With lists it needs training.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    text = base if isinstance(base, str) else ""
    if re.fullmatch(r"Scan(IVF\d+)?", text):
        raise ValueError(f"base {text!r} is called {text.removeprefix('Scan') or DEFAULT!r} now")
    if re.match(r"(HNSW|Hash)\d", text):
        raise ValueError(f"base {text!r} is an index of floats; the index of codes is 'B{text}'")
    lists = re.fullmatch(r"IVF(\d+)", text)
    if lists:
        return IVFCodeIndex(layout, int(lists[1]))
    return FlatCodeIndex(layout) if text == DEFAULT else FaissCodeIndex(base, layout)


def read_base(name: str, layout: CodeLayout, n: int, reader: PartReader) -> CodeIndex:
    """Return a saved index of ``n`` codes; ``name`` is its factory string. Raises ValueError for damaged parts."""
    kind = FlatCodeIndex if name == DEFAULT else IVFCodeIndex if re.fullmatch(r"IVF\d+", name) else FaissCodeIndex
    return kind.from_parts(name, layout, n, reader)


def code_bytes(base: Any, layout: CodeLayout) -> int:
    """Return the bytes per code that ``base``, or base ``auto``, holds, without links and lists."""
    ours = isinstance(base, str) and re.fullmatch(rf"{DEFAULT}|{AUTO}|IVF\d+", base)
    return FlatCodeIndex(layout).bytes_per_vector if ours else layout.code_size


def check_lists(base: CodeIndex, n: int) -> None:
    """Raise ValueError if a corpus of ``n`` vectors is too small to train the inverted lists of ``base``."""
    lists = getattr(base, "nlist", 0)
    if n < lists:
        raise ValueError(f"{base} needs at least {lists:,} vectors to train; the corpus has {n:,}")


def check_memory(layout: CodeLayout, memory: float | None) -> None:
    """Raise ValueError unless codes of ``layout`` fit into ``memory`` bytes per vector; None is no bound."""
    least = code_bytes(DEFAULT, layout)
    if memory is not None and not least <= memory:
        raise ValueError(
            f"memory: {memory:g} bytes per vector, and codes of {layout} alone take {least}: fit a shorter layout"
        )
