#!/usr/bin/env bash
# langchain-community 0.4.2: adding a text to the FAISS store under an id that is there leaves vectors and texts out of
# step.
#
# VectorStore.add_documents of langchain-core says "add or update". The FAISS store adds the vector, then raises
# ValueError as the id exists, and keeps the vector. The next text gets the row of that vector, so its own vector is
# nobody's, and a search for it raises KeyError.
# Seen: 2 vectors of 1 document after the error; after one more text, KeyError 2 in a search. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    langchain-community==0.4.2 langchain-core==1.8.3 faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import DeterministicFakeEmbedding

store = FAISS.from_texts(["first"], DeterministicFakeEmbedding(size=8), ids=["a"])
try:
    store.add_texts(["first, anew"], ids=["a"])
    raise SystemExit("an id that is there is replaced or refused without an error now")
except ValueError as error:
    print(f"ValueError: {error}; {store.index.ntotal} vectors of {len(store.index_to_docstore_id)} document")
assert store.index.ntotal == 2, "the vector is not added any more"
assert len(store.index_to_docstore_id) == 1
store.add_texts(["second"], ids=["b"])
try:
    store.similarity_search("second", k=1)
    raise SystemExit("the search finds a document now")
except KeyError as error:
    print(f"a search for the second text: KeyError {error}")
PYTHON
