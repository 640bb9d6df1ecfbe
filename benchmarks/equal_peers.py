"""Peers at a number of bytes a vector: FAISS's codes by factory string, and other libraries' without their floats.

Documents are centred by a PCA; a query that is not ranks by <q, x - mean>, as <q, x> does, and loses nothing with the
components that are dropped. Trained on x and -x, a PCA centres nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import faiss
import numpy as np
from others import imported, signs

from faiss_qama.arrays import Floats, Ids

K = 10
SAMPLE = 30_000  # vectors that OPQ's rotation is trained on
RESIDUAL_SAMPLE = 15_000  # and residual quantizers: twice as many take minutes more, and find .003 more on quora
OPQ_ROUNDS = 10  # its own 50 take many minutes, and by hand find .002 less to .011 more on SciFact
QUERY_BITS = 8  # of RaBitQ: as good as the float query, and fifty times as fast
RESCORED = 30  # times K: signs that sentence-transformers scores with the float query
Search = Callable[[Floats], Ids]


@dataclass(frozen=True)
class Variant:
    """A way to code vectors that takes ``bytes`` each; ``build`` returns bytes shared by all, and how to search."""

    family: str
    name: str
    bytes: int
    build: Callable[[], tuple[float, Search]]


def variants(x: Floats, size: int) -> Iterator[Variant]:
    """Yield what fits into ``size`` bytes, of the libraries that can be imported."""
    yield from of_faiss(x, size)
    families = {"scann": of_scann, "usearch.index": of_usearch, "turbovec": of_turbovec, "rabitqlib": of_rabitq}
    families |= {"sentence_transformers.util.quantization": of_sentence_transformers}
    for library, family in imported(families):
        yield from family(library, x, size)


def factories(size: int, d: int) -> dict[str, list[str]]:
    """Return FAISS's factory strings by family, about as large as ``size`` bytes allow."""

    def of_bits(*names: str, bits: tuple[int, ...] = (1, 2, 3, 4), extra: Callable[[int], int]) -> list[str]:
        widths = {b: min(d, 8 * (size - extra(b)) // b // 8 * 8) for b in bits}
        found = [name.format(w, b) for b, w in widths.items() if w > 0 for name in names]
        return found + [name.format(d, b).replace("PCAR", "RR") for b, w in widths.items() if w == d for name in names]

    nbits, least = 8 * size, min(d, 4 * size)
    widths = sorted({least, min(d, 8 * size)})
    return {
        # np: without the annealing that polysemous search needs, which no figure here depends on
        "PQ": [f"PQ{size}np", f"PQ{2 * size}x4np"]
        + [f"PCAR{w},PQ{m}np" for w in widths for m in (f"{size}", f"{2 * size}x4")],
        "OPQ": [f"OPQ{2 * size}_{least},PQ{2 * size}x4np"]
        + [f"PCAR{w},OPQ{size},PQ{size}np" for w in widths]
        + [f"PCAR{least},OPQ{2 * size},PQ{2 * size}x4np"],
        "residual quantizers": [f"PCAR{least},PRQ{size // 4}x4x8"],
        "RaBitQ": of_bits("PCAR{},RaBitQ{}", extra=lambda b: 8 if b == 1 else 20),
        "EDEN": of_bits("PCAR{},EDEN{}", "PCAR{},EDEN{}BIASED", extra=lambda _: 8),
        "TurboQuant": of_bits("PCAR{},SQtqmse{}", "PCAR{},L2norm,SQtqmse{}", extra=lambda _: 0),
        "SQ": of_bits("PCAR{},SQ{}", bits=(4, 6, 8), extra=lambda _: 0),
        "LSH, ITQ": [f"{name}{nbits},LSHt" for name in ("ITQ", "PCAR", "RR") if nbits <= d],
    }


def of_faiss(x: Floats, size: int) -> Iterator[Variant]:
    """Yield FAISS's codes, by L2 distances, by inner products with the query not centred, and with nothing centred."""
    for family, names in factories(size, x.shape[1]).items():
        for name in dict.fromkeys(names):
            try:
                code = int(faiss.index_factory(x.shape[1], name).sa_code_size())
            except RuntimeError as error:
                click.echo(f"{name} is left out: {str(error).splitlines()[-1]}", err=True)
                continue
            if code > size:
                continue
            ip = partial(_filled, x, name, faiss.METRIC_INNER_PRODUCT)
            projected = "PCAR" in name and "LSH" not in name
            slow = re.search("PQ|RQ", name)
            if not (projected and slow):  # trains for long, and inner products find as much or more
                yield Variant(family, name, code, partial(_filled, x, name, faiss.METRIC_L2))
            if projected:
                yield Variant(family, f"{name}, IP", code, ip)
            if projected and not slow:
                yield Variant(family, f"{name}, IP, not centred", code, partial(ip, centred=False))


def _filled(x: Floats, name: str, metric: int, centred: bool = True) -> tuple[float, Search]:
    """Return a FAISS index, trained and filled."""
    faiss.cvar.distance_compute_blas_threshold = 1  # below it, k-means of few dimensions takes ten times as long
    index = faiss.index_factory(x.shape[1], name, metric)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    if "OPQ" in name:
        rotation = faiss.downcast_VectorTransform(index.chain.at(index.chain.size() - 1))
        rotation.niter, rotation.max_train_points = OPQ_ROUNDS, SAMPLE
        bits = faiss.ProductQuantizer(rotation.d_out, inner.pq.M, inner.pq.nbits)  # those that it will serve
        rotation.pq = bits
    if not centred:
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
    move = trained.mean(axis=0) if metric == faiss.METRIC_INNER_PRODUCT and centred else np.float32(0)
    shared = faiss.serialize_index(index).nbytes / len(x) - int(index.sa_code_size())
    return shared, lambda xq: np.asarray(index.search(xq + move, K)[1])


def reduced(x: Floats, width: int) -> tuple[Floats, Callable[[Floats], Floats], float]:
    """Return documents centred and rotated into ``width`` components, how queries get there, and the bytes shared."""
    pca = faiss.PCAMatrix(x.shape[1], width, 0, True)
    pca.train(x)
    mean = x.mean(axis=0)
    return pca.apply(x), lambda xq: pca.apply(xq + mean), 4.0 * width * (x.shape[1] + 1) / len(x)


def plain(x: Floats) -> tuple[Floats, Callable[[Floats], Floats], float]:
    """Return documents as they are, as :func:`reduced` does."""
    return x, lambda xq: xq, 0.0


def _both(x: Floats, width: int) -> dict[str, Callable[[], tuple[Floats, Callable[[Floats], Floats], float]]]:
    """Return, by name, ways to have ``width`` components."""
    ways = {f"PCAR{width},": lambda: reduced(x, width)}
    return ways | ({"": lambda: plain(x)} if width == x.shape[1] else {})


def of_scann(scann: Any, x: Floats, size: int) -> Iterator[Variant]:
    """Yield ScaNN's hashes of blocks of dimensions, 4 bits each, with and without anisotropic loss, not reordered."""

    def build(way: Any, block: int, threshold: float) -> tuple[float, Search]:
        documents, to, shared = way()
        builder = scann.scann_ops_pybind.builder(np.ascontiguousarray(documents), K, "dot_product")
        searcher = builder.score_ah(block, anisotropic_quantization_threshold=threshold).build()
        shared += 4.0 * 16 * documents.shape[1] / len(x)  # its centres
        return shared, lambda xq: np.asarray(searcher.search_batched(to(xq))[0], dtype=np.int64)

    for block in (1, 2, 4, 8):
        if (width := 2 * size * block) <= x.shape[1]:
            for name, way in _both(x, width).items():
                for threshold in (0.2, float("nan")):
                    loss = "" if threshold == threshold else " without anisotropy"
                    yield Variant("ScaNN", f"{name}AH{block}{loss}", size, partial(build, way, block, threshold))


def of_turbovec(turbovec: Any, x: Floats, size: int) -> Iterator[Variant]:
    """Yield turbovec's codes, which rotate by themselves: 2 or 4 bits a component (it stores 3 as 4), and a norm."""

    def build(way: Any, bits: int) -> tuple[float, Search]:
        documents, to, shared = way()
        index = turbovec.TurboQuantIndex(documents.shape[1], bits)
        index.calibrate(np.ascontiguousarray(documents))
        index.add(np.ascontiguousarray(documents))
        return shared, lambda xq: np.asarray(index.search(np.ascontiguousarray(to(xq)), K)[1], dtype=np.int64)

    for bits in (2, 4):
        width = min(x.shape[1], 8 * (size - 4) // bits // 8 * 8)
        for name, way in _both(x, width).items():
            code = width * bits // 8 + 4
            yield Variant("turbovec", f"{name}{bits} bit", code, partial(build, way, bits))


def of_rabitq(rabitqlib: Any, x: Floats, size: int) -> Iterator[Variant]:
    """Yield RaBitQ by its authors, one list, components in 64s: 12 bytes of factors to 1 bit, 20 to more; no ids."""

    def build(way: Any, bits: int) -> tuple[float, Search]:
        documents, to, shared = way()
        documents = np.ascontiguousarray(documents)
        index = rabitqlib.IvfIndex(documents.shape[1], len(x), 1, bits, "ip")
        index.build(documents, documents.mean(axis=0, keepdims=True), np.zeros(len(x), dtype=np.uint32))

        def search(xq: Floats) -> Ids:
            return np.asarray(index.search(np.ascontiguousarray(to(xq)), K, 1)[0], dtype=np.int64)

        return shared, search

    for bits in (1, 2, 3, 4):
        factors = 12 if bits == 1 else 20
        width = min(x.shape[1], 8 * (size - factors) // bits // 64 * 64)
        for name, way in _both(x, width).items() if width > 0 else ():
            code = width * bits // 8 + factors
            yield Variant("rabitqlib", f"{name}{bits} bit", code, partial(build, way, bits))


def of_usearch(usearch: Any, x: Floats, size: int) -> Iterator[Variant]:
    """Yield usearch's exact search of sign bits by their Hamming distance."""

    def build(way: Any) -> tuple[float, Search]:
        documents, to, shared = way()
        bits, hamming = signs(documents), usearch.MetricKind.Hamming

        def search(xq: Floats) -> Ids:
            return np.asarray(usearch.search(bits, signs(to(xq)), K, hamming, exact=True).keys, dtype=np.int64)

        return shared, search

    width = 8 * size
    for name, way in _both(x, width).items() if width <= x.shape[1] else ():
        yield Variant("usearch", f"{name}b1 exact", width // 8, partial(build, way))


def of_sentence_transformers(quantization: Any, x: Floats, size: int) -> Iterator[Variant]:
    """Yield sentence-transformers' search of sign bits, rescored from them with the float query."""
    settings = {"corpus_precision": "ubinary", "top_k": K}

    def build(way: Any) -> tuple[float, Search]:
        documents, to, shared = way()
        first = np.ascontiguousarray(documents[:1])
        *_, index = quantization.semantic_search_faiss(first, signs(documents), output_index=True, **settings)

        def search(xq: Floats) -> Ids:
            found, _ = quantization.semantic_search_faiss(
                np.ascontiguousarray(to(xq)), corpus_index=index, rescore_multiplier=RESCORED, **settings
            )
            return np.array([[hit["corpus_id"] for hit in hits] for hits in found])

        return shared, search

    if (width := 8 * size) > x.shape[1]:
        return
    ways = _both(x, width)
    if width < x.shape[1]:
        ways[f"first {width},"] = lambda: (x[:, :width], lambda xq: xq[:, :width], 0.0)
    for name, way in ways.items():
        yield Variant("sentence-transformers", f"{name}ubinary", width // 8, partial(build, way))
