"""Kill a process at random moments while it changes an index on disk: ``python tests/kills.py 1000``.

After each kill the index must hold what the last commit that returned left, or the one that was under way.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex

POOL = make_vectors(400, seed=31)
KINDS = (("Flat", "fp16", "2x18"), ("IVF4", "codes", "2x18+2x18"), ("BHNSW4", "sq8", "2x18"))
IDS = 60  # ids that come and go
LONGEST = 0.05  # seconds until a kill, from the start or from the first commit


def change(index: QamaIndex | None, held: dict[int, int], step: int) -> None:
    """Make the changes of a step, to an index and to the rows of ``POOL`` by id."""
    rng = np.random.default_rng(step)
    ids, rows = rng.choice(IDS, 9, replace=False), rng.integers(0, len(POOL), 9)
    if index is not None:
        index.upsert(POOL[rows[:6]], ids[:6])
        index.remove_ids(ids[6:])
        index.compact() if step % 5 == 4 else index.commit()
    held |= dict(zip(ids[:6].tolist(), rows[:6].tolist(), strict=True))
    for i in ids[6:].tolist():
        held.pop(i, None)


def holds(path: Path, held: dict[int, int]) -> bool:
    """Return whether the index, whose checksums are verified, holds these vectors and no others."""
    index = QamaIndex.load(path)
    if set(index.ids.tolist()) != set(held):
        return False
    want = POOL[list(held.values())]
    if index.rescore == "codes":
        want = index.quantizer.encode_decode(want)
    return np.allclose(index.reconstruct_batch(list(held)), want, atol=2e-2)


def kill(path: Path, first: int, seconds: float, *, working: bool) -> int:
    """Return the last step that a process committed, from ``first`` on, before it was killed.

    It lived for some ``seconds``, counted from the first commit if it was ``working``.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with QamaIndex.open(path) as index:
                held: dict[int, int] = {}
                for step in range(first, first + 1000):
                    change(index, held, step)
                    os.write(writing, b".")
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as file:
        done = len(file.read(1)) if working else 0
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # else it ended by an error of its own
        return first - 1 + done + len(file.readall())


def kills(number: int, kind: tuple[str, str, str], folder: Path) -> int:
    """Kill ``number`` times, and return how many steps were committed. Raises AssertionError for a lost or torn one."""
    base, rescore, layout = kind
    path, rng = folder / "i.qama", np.random.default_rng(number)
    index = QamaIndex(fit_quietly(make_vectors(500), layout=layout), rescore, base=base)
    index.train(POOL)
    index.add_with_ids(POOL[:IDS], np.arange(IDS))
    index.save(path)
    faiss.omp_set_num_threads(1)
    held, step = {i: i for i in range(IDS)}, 0
    for _ in range(number):
        last = kill(path, step, LONGEST * rng.random(), working=rng.random() < 0.8)
        while step <= last:
            change(None, held, step)
            step += 1
        if not holds(path, held):  # the commit that was under way
            change(None, held, step)
            step += 1
            assert holds(path, held), f"{kind}: step {step - 1} is lost or torn"
    return step


if __name__ == "__main__":
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            asked = int(sys.argv[1]) // len(KINDS) + 1
            done = kills(asked, kind, Path(folder))
            sys.stdout.write(f"{' '.join(kind)}: {asked} kills, {done} commits, none lost, none torn\n")
