"""What a command or a save writes is there in full or not at all, and replaces nothing but files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.storage import atomic_files

resource = pytest.importorskip("resource")  # Windows has no limits on the size of files
X = make_vectors(2000)
BASES = ("Flat", "IVF16", "BFlat", "BIVF16", "BHNSW8", "BHash6")
COMMAND = "import sys, faiss_qama.cli.app as c; c.main()"


@pytest.fixture(scope="module")
def quantizer():
    return fit_quietly(X, layout="2x18")


def filled(quantizer, rescore="none", base="Flat"):
    index = QamaIndex(quantizer, rescore, base=base)
    index.train(X)
    index.add(X)
    return index


@pytest.fixture
def full_disk():
    """A function that limits the size of files: past it writing fails, as on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_a_disk_that_is_full_at_the_end_loses_no_index(quantizer, tmp_path, full_disk, base, missing):
    index, path = filled(quantizer, base=base), tmp_path / "i.qama"
    index.save(path)
    before = content(path)
    largest = max(map(len, before.values()))
    full_disk(largest - missing)
    with pytest.raises(OSError, match="File too large"):
        index.save(path)
    assert content(path) == before
    assert QamaIndex.load(path).ntotal == len(X)


@pytest.mark.parametrize("missing", [1, 100, 5000])
@pytest.mark.parametrize("kind", ["hamming", "binary", "fastscan"])
def test_a_full_disk_loses_no_export(quantizer, tmp_path, full_disk, kind, missing):
    stock, path = filled(quantizer).to_faiss(kind), tmp_path / "x.faiss"
    with atomic_files.replacing(path) as part:
        atomic_files.write_faiss(part, stock)
    before = content(tmp_path)
    full_disk(len(before["x.faiss"]) - missing)
    with pytest.raises(OSError, match="File too large: '.*/x.faiss'"), atomic_files.replacing(path) as part:
        atomic_files.write_faiss(part, stock)
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["hamming", "binary"])
def test_what_is_written_is_what_faiss_writes(quantizer, tmp_path, kind):
    stock = filled(quantizer).to_faiss(kind)
    atomic_files.write_faiss(tmp_path / "ours", stock)
    write = faiss.write_index_binary if kind == "binary" else faiss.write_index
    write(stock, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_full_disk_is_told_of_the_file_that_was_asked_for(quantizer, tmp_path):
    filled(quantizer).save(tmp_path / "i.qama")
    (tmp_path / "x.faiss").write_bytes(b"mine")
    limited = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n{COMMAND}"
    )
    done = run("export", "i.qama", "x.faiss", cwd=tmp_path, program=limited)
    assert done.stderr == b"error: x.faiss: File too large\n"
    assert (tmp_path / "x.faiss").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.qama", "x.faiss"]


def run(*arguments, cwd, program=COMMAND):
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=60, check=False)
    assert done.returncode == (2 if done.stderr else 0), done.stderr
    return done


class TestPlaces:
    """Every output goes through ``replacing``; commands check with ``check_writable`` before they compute."""

    @pytest.mark.parametrize("write", [atomic_files.check_writable, lambda path: atomic_files.write_text(path, "new")])
    def test_only_files_are_replaced(self, tmp_path, write):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("pipe")
        (tmp_path / "loop").symlink_to("loop")
        for name in ("pipe", "link", "loop"):
            with pytest.raises(FileExistsError, match=f"{name}: a device, a pipe or the like is in the way; name a"):
                write(tmp_path / name)
        with pytest.raises(IsADirectoryError, match="folder: a folder is in the way"):
            write(tmp_path / "folder")
        assert (tmp_path / "pipe").is_fifo()
        assert (tmp_path / "link").is_symlink()
        assert len(list(tmp_path.iterdir())) == 4

    def test_an_open_pipe_is_no_file(self):
        reading, writing = os.pipe()
        with pytest.raises(FileExistsError, match=f"/dev/fd/{writing}: a device, a pipe"):
            atomic_files.write_text(f"/dev/fd/{writing}", "new")
        os.close(reading)
        os.close(writing)

    def test_a_link_stays_and_its_file_is_replaced(self, tmp_path):
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "file").write_text("old")
        (tmp_path / "link").symlink_to("far/file")
        (tmp_path / "new link").symlink_to("far/new")
        for name in ("link", "new link"):
            atomic_files.write_text(tmp_path / name, "new")
            assert (tmp_path / name).is_symlink()
            assert (tmp_path / name).read_text() == "new"
        assert sorted(content(tmp_path / "far")) == ["file", "new"]
        with pytest.raises(ValueError, match="link: the same command reads or writes this already"):
            atomic_files.check_writable(tmp_path / "link", [tmp_path / "far" / "file"])

    def test_commands_leave_what_is_no_file(self, quantizer, tmp_path):
        filled(quantizer).save(tmp_path / "i.qama")
        np.save(tmp_path / "x.npy", X)
        os.mkfifo(tmp_path / "pipe.npz")
        for command in (
            "export i.qama pipe.npz",
            "search i.qama x.npy -o pipe.npz",
            "eval i.qama x.npy --corpus x.npy --json pipe.npz",
        ):
            done = run(*command.split(), cwd=tmp_path)
            assert done.stderr == b"error: pipe.npz: a device, a pipe or the like is in the way; name a file\n"
        assert (tmp_path / "pipe.npz").is_fifo()
