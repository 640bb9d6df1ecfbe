#!/usr/bin/env bash
# langchain-community 0.4.2: the FAISS store forgets the conditions that stand beside $or, $and or $not in a filter.
#
# {"even": True, "$or": [{"number": 1}, {"number": 2}]} finds number 1 too, which is not even. The dict of two fields
# {"even": True, "number": [1, 2]} finds number 2 alone, so entries of one dict are otherwise joined by "and".
# Seen: [1, 2] and [2]. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    langchain-community==0.4.2 langchain-core==1.8.3 faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import DeterministicFakeEmbedding

metadatas = [{"number": i, "even": i % 2 == 0} for i in range(6)]
store = FAISS.from_texts([f"text {i}" for i in range(6)], DeterministicFakeEmbedding(size=8), metadatas)


def found(filter: dict) -> list[int]:
    return sorted(d.metadata["number"] for d in store.similarity_search("text", k=6, filter=filter))


beside, fields = found({"even": True, "$or": [{"number": 1}, {"number": 2}]}), found({"even": True, "number": [1, 2]})
print(f"beside $or: {beside}, as two fields: {fields}")
assert fields == [2], "two fields are no longer joined by and"
assert beside == [1, 2], "the condition beside $or is heeded now"
PYTHON
