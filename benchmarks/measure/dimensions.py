"""Times of a default fit at 768 to 3,072 dimensions, into docs/results/dimensions.json.

Each run is a process of its own. This checkout, another one if it is given, and FAISS's training of ``OPQ48,PQ48`` take
turns: with one thread, then with as many as each takes by itself, on a quiet machine and beside two processes that
never rest.
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
from common import PAUSE, ROOT, write

from faiss_qama.arrays import Floats

N, DIMENSIONS, ROUNDS, BUSY = 10_000, (768, 1536, 3072), 3, 2
FACTORY = "OPQ48,PQ48"
RUN = f"""
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


def dimensions(data: Path, other: Path | None) -> None:
    """Time fits.

    Parameters
    ----------
    data : Path
        Data set folders, quora-mpnet among them.
    other : Path or None
        Another checkout, which has its own ``.venv``.
    """
    x = np.load(data / "quora-mpnet" / "corpus.npy", mmap_mode="r")[:N].astype(np.float32)
    pythons = {"this": sys.executable, "faiss": sys.executable}
    if other is not None:
        pythons["other"] = str(other / ".venv/bin/python")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for d in DIMENSIONS:
            np.save(f"{folder}/{d}.npy", widened(x, d))
            for threads, busy in ((1, 0), (None, 0), (None, BUSY)):
                with busy_processes(busy):
                    rows += _in_turns(f"{folder}/{d}.npy", pythons, {"d": d, "threads": threads, "busy": busy})
    commits = {"this": _commit(ROOT)} | ({} if other is None else {"other": _commit(other)})
    write("dimensions", {"n": N, "cores": os.cpu_count(), "rounds": ROUNDS, "commits": commits, "rows": rows})


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


def _in_turns(path: str, pythons: dict[str, str], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the median wall and processor seconds of each; FAISS's training runs once, with one thread."""
    what = [name for name in pythons if name != "faiss" or about["threads"] == 1]
    seconds: dict[str, list[list[float]]] = {name: [] for name in what}
    threads = {} if about["threads"] is None else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for i in range(ROUNDS):
        for name in what:
            if name != "faiss" or i == 0:
                time.sleep(PAUSE)
                command = [pythons[name], "-c", RUN, path, name]
                done = subprocess.run(
                    command, cwd="/", env=os.environ | threads, check=True, capture_output=True, text=True
                )
                seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for name, runs in seconds.items():
        wall, used = (statistics.median(run[i] for run in runs) for i in (0, 1))
        rows.append({**about, "what": name, "wall": wall, "processor": used})
        click.echo(str(rows[-1]))
    return rows


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
