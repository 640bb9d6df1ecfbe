"""``semantic_search_faiss`` of sentence-transformers, on learned codes."""

from __future__ import annotations

import time
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.index.qama_index import QamaIndex

Hits = list[list[dict[str, int | float]]]

_STORES = {"float32": "fp32", "uint8": "sq8", "ubinary": "codes"}


def semantic_search_faiss(
    query_embeddings: NDArray[np.floating],
    corpus_embeddings: NDArray[np.floating] | None = None,
    corpus_index: QamaIndex | None = None,
    corpus_precision: Literal["float32", "uint8", "ubinary"] = "float32",
    top_k: int = 10,
    ranges: NDArray[np.floating] | None = None,
    calibration_embeddings: NDArray[np.floating] | None = None,
    rescore: bool = True,
    rescore_multiplier: float | None = None,
    exact: bool = True,
    output_index: bool = False,
) -> tuple[Hits, float] | tuple[Hits, float, QamaIndex]:
    """Search as ``sentence_transformers.quantization.semantic_search_faiss`` does, with its arguments and its result.

    Embeddings are floats for every precision: the index quantizes them.

    Parameters
    ----------
    query_embeddings : ndarray of shape (nq, d)
        Queries, of any float type.
    corpus_embeddings : ndarray of shape (n, d), optional
        Documents, of any float type.
    corpus_index : QamaIndex, optional
        The index that an earlier call returned, in place of ``corpus_embeddings``.
    corpus_precision : str
        The vectors to re-rank with: ``float32``, ``uint8`` (8 bits per component), or ``ubinary`` (the codes alone).
    top_k : int
        Hits per query.
    ranges : ndarray, optional
        Without effect, as the thresholds of the levels are learned.
    calibration_embeddings : ndarray of shape (m, d), optional
        Vectors to fit the quantizer on. The default is the corpus.
    rescore : bool
        Whether to re-rank. If false, hits are ranked by Hamming distance, and their score is its negative.
    rescore_multiplier : float, optional
        Candidates per hit to re-rank. The default comes from the calibration.
    exact : bool
        If false, the base index is a graph, IndexBinaryHNSW.
    output_index : bool
        Whether to return the index too.

    Returns
    -------
    hits : list of list of dict
        Per query its hits ``{"corpus_id": int, "score": float}``, best first. Scores are inner products or negative
        distances, larger is better.
    seconds : float
        Time of the search.
    index : QamaIndex
        The index, if ``output_index``.

    Raises
    ------
    ValueError
        For another precision, and unless one of ``corpus_embeddings`` and ``corpus_index`` is given.
    """
    if corpus_precision not in _STORES:
        raise ValueError(f"corpus_precision must be one of {', '.join(_STORES)}; got {corpus_precision!r}")
    index = corpus_index
    if corpus_embeddings is not None and index is None:
        from faiss_qama.training import fit  # here, because run time does not depend on training

        quantizer = fit(corpus_embeddings if calibration_embeddings is None else calibration_embeddings)
        index = QamaIndex(quantizer, _STORES[corpus_precision], base="Flat" if exact else "BHNSW16")
        index.add(corpus_embeddings)
    elif index is None or corpus_embeddings is not None:
        raise ValueError("pass corpus_embeddings or corpus_index, one of them")
    searched = index if rescore else index.with_rescore("none")
    start = time.time()
    scores, ids = searched.search(query_embeddings, top_k, oversample=rescore_multiplier if rescore else None)
    seconds = time.time() - start
    sign = -1 if not rescore or index.metric_type == faiss.METRIC_L2 else 1
    hits: Hits = [
        [{"corpus_id": int(i), "score": sign * float(score)} for score, i in zip(*row, strict=True) if i >= 0]
        for row in zip(scores, ids, strict=True)
    ]
    return (hits, seconds, index) if output_index else (hits, seconds)
