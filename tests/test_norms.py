"""Vectors of other norms than those that the quantizer was fitted on."""

from __future__ import annotations

import warnings

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.index.build import build_index

METRICS = [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2]


def lengthened(x, spread, seed=0):
    return x * (1 + spread * np.random.default_rng(seed).standard_normal((len(x), 1))).astype(np.float32)


def recall(index, x, xq, **options):
    flat = faiss.IndexFlat(x.shape[1], index.metric_type)
    flat.add(x)
    found, truth = index.search(xq, 10, **options)[1], flat.search(xq, 10)[1]
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])


@pytest.mark.parametrize("real_queries", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_norms_that_vary_by_a_tenth_are_told_once_and_found(metric, real_queries):
    x, xq = make_vectors(4000), make_vectors(500, seed=1)
    quantizer = fit_quietly(x, layout="2x24", metric=metric, queries=xq[:300] if real_queries else None)
    index, other = QamaIndex(quantizer, "fp32"), lengthened(x, 0.1)
    message = r"vectors of norm 0\.\d+ to 1\.\d+ are added, .* fitted on vectors of norm 1: .* or scale them"
    with pytest.warns(UserWarning, match=message) as told:
        index.add(other[:2000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(other[2000:])
    assert len(told) == 1
    assert told[0].filename == __file__
    assert recall(index, other, xq[300:], recall=0.95) >= 0.9
    np.testing.assert_array_equal(index.quantizer.encode(x), quantizer.encode(x))


def test_where_norms_vary_a_lot_inner_products_are_found_again():
    """Norms from a half to two, as people add them by mistake: without the turned query side a third is found."""
    x, xq = make_vectors(4000), make_vectors(200, seed=1)
    quantizer = fit_quietly(x, layout="2x24")
    other = x * np.exp(0.3 * np.random.default_rng(0).standard_normal((len(x), 1))).astype(np.float32)
    index = QamaIndex(quantizer, "fp32")
    with pytest.warns(UserWarning, match="vectors of norm"):
        index.add(other)
    turned = recall(index, other, xq, oversample=20)
    index._core.quantizer = quantizer
    assert turned > recall(index, other, xq, oversample=20) + 0.3


@pytest.mark.parametrize("metric", METRICS)
def test_norms_of_the_fit_are_no_news(metric):
    for unit in (True, False):
        x = make_vectors(1000, unit=unit)
        index = QamaIndex(fit_quietly(x, layout="2x18", metric=metric), "fp32")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            index.add(x)
            index.add(x.astype(np.float16))
            index.add(np.zeros((30, x.shape[1]), np.float32))
            if not unit:
                index.add(2.5 * x[:3])  # too few to tell
    with pytest.warns(UserWarning, match=r"fitted on vectors of norm 562 in the mean: .* fit on vectors like these"):
        index.add(3 * x)


def test_a_warning_that_is_an_error_leaves_the_index_as_it_was():
    x = make_vectors(1000)
    index = QamaIndex(fit_quietly(x, layout="2x18"), "codes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="codes re-rank as if norms were 1"):
            index.add(2 * x)
    assert index.ntotal == 0


def test_a_built_and_a_loaded_index_keep_the_turned_query_side(tmp_path):
    x, xq = make_vectors(3000), make_vectors(200, seed=1)
    quantizer, other = fit_quietly(x, layout="2x24"), lengthened(x, 0.3)
    index = QamaIndex(quantizer, "fp32")
    with pytest.warns(UserWarning, match="vectors of norm"):
        index.add(other)
    index.save(tmp_path / "saved")
    with pytest.warns(UserWarning, match="vectors of norm"):
        build_index(tmp_path / "built", quantizer, Corpus(other))
    want = index.search(xq, 10, oversample=10)[1]
    for name in ("saved", "built"):
        found = QamaIndex.load(tmp_path / name).search(xq, 10, oversample=10)[1]
        assert np.mean(found == want) > 0.99  # float16 on one side


@pytest.mark.parametrize("few", [1, 50, 700])
def test_a_few_other_norms_are_told_and_change_no_search(few):
    """Too few to calibrate on, or fewer than there are of norm 1: what was measured by the fit still holds."""
    x, xq = make_vectors(1500), make_vectors(50, seed=1)
    index = QamaIndex(fit_quietly(x, layout="2x18"), "fp32")
    index.add(x)
    before, quantizer = index.search(xq, 10), index.quantizer
    odd = 1.02 * make_vectors(few, seed=2)
    batch = odd if few < 200 else np.concatenate([odd, make_vectors(few, seed=3)])
    with pytest.warns(UserWarning, match=r"vectors of norm .* to 1.02 are added"):
        index.add(batch)
    assert index.quantizer is quantizer
    index.remove_ids(np.arange(1500, index.ntotal))
    np.testing.assert_array_equal(index.search(xq, 10)[1], before[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(odd)  # told once
        index.add(1.3 * make_vectors(600, seed=4))  # most of many: measured anew
    assert index.quantizer.calibration is not quantizer.calibration
    assert index.quantizer.fit_record.query_gain > quantizer.fit_record.query_gain


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_small_calls_end_as_one_large_call(metric, unit, size):
    x, xq = make_vectors(2000, unit=unit), make_vectors(200, seed=1, unit=unit)
    quantizer, other = fit_quietly(x, layout="2x24", metric=metric), lengthened(x, 0.3) if unit else 3 * x
    whole, parts = QamaIndex(quantizer, "fp32"), QamaIndex(quantizer, "fp32")
    with pytest.warns(UserWarning, match="vectors of norm"):
        whole.add(other)
    buffer = np.empty((size, x.shape[1]), np.float32)  # as callers reuse one
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for start in range(0, len(x), size):
            rows = buffer[: len(x) - start]
            rows[:] = other[start : start + size]
            parts.add(rows)
    assert [str(each.message).startswith("vectors of norm") for each in told] == [True]
    assert parts.quantizer.fit_record == whole.quantizer.fit_record
    assert parts.quantizer.calibration.n > 0.4 * len(x)
    for index in (parts, whole):
        assert recall(index, other, xq, recall=0.95) >= 0.94


@pytest.mark.parametrize("unit", [True, False])
def test_small_calls_with_the_norms_of_the_fit_change_nothing_and_keep_nothing(unit):
    x = make_vectors(1000, unit=unit)
    index = QamaIndex(fit_quietly(x, layout="2x18"), "fp32")
    quantizer = index.quantizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(700):
            index.add(x[i : i + 1])
            assert index._core.watch.n < 20
    assert index.quantizer is quantizer


def test_vectors_that_are_refused_change_no_quantizer():
    x = make_vectors(1500)
    index = QamaIndex(fit_quietly(x, layout="2x18"), "fp32")
    index.add(x)
    quantizer = index.quantizer
    with pytest.warns(UserWarning, match="vectors of norm"), pytest.raises(ValueError, match="id 0 is taken"):
        index.add_with_ids(1.5 * x[:500], np.arange(500))
    assert index.quantizer is quantizer
    assert index.ntotal == 1500
