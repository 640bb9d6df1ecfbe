#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile.iter_batches holds a whole row group in memory, however small the batches are.
#
# iter_batches(batch_size) yields batches of that many rows, but first it reads the columns of the whole row group. Only
# buffer_size= and pre_buffer=False together keep it from that; either of them alone changes nothing. write_table puts
# 1,048,576 rows into a row group, so that a row group of 384-d float32 vectors is 1.6 GB. Seen with 200,000 vectors of
# 256 dimensions, in batches of 1,000 rows, as a share of their 205 MB: a peak of 1.03 by default, with buffer_size=1 << 20
# and with pre_buffer=False, and of .04 with both. Passes while the first three are above .9 and the last is below .1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
cat >peak.py <<'PYTHON'
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq

with pq.ParquetFile("corpus.parquet", **json.loads(sys.argv[1])) as file:
    for batch in file.iter_batches(1000):
        assert len(batch) == 1000
print(pa.default_memory_pool().max_memory())
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

x = np.random.default_rng(0).standard_normal((200_000, 256), dtype=np.float32)
column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
pq.write_table(pa.table({"embedding": column}), "corpus.parquet")
shares = []
for options in ({}, {"buffer_size": 1 << 20}, {"pre_buffer": False}, {"buffer_size": 1 << 20, "pre_buffer": False}):
    done = subprocess.run([sys.executable, "peak.py", json.dumps(options)], capture_output=True, text=True, check=True)
    shares.append(int(done.stdout) / x.nbytes)
    print(f"pyarrow {pa.__version__}, {options}: a peak of {shares[-1]:.3f} of the vectors")
assert min(shares[:3]) > 0.9, "iter_batches no longer holds the row group"
assert shares[3] < 0.1, "buffer_size and pre_buffer=False no longer keep iter_batches from holding the row group"
PYTHON
