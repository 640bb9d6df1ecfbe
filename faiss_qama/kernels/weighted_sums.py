"""Sums of weights over the bits of codes, by table look-up, compiled: the products of asymmetric scores.

The tables are those of product quantization (Jégou et al., "Product Quantization for Nearest Neighbor Search", 2011,
section III), with a byte of the code in place of a sub-quantizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from faiss_qama.kernels.compiling import jitted


@jitted()
def lookup_tables(pairs: int, others: int, weights: Any, out: Any) -> None:
    """Fill ``out`` with the amount that each value of each byte of a code adds to its sum of weights.

    Parameters
    ----------
    pairs : int
        Pairs of words (h, g) per code.
    others : int
        Other words per code.
    weights : ndarray of shape (128 * pairs + 32 * others,), float32
        The four weights of h + 2 g, unit by unit; then the weight of each other bit.
    out : ndarray of shape (8 * pairs + 4 * others, 256), float32
        The tables, overwritten.
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
    """Fill ``own`` and ``common`` with sums of weights over the codes of candidates.

    Parameters
    ----------
    pairs : int
        Pairs of words (h, g) per code.
    others : int
        Other words per code.
    groups : ndarray of shape (groups, words, LANES), uint32
        The codes.
    rows : ndarray of shape (nq, k), int64
        Places of the candidates: ``LANES`` times the group, plus the lane.
    weights : ndarray of shape (nq, 128 * pairs + 32 * others), float32
        Weights of each query, as :func:`lookup_tables` takes them.
    shared : ndarray of shape (8 * pairs + 4 * others, 256), float32
        Tables that all queries share.
    own : ndarray of shape (nq, k), float32
        Sums of each query's own weights, overwritten.
    common : ndarray of shape (nq, k), float32
        Sums from the shared tables, overwritten.
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
