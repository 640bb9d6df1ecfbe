"""Sums of weights over the bits of codes, by table look-up: the products of asymmetric scores, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.kernels.compiling import jitted


@jitted()
def lookup_tables(pairs: int, others: int, weights: Any, out: Any) -> None:
    """Fill ``out`` (8 * pairs + 4 * others, 256) with what each byte of a code adds to its sum of weights.

    Parameters
    ----------
    weights : (32 * pairs * 4 + 32 * others,) float32: what each h + 2 g adds, unit by unit; then each other bit
    """
    low, high = np.empty(16, np.float32), np.empty(16, np.float32)
    for t in range(8 * pairs):  # four units: bits 0 to 3 are their h, 4 to 7 their g
        first = weights[16 * t : 16 * t + 16]
        for i in range(16):
            a, b = (i & 1) + 2 * (i >> 2 & 1), (i >> 1 & 1) + 2 * (i >> 3)
            low[i], high[i] = first[a] + first[4 + b], first[8 + a] + first[12 + b]
        for i in range(256):
            out[t, i] = low[(i & 3) | (i >> 2 & 12)] + high[(i >> 2 & 3) | (i >> 4 & 12)]
    for t in range(4 * others):  # eight bits
        first = weights[128 * pairs + 8 * t : 128 * pairs + 8 * t + 8]
        for i in range(16):
            low[i] = high[i] = np.float32(0)
            for bit in range(4):
                if i >> bit & 1:
                    low[i] += first[bit]
                    high[i] += first[4 + bit]
        for i in range(256):
            out[8 * pairs + t, i] = low[i & 15] + high[i >> 4]


@jitted()
def weighted_sums(
    pairs: int, others: int, groups: Any, rows: Any, weights: Any, shared: Any, own: Any, common: Any
) -> None:
    """Fill ``own`` and ``common`` (nq, k) with sums over the bytes of the codes of ``rows`` (nq, k).

    Parameters
    ----------
    weights : (nq, ...) float32, as :func:`lookup_tables` takes them
    shared : (8 * pairs + 4 * others, 256) float32, tables that all queries share
    """
    table, lanes = np.empty_like(shared), groups.shape[2]
    for q in range(len(rows)):
        lookup_tables(pairs, others, weights[q], table)
        for i in range(rows.shape[1]):
            words, lane = groups[rows[q, i] // lanes], rows[q, i] % lanes
            a, b = np.float32(0), np.float32(0)
            for w in range(pairs):
                h, g = words[2 * w, lane], words[2 * w + 1, lane]
                for t in range(8):
                    shift = np.uint32(4 * t)
                    byte = (h >> shift & np.uint32(15)) | (g >> shift & np.uint32(15)) << np.uint32(4)
                    a += table[8 * w + t, byte]
                    b += shared[8 * w + t, byte]
            for w in range(others):
                word = words[2 * pairs + w, lane]
                for t in range(4):
                    byte = word >> np.uint32(8 * t) & np.uint32(255)
                    a += table[8 * pairs + 4 * w + t, byte]
                    b += shared[8 * pairs + 4 * w + t, byte]
            own[q, i], common[q, i] = a, b
