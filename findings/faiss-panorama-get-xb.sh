#!/usr/bin/env bash
# FAISS 1.15.1: get_xb() of an IndexFlatL2Panorama or IndexFlatIPPanorama does not point to vectors row by row.
#
# Both are subclasses of IndexFlat, and isinstance says so. But they keep batches of vectors level by level: the first
# components of all vectors of a batch, then the next ones. Code that reads any IndexFlat in place, through get_xb() or
# codes, gets mixed vectors without an error. reconstruct and reconstruct_n are right. Seen with 1,000 vectors of 64
# dimensions in 8 levels: 0 rows of get_xb() are those that were added. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np


x = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
for index in (faiss.IndexFlatL2(64), faiss.IndexFlatL2Panorama(64, 8), faiss.IndexFlatIPPanorama(64, 8)):
    index.add(x)
    in_place = faiss.rev_swig_ptr(index.get_xb(), x.size).reshape(x.shape)
    right = int((in_place == x).all(axis=1).sum())
    print(f"faiss {faiss.__version__}, {type(index).__name__}: {right} of {len(x)} rows of get_xb() are right")
    assert isinstance(index, faiss.IndexFlat)
    np.testing.assert_array_equal(index.reconstruct_n(0, len(x)), x)
    assert right == (0 if "Panorama" in type(index).__name__ else len(x)), "the layout has changed"
PYTHON
