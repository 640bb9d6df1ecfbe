"""Times of two checkouts of this project side by side, into docs/results/side-by-side.json.

Each checkout has a process of its own, with its own Python. The two take turns, timing by timing, so that whatever else
the machine does falls on both. Imports are timed in new processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import PAUSE, ROOT, million, read, write

from faiss_qama.evaluation.datasets import Dataset
from measure.dimensions import DIMENSIONS, N, widened

WORKER = Path(__file__).with_name("side_by_side_worker.py")
BLOCKS, QUERIES = 5, 1000  # a quarter of a million vectors are scanned
ROUNDS, ROUNDS_OF_FIT, ROUNDS_OF_LONG = 15, 5, 3
LONG = ("fit million", "fit, ")  # how names of timings of a minute begin
IMPORT = "import faiss_qama"
IN_NEW_PROCESS = f"import time; start = time.perf_counter(); {IMPORT}; print(time.perf_counter() - start)"


class Checkout:
    """A checkout of this project at ``root``, and the process of ``python`` that times it on vectors in ``folder``."""

    def __init__(self, root: Path, python: str, folder: str) -> None:
        self.root, self.python = root, python
        command = [python, str(WORKER), folder, str(root)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self, question: Any = None) -> Any:
        """Return the next line of the process, after a question or, without one, once it is ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if question is not None:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"the process of {self.root} ended")
        return json.loads(line)

    def time(self, name: str, threads: int) -> tuple[float, int]:
        """Return the seconds of a timing, and a checksum of its result."""
        if name == IMPORT:
            return float(_output([self.python, "-c", IN_NEW_PROCESS])), 0
        seconds, checksum = self.answer([name, threads])
        return seconds, checksum

    @property
    def commit(self) -> str:
        """The commit, with ``-dirty`` where files differ from it."""
        return _output(["git", "-C", str(self.root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"])


def side_by_side(other: Path, python: str, data: Path, parts: tuple[str, ...] = ()) -> None:
    """Time this checkout and another one.

    Parameters
    ----------
    other : Path
        The other checkout.
    python : str
        A Python that imports faiss_qama from there.
    data : Path
        Data set folders, quora among them.
    parts : tuple of str
        Only timings whose names begin like one of these, all if there are none; others stay as they were measured.
    """
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.load(data / "quora")
        x, blocks = dataset.corpus.read(), million(dataset.corpus.read())
        many = np.concatenate([next(blocks) for _ in range(BLOCKS)])
        for name, vectors in (("x", x), ("xq", dataset.queries[:QUERIES]), ("many", many)):
            np.save(f"{folder}/{name}.npy", vectors.astype(np.float16))
        np.save(f"{folder}/million.npy", np.concatenate([many, *blocks]))
        mpnet = np.load(data / "quora-mpnet" / "corpus.npy")[:N].astype(np.float32)
        for d in DIMENSIONS:
            np.save(f"{folder}/{d}.npy", widened(mpnet, d))
        pair = [Checkout(ROOT, sys.executable, folder), Checkout(other, python, folder)]
        try:
            names, _ = [one.answer() for one in pair]
            for name in [IMPORT, *names]:
                for threads in _threads(name):
                    if name.startswith(parts or ""):
                        rows.append(_row(pair, name, threads))
                        click.echo(_text(rows[-1]))
        finally:
            for one in pair:
                one.process.kill()
                one.process.communicate()
    commits = {"this": pair[0].commit, "other": pair[1].commit}
    rows = [row | {"commits": commits} for row in rows]
    new = {row["name"] for row in rows}
    kept = [row for row in read("side-by-side").get("rows", []) if row["name"] not in new]
    about = {"cores": os.cpu_count(), "n": len(x), "scanned": len(many)}
    write("side-by-side", about | {"took": time.perf_counter() - start, "rows": kept + rows})


def _threads(name: str) -> tuple[int, ...]:
    """Return the numbers of threads to time with."""
    cores = os.cpu_count() or 1
    return (1, cores) if name.startswith(("scan", "search")) else (1 if name.startswith("fit, ") else cores,)


def _row(pair: list[Checkout], name: str, threads: int) -> dict[str, Any]:
    """Time both checkouts in turns, and return medians of seconds and of ratios, with the quartiles of ratios."""
    rounds = ROUNDS_OF_LONG if name.startswith(LONG) else ROUNDS_OF_FIT if name.startswith("fit") else ROUNDS
    seconds, checksums = np.empty((rounds, 2)), set()
    for i in range(rounds):
        for j in (0, 1) if i % 2 else (1, 0):
            time.sleep(PAUSE)  # in which idle threads of the one before go to sleep
            seconds[i, j], checksum = pair[j].time(name, threads)
            checksums.add(checksum)
    low, ratio, high = np.quantile(seconds[:, 0] / seconds[:, 1], (0.25, 0.5, 0.75))
    this, other = np.median(seconds, axis=0)
    row = {"name": name, "threads": threads, "rounds": rounds, "seconds": {"this": this, "other": other}}
    return row | {"ratio": ratio, "quartiles": [low, high], "same_result": len(checksums) == 1}


def _text(row: dict[str, Any]) -> str:
    this, other = (1000 * row["seconds"][side] for side in ("this", "other"))
    ratio = "{:.3f} ({:.3f} to {:.3f})".format(row["ratio"], *row["quartiles"])
    same = "" if row["same_result"] else ", other results"
    return f"{row['name']}, {row['threads']} threads: {this:.2f} ms, other {other:.2f} ms, ratio {ratio}{same}"


def _output(command: list[str]) -> str:
    """Return what a command writes, run where no checkout lies in the way of an import."""
    return subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout.strip()
