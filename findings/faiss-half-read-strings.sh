#!/usr/bin/env bash
# FAISS 1.15.1: index_binary_factory reads a number and skips what follows, so a misspelt part is left out in silence.
#
# "BIVF16_HSNW8" (HNSW misspelt) makes inverted lists with a flat quantizer, "BHNSW16,RFlat" a graph that does not
# re-rank. The strings are read by sscanf. index_factory, for float vectors, refuses the same mistakes, except for a comma
# at the end of a graph: "HNSW16," makes HNSW16. FAISS's own test of the factory asks for "BIVF1024_BHNSW32", and gets a
# flat quantizer. Seen: BIVF16_HSNW8 -> IndexBinaryIVF over IndexBinaryFlat. Passes while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss


def made(text: str) -> tuple[str, str]:
    index = faiss.index_binary_factory(64, text)
    inner = faiss.downcast_IndexBinary(index.quantizer) if isinstance(index, faiss.IndexBinaryIVF) else None
    return type(index).__name__, type(inner).__name__


lists, graph = ("IndexBinaryIVF", "IndexBinaryFlat"), ("IndexBinaryHNSW", "NoneType")
assert made("BIVF16_HNSW8") == ("IndexBinaryIVF", "IndexBinaryHNSW")
for text, want in {
    "BIVF16_HSNW8": lists,
    "BIVF1024_BHNSW32": lists,
    "BIVF16x": lists,
    "BHNSW16,RFlat": graph,
    "BHNSW16_anything": graph,
}.items():
    print(f"faiss {faiss.__version__}: {text} -> {' over '.join(made(text))}")
    assert made(text) == want, "the rest of the string is no longer skipped"
for text in ("IVF16_HSNW8,Flat", "HNSW16,RFlatx", "HNSW16_anything"):
    try:
        faiss.index_factory(64, text)
        raise SystemExit(f"{text} is no longer refused")
    except RuntimeError:
        print(f"{text}: refused")
assert type(faiss.index_factory(64, "HNSW16,")).__name__ == "IndexHNSWFlat"
PYTHON
