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

    Embeddings are given as floats whatever the precision: they are quantized here.

    Parameters
    ----------
    query_embeddings : (nq, d) floats
    corpus_embeddings, corpus_index : (n, d) floats, or the index that an earlier call returned
    corpus_precision : what rescores beside the codes: ``float32`` and ``uint8`` keep the vectors so, ``ubinary``
        nothing
    top_k : hits a query
    ranges : of no meaning here; steps are learned
    calibration_embeddings : what to fit the quantizer on; the corpus if left out
    rescore : if false, hits are ranked by Hamming distance, and the score is its negative
    rescore_multiplier : candidates a hit that are scored again; by calibration if left out
    exact : if false, codes are searched by a graph, IndexBinaryHNSW
    output_index : whether to return the index too

    Returns
    -------
    A list of ``{"corpus_id": int, "score": float}`` a query, best first; the seconds of the search; and the index if
    asked for.
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
