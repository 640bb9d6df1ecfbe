"""What searches that stop early read and find, into docs/results/reads.json.

Quantizers are fitted without queries, so that documents with noise calibrate. On a million vectors whose file is out of
the page cache each read is one from the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import METRIC, SETS, WIDE_SETS, K, million, write

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats, Ids
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import exact
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import FitConfig, fit

QUERIES, COLD_QUERIES, ROUNDS = 1000, 200, 3
RECALLS, LOW = (0.95, 0.99), 0.9  # that are asked, and a query's recall that is low
CONFIG = FitConfig(layout="2x192")
BASE, NPROBE = "IVF4096", 64
# Loads an index whose vectors are not in the page cache, searches once, and prints the seconds.
COLD = """
import sys, time
import numpy as np
from faiss_qama import QamaIndex
folder, stop, recall, nprobe = sys.argv[1], sys.argv[2] == "True", float(sys.argv[3]), int(sys.argv[4])
xq = np.load(folder + "/q.npy")
index = QamaIndex.load(folder + "/i.qama", mmap=True)
index.early_stop, index.nprobe = stop, nprobe
index.with_rescore("codes").search(xq, 10, nprobe=nprobe)  # codes and numba are there, as in a process that serves
start = time.perf_counter()
I = index.search(xq, 10, recall=recall)[1]
np.save(folder + "/found.npy", I)
print(time.perf_counter() - start)
"""


def reads(data: Path) -> None:
    """Measure the data sets in ``data``, and a million vectors made from quora's."""
    rows: list[dict[str, Any]] = []
    for name in (*SETS, *WIDE_SETS):
        dataset = Dataset.load(data / name)
        dataset = replace(dataset, queries=dataset.queries[:QUERIES], qrels=None)
        x = dataset.corpus.read()
        index = QamaIndex(fit(x, config=CONFIG, metric=METRIC), "fp16")
        index.add(x)
        near = exact(dataset, K, METRIC).I
        for recall in RECALLS:
            for stop in (False, True):
                index.early_stop = stop
                found, read = _counted(index, dataset.queries, recall)
                rows.append({"set": name, "asked": recall, "stops": stop, "read": read} | _quality(found, near))
                click.echo(str(rows[-1]))
    write("reads", {"rows": rows, "cold": cold(data / SETS[-1])})


def cold(folder: Path) -> list[dict[str, Any]]:
    """Time searches of a million vectors that are read from the disk."""
    dataset = Dataset.load(folder)
    vectors = np.concatenate(list(million(dataset.corpus.read())))
    dataset = replace(dataset, corpus=Corpus(vectors), queries=dataset.queries[:COLD_QUERIES], qrels=None)
    near, rows = exact(dataset, K, METRIC).I, []
    with tempfile.TemporaryDirectory() as scratch:
        build_index(
            f"{scratch}/i.qama", fit(vectors, config=CONFIG, metric=METRIC), Corpus(vectors), IndexSpec(base=BASE)
        )
        np.save(f"{scratch}/q.npy", dataset.queries)
        del vectors
        for recall in RECALLS:
            taken: dict[bool, list[float]] = {False: [], True: []}
            qualities = {}
            for stop in [*taken] * ROUNDS:
                for path in Path(f"{scratch}/i.qama").glob("vectors*"):
                    _drop_from_cache(path)
                command = [sys.executable, "-c", COLD, scratch, str(stop), str(recall), str(NPROBE)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
                taken[stop].append(float(done.stdout))
                qualities[stop] = _quality(np.load(f"{scratch}/found.npy"), near)
            for stop, seconds in taken.items():
                row = {"asked": recall, "stops": stop, "per_second": COLD_QUERIES / float(np.median(seconds))}
                rows.append(row | qualities[stop])
                click.echo(str(rows[-1]))
    return rows


def _counted(index: QamaIndex, xq: Floats, recall: float) -> tuple[Ids, float]:
    """Return the ids that a search finds, and the vectors that it reads per query."""
    rescorer: Any = index._fitted.rescorer
    count, scores = [0], rescorer.scores

    def counted(xq: Floats, rows: Ids) -> Floats:
        count[0] += rows.size
        own: Floats = scores(xq, rows)
        return own

    rescorer.scores = counted
    found = index.search(xq, K, recall=recall)[1]
    del rescorer.scores
    return found, count[0] / len(xq)


def _quality(found: Ids, near: Ids) -> dict[str, float]:
    """Return the mean recall@10, and the share of queries whose recall is low."""
    recalls = (near[:, :, None] == found[:, None]).any(axis=2).mean(axis=1)
    return {"recall": float(recalls.mean()), "low": float(np.mean(recalls < LOW - 1e-9))}


def _drop_from_cache(path: Path) -> None:
    """Have the system forget a file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
