"""Time and memory of the command ``faiss-qama fit``, and the rate of encoding, into docs/results/scale.json."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import BLOCK, MILLION, million, seconds_of, write

from faiss_qama.corpus import Corpus
from faiss_qama.training import FitConfig, fit

# Vectors, and options of `faiss-qama fit`.
COMMANDS = [
    ("quora", ""),
    ("million", ""),
    ("million", "--recall 0.95"),
    ("million", "--bytes 96 --rescore codes --report report.html"),
]
PROGRAM = """
import sys
from faiss_qama.cli.app import cli
cli(sys.argv[1:], standalone_mode=False)
print('peak', [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])
"""


def scale(folder: Path) -> None:
    """Time the command on quora, and on a million vectors made from it; and the rate of encoding."""
    record: dict[str, Any] = {}
    x = Corpus(folder / "corpus.npy").read()
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "quora.npy").symlink_to((folder / "corpus.npy").resolve())
        _save_million(x, Path(work) / "million.npy")
        record["commands"] = [_command(Path(work), name, options) for name, options in COMMANDS]
    quantizer = fit(x, config=FitConfig(layout="2x192"))
    record["encoding_per_second"] = len(x) / float(np.median([seconds_of(quantizer.encode, x) for _ in range(7)]))
    write("scale", record)


def _command(work: Path, name: str, options: str) -> dict[str, Any]:
    """Run ``faiss-qama fit NAME.npy OPTIONS`` in a process of its own."""
    command = ["fit", f"{name}.npy", *options.split()]
    done: list[subprocess.CompletedProcess[str]] = []
    program = [sys.executable, "-c", PROGRAM, *command]
    seconds = seconds_of(
        lambda: done.append(subprocess.run(program, cwd=work, check=True, capture_output=True, text=True))
    )
    *output, peak = done[0].stdout.splitlines()
    click.echo(done[0].stdout)
    return {
        "command": " ".join(["faiss-qama", *command]),
        "vectors": len(np.load(work / f"{name}.npy", mmap_mode="r")),
        "seconds": seconds,
        "peak_bytes": 1024 * int(peak.split()[-1]),
        "index_bytes": sum(file.stat().st_size for file in (work / f"{name}.qama").iterdir()),
        "output": output,
    }


def _save_million(x: Any, path: Path) -> None:
    """Save the :func:`million` vectors that are made from ``x``."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(MILLION, x.shape[1]))
    for start, rows in zip(range(0, MILLION, BLOCK), million(x), strict=True):
        out[start : start + BLOCK] = rows
    out.flush()
