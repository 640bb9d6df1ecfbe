#!/usr/bin/env bash
# pyarrow 26.0.1: reading one column of a memory-mapped Arrow file copies all columns; reading all of them copies none.
#
# A record batch of an uncompressed Arrow (Feather) file that is memory-mapped is a view of the file: nothing is
# allocated. With IpcReadOptions(included_fields=[i]), which asks for fewer columns, the body of the whole batch is read
# into memory instead, the columns that were left out too. Seen with a batch of 40 MB, 32 MB of it in the one column: 0
# bytes allocated for both columns, 40,000,000 for the one. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc

n, d = 1_000_000, 8
column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(n * d, np.float32)), d)
table = pa.table({"id": np.arange(n), "embedding": column})
pyarrow.feather.write_feather(table, "corpus.arrow", "uncompressed", chunksize=n)


def allocated(fields: list[int] | None) -> int:
    """Return the bytes that reading the batch allocates."""
    with pa.memory_map("corpus.arrow") as file:
        before = pa.total_allocated_bytes()
        batch = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields)).get_batch(0)
        assert len(batch) == n
        return pa.total_allocated_bytes() - before


both, one = allocated(None), allocated([1])
print(f"pyarrow {pa.__version__}: {both:,} bytes for both columns, {one:,} for the one of {4 * n * d:,} bytes")
assert both == 0, "a memory-mapped batch is no longer a view"
assert one >= 8 * n + 4 * n * d, "one column no longer takes the bytes of all"
PYTHON
