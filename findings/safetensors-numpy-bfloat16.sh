#!/usr/bin/env bash
# safetensors 0.8.0: whether a bfloat16 tensor can be read into numpy depends on what was imported before.
#
# bfloat16 is a type of the format. load_file and safe_open of safetensors.numpy, which ask numpy for the type "bfloat16",
# raise TypeError("data type 'bfloat16' not understood") for a valid file, and the error names neither the file nor the
# remedy: import ml_dtypes, which teaches numpy that name. Seen: three ways to read fail before that import and work after
# it. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import struct

import safetensors
import safetensors.numpy

header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
with open("corpus.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header + bytes(8))


def outcomes() -> list[str]:
    """Return what three ways to read the tensor give."""
    ways = {
        "load_file": lambda: safetensors.numpy.load_file("corpus.safetensors")["x"],
        "get_tensor": lambda: safetensors.safe_open("corpus.safetensors", "numpy").get_tensor("x"),
        "get_slice": lambda: safetensors.safe_open("corpus.safetensors", "numpy").get_slice("x")[:],
    }
    found = []
    for name, read in ways.items():
        try:
            found.append(f"{name}: {read().dtype}")
        except TypeError as error:
            found.append(f"{name}: {error}")
    return found


before = outcomes()
import ml_dtypes  # noqa: E402, F401

after = outcomes()
print(f"safetensors {safetensors.__version__}\nbefore: {before}\nafter import ml_dtypes: {after}")
assert all("not understood" in outcome for outcome in before), "bfloat16 is read without ml_dtypes"
assert all(outcome.endswith(": bfloat16") for outcome in after), "importing ml_dtypes no longer helps"
PYTHON
