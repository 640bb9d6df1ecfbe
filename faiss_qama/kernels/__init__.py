"""Hot loops, compiled by numba. Importing this package compiles nothing and does not import numba."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any

from faiss_qama.threads import defer_interrupt


@cache
def kernel(name: str) -> Any:
    """Return the module ``name`` of this package, or None without numba (a warning says so for ``scanning``).

    The modules are ``decoding``, ``encoding``, ``plane_packing``, ``scanning``, ``scoring``, ``trellis`` and
    ``weighted_sums``.
    """
    try:
        with defer_interrupt():
            return importlib.import_module(f"faiss_qama.kernels.{name}")  # here: importing numba takes half a second
    except ImportError as error:  # numba is missing, or older than numpy needs
        if name == "scanning":
            warnings.warn(f"Flat is slower without numba ({error}): pip install numba", stacklevel=2)
        return None
