"""The process that times one checkout for ``side_by_side``: python side_by_side_worker.py FOLDER CHECKOUT.

It imports nothing of the benchmarks, and copes with the names of older checkouts. Each line that it reads, a JSON list
of a timing's name and a number of threads, it answers by a line with the seconds and a checksum of the result.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

import faiss_qama
from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit

K, SCANNED = 10, 100  # neighbours of whole searches and of scans
METRIC = faiss.METRIC_INNER_PRODUCT
Call, Check = Callable[[], Any], Callable[[Any], Any]
SAMPLE, PART = 5000, 20_000  # vectors that searches are fitted on, and that the timed fit and add take
OPTIONS = "--bytes 96 --rescore codes --report report.html"
RESIDUAL_LAYOUT = "2x128+2x224,1x32"
FLAT = (("faiss_qama.hamming.flat", "FlatCodeIndex"), ("faiss_qama.scan", "Scan"))  # names of the scan, newest first


def flat_class() -> Any:
    """Return the class of the scan."""
    for module, name in FLAT:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError:
            continue
    raise ImportError(f"none of {FLAT} is in {faiss_qama.__file__}")


def filled(quantizer: Any, x: Any, rescore: str, base: str) -> QamaIndex:
    """Return an index; ``base`` is ``Flat`` or ``IVF500``, ``Scan`` or ``ScanIVF500`` in older checkouts."""
    try:
        index = QamaIndex(quantizer, rescore, base=base)
    except ValueError:
        index = QamaIndex(quantizer, rescore, base="Scan" + base.removeprefix("Flat"))
    if not index.is_trained:
        index.train(x)
    index.add(x)
    return index


def run(corpus: Path, options: str) -> Any:
    """Run ``faiss-qama fit CORPUS OPTIONS`` in a process and a folder of its own; return its first line, the layout."""
    program = Path(sys.executable).with_name("faiss-qama")
    command = [str(program), "fit", str(corpus), "-o", "index.qama", *options.split()]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return np.frombuffer(done.stdout.splitlines()[0].encode(), np.uint8)


def timings(folder: Path) -> dict[str, tuple[Call, Check]]:
    """Return what can be timed, by name, each with what makes an array of its result that checkouts have in common."""
    x, xq, many = (np.load(folder / f"{name}.npy").astype(np.float32) for name in ("x", "xq", "many"))
    quantizer = fit(x, config=FitConfig(layout="2x192", sample=SAMPLE), metric=METRIC)
    residual = fit(x, config=FitConfig(layout=RESIDUAL_LAYOUT, sample=SAMPLE), metric=METRIC)
    flat, queries = flat_class()(quantizer.layout), quantizer.encode_queries(xq)
    (flat.append if hasattr(flat, "append") else flat.add)(quantizer.encode(many))  # add in older checkouts
    codes, fp16 = (filled(quantizer, x, rescore, "Flat") for rescore in ("codes", "fp16"))
    lists = filled(quantizer, x, "fp16", "IVF500")

    def scan(batch: int, n: int) -> Any:
        found = [flat.search(queries[i : i + batch], SCANNED, None, {})[0] for i in range(0, n, batch)]
        return np.concatenate(found)

    return {
        "scan, 32 queries at a time": (lambda: scan(32, 256), np.asarray),
        "scan, one query at a time": (lambda: scan(1, 32), np.asarray),
        "search, codes": (lambda: codes.search(xq, K, oversample=10)[1], np.asarray),
        "search, fp16": (lambda: fp16.search(xq, K, oversample=10)[1], np.asarray),
        "search, IVF500, nprobe 48": (lambda: lists.search(xq, K, nprobe=48, oversample=8)[1], np.asarray),
        "encode": (lambda: quantizer.encode(x), np.asarray),
        f"add, {RESIDUAL_LAYOUT}": (
            lambda: filled(residual, x[:PART], "codes", "Flat"),
            lambda index: index.search(xq, K, oversample=10)[1],
        ),
        "fit": (lambda: fit(x[:PART], metric=METRIC), lambda fitted: fitted.encode(xq)),
        f"fit million.npy {OPTIONS}": (lambda: run(folder / "million.npy", OPTIONS), np.asarray),
        **{
            f"fit, {path.stem} dimensions": (
                lambda path=path: fit(np.load(path), metric=METRIC),
                lambda fitted, path=path: fitted.encode(np.load(path)[:SCANNED]),
            )
            for path in sorted(folder.glob("[0-9]*.npy"))
        },
    }


def answer(value: Any) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(folder: Path, checkout: Path) -> None:
    """Answer one line after the other."""
    imported = Path(faiss_qama.__file__).resolve().parent.parent
    if imported != checkout:
        raise SystemExit(f"{sys.executable} imports faiss_qama from {imported}, not from {checkout}: install it there")
    known = timings(folder)
    answer(list(known))
    for line in sys.stdin:
        name, threads = json.loads(line)
        call, check = known[name]
        with threadpool_limits(threads):
            if not name.startswith("fit"):  # the others have a run that is not timed first
                call()
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
        answer([seconds, zlib.crc32(np.ascontiguousarray(check(result)).tobytes())])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
