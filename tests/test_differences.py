"""Each row of "Differences from FAISS" in docs/operations.md: what FAISS does, and what an index here does."""

from __future__ import annotations

import re
from pathlib import Path

import faiss
import numpy as np
import pytest

from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit

PAGE = Path(__file__).parents[1] / "docs/operations.md"
ROWS = PAGE.read_text(encoding="utf-8").split("## Differences from FAISS")[1].split("\n## ")[0]
X = np.random.default_rng(0).standard_normal((400, 16), dtype=np.float32)
CODES = np.random.default_rng(1).integers(0, 256, (400, 8), np.uint8)
CHECKED = {}


@pytest.fixture(scope="module")
def quantizer():
    return fit(X, config=FitConfig(layout="2x16"))


@pytest.fixture
def ours(quantizer):
    index = QamaIndex(quantizer, "fp32", base="BIVF4")
    index.train(X)
    index.add(X)
    return index


@pytest.fixture
def theirs():
    """FAISS's flat index under re-ranking, and its binary lists."""
    lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(64), 64, 4)
    lists.train(CODES)
    lists.add(CODES)
    refined = faiss.IndexRefineFlat(faiss.IndexFlatL2(16))
    refined.add(X)
    return refined, lists


def row(begin):
    """Mark a test as that of the row that begins so."""

    def mark(test):
        CHECKED[begin] = test
        return test

    return mark


def test_every_row_is_tested_here():
    rows = re.findall(r"^\| ([^-|].*?) \|", ROWS, re.M)
    assert [begin for begin in rows if not any(begin.startswith(known) for known in CHECKED)] == []
    assert len(CHECKED) == len(rows) == 16


@row("order of a `range_search`")
def test_order_of_a_range_search(ours):
    flat = faiss.IndexFlatIP(16)
    flat.add(X)
    (_, D, _), (_, ours_D, _) = (index.range_search(X[:1], 1.0) for index in (flat, ours))
    assert not (np.diff(D) <= 0).all()
    assert (np.diff(ours_D) <= 0).all()
    assert len(D) == len(ours_D)


@row("`reconstruct` of an unknown id")
def test_reconstruct_of_an_unknown_id(ours, theirs):
    with pytest.raises(RuntimeError):
        theirs[0].reconstruct(400)
    with pytest.raises(IndexError, match="400"):
        ours.reconstruct(400)


@row("no queries, shape (0, d)")
def test_no_queries(ours, theirs):
    assert theirs[1].search(CODES[:0], 3)[0].shape == (0, 3)
    with pytest.raises(ValueError, match=r"\(0, 16\)"):
        ours.search(X[:0], 3)


@row("k below 1")
def test_k_below_1(ours, theirs):
    with pytest.raises(AssertionError):
        theirs[1].search(CODES[:1], 0)
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        ours.search(X[:1], 0)


@row("vectors of integers")
def test_vectors_of_integers(ours, theirs):
    theirs[0].add(np.ones((1, 16), np.int64))
    with pytest.raises(TypeError, match="int64"):
        ours.add(np.ones((1, 16), np.int64))


@row("metrics")
def test_metrics():
    faiss.IndexFlat(16, faiss.METRIC_L1)
    with pytest.raises(ValueError, match="metric"):
        fit(X, metric=faiss.METRIC_L1)


@row("`D=`, `I=`, `labels=`")
def test_arrays_for_the_answer(ours, theirs):
    D, I = np.empty((1, 3), np.float32), np.empty((1, 3), np.int64)
    assert theirs[0].search(X[:1], 3, D=D, I=I)[1] is I
    for name, array in {"D": D, "I": I, "labels": I}.items():
        with pytest.raises(ValueError, match=name):
            ours.search(X[:1], 3, **{name: array})


@row("setting `is_trained`")
def test_setting_is_trained(ours, theirs):
    theirs[1].is_trained = True
    with pytest.raises(AttributeError, match="is_trained"):
        ours.is_trained = True


@row("setting `k_factor`")
def test_setting_k_factor(ours, theirs):
    theirs[0].k_factor = 8
    with pytest.raises(AttributeError, match="oversample="):
        ours.k_factor = 8
    theirs[0].search(X[:1], 3, params=faiss.IndexRefineSearchParameters(k_factor=8))
    D, I = ours.search(X[:9], 3, params=faiss.IndexRefineSearchParameters(k_factor=8))
    np.testing.assert_array_equal(I, ours.search(X[:9], 3, oversample=8)[1])


@row("setting `nflip`, `use_heap` and others")
def test_setting_what_the_base_has(ours, theirs):
    theirs[1].use_heap = False
    with pytest.raises(AttributeError, match="base_index"):
        ours.use_heap = False
    ours.base_index.use_heap = False
    with pytest.raises(AttributeError, match="base_index"):
        ours.nflip = 1


@row("`base_index_params`")
def test_parameters_of_the_base(ours, theirs):
    params = faiss.IndexRefineSearchParameters(k_factor=2, base_index_params=faiss.SearchParameters())
    theirs[0].search(X[:1], 3, params=params)
    with pytest.raises(ValueError, match="base_index_params"):
        ours.search(X[:1], 3, params=params)


@row("`max_codes`, `quantizer_params`, `bounded_queue` and others")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("max_codes", faiss.SearchParametersIVF(nprobe=2, max_codes=10)),
        ("quantizer_params", faiss.SearchParametersIVF(nprobe=2, quantizer_params=faiss.SearchParameters())),
        ("bounded_queue", faiss.SearchParametersHNSW(efSearch=20, bounded_queue=False)),
        ("check_relative_distance", faiss.SearchParametersHNSW(efSearch=20, check_relative_distance=False)),
    ],
)
def test_parameters_that_nothing_heeds(name, params, ours, quantizer):
    index = ours
    if isinstance(params, faiss.SearchParametersHNSW):
        index = QamaIndex(quantizer, "fp32", base="BHNSW8")
        index.add(X)
    with pytest.raises(ValueError, match=name):
        index.search(X[:1], 3, params=params)


@row("`k_factor` of a `range_search`")
def test_k_factor_of_a_range_search(ours):
    with pytest.raises(ValueError, match="k_factor"):
        ours.range_search(X[:1], 1.0, params=faiss.IndexRefineSearchParameters(k_factor=3))


@row("ids given to `add_with_ids` after a plain `add`")
def test_ids_that_are_there(theirs, ours):
    flat = faiss.IndexIDMap2(faiss.IndexFlatL2(16))
    flat.add_with_ids(X[:2], np.array([5, 5]))
    with pytest.raises(ValueError, match="399"):
        ours.add_with_ids(X[:1], np.array([399]))
    assert ours.ntotal == 400


@row("`BIVF16_HSNW8`, `BHNSW16x`")
@pytest.mark.parametrize(("text", "rest"), [("BIVF16_HSNW8", "_HSNW8"), ("BHNSW16x", "x")])
def test_strings_that_faiss_half_reads(text, rest, quantizer):
    faiss.index_binary_factory(64, text)
    with pytest.raises(ValueError, match=rest):
        QamaIndex(quantizer, base=text)


@row("`write_index`, `clone_index`, `IndexShards`")
def test_what_takes_indexes_of_faiss_alone(ours, tmp_path):
    for taken in (lambda: faiss.write_index(ours, "x"), lambda: faiss.clone_index(ours)):
        with pytest.raises((TypeError, AttributeError)):
            taken()
    shards = faiss.IndexShards(16)
    with pytest.raises((TypeError, AttributeError)):
        shards.add_shard(ours)
    exported = ours.to_faiss("fastscan")
    shards = faiss.IndexShards(exported.d)
    shards.add_shard(exported)
    assert shards.ntotal == 400
