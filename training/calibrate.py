"""Measuring how much oversampling a recall target needs."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.calibration import KS, MAX_CANDIDATES, OVERSAMPLES, Calibration
from faiss_qama.codes import Floats
from faiss_qama.evaluation import TIE
from faiss_qama.progress import progress
from faiss_qama.quantizer import Quantizer
from faiss_qama.training.data import Draw

# Queries lie farther from their neighbours than documents do. Where documents stand in for queries, noise of their
# own length moves them away; with that, recall= holds on the test queries of docs/results.
NOISE = 1.0


def calibrate(quantizer: Quantizer, drawn: Draw, seed: int) -> Quantizer:
    """Return ``quantizer`` with a calibration measured on the queries held out of its fit, if there are any."""
    xq = drawn.calibration
    if len(xq) == 0:
        return quantizer
    if drawn.train_queries is None:
        noise = np.random.default_rng(seed).standard_normal(xq.shape).astype(np.float32)
        xq = xq + noise * (NOISE * np.linalg.norm(xq, axis=1, keepdims=True) / np.float32(np.sqrt(quantizer.d)))
    x = drawn.train
    code = quantizer.encode(x)
    query_code = quantizer.encode_queries(xq)
    decoded = quantizer.decode(code)
    sign = 1 if quantizer.metric == faiss.METRIC_INNER_PRODUCT else -1

    floats = np.zeros((len(KS), len(OVERSAMPLES)))
    codes = np.zeros_like(floats)
    for start in progress(range(0, len(xq), 32), "calibration"):  # a block of queries against everything
        block = slice(start, start + 32)
        exact = sign * faiss.pairwise_distances(xq[block], x, quantizer.metric)
        asymmetric = sign * faiss.pairwise_distances(xq[block], decoded, quantizer.metric)
        hamming = np.empty(exact.shape, dtype=np.int32)
        faiss.hammings(
            faiss.swig_ptr(query_code[block].copy()),
            faiss.swig_ptr(code),
            len(exact),
            len(code),
            quantizer.code_size,
            faiss.swig_ptr(hamming),
        )
        for scores in zip(exact, asymmetric, hamming, strict=True):
            floats_of_one, codes_of_one = _curves(*scores)
            floats += floats_of_one
            codes += codes_of_one
    return replace(quantizer, calibration=Calibration(len(x), floats / len(xq), codes / len(xq)))


def _curves(
    exact: Floats, asymmetric: Floats, hamming: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall@k by (k, oversample) of one query, for rescoring by floats and by codes.

    All three are (n,) over the documents. Documents as near as the k-th nearest count as found: duplicates are as good
    as each other.
    """
    n, rounding = len(exact), TIE * np.abs(exact).max()
    order = np.argsort(hamming, kind="stable")[:MAX_CANDIDATES]
    asymmetric = asymmetric[order]
    floats = np.empty((len(KS), len(OVERSAMPLES)))
    codes = np.empty_like(floats)
    for i, k in enumerate(KS):
        wanted = min(k, n)
        relevant = exact[order] >= np.partition(exact, n - wanted)[n - wanted] - rounding
        found = np.minimum(np.cumsum(relevant), wanted) / wanted
        counts = [min(int(np.ceil(k * oversample)), len(order)) for oversample in OVERSAMPLES]
        for j, candidates in enumerate(counts):
            floats[i, j] = found[candidates - 1]
            if j and candidates == counts[j - 1]:
                codes[i, j] = codes[i, j - 1]
                continue
            best = np.argpartition(-asymmetric[:candidates], wanted - 1)[:wanted]
            codes[i, j] = min(int(relevant[best].sum()), wanted) / wanted
    return floats, codes
