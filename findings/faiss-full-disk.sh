#!/usr/bin/env bash
# FAISS 1.15.1: faiss.write_index reports success on a full disk, and the file lacks its end.
#
# The last bytes wait in the buffer of the C library until the file is closed, and FAISS prints an error of fclose
# without raising it. Here a limit on the size of files, 100 bytes below what the index takes, stands in for the disk.
# Seen for IndexFlatL2 and IndexBinaryFlat: write_index and write_index_binary return, the file is 100 bytes short, and
# reading it fails. Through faiss.PyCallbackIOWriter and a file of Python the same limit raises OSError.
# Passes while both functions return and leave a file that FAISS cannot read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import resource
import signal

import faiss
import numpy as np

rng = np.random.default_rng(0)
floats = faiss.IndexFlatL2(32)
floats.add(rng.standard_normal((100, 32), dtype=np.float32))
binary = faiss.IndexBinaryFlat(256)
binary.add(rng.integers(0, 256, (100, 32), dtype=np.uint8))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for index, write, read in (
    (floats, faiss.write_index, faiss.read_index),
    (binary, faiss.write_index_binary, faiss.read_index_binary),
):
    name = type(index).__name__
    write(index, "whole")
    size = os.path.getsize("whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, resource.RLIM_INFINITY))
    write(index, "short")  # raises nothing
    short = os.path.getsize("short")
    try:
        with open("raised", "wb") as file:
            write(index, faiss.PyCallbackIOWriter(file.write))
        raised = None
    except OSError as error:
        raised = error
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        read("short")
        reads = True
    except RuntimeError:
        reads = False
    print(f"faiss {faiss.__version__}, {name}: {size} bytes, {short} written without an error, can be read: {reads}")
    print(f"through PyCallbackIOWriter: {raised}")
    assert short < size, "the whole file was written"
    assert not reads, "the short file can be read"
    assert raised is not None, "a callback raises nothing either"
PYTHON
