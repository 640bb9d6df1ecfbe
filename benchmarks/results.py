"""Measure everything that docs/results and the README state: python benchmarks/results.py DATA.

DATA holds data set folders (scifact, nfcorpus, quora). Each part writes a JSON file to docs/results; the tables of
docs/results and of the README are then rendered from those files (alone with ``--render``).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from cells import RESULTS, SETS
from tables import remake
from threadpoolctl import threadpool_limits

import faiss_qama
from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats
from faiss_qama.comparison import methods
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import evaluate, exact
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.index.export import K_FACTOR
from faiss_qama.training import FitConfig, fit
from faiss_qama.vectors import Corpus

METRIC = faiss.METRIC_INNER_PRODUCT
SEEDS = 3

# Name of the row, what rescores, search options: of the same fits of 2x192, without and with train queries.
MAIN: list[tuple[str, str, dict[str, float]]] = [
    ("2x192, codes only", "codes", {}),
    ("2x192, Hamming only", "none", {}),
    ("2x192, fp16, recall=0.95", "fp16", {"recall": 0.95}),
]
NAMES = [
    "binary",
    "mean-binary",
    "median-binary",
    "ternary",
    "rotated-binary",
    "rotated-ternary",
    "half-bit",
    "0.5orx384",
    "hybrid",
    "1x192",
    "1x384",
    "1.5x288",
    "1.5x384",
    "2x384",
    "scalar",
    "rotated-scalar",
    "faiss:RR384,RaBitQ",
    "faiss:PQ48np",  # without the annealing that polysemous search needs, which takes minutes
    "faiss:PQ96x4fs",
    "faiss:PCAR192,PQ96x4fs",
]

# What else could have been the default: name, settings of the fit.
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("rotation: random", {"rotation": "random"}),
    ("rotation: none", {"rotation": "none"}),
    ("decoder: least-squares", {"decoder": "least-squares"}),
    ("thresholds: normal", {"thresholds": "normal"}),
    ("thresholds: uniform", {"thresholds": "uniform"}),
    ("thresholds: quantile", {"thresholds": "quantile"}),
    ("thresholds: log", {"thresholds": "log"}),
    ("matryoshka_dims: 48, 96, 192", {"matryoshka_dims": (48, 96, 192)}),
    ("sample: 2500", {"sample": 2500}),
]
# At 24, 48, 72 and 96 bytes, as base Flat holds them, or a little less with a second code.
BYTES = (
    "1x192 2x32,1x128 2x64,1x64 2x96 1x384 2x128,1x128 2x192 2x64+1x224 2x192,1x192 2x288 2x96+2x160,1x32 "
    "2x384 2x192+1x352 2x128+2x224,1x32"
).split()
SPREADS = (0.0, 0.2)  # standard deviations of the logarithm of documents' lengths
BASES: list[tuple[str, dict[str, int]]] = [
    ("BFlat", {}),
    ("Flat", {}),
    ("BHNSW32", {}),
    ("BIVF256", {"nprobe": 16}),
    ("BIVF256", {"nprobe": 64}),
]
# Vectors, and options of `faiss-qama fit`.
COMMANDS = [
    ("quora", ""),
    ("million", ""),
    ("million", "--recall 0.95"),
    ("million", "--bytes 96 --rescore codes --report report.html"),
]
QUERY_SIDE = [(0.0, 1.0), (0.5, 1.0), (0.5, 1.25), (0.75, 1.25), (1.0, 1.0)]


def write(name: str, record: dict[str, Any]) -> None:
    """Write docs/results/NAME.json with what it was measured with."""
    versions = {"faiss-qama": faiss_qama.__version__, "faiss": faiss.__version__, "numpy": np.__version__}
    head = {"versions": versions, "python": platform.python_version(), "threads": faiss.omp_get_max_threads()}
    (RESULTS / f"{name}.json").write_text(json.dumps(head | record, indent=1, allow_nan=False) + "\n")


def main_job(folder: Path) -> None:
    """Measure the rows that the main job promises, and the methods by name."""
    dataset = Dataset.load(folder)
    truth = exact(dataset, 10, METRIC)
    rows = [truth.measured]
    for queries in (False, True):
        fits = [
            methods.build("2x192+fp16", dataset, METRIC, train_queries=queries, seed=seed).index
            for seed in range(SEEDS)
        ]
        for label, rescore, options in MAIN:
            found = [index if rescore == "fp16" else index.with_rescore(rescore) for index in fits]
            results = [evaluate(index, dataset, truth, runs=1, **options) for index in found]
            rows.append(
                MethodResult(
                    label + ", queries=" * queries,
                    found[0].bytes_per_vector,
                    results,
                    fits[0].quantizer.fit_record.to_dict(),
                )
            )
            click.echo(f"{folder.name}: {rows[-1].name}: recall {rows[-1].mean.recall:.3f}")
    rows += [methods.measure(name, dataset, truth, runs=1) for name in NAMES]
    write(folder.name, {"corpus": list(dataset.corpus.shape), "results": [row.to_dict() for row in rows]})


def choices(folder: Path) -> None:
    """Measure what the defaults were chosen from."""
    dataset = Dataset.load(folder)
    truth = exact(dataset, 10, METRIC)

    def measure(label: str, *, queries: bool = False, **settings: Any) -> dict[str, Any]:
        config, given = FitConfig(**{"layout": "2x192", **settings}), dataset.train_queries if queries else None
        index = QamaIndex(fit(dataset.corpus, config=config, queries=given), "codes")
        for chunk in dataset.corpus.chunks():
            index.add(chunk)
        found = {
            "codes": evaluate(index, dataset, truth, runs=1, oversample=40),
            "none": evaluate(index.with_rescore("none"), dataset, truth, runs=1),
        }
        click.echo(f"{folder.name}: {label}")
        return {stage: MethodResult(label, index.bytes_per_vector, [r]).to_dict() for stage, r in found.items()}

    record = {
        "fit": [measure(label, **settings) for label, settings in CHOICES],
        "bytes": [measure(layout, layout=layout) for layout in BYTES],
        "query side": [
            measure(f"query_center {c}, query_gain {g}", queries=True, query_center=c, query_gain=g)
            for c, g in QUERY_SIDE
        ],
        "growth": growth(dataset),
        "lengths": lengths(dataset),
    }
    write(f"{folder.name}-choices", {"exact": truth.measured.to_dict(), **record})


def growth(dataset: Dataset) -> list[dict[str, float]]:
    """Measure how many Hamming candidates hold 95 % of the exact 10 nearest, as the corpus grows fourfold."""
    x = dataset.corpus.read()
    order = np.random.default_rng(0).permutation(len(x))
    quantizer = fit(x, config=FitConfig(layout="2x192"))
    queries = dataset.queries[:1000]
    rows = []
    n = len(x)
    while n >= 900:
        part = x[order[:n]]
        _, near = faiss.knn(queries, part, 10, metric=METRIC)
        index = QamaIndex(quantizer, "none")
        index.add(part)
        _, found = index.search(queries, min(n, 2000))
        places = [
            int(np.append(np.flatnonzero(row == i), n)[0]) for row, ids in zip(found, near, strict=True) for i in ids
        ]
        places.sort()
        rows.append({"n": n, "candidates": int(places[int(np.ceil(0.95 * len(places))) - 1]) + 1})
        n //= 4
    return rows


def lengths(dataset: Dataset) -> list[dict[str, float]]:
    """Measure recall@10 of 80 candidates by how much documents' lengths vary and how far queries are spread."""
    x = dataset.corpus.read()
    rows = []
    for spread in SPREADS:
        length = np.exp(spread * np.random.default_rng(0).standard_normal((len(x), 1)))
        scaled = replace(dataset, corpus=Corpus(x * length.astype(np.float32)))
        truth = exact(scaled, 10, METRIC)
        for gain in (1.0, None):
            quantizer = fit(scaled.corpus, config=FitConfig(layout="2x192", query_gain=gain))
            index = QamaIndex(quantizer, "fp32")
            for chunk in scaled.corpus.chunks():
                index.add(chunk)
            recall = evaluate(index, scaled, truth, runs=1, oversample=8).recall
            rows.append({"spread": spread, "asked": gain, "gain": quantizer.fit_record.query_gain, "recall": recall})
    return rows


def stock(folder: Path) -> None:
    """Compare an index with its stock FAISS exports, and time the second stage, on one thread."""
    dataset = Dataset.load(folder)
    truth = exact(dataset, 10, METRIC)
    fitted = fit(dataset.corpus, config=FitConfig(layout="2x192"), queries=dataset.train_queries)
    queries = dataset.queries[:1000]
    rows = np.random.default_rng(0).integers(0, len(dataset.corpus), (len(queries), 400))
    record: dict[str, Any] = {"recall": {}, "milliseconds": {}}
    for store in ("codes", "sq8", "fp16", "fp32"):
        index = QamaIndex(fitted, store)
        for chunk in dataset.corpus.chunks():
            index.add(chunk)
        found = {"QamaIndex": evaluate(index, dataset, truth, runs=1, oversample=K_FACTOR).recall}
        for kind in ("hamming", "fastscan"):
            found[kind] = evaluate(index.to_faiss(kind), dataset, truth, runs=1).recall
        record["recall"][store] = found
        if store == "codes":
            ours, theirs = (i.search(queries, 100) for i in (index.with_rescore("none"), index.to_faiss("hamming")))
            record["same"] = [float((mine == stocks).mean()) for mine, stocks in zip(ours, theirs, strict=True)]
        with threadpool_limits(1):
            seconds = [_timed(lambda i=index: i.rescorer.scores(queries, rows)) for _ in range(5)]
        record["milliseconds"][store] = 1000 * float(np.median(seconds)) / len(queries)
    record["bases"] = []
    for base, settings in BASES:
        index = QamaIndex(fitted, "fp16", base=base)
        x = dataset.corpus.read()
        index.train(x)
        index.add(x)
        result = evaluate(index, dataset, truth, recall=0.95, **settings)
        record["bases"].append(
            {"base": base, "settings": settings, "bytes": index.bytes_per_vector, **result.to_dict()}
        )
    write("stock", record)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def scale(folder: Path) -> None:
    """Time the command on quora, and on a million vectors made from it; and the rate of encoding."""
    record: dict[str, Any] = {"commands": []}
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "quora.npy").symlink_to((folder / "quora" / "corpus.npy").resolve())
        _make_million(Path(work) / "quora.npy", Path(work) / "million.npy")
        program = (
            "import sys\n"
            "from faiss_qama.cli.app import cli\n"
            "cli(sys.argv[1:], standalone_mode=False)\n"
            "print('peak', [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
        )
        for name, options in COMMANDS:
            command = ["fit", f"{name}.npy", *options.split()]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", program, *command], cwd=work, check=True, capture_output=True, text=True
            )
            seconds = time.perf_counter() - start
            *output, peak = done.stdout.splitlines()
            record["commands"].append(
                {
                    "command": " ".join(["faiss-qama", *command]),
                    "vectors": len(np.load(f"{work}/{name}.npy", mmap_mode="r")),
                    "seconds": seconds,
                    "peak_bytes": 1024 * int(peak.split()[-1]),
                    "index_bytes": sum(f.stat().st_size for f in Path(f"{work}/{name}.qama").iterdir()),
                    "output": output,
                }
            )
            click.echo(done.stdout)
    x = Corpus(folder / "quora" / "corpus.npy").read()
    quantizer = fit(x, config=FitConfig(layout="2x192"))
    record["encoding_per_second"] = len(x) / float(np.median([_timed(lambda: quantizer.encode(x)) for _ in range(7)]))
    write("scale", record)


def million(x: Floats, millions: int = 1) -> Iterator[Floats]:
    """Yield a million unit vectors: each a row of ``x`` moved half-way along another, so shaped as they are.

    Their mean and their spread in every direction are those of ``x``, but for the scale that unit length undoes.
    """
    rng, center = np.random.default_rng(0), x.mean(axis=0)
    for _ in range(20 * millions):
        rows = x[rng.integers(0, len(x), 50_000)] + 0.5 * (x[rng.integers(0, len(x), 50_000)] - center)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _make_million(source: Path, path: Path) -> None:
    """Write the :func:`million` that is made from ``source``."""
    x = np.load(source).astype(np.float32)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1_000_000, x.shape[1]))
    for start, rows in zip(range(0, len(out), 50_000), million(x), strict=True):
        out[start : start + 50_000] = rows
    out.flush()


def measure(data: Path) -> None:
    """Measure everything: what is timed alone, and the rest in as many processes as there are cores."""
    from equal_bytes import BUDGETS, keep, rows_of  # here, because they write as this module does
    from qama import qama_table
    from rotated import rotated_study

    start = time.perf_counter()
    stock(data / "quora")
    scale(data)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    *small, large = SETS
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        # First what takes longest: peers, on small sets, then on the large one at the variants that were best there.
        equal = {name: [pool.submit(rows_of, data / name, size, []) for size in BUDGETS] for name in small}
        jobs: list[Future[Any]] = [pool.submit(choices, data / large)]
        best = [keep(name, (part.result() for part in parts)) for name, parts in equal.items()]
        equal = {large: [pool.submit(rows_of, data / large, size, best) for size in BUDGETS]}
        jobs.append(pool.submit(main_job, data / large))
        jobs.append(pool.submit(qama_table, data))
        jobs += [pool.submit(choices, data / name) for name in small]
        jobs += [pool.submit(main_job, data / name) for name in small]
        jobs.append(pool.submit(rotated_study, data))
        for job in as_completed(jobs):
            job.result()
        keep(large, (part.result() for part in equal[large]))
    write("results", {"seconds": time.perf_counter() - start, "cores": os.cpu_count()})


@click.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--render", "only_render", is_flag=True, help="Only remake the tables from the JSON files.")
def main(data: Path | None, only_render: bool) -> None:
    """Measure on the data set folders in DATA, and remake the tables."""
    if not only_render:
        if data is None:
            raise click.UsageError("DATA, a folder of data set folders, is needed")
        measure(data)
    remake()


if __name__ == "__main__":
    main()
