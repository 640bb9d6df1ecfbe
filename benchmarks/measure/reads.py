"""What searches that stop early read and find, into docs/results/reads.json.

Quantizers are fitted without queries, so that documents with noise calibrate. On a million vectors whose file is
dropped from the page cache before each few queries, reads are from the disk.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import METRIC, SETS, WIDE_SETS, K, million, write

from faiss_qama import QamaIndex, growing
from faiss_qama.arrays import Floats, Ids
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import exact
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import FitConfig, fit

QUERIES = 1000
RECALLS, LOW = (0.95, 0.99), 0.9  # that are asked, and a query's recall that is low
CONFIG = FitConfig(layout="2x192")
BASE, NPROBE = "IVF4096", 64
COLD, AT_ONCE = 200, 5  # queries on the disk, and so many after each other from what is read for them


def reads(data: Path) -> None:
    """Measure the data sets in ``data``."""
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
    write("reads", {"rows": rows, "cold": cold(data / SETS[2])})


def cold(folder: Path) -> list[dict[str, Any]]:
    """Time searches of a million vectors that are read from the disk, with and without stopping in turns.

    Memory is taken to be smaller than the file, as it would be where that matters.
    """
    growing._memory = lambda: 0.0
    dataset = Dataset.load(folder)
    x, xq = np.concatenate(list(million(dataset.corpus.read()))), dataset.queries[: 2 * COLD]
    near = exact(replace(dataset, corpus=Corpus(x), queries=xq[:COLD], qrels=None), K, METRIC).I
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        quantizer = fit(x, config=CONFIG, metric=METRIC)
        index = build_index(f"{scratch}/i.qama", quantizer, Corpus(x), IndexSpec(base=BASE))
        index.nprobe = NPROBE
        for recall in RECALLS:
            seconds: dict[bool, list[float]] = {False: [], True: []}
            found: dict[bool, list[Ids]] = {False: [], True: []}
            for stop in (False, True):  # codes and compiled loops are in memory, as in a process that serves
                index.early_stop = stop
                index.search(xq[COLD:], K, recall=recall)
            for start in range(0, COLD, AT_ONCE):
                for index.early_stop in (False, True):
                    _forget(index)
                    began = time.perf_counter()
                    I = index.search(xq[start : start + AT_ONCE], K, recall=recall)[1]
                    seconds[bool(index.early_stop)].append((time.perf_counter() - began) / AT_ONCE)
                    found[bool(index.early_stop)].append(I)
            for stop, own in seconds.items():
                row = {"asked": recall, "stops": stop, "milliseconds": 1000 * float(np.median(own))}
                rows.append(row | _quality(np.concatenate(found[stop]), near))
                click.echo(str(rows[-1]))
        del index  # Windows removes no mapped files
    return rows


def _forget(index: QamaIndex) -> None:
    """Have the process and the system forget the pages of an index' vectors."""
    rows: Any = index._fitted.rescorer.rows
    rows._mmap.madvise(mmap.MADV_DONTNEED)
    with open(rows.filename, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
