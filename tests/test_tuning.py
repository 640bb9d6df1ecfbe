"""Choosing a base and its settings: what is promised is kept, on queries that were not measured."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.index import tuning
from faiss_qama.index.build import build_index
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.search_parameters import SearchParameters
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.rescore.codes import CodeRescorer

pytestmark = pytest.mark.slow

X = make_vectors(12_000, seed=81)
QUERIES, OTHERS = make_vectors(300, seed=82), make_vectors(300, seed=83)
QUANTIZER = fit_quietly(X, layout="2x18")


@pytest.fixture(scope="module")
def exhaustive():
    index = QamaIndex(QUANTIZER, "fp32", base="Flat")
    index.add(X)
    return index


def kept(index: QamaIndex, exhaustive: QamaIndex, queries: np.ndarray = OTHERS) -> float:
    """The share of an exhaustive scan's hits that is found, or others that score no worse than its last."""
    found, wanted = (one.search(queries, 10, recall=0.9)[0] for one in (index, exhaustive))
    return float((found >= wanted[:, -1:]).mean())


@pytest.mark.parametrize(("base", "n"), [("IVF512", 12_000), ("BIVF512", 12_000), ("BHNSW16", 3000)])
def test_tuning_finds_the_smallest_setting_that_keeps_the_recall(base, n):
    exhaustive, index = (QamaIndex(QUANTIZER, "fp32", base=one) for one in ("Flat", base))
    index.train(X)
    for one in (exhaustive, index):
        one.add(X[:n])
    tried = index.tune(QUERIES, recall=0.9)
    name, value = next(iter(tried.settings.items()))
    assert tried.base == base
    assert getattr(index, name) == value
    assert tried.kept >= 0.95  # half of what may be missed
    assert kept(index, exhaustive) >= 0.93
    assert kept(index, exhaustive, QUERIES) == tried.kept
    if base != "BHNSW16":  # whose least setting keeps it
        setattr(index, name, round(value / tuning.STEP))
        assert kept(index, exhaustive, QUERIES) < 0.95
    assert index.tune(QUERIES[:50], recall=0.999).settings[name] >= value
    if base != "BHNSW16":  # with all lists it is the scan itself
        setattr(index, name, 512)
        assert kept(index, exhaustive) == 1


def test_what_has_no_settings_is_measured_or_refused(exhaustive):
    assert exhaustive.tune(QUERIES).kept == 1
    hashed = QamaIndex(QUANTIZER, "fp32", base="BHash8")
    hashed.add(X)
    with pytest.raises(ValueError, match="BHash8 keeps recall 0.95 with no setting"):
        hashed.tune(QUERIES)


@pytest.mark.parametrize("n", [400, 12_000])
def test_the_fastest_base_holds_the_codes_and_keeps_the_recall(n):
    code = QUANTIZER.encode(X[:n])
    base, tried = tuning.fastest(QUANTIZER, code, QUERIES, 0.9)
    assert len(tried) == (1 if n < tuning.MIN_VECTORS else 4)
    assert [t.per_second for t in tried] == sorted((t.per_second for t in tried), reverse=True)
    assert (str(base), base.settings) == (tried[0].base, tried[0].settings)
    np.testing.assert_array_equal(base.codes, code)
    contents = TwoStageIndex(QUANTIZER, base, IdMap(n), CodeRescorer(QUANTIZER, base))
    scan = FlatCodeIndex(QUANTIZER.layout)
    scan.append(code)
    found, wanted = (held.search(OTHERS, 10, SearchParameters())[1] for held in (contents, contents.over(scan)))
    assert (wanted[:, :, None] == found[:, None]).any(axis=2).mean() >= 0.93


@pytest.mark.parametrize("rescore", ["fp32", "codes", "none"])
def test_of_copies_as_many_settings_keep_the_recall_as_of_one_each(rescore):
    """Which of 20 copies is found says nothing: hits that score no worse are as good."""
    probed = []
    for copies in (1, 20):
        index = QamaIndex(QUANTIZER, rescore, base="IVF64")
        index.train(X)
        index.add(np.repeat(X[:3000], copies, axis=0))
        tried = index.tune(QUERIES, k=10 * copies, recall=0.9)
        assert tried.kept >= 0.95
        probed.append(tried.settings["nprobe"])
    assert probed[1] <= probed[0] < 64


@pytest.mark.parametrize("nlist", [1, 2])
def test_few_lists_are_tuned_too(nlist, exhaustive):
    index = QamaIndex(QUANTIZER, "fp32", base=f"IVF{nlist}")
    index.train(X)
    index.add(X)
    assert index.tune(QUERIES).settings == {"nprobe": nlist}
    assert kept(index, exhaustive) > 0.99  # of candidates at equal distances others may be taken


def test_what_keeps_no_recall_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(tuning, "WIDEST", 1)
    index = QamaIndex(QUANTIZER, "fp32", base="BHNSW2")
    index.add(X)
    index.efSearch = 7
    with pytest.raises(ValueError, match="BHNSW2 keeps recall 0.99 with no setting"):
        index.tune(QUERIES[:50], recall=0.99)
    assert index.efSearch == 7


def test_the_fastest_base_holds_no_more_than_it_may():
    code = QUANTIZER.encode(X)
    base, tried = tuning.fastest(QUANTIZER, code, QUERIES, 0.9, memory=8)
    assert [str(base)] == [t.base for t in tried] == ["Flat"]
    _, tried = tuning.fastest(QUANTIZER, code, QUERIES, 0.9, memory=100)
    assert tuning.GRAPH not in [t.base for t in tried]
    assert max(t.bytes_per_vector for t in tried) <= 100
    with pytest.raises(ValueError, match="memory: 7.5 bytes per vector, and codes of 2x18 alone take 8"):
        tuning.fastest(QUANTIZER, code, QUERIES, 0.9, memory=7.5)


def test_base_auto_waits_for_vectors_and_then_is_an_index_like_any_other(tmp_path):
    index = QamaIndex(QUANTIZER, "fp32", base="auto")
    assert not index.is_trained
    with pytest.raises(ValueError, match="not trained: call train"):
        index.add(X)
    with pytest.raises(ValueError, match="with 200 documents or more; got 50 documents"):
        index.train(X[:50])
    assert not index.is_trained
    index.train(X, queries=QUERIES, recall=0.9)
    assert index.is_trained
    assert index.ntotal == 0
    assert index.base_trials[0].base in index.factory_string
    index.add(X)
    index.save(tmp_path / "i.qama")
    loaded = QamaIndex.load(tmp_path / "i.qama")
    assert loaded.factory_string == index.factory_string
    np.testing.assert_array_equal(loaded.search(OTHERS, 10)[1], index.search(OTHERS, 10)[1])


def test_base_auto_is_built_straight_to_disk(tmp_path, exhaustive):
    spec = IndexSpec(rescore="fp32", base="auto", recall=0.9)
    index = build_index(tmp_path / "i.qama", QUANTIZER, Corpus(X), spec)
    assert index.ntotal == len(X)
    assert index.base_trials[0].base in index.factory_string
    assert kept(index, exhaustive) >= 0.93
