"""The fastest base that keeps a recall, and its smallest ``nprobe`` or ``efSearch``, by measuring."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from faiss_qama.arrays import Codes, Floats, Hits
from faiss_qama.corpus import Corpus
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.factory import DEFAULT, check_memory, make_base
from faiss_qama.hamming.faiss_binary import EF_WIDTH
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.progress import progress
from faiss_qama.quantizer.calibration import MISSES, K
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import of_first_codes
from faiss_qama.vectors import as_vectors

MIN_DOCUMENTS = 200  # of which some can stand in for queries
MAX_QUERIES = 1000  # queries that a base is chosen with
LISTS = (2, 4)  # times the root of the number of vectors
MIN_VECTORS = 10_000  # of fewer a scan ends before the lists to probe are found
GRAPH, MAX_GRAPH = "BHNSW16", 100_000  # vectors; a graph of more takes minutes to build
CODES_PER_LIST = 50  # codes per list to train on, at most
STEP = 2**0.5  # from one setting to the next
FAISS_EF, WIDEST = 16, 4096  # efSearch: FAISS's default; beyond the second a scan is faster
ROUNDS = 3  # timed searches, of which the median counts


@dataclass(frozen=True)
class BaseTrial:
    """The measurements of a base, at the smallest setting that keeps enough hits.

    Parameters
    ----------
    base : str
        Factory string of the base.
    settings : dict of str to int
        ``nprobe`` or ``efSearch``, if the base has it.
    kept : float
        Share of the hits of an exhaustive scan, 0 to 1.
    per_second : float
        Queries per second, of the scan without re-ranking.
    bytes_per_vector : int
        Bytes per vector of codes, lists and links.
    """

    base: str
    settings: dict[str, int]
    kept: float
    per_second: float
    bytes_per_vector: int

    def __str__(self) -> str:
        settings = "".join(f" {name} {value}" for name, value in self.settings.items())
        return (
            f"{self.base}{settings}: {self.per_second:,.0f} scans/s, {self.kept:.1%} of the hits of a full scan, "
            f"{self.bytes_per_vector} bytes/vector"
        )


def tune(index: TwoStageIndex, xq: Floats, k: int, recall: float) -> BaseTrial | None:
    """Set ``nprobe`` or ``efSearch`` to the smallest value that keeps a recall.

    Half of the misses are left to the scan of codes, as in a search with ``recall=``, and half to the base.

    Parameters
    ----------
    index : TwoStageIndex
        The index to search and to set.
    xq : ndarray of shape (nq, d), float32
        Queries like those to come.
    k : int
        Neighbours.
    recall : float
        Recall to keep, above 0 and below 1.

    Returns
    -------
    BaseTrial or None
        The measurements at that value; None if no value keeps the recall.
    """
    full = index.over(index.base.flat_prefix(index.quantizer.layout))
    oversample = _oversample(index, k, recall)
    wanted = full.search(xq, k, SearchParameters(oversample=oversample))
    return _smallest(index, xq, k, recall, oversample, wanted)


def fastest(
    quantizer: Quantizer, code: Codes, xq: Floats, recall: float, memory: float | None = None
) -> tuple[CodeIndex, list[BaseTrial]]:
    """Return the fastest base that keeps a recall. Trials re-rank from codes, whatever the second stage will be.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer of the codes.
    code : ndarray of shape (n, code_size), uint8
        The codes.
    xq : ndarray of shape (nq, d), float32
        Queries.
    recall : float
        Recall to keep, above 0 and below 1.
    memory : float, optional
        Bytes per vector that the base may hold in codes, lists and links.

    Returns
    -------
    base : CodeIndex
        The fastest base, filled.
    trials : list of BaseTrial
        The measurements of all bases within ``memory``, fastest first.

    Raises
    ------
    ValueError
        If no base is within ``memory``.
    """
    check_memory(quantizer.layout, memory)
    bases: list[tuple[CodeIndex, BaseTrial]] = []
    oversample, wanted = None, None
    for name in progress(_names(len(code)), "choosing a base"):
        base = _filled(name, quantizer.layout, code)
        index = TwoStageIndex(quantizer, base, IdMap(len(base)), of_first_codes(quantizer, base))
        if wanted is None:  # the full scan, which the others are compared with
            oversample = _oversample(index, K, recall)
            wanted = index.search(xq, K, SearchParameters(oversample=oversample))
        tried = _smallest(index, xq, K, recall, oversample, wanted)
        if tried is not None and (memory is None or tried.bytes_per_vector <= memory):
            bases.append((base, tried))
    bases.sort(key=lambda pair: -pair[1].per_second)
    return bases[0][0], [tried for _, tried in bases]


def trial_queries(x: Floats, queries: ArrayLike | None, d: int) -> Floats:
    """Return queries to choose a base with.

    Parameters
    ----------
    x : ndarray of shape (n, d), float32
        Documents. Without ``queries`` some of them, with noise added, serve as queries.
    queries : array of shape (nq, d) or None
        Unlabelled queries.
    d : int
        The dimension that queries must have.

    Returns
    -------
    ndarray of shape (at most MAX_QUERIES, d), float32
        The queries.

    Raises
    ------
    ValueError
        For too few documents, and for queries of another dimension.
    """
    from faiss_qama.training.split import split_corpus  # here, because run time does not depend on training

    if queries is not None:
        return as_vectors(queries, d, "queries")[:MAX_QUERIES]
    split = split_corpus(Corpus(x), None, len(x), seed=0)
    if not len(split.validation):
        raise ValueError(
            f"base auto is chosen with queries, or with {MIN_DOCUMENTS} documents or more; got {len(x)} documents"
        )
    return split.validation


def _names(n: int) -> list[str]:
    """Return the bases to try for ``n`` codes, the full scan first."""
    if n < MIN_VECTORS:
        return [DEFAULT]
    lists = [f"IVF{2 ** round(math.log2(times * math.sqrt(n)))}" for times in LISTS]
    return [DEFAULT, *lists, *([GRAPH] if n <= MAX_GRAPH else [])]


def _filled(name: str, layout: CodeLayout, code: Codes) -> CodeIndex:
    base = make_base(name, layout)
    if not base.is_trained:
        nlist: int = base.nlist  # type: ignore[attr-defined]
        base.train(code[:: max(1, len(code) // (CODES_PER_LIST * nlist))])
    base.append(code)
    return base


def _settings(base: CodeIndex, candidates: int) -> Iterator[dict[str, int]]:
    """Yield settings from small to large; a single empty one for a base without settings."""
    if "nprobe" in base.settings:
        least, most = 2.0, float(base.nlist)  # type: ignore[attr-defined]
    elif "efSearch" in base.settings:
        yield {"efSearch": FAISS_EF}  # a search visits EF_WIDTH times its candidates anyway
        least, most = EF_WIDTH * candidates * STEP, float(WIDEST)
    else:
        yield {}
        return
    value = min(least, most)
    while value < most * STEP:
        yield {next(iter(base.settings)): min(round(value), round(most))}
        value *= STEP


def _oversample(index: TwoStageIndex, k: int, recall: float) -> float | None:
    """Return the candidates per neighbour that a search for ``recall`` re-ranks; None without a second stage."""
    if index.rescorer is None:
        return None
    calibration = index.quantizer.calibration
    return None if calibration is None else calibration.oversample(k, len(index.id_map), "floats", recall)


def _smallest(
    index: TwoStageIndex, xq: Floats, k: int, recall: float, oversample: float | None, wanted: Hits
) -> BaseTrial | None:
    """Set the smallest setting that keeps enough of the hits ``wanted`` or others as good, and time it; else None."""
    before, candidates = index.base.settings, math.ceil(k * (oversample or 1))
    for settings in _settings(index.base, candidates):
        index.base.set(settings)
        kept = _kept(index.search(xq, k, SearchParameters(oversample=oversample)), wanted, index.larger)
        lists = getattr(index.base, "nlist", math.inf)
        everything = settings.get("nprobe", 0) == lists  # then only ties are missed
        if kept >= 1 - MISSES * (1 - recall) or everything:
            return _timed(index, xq, candidates, kept)
    index.base.set(before)
    return None


def _kept(found: Hits, wanted: Hits, larger: bool) -> float:
    """Return the share of hits that are found, or others that score no worse than the last of the query: copies."""
    (D, I), (wanted_D, wanted_I) = found, wanted
    n = (wanted_I >= 0).sum(axis=1, keepdims=True)
    worst = np.take_along_axis(wanted_D, np.maximum(n - 1, 0), axis=1)
    good = (I >= 0) & (D >= worst if larger else D <= worst)
    return float(np.minimum(good.sum(axis=1, keepdims=True), n).sum() / n.sum())


def _timed(index: TwoStageIndex, xq: Floats, candidates: int, kept: float) -> BaseTrial:
    base, code, seconds = index.base, index.quantizer.encode_queries(xq), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        base.search(code, min(candidates, len(base)), None, {})
        seconds.append(time.perf_counter() - start)
    return BaseTrial(str(base), base.settings, kept, len(xq) / statistics.median(seconds), base.bytes_per_vector)
