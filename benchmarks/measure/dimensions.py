"""Times of fits at 768 to 3,072 dimensions, of loading and of a million vectors, into docs/results/dimensions.json.

Each run is a process of its own: with one thread, then with as many as the fit takes by itself, on a quiet machine and
beside two processes that never rest. FAISS's training of ``OPQ48,PQ48`` runs once, with one thread, for a minute at
most. A million vectors of 1,536 dimensions are fitted and indexed from a memory map of float16, beside the bare matrix
product of encoding. A saved index of 4,096 dimensions and 384 components is opened from files.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import BLOCK, PAUSE, median_seconds, million, read, seconds_of, write

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats
from faiss_qama.training import FitConfig, fit

N, DIMENSIONS, ROUNDS, BUSY = 10_000, (768, 1536, 3072), 3, 2
FACTORY, LIMIT = "OPQ48,PQ48", 60  # seconds after which FAISS's training is stopped
MANY, WIDTH = 1_000_000, 1536
WIDEST, COMPONENTS, OPENED = 4096, 384, 9
PARTS = ("fits", "load", "million")
SECONDS_OF_FITS = f"""
import json, sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")
x = np.load(sys.argv[1])
if sys.argv[2] == "faiss":
    import faiss
    run = faiss.index_factory(x.shape[1], "{FACTORY}").train
else:
    from faiss_qama.training import fit as run
    run(x[:500])  # what is loaded once
wall, used = time.perf_counter(), time.process_time()
run(x)
print(json.dumps([time.perf_counter() - wall, time.process_time() - used]))
"""
INDEXING = """
import json, sys, time
from faiss_qama.corpus import Corpus
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import fit
corpus, start = Corpus(sys.argv[1]), time.perf_counter()
quantizer = fit(corpus)
fitted = time.perf_counter()
index = build_index(sys.argv[2], quantizer, corpus, IndexSpec(rescore=sys.argv[3]))
done = time.perf_counter()
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"fit": fitted - start, "index": done - fitted, "peak": 1024 * peak}))
"""


def dimensions(data: Path, parts: tuple[str, ...] = PARTS) -> None:
    """Measure ``parts`` on vectors made from the data set folder quora-mpnet in ``data``; others stay as they were."""
    x = np.load(data / "quora-mpnet" / "corpus.npy").astype(np.float32)
    about = {"n": N, "cores": os.cpu_count(), "rounds": ROUNDS, "limit": LIMIT}
    record = read("dimensions") | about
    if "fits" in parts:
        record["rows"] = _fits(x[:N])
    if "load" in parts:
        record["load"] = _load(widened(x[:N], WIDEST))
    if "million" in parts:
        record["many"] = _many(x)
    write("dimensions", record)


def _fits(x: Floats) -> list[dict[str, Any]]:
    """Return the seconds of fits of vectors made from ``x`` (n, 768), by dimension, and of what is beside them."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for d in DIMENSIONS:
            path = f"{folder}/{d}.npy"
            np.save(path, widened(x, d))
            runs = [("fit", 1, 0), ("faiss", 1, 0), ("fit", None, 0), ("fit", None, BUSY)]
            for what, threads, busy in runs:
                with busy_processes(busy):
                    wall, used = _seconds(path, what, threads)
                rows.append({"d": d, "what": what, "threads": threads, "busy": busy, "wall": wall, "processor": used})
                click.echo(str(rows[-1]))
    return rows


def _load(x: Floats) -> dict[str, float]:
    """Return the median seconds of opening an index of ``x``, and the bytes of its quantizer."""
    quantizer = fit(x, config=FitConfig(layout=f"2x{COMPONENTS}"))
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.qama"
        index.save(path)
        seconds = median_seconds(lambda: QamaIndex.load(path, mmap=True), OPENED)
        size = sum(file.stat().st_size for file in path.glob("quantizer*"))
    row = {"d": x.shape[1], "components": COMPONENTS, "seconds": seconds, "quantizer": size}
    click.echo(str(row))
    return row


def _many(x: Floats) -> list[dict[str, Any]]:
    """Return the seconds and the memory of ``MANY`` vectors, and the seconds of encoding's matrix product alone."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path, index = f"{folder}/many.npy", Path(folder) / "many.qama"
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(MANY, WIDTH))
        for start, rows_of_x in zip(range(0, MANY, BLOCK), million(x), strict=True):
            out[start : start + BLOCK] = widened(rows_of_x, WIDTH)
        out.flush()
        matrix, product = np.ascontiguousarray(out[: WIDTH // 2], np.float32), 0.0
        for start in range(0, MANY, BLOCK):
            block = out[start : start + BLOCK].astype(np.float32)
            product += seconds_of(np.matmul, block, matrix.T)
        for rescore in ("codes", "fp16"):
            command = [sys.executable, "-c", INDEXING, path, str(index), rescore]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            size = sum(file.stat().st_size for file in index.iterdir())
            row = json.loads(done.stdout.splitlines()[-1]) | {"rescore": rescore, "product": product, "disk": size}
            rows.append(row)
            click.echo(str(row))
    return rows


def widened(x: Floats, d: int) -> Floats:
    """Return unit vectors (n, d): ``x`` (n, 768) as it is, or a random hidden layer of it where ``d`` is larger.

    Such a layer has a decaying spectrum in all of its dimensions, as embeddings do.
    """
    if d == x.shape[1]:
        return x
    rng = np.random.default_rng(0)
    weights = 6 / np.sqrt(x.shape[1]) * rng.standard_normal((x.shape[1], d), dtype=np.float32)
    y = np.tanh(x @ weights.astype(np.float32) + np.float32(0.3) * rng.standard_normal(d, dtype=np.float32))
    wide: Floats = y / np.linalg.norm(y, axis=1, keepdims=True)
    return wide


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run processes that never rest meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _seconds(path: str, what: str, threads: int | None) -> tuple[float, float]:
    """Return the median wall and processor seconds of a run, at least those where it was stopped."""
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    runs = []
    for _ in range(1 if what == "faiss" else ROUNDS):
        time.sleep(PAUSE)
        command, limit = [sys.executable, "-c", SECONDS_OF_FITS, path, what], LIMIT if what == "faiss" else None
        try:
            done = subprocess.run(
                command, env=os.environ | limits, check=True, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return LIMIT, LIMIT
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    wall, used = (statistics.median(run[i] for run in runs) for i in (0, 1))
    return wall, used
