"""Indexes of other libraries, and FAISS's binary ones on sign bits, over vectors of unit length."""

from __future__ import annotations

import importlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import faiss
import numpy as np
from arrangements import CANDIDATES, NPROBE, Arrangement, K, grid, sample

from faiss_qama.arrays import Codes, Floats, Ids

T = TypeVar("T")
WINDOWS = (10, 16, 24, 32, 48, 64, 96, 128, 192)
LISTS = (2,)  # times the square root of the number of vectors
BEAMS = (0.5, 1, 2, 4)  # what a graph's search keeps, times the candidates
DEGREE, EF_CONSTRUCTION = 16, 128  # of graphs over sign bits


def others(x: Floats, folder: Path) -> Iterator[Arrangement]:
    """Yield the indexes of each package that can be imported; ``folder`` takes files that are removed again."""
    families = {"svs": of_svs, "scann": of_scann, "usearch.index": of_usearch, "rabitqlib": of_rabitq}
    families |= {"sentence_transformers.util.quantization": of_sentence_transformers}
    for library, family in imported(families):
        yield from family(library, x, folder)
    yield from of_binary(x)


def imported(families: dict[str, T]) -> Iterator[tuple[Any, T]]:
    """Yield the module of each name that can be imported, with what stands by it; say what is left out."""
    for module, family in families.items():
        try:
            yield importlib.import_module(module), family
        except ImportError as error:
            click.echo(f"{module} is left out: {error}", err=True)


def saved(folder: Path, save: Callable[..., Any], *parts: str) -> dict[str, int]:
    """Return the bytes of each file that ``save`` writes, given the paths of these parts of a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        save(*(f"{name}/{part}" for part in parts))
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(name)): path.stat().st_size for path in files}


def signs(x: Floats) -> Codes:
    """Return the sign bits of vectors."""
    return np.packbits(x > 0, axis=1)


def rescored(x: Floats, xq: Floats, found: Ids) -> Ids:
    """Return the K best of the candidates ``found`` (nq, n) by exact inner products; -1 is none."""
    found = np.ascontiguousarray(found, dtype=np.int64)
    scores = np.empty(found.shape, dtype=np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, xq, x, found)]
    faiss.fvec_inner_products_by_idx(*pointers, x.shape[1], *found.shape)
    return np.take_along_axis(found, np.argsort(-scores, axis=1)[:, :K], axis=1)


def of_svs(svs: Any, x: Floats, folder: Path) -> Iterator[Arrangement]:
    """Yield Vamana graphs of Intel's SVS, whose LVQ ends the process on processors that are not Intel's."""
    parameters = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=64, window_size=128)
    scale = 127 / np.quantile(np.abs(sample(x)), 0.9999)

    def rounded(x: Floats) -> Any:
        return np.clip(np.rint(x * scale), -127, 127).astype(np.int8)

    def built(name: str, data: Any, encode: Callable[[Floats], Any]) -> Arrangement:
        index = svs.Vamana.build(parameters, data, svs.MIP, num_threads=faiss.omp_get_max_threads())

        def search(xq: Floats, settings: dict[str, Any]) -> Ids:
            index.num_threads = faiss.omp_get_max_threads()
            index.search_window_size = settings["window"]
            return np.asarray(index.search(encode(xq), K)[0], dtype=np.int64)

        # All it saves: vectors, and 64 links and their number for each, 4 bytes long, which it holds alike.
        ram = sum(saved(folder, index.save, "config", "graph", "data").values())
        return Arrangement(f"SVS Vamana64,{name}", ram / len(x), 0.0, grid(window=WINDOWS), search)

    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        for primary, residual in ((8, 0), (4, 8)):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                file = f"{name}/x.fvecs"
                svs.write_vecs(x, file)
                loader = svs.VectorDataLoader(file, svs.DataType.float32, dims=x.shape[1])
                data = svs.LVQLoader(loader, primary=primary, residual=residual, padding=32)
                yield built(f"LVQ{primary}" + (f"x{residual}" if residual else ""), data, np.asarray)
    else:
        click.echo("svs: LVQ needs a processor of Intel's; vectors are kept as int8 and float16 instead", err=True)
        yield built("int8", rounded(x), rounded)
        yield built("float16", x.astype(np.float16), np.asarray)


def of_scann(scann: Any, x: Floats, folder: Path) -> Iterator[Arrangement]:
    """Yield ScaNN without a tree, and with trees of several sizes, with and without second leaves (SOAR)."""
    leaves = [int(times * math.sqrt(len(x))) for times in LISTS]
    for n, soar in [(0, None), *itertools.product(leaves, (None, 1.5))]:
        builder = scann.scann_ops_pybind.builder(x, K, "dot_product")
        builder = builder.set_n_training_threads(faiss.omp_get_max_threads())
        if n:
            builder = builder.tree(n, n // 10, soar_lambda=soar, overretrieve_factor=soar)
        searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(10 * K).build()

        def search(xq: Floats, settings: dict[str, Any], searcher: Any = searcher) -> Ids:
            threads = faiss.omp_get_max_threads()
            chosen = {"pre_reorder_num_neighbors": settings["k_factor"] * K}
            chosen["leaves_to_search"] = settings.get("nprobe")
            if threads == 1:
                return np.asarray(searcher.search_batched(xq, K, **chosen)[0], dtype=np.int64)
            searcher.set_num_threads(threads)
            each = -(-len(xq) // threads)
            return np.asarray(searcher.search_batched_parallel(xq, K, **chosen, batch_size=each)[0], dtype=np.int64)

        # What it saves without the floats that reorder. Of codes half: 4 bits are saved as a byte, but scanned packed.
        # Not counted are the bytes that it keeps beside them where there is no tree.
        files = saved(folder, searcher.serialize, "")
        disk = files.pop("dataset.npy")
        ram = sum(size / 2 if file.startswith("hashed_dataset") else size for file, size in files.items())
        values: dict[str, Any] = {"k_factor": CANDIDATES}
        if n:
            values["nprobe"] = tuple(probes for probes in NPROBE if probes <= n)
        name = "ScaNN " + (f"tree{n}," if n else "") + ("SOAR," if soar else "") + "AH2"
        yield Arrangement(name, ram / len(x), disk / len(x), grid(**values), search)


def of_usearch(usearch: Any, x: Floats, folder: Path) -> Iterator[Arrangement]:
    """Yield usearch's HNSW over sign bits, rescored."""
    settings = {"connectivity": DEGREE, "expansion_add": EF_CONSTRUCTION}
    index = usearch.Index(ndim=x.shape[1], metric="hamming", dtype="b1", **settings)
    index.add(np.arange(len(x)), signs(x), threads=faiss.omp_get_max_threads())

    def search(xq: Floats, settings: dict[str, Any]) -> Ids:
        n = settings["k_factor"] * K
        index.expansion_search = int(settings["beam"] * n)
        found = index.search(signs(xq), n, threads=faiss.omp_get_max_threads())
        return rescored(x, xq, np.where(np.arange(n) < found.counts[:, None], found.keys.astype(np.int64), -1))

    # What it saves: bits, keys and links. Not counted are its pointers, table of keys and spare room in memory.
    ram = sum(saved(folder, index.save, "index").values())
    values = grid(k_factor=CANDIDATES, beam=BEAMS[1:])  # it widens a beam that is narrower than the candidates
    yield Arrangement(f"usearch HNSW{DEGREE},b1", ram / len(x), 4.0 * x.shape[1], values, search)


def of_rabitq(rabitqlib: Any, x: Floats, folder: Path) -> Iterator[Arrangement]:
    """Yield RaBitQ's lists at several bits; 32 means 1 bit, rescored with the floats."""
    n, d = x.shape
    threads = faiss.omp_get_max_threads()
    for lists in (int(times * math.sqrt(n)) for times in LISTS):
        exact = rabitqlib.FinalAssignmentMode.Exact
        clusters = rabitqlib.RaBitQKMeans(d, lists, num_threads=threads, final_assignment=exact)
        clusters.train(x)
        for bits in (1, 4, 7, 32):
            index = rabitqlib.IvfIndex(d, n, lists, bits, "ip")
            index.build(x, clusters.centroids, clusters.assignments, num_threads=threads)

            def search(xq: Floats, settings: dict[str, Any], index: Any = index) -> Ids:
                found = index.search(xq, K, settings["nprobe"], num_threads=faiss.omp_get_max_threads())
                return np.asarray(found[0], dtype=np.int64)

            # What it saves: codes with their factors, ids and centroids; less the floats, where it has them.
            disk = 4.0 * d if bits == 32 else 0.0
            ram = sum(saved(folder, index.save, "index").values()) / n - disk
            values = grid(nprobe=tuple(probes for probes in NPROBE if probes <= lists))
            yield Arrangement(f"RaBitQ IVF{lists},{bits} bit", ram, disk, values, search)


def of_sentence_transformers(quantization: Any, x: Floats, folder: Path) -> Iterator[Arrangement]:  # noqa: ARG001
    """Yield sentence-transformers' search of sign bits, rescored from them with the float query."""
    settings = {"corpus_precision": "ubinary", "top_k": K}
    *_, index = quantization.semantic_search_faiss(x[:1], signs(x), output_index=True, **settings)

    def search(xq: Floats, chosen: dict[str, Any]) -> Ids:
        times = chosen["k_factor"]
        hits, _ = quantization.semantic_search_faiss(xq, corpus_index=index, rescore_multiplier=times, **settings)
        return np.array([[hit["corpus_id"] for hit in of_query] for of_query in hits])

    ram = faiss.serialize_index_binary(index).nbytes / len(x)
    yield Arrangement("semantic_search_faiss,ubinary", ram, 0.0, grid(k_factor=CANDIDATES), search)


def of_binary(x: Floats) -> Iterator[Arrangement]:
    """Yield FAISS's binary indexes over sign bits, rescored."""
    flat, graph = faiss.IndexBinaryFlat(x.shape[1]), faiss.IndexBinaryHNSW(x.shape[1], DEGREE)
    lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(x.shape[1]), x.shape[1], int(LISTS[0] * math.sqrt(len(x))))
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    lists.train(signs(sample(x)))
    for index in (flat, graph, lists):
        index.add(signs(x))

    def scan(xq: Floats, settings: dict[str, Any]) -> Ids:
        flat.use_heap = settings["heap"]
        return rescored(x, xq, flat.search(signs(xq), settings["k_factor"] * K)[1])

    def walk(xq: Floats, settings: dict[str, Any]) -> Ids:
        n = settings["k_factor"] * K
        parameters = faiss.SearchParametersHNSW(efSearch=int(settings["beam"] * n))
        return rescored(x, xq, graph.search(signs(xq), n, params=parameters)[1])

    def probe(xq: Floats, settings: dict[str, Any]) -> Ids:
        parameters = faiss.SearchParametersIVF(nprobe=settings["nprobe"])
        return rescored(x, xq, lists.search(signs(xq), settings["k_factor"] * K, params=parameters)[1])

    # All of what FAISS serializes: bits, ids of lists, and a graph's links, levels and offsets.
    rams = [faiss.serialize_index_binary(index).nbytes / len(x) for index in (flat, graph, lists)]
    disk = 4.0 * x.shape[1]
    yield Arrangement("BinaryFlat,signs", rams[0], disk, grid(k_factor=CANDIDATES, heap=(True, False)), scan)
    values = grid(k_factor=CANDIDATES, beam=BEAMS)
    yield Arrangement(f"BinaryHNSW{DEGREE},signs", rams[1], disk, values, walk)
    values = grid(nprobe=tuple(n for n in NPROBE if n <= lists.nlist), k_factor=CANDIDATES)
    yield Arrangement(f"BinaryIVF{lists.nlist},signs", rams[2], disk, values, probe)
