#!/usr/bin/env bash
# numpy 2.4.6: np.linalg.eigh and np.linalg.svd of float32 work in float64, and round the result.
#
# So float32 saves no time, while a float32 product takes half of that of float64. scipy 1.17.1 calls LAPACK's routines
# for float32. Seen: of the covariance of 4,000 vectors of 256 dimensions numpy's eigenvalues, and its singular values,
# are those of the same matrix in float64, rounded, to the last bit, while those of scipy differ in most places. A PCA
# or an ITQ rotation of large embeddings spends its time there.
# Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import scipy.linalg

x = np.random.default_rng(0).standard_normal((4000, 256), dtype=np.float32)
x *= np.float32(0.98) ** np.arange(256, dtype=np.float32)
matrix = x.T @ x
assert matrix.dtype == np.float32
for name, ours, theirs in (
    ("eigh", lambda a: np.linalg.eigh(a)[0], lambda a: scipy.linalg.eigh(a)[0]),
    ("svd", lambda a: np.linalg.svd(a)[1], lambda a: scipy.linalg.svd(a)[1]),
):
    double = ours(matrix.astype(np.float64)).astype(np.float32)
    same = {library: float((f(matrix) == double).mean()) for library, f in (("numpy", ours), ("scipy", theirs))}
    print(f"{name}: share of values that are the float64 result, rounded: {same}")
    assert ours(matrix).dtype == theirs(matrix).dtype == np.float32
    assert same["numpy"] == 1, f"numpy's {name} of float32 is no longer rounded from float64"
    assert same["scipy"] < 0.5, f"scipy's {name} of float32 is no longer in float32"
PYTHON
