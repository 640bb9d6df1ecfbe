"""Exhaustive search of codes: what a quantizer finds when no index stands between the query and the codes."""

from __future__ import annotations

from typing import Any

import faiss
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.quantizer.quantizer import Quantizer


def search_decoded(
    quantizer: Quantizer, code: Codes, xq: Floats, k: int, residual: Codes | None = None
) -> tuple[Floats, Ids]:
    """Search decoded codes with float queries, as re-ranking from the codes scores candidates.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer that made the codes.
    code : ndarray of shape (n, code_size), uint8
        The codes of the documents.
    xq : ndarray of shape (nq, d), float32
        The queries.
    k : int
        Hits per query, at most n.
    residual : ndarray of shape (n, residual.code_size), uint8, optional
        The residual codes of the documents.

    Returns
    -------
    D : ndarray of shape (nq, k), float32
        Inner products, largest first, or squared L2 distances, smallest first.
    I : ndarray of shape (nq, k), int64
        Rows of ``code``.
    """
    D, I = faiss.knn(quantizer.adapt_queries(xq), quantizer.decode(code, residual), k, metric=quantizer.metric)
    return D, I


def search_hamming(quantizer: Quantizer, code: Codes, xq: Floats, k: int) -> tuple[NDArray[Any], Ids]:
    """Search codes by Hamming distance, as the first stage of an index does.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer that encodes the queries.
    code : ndarray of shape (n, code_size), uint8
        The codes of the documents.
    xq : ndarray of shape (nq, d), float32
        The queries.
    k : int
        Hits per query. Where there are fewer codes, ids are -1.

    Returns
    -------
    D : ndarray of shape (nq, k), int32
        Hamming distances, smallest first.
    I : ndarray of shape (nq, k), int64
        Rows of ``code``.
    """
    index = faiss.IndexBinaryFlat(8 * quantizer.code_size)
    index.add(code)
    D, I = index.search(quantizer.encode_queries(xq), k)
    return D, I
