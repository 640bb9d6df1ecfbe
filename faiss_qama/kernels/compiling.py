"""How loops are compiled: by numba when first used, from its cache afterwards, with a note while it takes seconds.

Numba's cache watches the file of a loop alone, so a loop and the loops that it calls stay in one file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import caching, cgutils, event
from numba.extending import intrinsic

from faiss_qama.arrays import LANES
from faiss_qama.progress import announced
from faiss_qama.threads import defer_interrupt

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

AHEAD, LINE = 3, 64  # rows that are prefetched; bytes of a cache line


class _Announced(event.Listener):
    """Says that our loops are compiling, which takes some seconds for the first search of a layout."""

    def __init__(self) -> None:
        self._shown: list[Any] = []

    def on_start(self, event: Any) -> None:
        ours = str(event.data["dispatcher"].py_func.__module__).startswith("faiss_qama.")  # made by exec it has none
        self._shown.append(announced("compiling the search loops (once)") if ours and not self._shown else None)

    def on_end(self, event: Any) -> None:  # noqa: ARG002
        shown = self._shown.pop()
        if shown is not None:
            shown.close()


event.register("numba:compile", _Announced())


class _ReadOnlyCache(caching.FunctionCache):
    """A cache in a folder that cannot be written, which numba does not even read: it may have been filled before."""

    class _impl_class(caching.CompileResultCacheImpl):  # noqa: N801 - the name in numba
        _locator_classes = [
            type(locator.__name__, (locator,), {"ensure_cache_path": lambda _: None})
            for locator in caching.CompileResultCacheImpl._locator_classes
        ]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled before, or None."""
        try:
            return super().load_overload(sig, target_context)
        except OSError:  # there is no such folder, or it cannot be read
            return None

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ARG002
        """Say that what was compiled is lost with the process."""
        _warn_that_all_compile()


@cache
def _warn_that_all_compile() -> None:
    warnings.warn(
        "every process compiles the search loops, which takes some 10 seconds, as numba's cache cannot be written: "
        "set NUMBA_CACHE_DIR to a folder that can, or that faiss-qama warmup has filled",
        stacklevel=2,
    )


def jitted(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function with numba, and keeps the result in numba's cache if it can."""

    def make(function: Callable[..., Any]) -> Any:
        compiled = njit(nogil=True, **options)(function)
        try:
            compiled.enable_caching()
        except RuntimeError:  # no folder for the cache can be written
            with suppress(RuntimeError):  # numba knows of no folder at all
                compiled._cache = _ReadOnlyCache(function)
        compiled.compile = defer_interrupt()(compiled.compile)  # which loads from the cache, too
        return compiled

    return make


def keeps(loop: Any) -> bool:
    """Return whether numba's cache keeps what a loop compiles."""
    return isinstance(loop._cache, caching.FunctionCache) and not isinstance(loop._cache, _ReadOnlyCache)


@intrinsic
def prefetch(typing: Any, x: Any, row: Any) -> Any:
    """Prefetch row ``row`` of ``x`` (n, d) into the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        array = context.make_array(x)(context, builder, arguments[0])
        stride = builder.extract_value(array.strides, 0)
        start = builder.gep(builder.bitcast(array.data, byte), [builder.mul(arguments[1], stride)])
        with cgutils.for_range(builder, builder.udiv(stride, ir.Constant(stride.type, LINE))) as loop:
            place = builder.gep(start, [builder.mul(loop.index, ir.Constant(stride.type, LINE))])
            builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(x, types.intp), generate


def lanes(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Return a pointer to ``LANES`` numbers of ``array``, ``at`` times ``LANES`` from its beginning."""
    vector = ir.VectorType(context.get_data_type(kind.dtype), LANES)
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, vector.as_pointer()), [at])


def everywhere(builder: Any, number: Any) -> Any:
    """Return a register with ``number`` in every lane."""
    vector, zero = ir.VectorType(number.type, LANES), ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, zero)
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
