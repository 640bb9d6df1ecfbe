"""``semantic_search_faiss`` of sentence-transformers, on learned codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Ids
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.integrations.self_fitting import fitted
from faiss_qama.topk import check_k
from faiss_qama.vectors import as_vectors

Hits = list[list[dict[str, int | float]]]

_PRECISIONS = {"float32": "fp32", "uint8": "sq8", "ubinary": "codes"}


def semantic_search_faiss(
    query_embeddings: ArrayLike,
    corpus_embeddings: ArrayLike | None = None,
    corpus_index: Any = None,
    corpus_precision: Literal["float32", "uint8", "ubinary"] = "float32",
    top_k: int = 10,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
    rescore: bool = True,
    rescore_multiplier: float | None = None,
    exact: bool = True,
    output_index: bool = False,
) -> tuple[Hits, float] | tuple[Hits, float, Any]:
    """Search as ``sentence_transformers.util.quantization.semantic_search_faiss`` does, with its arguments and result.

    Floats at ``uint8`` and ``ubinary`` are what this function is for: a quantizer is fitted to them, and a QamaIndex
    holds their codes. At ``float32``, and if the embeddings are quantized already, the index is FAISS's, and hits and
    scores are those of sentence-transformers.

    Parameters
    ----------
    query_embeddings : array of shape (nq, d)
        Queries: floats or integers. For a quantized corpus they may be quantized in the same way, uint8.
    corpus_embeddings : array of shape (n, d), optional
        Documents: floats, or what ``quantize_embeddings`` made, uint8 of shape (n, d) or packed bits (n, ceil(d / 8)).
    corpus_index : QamaIndex, faiss.Index or faiss.IndexBinary, optional
        An index in place of ``corpus_embeddings``, such as the one that an earlier call returned.
    corpus_precision : str
        ``float32``: every vector is compared, whatever ``rescore`` is. ``uint8``: 8 bits per component re-rank.
        ``ubinary``: the codes alone.
    top_k : int
        Hits per query.
    ranges : array of shape (2, d), optional
        Least and largest value of each component of a corpus that is quantized to ``uint8``. The default is that of
        ``calibration_embeddings``, or else of the queries. Learned codes do not need it.
    calibration_embeddings : array of shape (m, d), optional
        Vectors to fit the quantizer to, in place of the corpus, or those of ``ranges``.
    rescore : bool
        Whether to re-rank the hits of codes by the float queries. If false, they are ranked by Hamming distance.
    rescore_multiplier : float, optional
        Candidates per hit to re-rank. By default a QamaIndex takes as many as its calibration says, and others 2.
    exact : bool
        If false, the index is a graph: HNSW.
    output_index : bool
        Whether to return the index too.

    Returns
    -------
    hits : list of list of dict
        Per query its hits ``{"corpus_id": int, "score": float}``, best first. Scores are inner products, or negative
        distances of a QamaIndex: larger is better. A FAISS index without re-ranking gives its own: its distances are
        positive.
    seconds : float
        Time of the search.
    index : QamaIndex, faiss.Index or faiss.IndexBinary
        The index, if ``output_index``.

    Raises
    ------
    ValueError
        For another precision, an index of another, queries of another dimension, ranges that would come from a single
        query, and unless one of ``corpus_embeddings`` and ``corpus_index`` is given.
    TypeError
        For an index of another type, and for embeddings that are neither floats nor quantized as said.
    """
    if corpus_precision not in _PRECISIONS:
        raise ValueError(f"corpus_precision must be one of {', '.join(_PRECISIONS)}; got {corpus_precision!r}")
    if (corpus_embeddings is None) == (corpus_index is None):
        raise ValueError("pass corpus_embeddings or corpus_index, one of them")
    queries, index, top_k = np.asarray(query_embeddings), corpus_index, check_k(top_k)
    if queries.dtype.kind == "i" and queries.dtype.itemsize > 1:
        queries = queries.astype(np.float64)
    if index is None:
        index = _make_index(np.asarray(corpus_embeddings), corpus_precision, calibration_embeddings, exact)
    if isinstance(index, QamaIndex):
        searched = index if rescore or corpus_precision == "float32" else index.with_rescore("none")
        multiplier = None if searched.rescore == "none" else rescore_multiplier
        start = time.time()
        scores, ids = searched.search(queries, top_k, oversample=multiplier)
        if searched.rescore == "none" or searched.metric_type == faiss.METRIC_L2:
            scores = -scores
    else:
        coded, decode = _quantize(queries, corpus_precision, ranges, calibration_embeddings)
        _check(index, coded, corpus_precision)
        start = time.time()
        if rescore and decode is not None:
            _, candidates = index.search(coded, int(top_k * (rescore_multiplier or 2)))
            scores, ids = _best(index, queries, candidates, decode, top_k)
        else:
            scores, ids = index.search(coded, top_k)
    seconds = time.time() - start
    hits: Hits = [
        [{"corpus_id": int(i), "score": float(score)} for score, i in zip(*row, strict=True) if i >= 0]
        for row in zip(scores, ids, strict=True)
    ]
    return (hits, seconds, index) if output_index else (hits, seconds)


def _make_index(corpus: NDArray[Any], precision: str, calibration: ArrayLike | None, exact: bool) -> Any:
    """Return an index of documents: FAISS's if they are quantized or must be exact, else one of learned codes."""
    quantized = corpus.dtype == np.uint8 and precision != "float32"
    if corpus.ndim != 2:
        raise ValueError(f"corpus_embeddings: an array of shape (n, d) is needed; got shape {corpus.shape}")
    n, d = corpus.shape
    if n and not quantized:
        corpus = as_vectors(corpus, what="corpus_embeddings")
    index: Any
    if quantized and precision == "ubinary":
        index = faiss.IndexBinaryFlat(8 * d) if exact else faiss.IndexBinaryHNSW(8 * d, 16)
    elif quantized or precision == "float32":
        index = faiss.IndexFlatIP(d) if exact else faiss.IndexHNSWFlat(d, 16, faiss.METRIC_INNER_PRODUCT)
    else:
        quantizer = fitted(corpus if calibration is None else np.asarray(calibration), faiss.METRIC_INNER_PRODUCT)
        index = QamaIndex(quantizer, _PRECISIONS[precision], base="Flat" if exact else "BHNSW16")
    if n:
        index.add(corpus)
    return index


def _quantize(
    queries: NDArray[Any], precision: str, ranges: ArrayLike | None, calibration: ArrayLike | None
) -> tuple[NDArray[Any], Callable[[NDArray[Any]], NDArray[Any]] | None]:
    """Quantize queries (nq, d) as ``quantize_embeddings`` does, unless they are, and return how to decode documents.

    There is nothing to decode for quantized queries and ``float32``.
    """
    if queries.dtype in (np.uint8, np.int8):
        return queries, None
    as_vectors(queries, what="query_embeddings")
    if precision == "float32":
        return queries, None
    if precision == "ubinary":
        return np.packbits(queries > 0, axis=1), lambda bits: np.unpackbits(bits, axis=1, count=queries.shape[1])
    if ranges is None:
        if calibration is None and len(queries) == 1:
            raise ValueError("one query has no ranges: pass ranges or calibration_embeddings, those of the corpus")
        sample = queries if calibration is None else np.asarray(calibration)
        ranges = sample.min(axis=0), sample.max(axis=0)
    bounds = np.asarray(ranges, dtype=np.float32)
    if bounds.shape != (2, queries.shape[1]):
        raise ValueError(f"ranges: shape (2, {queries.shape[1]}) is needed, as queries have; got {bounds.shape}")
    low, high = bounds
    step = np.where(high > low, (high - low) / 255, 1)
    levels = np.clip(np.floor((queries - low) / step), 0, 255)
    return levels, lambda codes: codes.astype(np.float64) * step + low


def _check(index: Any, coded: NDArray[Any], precision: str) -> None:
    """Raise TypeError unless an index is FAISS's, and ValueError unless it takes quantized queries (nq, m)."""
    if not isinstance(index, faiss.Index | faiss.IndexBinary):
        raise TypeError(f"corpus_index: a QamaIndex or an index of FAISS is needed; got {type(index).__name__}")
    binary = isinstance(index, faiss.IndexBinary)
    if binary != (precision == "ubinary"):
        raise ValueError(f"{type(index).__name__} does not hold corpus_precision={precision!r}")
    if coded.ndim != 2 or coded.shape[1] != (size := index.code_size if binary else index.d):
        unit = "bytes" if binary else "dimensions"
        raise ValueError(f"query_embeddings: queries of {size} {unit} are needed; got shape {coded.shape}")


def _best(
    index: Any, queries: NDArray[Any], candidates: Ids, decode: Callable[[NDArray[Any]], NDArray[Any]], k: int
) -> tuple[NDArray[np.float64], Ids]:
    """Return the inner products and ids of each query's best ``k`` candidates (nq, c), largest first; -1 is no id."""
    scores = np.full(candidates.shape, -np.inf)
    for query, row, out in zip(queries, candidates, scores, strict=True):
        if len(found := row[row >= 0]):
            codes = np.stack([index.reconstruct(int(i)) for i in found])
            out[row >= 0] = np.einsum("j,kj->k", query, decode(codes).astype(np.float64))
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)
