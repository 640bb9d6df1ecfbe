#!/usr/bin/env bash
# pyarrow 26.0.1: flatten() of a column of vectors leaves out null rows, and every row after one moves up.
#
# A column of embeddings becomes a matrix by column.flatten().to_numpy().reshape(-1, d). Where a row is null, flatten()
# leaves its values out, also those that a fixed-size list keeps in memory for it. The reshape succeeds, as the length is
# a multiple of d, and row i of the matrix is no longer row i of the table: ids are wrong from there on, silently. values
# keeps the rows of a fixed-size list, but it ignores where a slice begins, and for lists of any size it drops them too.
# Seen: rows 0, null, 2 become a matrix of the rows 0 and 2. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pyarrow as pa
import pyarrow.parquet as pq

rows = [[0.0, 0.0], None, [2.0, 2.0]]
for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2)):
    pq.write_table(pa.table({"embedding": pa.array(rows, kind)}), "corpus.parquet")
    column = pq.read_table("corpus.parquet")["embedding"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    matrix = column.flatten().to_numpy().reshape(-1, 2)
    print(f"pyarrow {pa.__version__}, {kind}: {len(column)} rows in the column, {len(matrix)} in the matrix: {matrix.tolist()}")
    assert len(column) == 3, "the column has lost a row"
    assert matrix.tolist() == [[0.0, 0.0], [2.0, 2.0]], "flatten() no longer leaves null rows out"
sliced = pa.array(rows, pa.list_(pa.float32(), 2)).slice(2)
print(f"values of the last row alone: {len(sliced.values)} numbers")
assert len(sliced.values) == 6, "values no longer ignores where a slice begins"
PYTHON
