"""Scores of candidates from vectors as they are stored, and the best k, compiled by numba.

The loops read the stored vectors in place, without a gather or a cast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from faiss_qama.kernels.compiling import AHEAD, jitted, prefetch


@intrinsic
def _value(typing: Any, stored: Any) -> Any:
    """Return a float32 as it is, and a uint16 as the half-precision number with its bits, which must be finite."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        triple, _, features = context.codegen().magic_tuple()
        if stored == types.float32:
            return arguments[0]
        if "+f16c" in features or "86" not in triple:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        # LLVM would call a function that no library has. Exponent and fraction move, and the bias grows from 15 to 127.
        bits, number = builder.zext(arguments[0], ir.IntType(32)), ir.IntType(32)
        size = builder.shl(builder.and_(bits, number(0x7FFF)), number(13))
        scaled = builder.fmul(builder.bitcast(size, ir.FloatType()), ir.FloatType()(2.0**112))
        sign = builder.shl(builder.and_(bits, number(0x8000)), number(16))
        return builder.bitcast(builder.or_(builder.bitcast(scaled, number), sign), ir.FloatType())

    return types.float32(stored), generate


@cache
def scores(inner_product: bool) -> Callable[..., None]:
    """Return the loop that scores candidates, by inner product or by squared L2 distance.

    ``score(x, rows, queries, out)`` fills ``out`` (nq, k) float32 with the scores of ``rows`` (nq, k) int64 of ``x``
    (n, d), float32, or float16 viewed as uint16, for ``queries`` (nq, d) float32. Larger inner products are better, and
    smaller distances.
    """

    @jitted(fastmath={"reassoc", "contract", "nsz"})
    def score(x: Any, rows: Any, queries: Any, out: Any) -> None:
        k = rows.shape[1]
        for q in range(len(rows)):
            for i in range(min(AHEAD, k)):
                prefetch(x, rows[q, i])
            for i in range(k):
                if i + AHEAD < k:
                    prefetch(x, rows[q, i + AHEAD])
                total, row = np.float32(0), rows[q, i]
                for j in range(x.shape[1]):
                    value, own = _value(x[row, j]), queries[q, j]
                    total += value * own if inner_product else (value - own) * (value - own)
                out[q, i] = total

    compiled: Callable[..., None] = score
    return compiled


@jitted()
def best(scores: Any, rows: Any, larger: bool, D: Any, I: Any) -> None:
    """Fill D and I with the best scores and their rows, best first; ties keep their order.

    Parameters
    ----------
    scores : ndarray of shape (nq, n), n >= k
        Scores; NaN is the worst.
    rows : ndarray of shape (nq, n), int64
        Rows of the scores.
    larger : bool
        Whether larger scores are better.
    D : ndarray of shape (nq, k)
        Scores, overwritten.
    I : ndarray of shape (nq, k), int64
        Rows, overwritten.
    """
    k = D.shape[1]
    for q in range(len(scores)):
        n = 0
        for i in range(scores.shape[1]):
            score, place = scores[q, i], n
            while place > 0:
                other = D[q, place - 1]
                behind = other < score if larger else other > score
                if not behind and (other == other or score != score):
                    break
                if place < k:
                    D[q, place], I[q, place] = other, I[q, place - 1]
                place -= 1
            if place < k:
                D[q, place], I[q, place] = score, rows[q, i]
                n = min(n + 1, k)
