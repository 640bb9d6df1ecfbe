"""Scores of stored vectors: the compiled loops' are numpy's, of any dimension, memory mapped or not."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex, topk
from faiss_qama.kernels import scoring
from faiss_qama.rescore import rescorer


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("kind", ["sq8", "fp16", "fp32"])
def test_stores_score_alike_without_numba(monkeypatch, metric, kind):
    x, xq = make_vectors(500, seed=91), make_vectors(7, seed=92)
    index = QamaIndex(fit_quietly(x, layout="2x18", metric=metric), kind)
    index.add(x)
    rows = np.random.default_rng(0).integers(0, 500, (7, 30))
    compiled = index.rescorer.scores(xq, rows)
    monkeypatch.setattr(rescorer, "kernel", lambda name: None)
    np.testing.assert_allclose(index.rescorer.scores(xq, rows), compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [1, 7, 16, 33, 384])
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mapped", [False, True])
def test_scores_are_numpys(tmp_path, d, k, dtype, mapped):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, d)).astype(dtype)
    x[:3] = [[0], [6e-8], [65504]]  # also what half precision holds at its ends
    np.save(tmp_path / "x.npy", x)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r") if mapped else x
    queries, rows = rng.standard_normal((4, d)).astype(np.float32), rng.integers(0, 50, (4, k))
    rows[0, 0], rows[1, 0] = 1, 2
    wanted, x = x[rows].astype(np.float64), queries[:, None].astype(np.float64)
    for loop, exact in (
        (scoring.scores(True), (wanted * x).sum(axis=2)),
        (scoring.scores(False), np.square(wanted - x).sum(axis=2)),
    ):
        out = np.empty((4, k), np.float32)
        loop(stored.view(np.uint16) if dtype == np.float16 else stored, rows, queries, out)
        size = np.square(wanted).sum(axis=2) + np.square(x).sum(axis=2)
        assert (np.abs(out - exact) <= 1e-5 * size).all()


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (50, 10), (50, 60), (3, 1), (0, 3)])
def test_the_best_are_those_that_a_stable_sort_puts_first(monkeypatch, larger, dtype, n, k):
    rng = np.random.default_rng(0)
    scores = rng.integers(-4, 4, (9, n)).astype(dtype)  # many are equal
    if dtype == np.float32:
        scores[0], scores[1, ::2], scores[2, 1::2] = np.nan, np.nan, np.inf
    rows = rng.permuted(np.arange(9 * n).reshape(9, n), axis=1)
    found = topk.best(scores, rows, k, larger)
    monkeypatch.setattr(topk, "kernel", lambda name: None)
    for own, wanted in zip(found, topk.best(scores, rows, k, larger), strict=True):
        assert own.dtype == wanted.dtype
        np.testing.assert_array_equal(own, wanted)
