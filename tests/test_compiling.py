"""What is compiled is kept, or a warning says that it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

COUNT = """
import tempfile
import numpy as np
from numba.core import event
from faiss_qama.kernels import kernel

class Compilations(event.Listener):
    number = 0

    def on_start(self, event):
        self.number += 1

    def on_end(self, event):
        pass

compilations = Compilations()
event.register("numba:compile", compilations)
"""
ENCODE = """
def no_file(*arguments, **options):
    raise PermissionError("read-only")

if {read_only}:
    tempfile.TemporaryFile = no_file  # with which numba finds out
out = np.zeros((2, 2), np.uint8)
for rows in (2, 1):
    kernel("encoding").encode(
        np.ones((rows, 16), np.float32), np.zeros((1, 16), np.float32), np.array([[0, 16, 1, 0]]), out[:rows]
    )
assert (out == 255).all()
print(compilations.number)
"""
SEARCH = """
from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit

x = np.random.default_rng(3).standard_normal((500, 24))
for metric in (0, 1):
    quantizer = fit(x, config=FitConfig(layout="2x20"), metric=metric)
    for base in ("Flat", "IVF8"):
        for rescore in ("fp16", "fp32", "sq8", "codes", "none"):
            index = QamaIndex(quantizer, rescore, base=base)
            index.train(x)
            index.add(x)
            index.save("index")
            for mmap in (True, False):
                again = QamaIndex.load("index", mmap=mmap)
                again.search(x[:7], 5)
                again.search(x[:1], 5, sel=np.arange(9))
                again.reconstruct(3)
            again.remove_ids([3])
            again.search(x[:1], 1000)
print(compilations.number)
"""


def python(*arguments, cwd, check=0, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == check, done.stderr
    return done


@pytest.fixture
def nowhere(tmp_path, request):
    """Variables for a process whose package, home and cache cannot be written, not even by root."""
    root, file = request.config.rootpath, tmp_path / "file"
    file.touch()
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "faiss_qama", tmp_path / "faiss_qama", ignore=without)
    shutil.copytree(root / "training", tmp_path / "faiss_qama" / "training", ignore=without)
    (tmp_path / "faiss_qama" / "kernels" / "__pycache__").touch()
    names = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")
    return {**dict.fromkeys(names, file / "cache"), "PYTHONPATH": tmp_path, "PYTHONDONTWRITEBYTECODE": 1}


def test_a_process_without_a_cache_compiles_and_says_so_once(tmp_path, nowhere):
    for _ in range(2):
        done = python("-c", COUNT + ENCODE.format(read_only=False), cwd=tmp_path, **nowhere)
        assert int(done.stdout) > 0
        assert done.stderr.count("UserWarning") == 1
        assert "which takes some 10 seconds" in done.stderr
        assert "set NUMBA_CACHE_DIR to a folder that can, or that faiss-qama warmup has filled" in done.stderr


def test_a_cache_that_is_read_only_is_read(tmp_path):
    counts = []
    for read_only in (True, False, True):
        done = python("-c", COUNT + ENCODE.format(read_only=read_only), cwd=tmp_path, NUMBA_CACHE_DIR=tmp_path / "kept")
        counts.append(int(done.stdout))
        assert done.stderr.count("NUMBA_CACHE_DIR") == (len(counts) == 1)
    assert counts[0] == counts[1] > 0 == counts[2]


def test_warmup_leaves_nothing_to_compile(tmp_path):
    done = python("-m", "faiss_qama", "warmup", "2x20", cwd=tmp_path, NUMBA_CACHE_DIR=tmp_path / "kept")
    assert done.stdout.splitlines()[-1].startswith(f"wrote {tmp_path / 'kept'}")
    assert done.stderr == ""
    assert python("-c", COUNT + SEARCH, cwd=tmp_path, NUMBA_CACHE_DIR=tmp_path / "kept").stdout == "0\n"


def test_warmup_of_a_cache_that_cannot_be_written_is_an_error(tmp_path, nowhere):
    done = python("-m", "faiss_qama", "warmup", cwd=tmp_path, check=2, **nowhere)
    assert done.stderr.startswith(f"error: {tmp_path / 'file' / 'cache'}")
    assert done.stderr.endswith("cannot be written: set NUMBA_CACHE_DIR to a folder that can\n")
    wrong = python("-m", "faiss_qama", "warmup", "2x", cwd=tmp_path, check=2)
    assert wrong.stderr.startswith("error: layout '2x' is not BITSxCOMPONENTS")


HALVES = """
import numpy as np
from faiss_qama.kernels import kernel

halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
halves = halves[np.isfinite(halves)][:, None]
rows, out = np.arange(len(halves))[None], np.empty((1, len(halves)), np.float32)
kernel("scoring").scores(True)(halves.view(np.uint16), rows, np.ones((1, 1), np.float32), out)
assert np.array_equal(out[0], halves[:, 0].astype(np.float32))
"""


@pytest.mark.parametrize("processor", ["generic", ""])
def test_each_half_precision_number_is_itself_on_any_processor(tmp_path, processor):
    """Those of virtual machines may lack the instructions, and LLVM's own replacement ends the process."""
    chosen = {"NUMBA_CPU_NAME": processor} if processor else {}
    python("-c", HALVES, cwd=tmp_path, NUMBA_CACHE_DIR=tmp_path / "kept", **chosen)
