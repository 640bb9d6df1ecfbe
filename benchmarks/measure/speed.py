"""How fast the parts of a search are, into docs/results/speed.json.

What is compared takes turns within one run, on the same codes and with the same number of threads; medians.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from common import METRIC, MILLION, in_turns, median_seconds, million, read, write
from threadpoolctl import threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.arrays import Codes, Floats
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.hamming.factory import make_base
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.index.build import build_index
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.index.tuning import tune
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.training import FitConfig, fit

LAYOUTS = ("2x85", "2x128", "2x192", "1x256", "1x384")
K, ROUNDS = 100, 15  # neighbours of a scan
PREFIX = 96  # components that a funnel scans first
GRAPHS = 500_000  # codes; larger graphs take too long to build
FIRST = """
import sys, time
import numpy as np
from faiss_qama import QamaIndex
from faiss_qama.kernels import kernel
packing, *_ = map(kernel, ("plane_packing", "scanning", "scoring", "encoding", "weighted_sums"))
begin = time.perf_counter()  # numba starts with the first call of what it compiled
packing.pack(np.empty((0, 1), np.uint8), np.empty((0, 4), np.int64), np.empty((0, 1), np.uint32))
start = time.perf_counter()
index = QamaIndex.load(sys.argv[1] + "/i.qama", mmap=True)
index.search(np.load(sys.argv[1] + "/q.npy").astype(np.float32), 10)
print(time.perf_counter() - start, start - begin)
"""


def coded(folder: Path, layout: str) -> tuple[CodeLayout, Codes, Codes]:
    """Return the layout, codes of a million documents made from those of ``folder``, and codes of its queries."""
    dataset = Dataset.load(folder)
    x = dataset.corpus.read()
    quantizer = fit(x, config=FitConfig(layout=layout, rotation="random"), metric=METRIC)
    code = np.concatenate([quantizer.encode(rows) for rows in million(x)])
    return quantizer.layout, code, quantizer.encode_queries(dataset.queries[:1024])


def scans(folder: Path) -> list[dict[str, Any]]:
    """Time ``Flat`` against ``IndexBinaryFlat``, 32 queries at a time and one."""
    rows = []
    for text in LAYOUTS:
        layout, code, queries = coded(folder, text)
        ours, flat = FlatCodeIndex(layout), faiss.IndexBinaryFlat(8 * layout.code_size)
        ours.append(code)
        flat.add(code)
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            for batch in (32, 1):
                asked = [queries[start : start + batch] for start in range(0, ROUNDS * batch, batch)]
                seconds = in_turns(asked, partial(ours.search, k=K, rows=None, settings={}), partial(flat.search, k=K))
                row = {"layout": text, "bytes": [ours.bytes_per_vector, layout.code_size], "threads": threads}
                row |= {"batch": batch, "milliseconds": [1000 * s / batch for s in seconds]}
                rows.append(row | {"times": seconds[1] / seconds[0]})
                click.echo(str(rows[-1]))
    return rows


def stages(folder: Path) -> dict[str, Any]:
    """Time the steps beside the scan: scoring candidates from their codes, and encoding."""
    dataset = Dataset.load(folder)
    x, xq = dataset.corpus.read(), dataset.queries[:1024]
    quantizer = fit(x, config=FitConfig(layout="2x192"), metric=METRIC)
    index = QamaIndex(quantizer, "codes", base="Flat")
    index.add(x)
    rescorer = index.rescorer
    assert rescorer is not None
    rows = index.with_rescore("none").search(xq, 400)[1]
    measured: dict[str, Any] = {"n": len(x), "candidates": rows.shape[1], "threads": []} | one_query(quantizer, x, xq)
    for threads in (1, 2):
        with threadpool_limits(threads):
            scoring = median_seconds(lambda: rescorer.scores(xq, rows)) / len(xq)
            encoding, product = in_turns([x] * 7, quantizer.encode, quantizer.transform)
        row = {"threads": threads, "scoring_milliseconds": 1000 * scoring}
        row |= {"encoded_per_second": len(x) / encoding, "times_the_product": encoding / product}
        measured["threads"].append(row)
        click.echo(str(row))
    return measured


def one_query(quantizer: Quantizer, x: Floats, xq: Floats) -> dict[str, Any]:
    """Time one query after the other, with one thread: whole searches of 10 out of 100 candidates, and scans alone."""
    index, base = QamaIndex(quantizer, "fp16", base="Flat"), FlatCodeIndex(quantizer.layout)
    index.add(x)
    base.append(quantizer.encode(x))
    code, ones = quantizer.encode_queries(xq), [slice(i, i + 1) for i in range(100)]

    def search(_: Any) -> None:
        for one in ones:
            index.search(xq[one], 10, oversample=10)

    def scan(_: Any) -> None:
        for one in ones:
            base.search(code[one], 100, None, {})

    with threadpool_limits(1):
        seconds = in_turns([None] * ROUNDS, search, scan)
    return {"one_query_milliseconds": {name: 10 * s for name, s in zip(("search", "scan"), seconds, strict=True)}}


def stock_fastscan(folder: Path) -> list[dict[str, Any]]:
    """Compare two ways to rank by asymmetric distances: FastScan on our levels, and our scan re-ranked from codes."""
    dataset = Dataset.load(folder)
    x, xq = dataset.corpus.read(), dataset.queries[:1000]
    truth = faiss.knn(xq, x, 10, metric=METRIC)[1]
    quantizer = fit(x, config=FitConfig(layout="2x192"), metric=METRIC)
    index = QamaIndex(quantizer, "codes", base="Flat")
    index.add(x)
    stock, rows = index.to_faiss("fastscan"), []
    searches: dict[str, Callable[[Any], Any]] = {"fastscan": lambda xq: stock.search(xq, 10)[1]}
    for oversample in (5, 10, 20, 40):
        searches[f"Flat, {10 * oversample} candidates"] = lambda xq, o=oversample: index.search(xq, 10, oversample=o)[1]
    for threads in (1, 2):
        with threadpool_limits(threads):
            seconds = in_turns([xq] * 7, *searches.values())
        for (name, search), taken in zip(searches.items(), seconds, strict=True):
            found = (search(xq)[:, :, None] == truth[:, None]).any(axis=1).mean()
            rows.append({"name": name, "threads": threads, "recall": float(found), "per_second": len(xq) / taken})
            click.echo(str(rows[-1]))
    return rows


def growth(folder: Path) -> list[dict[str, Any]]:
    """Time queries, batched and with one thread, for 100 hits in ever more codes; lists and graphs lose one of 40."""
    dataset = Dataset.load(folder)
    x, xq = dataset.corpus.read(), dataset.queries[:1000]
    quantizer = fit(x, config=FitConfig(layout="2x192", rotation="random"), metric=METRIC)
    code = np.concatenate([quantizer.encode(part) for part in million(x, millions=4)])
    rows = []
    for n in (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000):
        lists = f"IVF{2 ** round(math.log2(4 * math.sqrt(n)))}"
        for base in ("Flat", lists, "BHNSW16")[: 3 if n <= GRAPHS else 2]:
            made = make_base(base, quantizer.layout)
            made.train(code[: min(n, 50 * getattr(made, "nlist", 1))])
            made.append(code[:n])
            tried = tune(
                TwoStageIndex(quantizer, made, IdMap(n), CodeRescorer(quantizer, made)), xq[:200], 10, recall=0.95
            )
            assert tried is not None
            held = TwoStageIndex(quantizer, made, IdMap(n), None)
            for prefix in (None, PREFIX) if base == "Flat" else (None,):
                search = partial(held.search, xq, K, SearchParameters(truncate_dim=prefix))
                with threadpool_limits(1):
                    seconds = median_seconds(search, rounds=3)
                row = {
                    "n": n,
                    "base": base + (f", truncate_dim={prefix}" if prefix else ""),
                    "settings": tried.settings,
                }
                row |= {"milliseconds": 1000 * seconds / len(xq), "bytes": made.bytes_per_vector}
                rows.append(row)
                click.echo(str(row))
    return rows


def loading(folder: Path) -> dict[str, Any]:
    """Time the first answer of a mapped index of a million vectors, in a new process, once numba has started."""
    dataset = Dataset.load(folder)
    x = dataset.corpus.read()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        quantizer = fit(x, config=FitConfig(layout="2x192", rotation="random"), metric=METRIC)
        big = Corpus(np.concatenate(list(million(x))))
        np.save(f"{scratch}/q.npy", dataset.queries[:1])
        for base in ("Flat", "IVF4096"):
            build_index(f"{scratch}/i.qama", quantizer, big, IndexSpec(base=base))
            runs = [
                subprocess.run([sys.executable, "-c", FIRST, scratch], stdout=subprocess.PIPE, check=True)
                for _ in range(7)
            ]
            seconds = np.median([[float(number) for number in run.stdout.split()] for run in runs], axis=0)
            measured[base] = dict(zip(("seconds", "numba_seconds"), seconds.tolist(), strict=True))
    click.echo(str(measured))
    return measured


PARTS: dict[str, Callable[[Path], Any]] = {
    "scans": scans,
    "stages": stages,
    "asymmetric": stock_fastscan,
    "growth": growth,
    "loading": loading,
}


def speed(data: Path, parts: tuple[str, ...]) -> None:
    """Measure ``parts`` on quora's vectors in ``data``; the other parts stay as they were measured."""
    known = read("speed")
    record = {"k": K, "n": MILLION} | {part: known[part] for part in PARTS if part in known}
    write("speed", record | {part: PARTS[part](data / "quora") for part in parts})
