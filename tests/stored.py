"""A small index in a folder, for the tests of what changes it there."""

from __future__ import annotations

import numpy as np
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex

X = make_vectors(1200, seed=41)
QUERIES = make_vectors(20, seed=42)
QUANTIZER = fit_quietly(X, layout="2x18")


def saved(path, n=500, rescore="fp16", base="Flat", *, ids=True, quantizer=QUANTIZER):
    index = QamaIndex(quantizer, rescore, base=base)
    index.train(X)
    index.add_with_ids(X[:n], np.arange(n)) if ids else index.add(X[:n])
    index.save(path)
    return index


def same(a, b, k=10, **options):
    for one, other in zip(a.search(QUERIES, k, **options), b.search(QUERIES, k, **options), strict=True):
        np.testing.assert_array_equal(one, other)
