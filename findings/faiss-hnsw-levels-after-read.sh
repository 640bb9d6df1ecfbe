#!/usr/bin/env bash
# FAISS 1.15.1: a graph that was written and read draws the levels of its first vectors again for those added later.
#
# IndexHNSW draws the level of each vector from a generator of its own. write_index does not keep the state of the
# generator, so read_index begins it anew. Seen with 2,000 vectors, then 2,000 more: without a write in between, the
# levels of the second half are others than those of the first half; after a write and a read, all 2,000 are the same
# ones again, in the same order. So a graph that is saved and grows is another one than a graph that grows in memory,
# and what is on the upper levels repeats by the order of adding.
# Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/graph.faiss" <<'PYTHON'
import sys

import faiss
import numpy as np

x = np.random.default_rng(0).standard_normal((4000, 32), dtype=np.float32)
grown = faiss.IndexHNSWFlat(32, 16)
grown.add(x[:2000])
faiss.write_index(grown, sys.argv[1])
read = faiss.read_index(sys.argv[1])
for graph in (grown, read):
    graph.add(x[2000:])
halves = {}
for name, graph in (("in memory", grown), ("written and read", read)):
    levels = faiss.vector_to_array(graph.hnsw.levels)
    halves[name] = int((levels[:2000] == levels[2000:]).sum()), int((levels > 1).sum())
    print(f"faiss {faiss.__version__}, {name}: {halves[name][0]} of 2000 levels are those of the first half again")
assert halves["written and read"][0] == 2000, "the levels are no longer drawn again"
assert halves["in memory"][0] < 2000, "without a write the levels repeat too"
PYTHON
