"""One contract for every layout, second stage and metric; the oracle is faiss.IndexFlat."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import faiss
import numpy as np
import pytest
from conftest import LAYOUTS, D, fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit

RESCORE_KINDS = ("none", "codes", "fp16", "fp32")
ALL = float(10**6)  # an oversample that makes candidates of everything


@pytest.fixture(params=RESCORE_KINDS)
def store(request):
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def fitted(request, case):
    x, xq, metric = case
    return fit_quietly(x, layout=request.param, metric=metric), x, xq


def filled(quantizer, store, x):
    index = QamaIndex(quantizer, store)
    index.add(x[:400])
    index.add(x[400:401])
    index.add(x[401:])
    return index


def oracle(x, metric):
    index = faiss.IndexFlat(x.shape[1], metric)
    index.add(x)
    return index


def assert_same_neighbours(found, wanted, atol):
    """Same scores; same ids wherever the scores are further apart than rounding."""
    (D1, I1), (D2, I2) = found, wanted
    np.testing.assert_allclose(D1, D2, rtol=1e-4, atol=atol)
    differ = I1 != I2
    assert (np.abs(D1 - D2)[differ] <= atol).all()
    assert differ.mean() < 0.02


def test_shape_dtype_and_order(fitted, store):
    quantizer, x, xq = fitted
    index = filled(quantizer, store, x)
    assert (index.d, index.ntotal, index.is_trained, index.metric_type) == (D, len(x), True, quantizer.metric)
    scores, ids = index.search(xq, 7)
    assert scores.shape == ids.shape == (len(xq), 7)
    assert ids.dtype == np.int64
    assert scores.dtype == (np.int32 if store == "none" else np.float32)
    ascending = store == "none" or quantizer.metric == faiss.METRIC_L2
    steps = np.diff(scores.astype(np.float64), axis=1)
    assert (steps >= 0).all() if ascending else (steps <= 0).all()
    assert all(len(set(row)) == 7 for row in ids.tolist())


def test_hamming_stage_is_brute_force(fitted):
    quantizer, x, xq = fitted
    scores, ids = filled(quantizer, "none", x).search(xq, 9)
    all_pairs = np.bitwise_count(quantizer.encode_queries(xq)[:, None] ^ quantizer.encode(x)[None]).sum(2, dtype=int)
    np.testing.assert_array_equal(scores, np.sort(all_pairs, axis=1)[:, :9])
    np.testing.assert_array_equal(np.take_along_axis(all_pairs, ids, axis=1), scores)


@pytest.mark.parametrize("kind", ["fp16", "fp32"])
def test_rescoring_everything_is_exact_search(fitted, kind):
    quantizer, x, xq = fitted
    found = filled(quantizer, kind, x).search(xq, 10, oversample=ALL)
    size = float(np.abs(x).max()) * float(np.abs(xq).max()) * D
    if kind == "fp16":  # exact search over what float16 keeps
        scale = np.float32(2.0 ** round(np.log2(quantizer.rms_norm)))
        x = (x / scale).astype(np.float16).astype(np.float32) * scale
    assert_same_neighbours(found, oracle(x, quantizer.metric).search(xq, 10), atol=1e-6 * size)


def test_rescoring_everything_from_codes_is_exact_search_over_decoded_vectors(fitted):
    quantizer, x, xq = fitted
    decoded = quantizer.decode(quantizer.encode(x))
    found = filled(quantizer, "codes", x).search(xq, 10, oversample=ALL)
    scores, _ = oracle(decoded, quantizer.metric).search(xq, 10)
    atol = 3e-6 * float(np.abs(x).max()) * float(np.abs(xq).max()) * D
    np.testing.assert_allclose(found[0], scores, rtol=1e-4, atol=atol)
    # Equal codes decode alike, so ids are only as sure as the scores they stand for.
    if quantizer.metric == faiss.METRIC_INNER_PRODUCT:
        own = np.einsum("qkd,qd->qk", decoded[found[1]], xq)
    else:
        own = np.square(decoded[found[1]] - xq[:, None]).sum(axis=2)
    np.testing.assert_allclose(own, scores, rtol=1e-4, atol=atol)


def test_k_beyond_ntotal_and_empty_index_are_padded_as_faiss(case, store):
    x, xq, metric = case
    quantizer = fit_quietly(x, layout="2x18", metric=metric)
    for n in (0, 1, 3):
        index = QamaIndex(quantizer, store)
        stock = faiss.IndexBinaryFlat(quantizer.code_size * 8) if store == "none" else faiss.IndexFlat(D, metric)
        if n:
            index.add(x[:n])
            stock.add(quantizer.encode(x[:n]) if store == "none" else x[:n])
        scores, ids = index.search(xq[:2], 5)
        want, want_ids = stock.search(quantizer.encode_queries(xq[:2]) if store == "none" else xq[:2], 5)
        assert scores.dtype == want.dtype
        np.testing.assert_array_equal(scores[:, n:], want[:, n:])
        np.testing.assert_array_equal(ids[:, n:], want_ids[:, n:])
        assert [sorted(row) for row in ids[:, :n].tolist()] == [list(range(n))] * 2


def test_refused_input_changes_nothing(corpus, store):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18")), store)
    index.add(corpus)
    before = index.search(corpus[:5], 3)
    nan = corpus[:10].copy()
    nan[7, 0] = np.nan
    for bad, error, message in [
        (nan, ValueError, "row 7"),
        (corpus[:, :10], ValueError, "dimension 10, but 36"),
        (corpus[0], ValueError, "reshape"),
        (corpus[:0], ValueError, "no vectors"),
        (corpus.astype(int), TypeError, "int64"),
    ]:
        with pytest.raises(error, match=message):
            index.add(bad)
        with pytest.raises(error, match=message):
            index.search(bad, 3)
    assert index.ntotal == len(corpus)
    for a, b in zip(before, index.search(corpus[:5], 3), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"k": -3}, "k must be at least 1; got -3"),
        ({"k": 5, "oversample": 0.5}, "oversample must be at least 1; got 0.5"),
        ({"k": 5, "oversample": float("nan")}, "oversample must be at least 1; got nan"),
        ({"k": 5, "oversample": 2, "recall": 0.9}, "not both"),
        ({"k": 5, "recall": 1.5}, "between 0 and 1; got 1.5"),
        ({"k": 5, "recall": 0.0}, "between 0 and 1; got 0.0"),
    ],
)
def test_wrong_search_settings_are_refused(corpus, options, message):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18")))
    index.add(corpus)
    with pytest.raises(ValueError, match=message):
        index.search(corpus[:2], **options)


def test_settings_that_mean_nothing_are_refused(corpus):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    with pytest.raises(ValueError, match="no second stage"):
        QamaIndex(quantizer, "none").search(corpus[:2], 3, recall=0.9)
    with pytest.raises(ValueError, match="needs a calibration"):
        QamaIndex(dataclasses.replace(quantizer, calibration=None)).search(corpus[:2], 3, recall=0.9)
    with pytest.raises(ValueError, match="rescore must be one of none, codes, sq8, fp16, fp32, or vectors; got 'fp8'"):
        QamaIndex(quantizer, "fp8")
    with pytest.raises(TypeError, match="float"):
        QamaIndex(quantizer).search(corpus[:2], 3.0)


def test_more_candidates_find_more(corpus, queries):
    index = QamaIndex(fit_quietly(corpus, layout="1x12"), "fp32")
    index.add(corpus)
    truth = oracle(corpus, faiss.METRIC_INNER_PRODUCT).search(queries, 10)[1]
    found = [
        np.mean([len(set(a) & set(b)) for a, b in zip(index.search(queries, 10, oversample=o)[1], truth, strict=True)])
        for o in (1, 3, 10, 30)
    ]
    assert found == sorted(found)
    assert found[0] < 8
    assert found[-1] > 9.5


def test_float16_of_any_length_and_its_end():
    x = make_vectors(500, unit=False) * np.float32(1e6)
    quantizer = fit(x, metric=faiss.METRIC_L2)
    index = QamaIndex(quantizer, "fp16")
    index.add(x)
    assert (index.search(x[:50], 1, oversample=ALL)[1][:, 0] == np.arange(50)).all()
    with pytest.raises(ValueError, match="row 1 holds 1e\\+20; float16 here ends at .*use rescore='fp32'"):
        index.add(np.stack([x[0], np.full(D, 1e20, np.float32)]))
    assert index.ntotal == 500
    index.add(np.concatenate([x[:300], np.zeros((5, D), np.float32), np.ones((2, D), np.float32)]))  # a few are fine
    with pytest.warns(UserWarning, match=r"3 of 5 vectors hold nothing above 3.27e\+04, .*use rescore='fp32'"):
        index.add(np.concatenate([x[:1], np.zeros((1, D), np.float32), np.ones((3, D), np.float32)]))


def test_duplicates_and_zero_vectors(store):
    x = np.repeat(make_vectors(4), 250, axis=0)
    x[:10] = 0
    index = QamaIndex(fit(x, config=FitConfig(layout="2x18")), store)
    index.add(x)
    scores, ids = index.search(x[::100], 20)
    assert np.isfinite(scores).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())


def test_bytes_are_those_in_memory(corpus):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    sizes = {store: QamaIndex(quantizer, store).bytes_per_vector for store in RESCORE_KINDS}
    assert sizes == {"none": (8, 0), "codes": (8, 0), "fp16": (8, 2 * D), "fp32": (8, 4 * D)}


def test_importing_the_package_loads_no_torch():
    program = "import sys, faiss_qama, faiss_qama.training, faiss_qama.cli.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
