#!/usr/bin/env bash
# FAISS 1.15.1: an exhaustive search of 300 queries takes longer than one of 400.
#
# IndexFlat compares queries with vectors by a matrix product only from a threshold on, and one by one below it. The
# threshold is faiss.cvar.distance_compute_blas_threshold: 128,000, a bound on queries times dimensions. 300 queries of
# 384 dimensions are below it, 400 are above. Seen with one thread and 20,000 vectors: 300 queries in 0.399 s, 400 in
# 0.079 s; with the threshold at 300 x 384, 300 queries in 0.088 s. A benchmark with few queries measures the slow way.
# Passes while that is so: at 300 x 384 + 1 the 300 queries take more than twice as long as at 300 x 384.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import time

import faiss
import numpy as np

rng = np.random.default_rng(0)
x, xq = (rng.standard_normal((n, 384), dtype=np.float32) for n in (20_000, 400))
index = faiss.IndexFlatIP(384)
index.add(x)
faiss.omp_set_num_threads(1)


def seconds(n: int) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        index.search(xq[:n], 10)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


default = faiss.cvar.distance_compute_blas_threshold
few, more = seconds(300), seconds(400)
faiss.cvar.distance_compute_blas_threshold = 300 * 384
at = seconds(300)
faiss.cvar.distance_compute_blas_threshold = 300 * 384 + 1
above = seconds(300)
print(f"faiss {faiss.__version__}, threshold {default}: 300 queries {few:.3f} s, 400 queries {more:.3f} s")
print(f"300 queries with the threshold at 300 x 384: {at:.3f} s, one higher: {above:.3f} s")
assert default == 128_000, "the default threshold has changed"
assert few > more, "300 queries no longer take longer than 400"
assert above > 2 * at, "the threshold no longer bounds queries times dimensions"
PYTHON
