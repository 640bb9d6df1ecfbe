"""FAISS's indexes of floats and of codes, by factory string.

On vectors of unit norm L2 distances rank as inner products do, and they survive the centering of a PCA.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click
import faiss
import numpy as np
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import CANDIDATES, Index, Peer, Settings, grid, probes, sample

EF = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REFINED = {"Flat": 4.0, "SQfp16": 2.0}  # bytes per component of what re-ranks
# OPQ's own 50 rounds of 65,536 vectors take more than ten minutes. At equal bytes, by hand, they find .002 less to
# .011 more on SciFact.
SEARCH_OPQ = {"rounds": 15, "sample": 20_000}
OPQ = {"sample": 30_000, "rounds": 10}
RESIDUAL_SAMPLE = 15_000  # for residual quantizers: twice as many take minutes more, and find .003 more on quora
QUERY_BITS = 8  # of RaBitQ: as good as the float query, and fifty times as fast


def whole_search(x: Floats, factory: str, refine: str | None) -> Peer:
    """Return an index for all its settings.

    Parameters
    ----------
    x : ndarray of shape (n, d), float32
        Vectors of unit norm.
    factory : str
        Of the index that finds candidates.
    refine : str or None
        ``Flat`` or ``SQfp16``, which re-ranks candidates.
    """
    whole = factory + (f",Refine({refine})" if refine else "")
    return Peer("FAISS", whole, partial(_whole_search, x, whole, refine))


def _whole_search(x: Floats, factory: str, refine: str | None) -> Index:
    index = faiss.index_factory(x.shape[1], factory, faiss.METRIC_L2)
    base = faiss.downcast_index(index.base_index) if refine else index
    if factory.startswith("OPQ"):
        _shorten(faiss.downcast_VectorTransform(base.chain.at(0)), SEARCH_OPQ)
    index.train(sample(x))
    index.add(x)
    wrapped = isinstance(base, faiss.IndexPreTransform)
    inner = faiss.downcast_index(base.index) if wrapped else base
    values: dict[str, Any] = {}
    if hasattr(inner, "nprobe"):
        values["nprobe"] = probes(inner.nlist)
    if hasattr(inner, "hnsw"):
        values["efSearch"] = EF
    if refine:
        values["k_factor"] = CANDIDATES

    def search(xq: Floats, settings: Settings) -> Ids:
        return np.asarray(index.search(xq, K, params=_parameters(settings, wrapped))[1])

    memory = faiss.serialize_index(base).nbytes / len(x)
    disk = REFINED[refine] * x.shape[1] if refine else 0.0
    return Index(search, memory, disk=disk, settings=grid(**values))


def _shorten(opq: Any, settings: dict[str, int]) -> None:
    opq.niter, opq.max_train_points = settings["rounds"], settings["sample"]


def _parameters(settings: Settings, wrapped: bool) -> Any:
    """Return FAISS's search parameters; ``wrapped`` is whether the lists or the graph lie behind a transform."""
    parameters = None
    if "nprobe" in settings:
        parameters = faiss.SearchParametersIVF(nprobe=settings["nprobe"])
    if "efSearch" in settings:
        parameters = faiss.SearchParametersHNSW(efSearch=settings["efSearch"])
    if parameters is not None and wrapped:
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    if "k_factor" not in settings:
        return parameters
    refined = {} if parameters is None else {"base_index_params": parameters}
    return faiss.IndexRefineSearchParameters(k_factor=settings["k_factor"], **refined)


def equal_bytes(x: Floats, size: int) -> Iterator[Peer]:
    """Yield codes of up to ``size`` bytes, at most three ways each.

    By L2 distances; by inner products with queries that are not centered; with nothing centered.
    """
    for family, names in factories(size, x.shape[1]).items():
        for name in dict.fromkeys(names):
            try:
                code = int(faiss.index_factory(x.shape[1], name).sa_code_size())
            except RuntimeError as error:
                click.echo(f"{name} is left out: {str(error).splitlines()[-1]}", err=True)
                continue
            if code > size:
                continue
            ip = partial(_codes, x, name, faiss.METRIC_INNER_PRODUCT)
            projected = "PCAR" in name and "LSH" not in name
            slow = "PQ" in name or "RQ" in name
            if not (projected and slow):  # trains for long, and inner products find as much or more
                yield Peer(family, name, partial(_codes, x, name, faiss.METRIC_L2))
            if projected:
                yield Peer(family, f"{name}, IP", ip)
            if projected and not slow:
                yield Peer(family, f"{name}, IP, not centred", partial(ip, centered=False))


def factories(size: int, d: int) -> dict[str, list[str]]:
    """Return factory strings by family, whose codes take about ``size`` bytes.

    ``extra`` below is the number of bytes that a code has besides its bits.
    """

    def of_bits(*names: str, bits: tuple[int, ...] = (1, 2, 3, 4), extra: dict[int, int]) -> list[str]:
        widths = {b: min(d, 8 * (size - extra[b]) // b // 8 * 8) for b in bits}
        found = [name.format(w, b) for b, w in widths.items() if w > 0 for name in names]
        return found + [name.format(d, b).replace("PCAR", "RR") for b, w in widths.items() if w == d for name in names]

    nbits, least = 8 * size, min(d, 4 * size)
    widths = sorted({least, min(d, 8 * size)})
    none = dict.fromkeys(range(1, 9), 0)
    return {
        # np: without the annealing that polysemous search needs, which no figure here depends on
        "PQ": [f"PQ{size}np", f"PQ{2 * size}x4np"]
        + [f"PCAR{w},PQ{m}np" for w in widths for m in (f"{size}", f"{2 * size}x4")],
        "OPQ": [f"OPQ{2 * size}_{least},PQ{2 * size}x4np"]
        + [f"PCAR{w},OPQ{size},PQ{size}np" for w in widths]
        + [f"PCAR{least},OPQ{2 * size},PQ{2 * size}x4np"],
        "residual quantizers": [f"PCAR{least},PRQ{size // 4}x4x8"],
        "RaBitQ": of_bits("PCAR{},RaBitQ{}", extra={1: 8, 2: 20, 3: 20, 4: 20}),
        "EDEN": of_bits("PCAR{},EDEN{}", "PCAR{},EDEN{}BIASED", extra=dict.fromkeys(range(1, 9), 8)),
        "TurboQuant": of_bits("PCAR{},SQtqmse{}", "PCAR{},L2norm,SQtqmse{}", extra=none),
        "SQ": of_bits("PCAR{},SQ{}", bits=(4, 6, 8), extra=none),
        "LSH, ITQ": [f"{name}{nbits},LSHt" for name in ("ITQ", "PCAR", "RR") if nbits <= d],
    }


def _codes(x: Floats, name: str, metric: int, centered: bool = True) -> Index:
    """Return an index, trained and filled. Trained on x and -x, a PCA centers nothing."""
    faiss.cvar.distance_compute_blas_threshold = 1  # below it, k-means of few dimensions takes ten times as long
    index = faiss.index_factory(x.shape[1], name, metric)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if "OPQ" in name:
        rotation = faiss.downcast_VectorTransform(index.chain.at(index.chain.size() - 1))
        _shorten(rotation, OPQ)
        bits = faiss.ProductQuantizer(rotation.d_out, inner.pq.M, inner.pq.nbits)  # those that it will serve
        rotation.pq = bits
    if not centered:
        faiss.downcast_VectorTransform(index.chain.at(0)).train(np.concatenate((x, -x)))
    trained = x
    if "PRQ" in name:  # refined they find more than by FAISS's default, in half the time
        for i in range(inner.prq.nsplits):
            stages = faiss.downcast_AdditiveQuantizer(inner.prq.subquantizer(i))
            stages.train_type = faiss.ResidualQuantizer.Train_refine_codebook
        trained = x[np.random.default_rng(0).permutation(len(x))[:RESIDUAL_SAMPLE]]
    index.train(trained)
    if isinstance(inner, faiss.IndexRaBitQ):
        inner.qb = QUERY_BITS
    index.add(x)
    if "PCAR" in name:
        faiss.downcast_VectorTransform(index.chain.at(0)).PCAMat.resize(0)  # which training alone needs
    move = trained.mean(axis=0) if metric == faiss.METRIC_INNER_PRODUCT and centered else np.float32(0)
    code = int(index.sa_code_size())
    shared = faiss.serialize_index(index).nbytes / len(x) - code
    return Index(lambda xq, _: np.asarray(index.search(xq + move, K)[1]), code, shared)
