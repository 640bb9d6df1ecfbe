"""What changes of an index on disk cost, beside an OTHER checkout that saves all of it, into docs/results/changes.json.

The index is of a million vectors made from quora's: 2x192, fp16, with ids of its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import BLOCK, K, in_turns, million, read, write

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats
from faiss_qama.corpus import Corpus
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import FitConfig, fit

ADDED, REMOVED, ROUNDS, COMMITS, UPSERTS = 1000, 1000, 5, 20, 100_000
LISTS, NPROBE = "IVF4096", 16
PARTS = ("commit", "remove", "commits", "upserts", "ten million")
# Both checkouts understand these, each in its own format. Arguments: vectors, and a folder or a number of removals.
FILLED = """
import sys, time
import numpy as np
from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit
many = np.load(sys.argv[1], mmap_mode="r")
index = QamaIndex(fit(many[:20_000], config=FitConfig(layout="2x192")), "fp16")
for start in range(0, len(many), 50_000):
    index.add_with_ids(many[start : start + 50_000], np.random.default_rng(start).permutation(50_000) + start)
"""
SAVE = f"""{FILLED}
index.save(sys.argv[2])
index, x, seconds = QamaIndex.load(sys.argv[2]), many[:1000].copy(), []
for i in range(3):
    start = time.perf_counter()
    index.add_with_ids(x, np.arange(len(x)) + 10**9 + i * len(x))
    index.save(sys.argv[2])
    seconds.append(time.perf_counter() - start)
print(sorted(seconds)[1])
"""
REMOVE = f"""{FILLED}
gone = np.random.default_rng(0).permutation(index.ids)[: int(sys.argv[2])]
start = time.perf_counter()
for i in gone:
    index.remove_ids([i])
print((time.perf_counter() - start) / len(gone))
"""
READ = """
import sys, time
import numpy as np
from faiss_qama import QamaIndex
reader, xq, last, refreshes = QamaIndex.load(sys.argv[1], mmap=True), np.load(sys.argv[2]), int(sys.argv[3]), 0
print("ready", flush=True)
while True:
    refreshes += reader.refresh()
    ids = reader.ids
    assert reader.ntotal == len(ids) == len(np.unique(ids))
    done = int(ids.max()) - 10**9 + 1
    assert done % 1000 == 0, done
    D, I = reader.search(xq, 10)
    if done == last:
        break
print(refreshes)
"""
OPEN = """
import sys, time
import numpy as np
from faiss_qama import QamaIndex
xq = np.load(sys.argv[2])[:1]
for _ in range(2):  # the first search of a process loads numba
    start = time.perf_counter()
    QamaIndex.load(sys.argv[1], mmap=True).search(xq, 10)
    print(time.perf_counter() - start, end=" ")
"""
BUILD = """
import sys
from faiss_qama.corpus import Corpus
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import fit
corpus = Corpus(sys.argv[2])
build_index(sys.argv[1], fit(corpus), corpus, IndexSpec(rescore="codes"))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""


def changes(other_python: str, data: Path, parts: tuple[str, ...]) -> None:
    """Measure ``parts`` on vectors made from the data set folder quora in ``data``; others stay as they were."""
    x = Corpus(data / "quora" / "corpus.npy").read()
    xq = np.load(data / "quora" / "queries.npy")[:1000].astype(np.float32)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "xq.npy", xq)
        if set(parts) - {"ten million"}:
            _save_million(x, folder)
        if "commit" in parts:
            record["commit"] = _commit(folder, x[:ADDED], other_python)
        if "remove" in parts:
            record["remove"] = _remove(folder, other_python)
        if "commits" in parts:
            record["commits"] = [_commits(folder, base, xq) for base in ("Flat", LISTS)]
        if "upserts" in parts:
            record["upserts"] = _upserts(folder, x)
        if "ten million" in parts:
            record["ten million"] = _ten_million(folder, x)
    write("changes", read("changes") | record)


def _save_million(x: Floats, folder: Path) -> None:
    """Write the vectors, and an index of them with ids, to ``folder``."""
    out = np.lib.format.open_memmap(folder / "million.npy", mode="w+", dtype=np.float16, shape=(1_000_000, x.shape[1]))
    for start, rows in zip(range(0, len(out), BLOCK), million(x), strict=True):
        out[start : start + BLOCK] = rows
    quantizer = fit(x, config=FitConfig(layout="2x192"))
    index = QamaIndex(quantizer, "fp16")
    for start in range(0, len(out), BLOCK):
        index.add_with_ids(out[start : start + BLOCK], np.random.default_rng(start).permutation(BLOCK) + start)
    index.save(folder / "million.qama")


def _commit(folder: Path, x: Floats, other_python: str) -> dict[str, Any]:
    """Return the seconds and the bytes of a commit of ``x``, and of a save by both checkouts."""
    path, seconds = _copy(folder), []
    with QamaIndex.open(path) as index:
        for i in range(ROUNDS):
            before, start = _written(), time.perf_counter()
            index.add_with_ids(x, np.arange(len(x)) + 10**9 + i * len(x))
            index.commit()
            seconds.append(time.perf_counter() - start)
            written = _written() - before
    theirs = len(x) * (sum(index.bytes_per_vector))
    saves = {}
    for name, python in _both(other_python):
        saves[name] = float(_run(python, SAVE, folder / "million.npy", folder / f"{name}.qama"))
        shutil.rmtree(folder / f"{name}.qama")
    row = {"seconds": statistics.median(seconds), "written": written, "theirs": theirs, "save": saves}
    click.echo(f"commit: {row}")
    return row


def _remove(folder: Path, other_python: str) -> dict[str, Any]:
    """Return the seconds of removing a vector by its id, in memory by both checkouts, and in files."""
    path = _copy(folder)
    with QamaIndex.open(path) as index:
        gone = np.random.default_rng(0).permutation(index.ids)[:REMOVED]
        start = time.perf_counter()
        for i in gone:
            index.remove_ids([i])
        opened = (time.perf_counter() - start) / REMOVED
    memory = float(_run(sys.executable, REMOVE, folder / "million.npy", REMOVED))
    row = {"opened": opened, "memory": memory, "other": float(_run(other_python, REMOVE, folder / "million.npy", 3))}
    click.echo(f"remove: {row}")
    return row


def _commits(folder: Path, base: str, xq: Floats) -> dict[str, Any]:
    """Return the seconds of searches of an index written in one commit and in twenty, in turns."""
    x, one, many = np.load(folder / "million.npy", mmap_mode="r"), folder / "one.qama", folder / "many.qama"
    quantizer = QamaIndex.load(folder / "million.qama", mmap=True).quantizer
    first = len(x) * 4 // 5
    whole = build_index(one, quantizer, Corpus(x[:first]), IndexSpec(base=base, settings=_settings(base)))
    shutil.copytree(one, many)
    del whole
    with QamaIndex.open(one) as index:
        index.add(x[first:])
        index.commit()
        index.compact()
    with QamaIndex.open(many) as index:
        for some in np.array_split(np.arange(first, len(x)), COMMITS):
            index.add(x[some])
            index.commit()
    pair = [QamaIndex.load(path, mmap=True) for path in (one, many)]
    same = all(np.array_equal(a, b) for a, b in zip(*(i.search(xq, K, oversample=10) for i in pair), strict=True))
    seconds = in_turns([xq] * 9, *(lambda xq, i=i: i.search(xq, K, oversample=10) for i in pair))
    row = {"base": base, "commits": COMMITS, "one": seconds[0], "many": seconds[1], "same": same}
    click.echo(f"commits: {row}")
    for path in (one, many):
        shutil.rmtree(path)
    return row


def _upserts(folder: Path, x: Floats) -> dict[str, Any]:
    """Return upserts per second, one vector at a time, with a commit every thousand and a reader beside."""
    path = _copy(folder)
    command = [sys.executable, "-c", READ, str(path), str(folder / "xq.npy"), str(UPSERTS)]
    with QamaIndex.open(path) as index:
        index.upsert(x[:1000], np.arange(1000) + 10**9)
        index.commit()
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        reader.stdout.readline()
        start = time.perf_counter()
        for i in range(1000, UPSERTS):
            index.upsert(x[i % len(x)][None], [10**9 + i])
            if i % 1000 == 999:
                index.commit(compact="auto")
        seconds = time.perf_counter() - start
        held = index.ntotal
    refreshes = int(reader.communicate(timeout=600)[0])
    lost = 1_000_000 + UPSERTS - QamaIndex.load(path).ntotal
    row = {"per_second": (UPSERTS - 1000) / seconds, "refreshes": refreshes, "held": held, "lost": lost}
    row["reader"] = reader.returncode
    click.echo(f"upserts: {row}")
    return row


def _ten_million(folder: Path, x: Floats) -> dict[str, Any]:
    """Return what ten million vectors in shards of float16 take to fit and build, and to open."""
    shards = folder / "shards"
    shards.mkdir()
    for number, rows in enumerate(_in_shards(million(x, 10))):
        np.save(shards / f"shard-{number:02}.npy", rows)
    start = time.perf_counter()
    peak = int(_run(sys.executable, BUILD, folder / "ten.qama", shards))
    built = time.perf_counter() - start
    codes = sum(file.stat().st_size for file in (folder / "ten.qama").glob("codes*"))
    runs = [_run(sys.executable, OPEN, folder / "ten.qama", folder / "xq.npy").split() for _ in range(5)]
    opened, again = (statistics.median(map(float, seconds)) for seconds in zip(*runs, strict=True))
    row = {"seconds": built, "peak": peak, "codes": codes, "opened": opened, "opened again": again}
    click.echo(f"ten million: {row}")
    return row


def _in_shards(blocks: Iterator[Floats]) -> Iterator[Any]:
    """Yield a million vectors at a time."""
    rows = []
    for block in blocks:
        rows.append(block.astype(np.float16))
        if len(rows) == 1_000_000 // BLOCK:
            yield np.concatenate(rows)
            rows = []


def _settings(base: str) -> dict[str, int]:
    return {} if base == "Flat" else {"nprobe": NPROBE}


def _both(other_python: str) -> list[tuple[str, str]]:
    return [("this", sys.executable), ("other", other_python)]


def _copy(folder: Path) -> Path:
    """Return a fresh copy of the index."""
    path = folder / "copy.qama"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / "million.qama", path)
    return path


def _run(python: str, program: str, *arguments: Any) -> str:
    command = [python, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def _written() -> int:
    """Return the bytes that this process has written so far."""
    return int(
        next(line.split()[1] for line in Path(f"/proc/{os.getpid()}/io").read_text().splitlines() if "wchar" in line)
    )
