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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import PAUSE, ROOT, million, write

from faiss_qama.arrays import Floats
from faiss_qama.evaluation.datasets import Dataset

WORKER = Path(__file__).with_name("side_by_side_worker.py")
BLOCKS = 5  # of the vectors that are scanned, a quarter of a million
QUERIES = 1000
ROUNDS = {"import faiss_qama": 15, "fit": 4, "add": 5}  # by how names begin; of the others:
MOST_ROUNDS = 21
IMPORT = "import time; start = time.perf_counter(); import faiss_qama; print(time.perf_counter() - start)"


class Checkout:
    """A checkout of this project, and the process that times it.

    Parameters
    ----------
    root : Path
        Its folder.
    python : str
        A Python that imports faiss_qama from there.
    folder : Path
        What :func:`save_vectors` wrote to.
    """

    def __init__(self, root: Path, python: str, folder: Path) -> None:
        self.root, self.python = root, python
        command = [python, str(WORKER), str(folder), str(root)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> Any:
        """Return the next line that the process writes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"the process of {self.root} ended")
        return json.loads(line)

    def time(self, name: str, threads: int) -> tuple[float, int]:
        """Return the seconds of a timing, and a checksum of its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, threads]) + "\n")
        self.process.stdin.flush()
        seconds, checksum = self.answer()
        return seconds, checksum

    def time_import(self) -> tuple[float, int]:
        """Return the seconds that the import takes in a new process, and no checksum."""
        done = subprocess.run([self.python, "-c", IMPORT], cwd="/", check=True, capture_output=True, text=True)
        return float(done.stdout), 0

    def commit(self) -> str:
        """Return the commit, with a plus sign where files differ from it."""
        git = ["git", "-C", str(self.root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True, text=True).stdout
        return head + "+" * bool(changed)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def side_by_side(other: Path, python: str, data: Path, parts: tuple[str, ...] = ()) -> None:
    """Time this checkout and another one.

    Parameters
    ----------
    other : Path
        The other checkout.
    python : str
        Its Python.
    data : Path
        Data set folders, quora among them.
    parts : tuple of str
        Only timings whose names begin like one of these; all if there are none.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        n = save_vectors(Dataset.load(data / "quora"), Path(folder))
        pair = []
        for root, its_python in ((ROOT, sys.executable), (other, python)):
            pair.append(Checkout(root, its_python, Path(folder)))
            stack.callback(pair[-1].close)
            names = pair[-1].answer()  # once it is ready
        rows = []
        for name in ["import faiss_qama", *names]:
            for threads in (1, os.cpu_count() or 1):
                if (not parts or name.startswith(parts)) and (threads > 1 or name.startswith(("scan", "search"))):
                    rows.append(_row(pair, name, threads))
                    click.echo(_text(rows[-1]))
        commits = dict(zip(("this", "other"), (one.commit() for one in pair), strict=True))
    seconds = time.perf_counter() - start
    write("side-by-side", {"commits": commits, "cores": os.cpu_count(), "n": n, "took": seconds, "rows": rows})


def save_vectors(dataset: Dataset, folder: Path) -> dict[str, int]:
    """Save documents, queries and a quarter of a million vectors made from the documents, and return their numbers."""
    x = dataset.corpus.read()
    blocks = million(x)
    vectors: dict[str, Floats] = {"x": x, "xq": dataset.queries[:QUERIES]}
    vectors["many"] = np.concatenate([next(blocks) for _ in range(BLOCKS)])
    for name, rows in vectors.items():
        np.save(folder / f"{name}.npy", rows.astype(np.float16))
    return {name: len(rows) for name, rows in vectors.items()}


def _row(pair: list[Checkout], name: str, threads: int) -> dict[str, Any]:
    """Time both checkouts in turns, and return medians of seconds and of the ratios, with the quartiles of these."""
    rounds = next((n for start, n in ROUNDS.items() if name.startswith(start)), MOST_ROUNDS)
    seconds, checksums = np.empty((rounds, 2)), set()
    for i in range(rounds):
        for j in (0, 1) if i % 2 else (1, 0):
            time.sleep(PAUSE)  # in which idle threads of the one before go to sleep
            one = pair[j]
            seconds[i, j], checksum = one.time_import() if name.startswith("import") else one.time(name, threads)
            checksums.add(checksum)
    low, ratio, high = np.quantile(seconds[:, 0] / seconds[:, 1], (0.25, 0.5, 0.75))
    this, other = np.median(seconds, axis=0).tolist()
    row = {"name": name, "threads": threads, "rounds": rounds, "seconds": {"this": this, "other": other}}
    return row | {"ratio": ratio, "quartiles": [low, high], "same_result": len(checksums) == 1}


def _text(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    this, other = (1000 * row["seconds"][side] for side in ("this", "other"))
    same = "" if row["same_result"] else ", other results"
    ratio = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
    return f"{row['name']}, {row['threads']} threads: {this:.2f} ms, other {other:.2f} ms, ratio {ratio}{same}"
