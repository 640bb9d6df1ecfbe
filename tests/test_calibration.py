from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors, slow_except

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import exact, recall
from faiss_qama.quantizer.calibration import GROWTH, KS, OVERSAMPLES, Calibration
from faiss_qama.training import calibrate as calibrate_module
from faiss_qama.training.split import split_corpus


def linear_curve(n=1000):
    """Recall .5 at oversample 1 rising to 1 at the largest, .0125 a step; codes reach .8 of that."""
    curve = np.tile(np.linspace(0.5, 1.0, len(OVERSAMPLES)), (len(KS), 1))
    return Calibration(n, curve, 0.8 * curve)


def test_lookup_by_hand():
    calibration = linear_curve()
    assert calibration.oversample(10, 1000, "floats", 0.89) == OVERSAMPLES[36]  # half of the misses: 0.945
    assert calibration.oversample(10, 1000, "codes", 0.69) == OVERSAMPLES[35]  # 0.745 of 0.4 to 0.8
    assert calibration.oversample(10, 1000, "codes") == OVERSAMPLES[40]  # 0.792
    assert calibration.oversample(10, 1000, "floats") == OVERSAMPLES[38]  # 0.975
    assert calibration.oversample(10, 16_000, "floats", 0.89) == pytest.approx(OVERSAMPLES[36] * 16**GROWTH)
    assert calibration.oversample(10, 10, "floats", 0.89) == OVERSAMPLES[36]


def test_k_between_calibrated_ones_takes_the_curve_below():
    floats = np.stack([np.full(len(OVERSAMPLES), r) for r in (0.99, 0.98, 1.0)])
    floats[1, :5] = 0.1
    calibration = Calibration(1000, floats, floats)
    for k, want in [(1, OVERSAMPLES[0]), (9, OVERSAMPLES[0]), (10, OVERSAMPLES[5]), (99, OVERSAMPLES[5]), (100, 1.0)]:
        assert calibration.oversample(k, 1000, "floats", 0.9) == want


def test_unreachable_targets_say_what_was_measured():
    calibration = linear_curve()
    with pytest.raises(ValueError, match="recall 0.9 is out of reach of rescore='codes': 0.800 was measured at best"):
        calibration.oversample(10, 1000, "codes", 0.9)
    low = Calibration(1000, linear_curve().floats * 0.9, linear_curve().codes)
    with pytest.raises(ValueError, match="recall 0.95 is out of reach: 0.900 was measured at the most candidates"):
        low.oversample(10, 1000, "floats", 0.95)
    assert low.oversample(10, 1000, "floats") == OVERSAMPLES[-1]  # unasked, as near as was measured
    with pytest.raises(ValueError, match=r"calibration.codes has shape \(2, 3\)"):
        Calibration(1, linear_curve().floats, np.zeros((2, 3)))


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_curves_are_what_searches_reach(metric):
    """The other route: real searches of the held-out queries with each oversample, against IndexFlat."""
    x, xq = make_vectors(900), make_vectors(300, seed=5)
    quantizer = fit_quietly(x, layout="2x18", queries=xq, metric=metric)
    split = split_corpus(Corpus(x), Corpus(xq), 100_000, 0)
    flat = faiss.IndexFlat(x.shape[1], metric)
    flat.add(split.train)
    for stage, kind in (("floats", "fp32"), ("codes", "codes")):
        index = QamaIndex(quantizer, kind)
        index.add(split.train)
        for i, k in enumerate(KS):
            truth = flat.search(split.validation, k)[1]
            for j in (0, 7, 13):
                found = index.search(split.validation, k, oversample=OVERSAMPLES[j])[1]
                recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth, strict=True)])
                assert getattr(quantizer.calibration, stage)[i, j] == pytest.approx(recall, abs=0.01)


@pytest.mark.parametrize("real_queries", [True, False])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize(("unit", "offset"), [(True, 0), (False, 0), (True, 1)])
def test_a_calibrated_recall_is_reached_on_queries_to_come(real_queries, metric, unit, offset):
    """In the mean of two corpora, whose calibrations err either way."""
    ks = (1, 10, 50) if unit else (10, 50)  # where lengths vary, more than 1024 candidates hold the nearest
    recalls = np.array([recalls_reached(seed, ks, real_queries, metric, unit, offset) for seed in (0, 1)])
    assert (recalls.mean(axis=0) >= WANTED).all(), recalls


WANTED = (0.8, 0.95)


def recalls_reached(seed, ks, real_queries, metric, unit, offset):
    """The recall (ks, WANTED) of 300 queries that the fit did not see."""
    x, xq = (
        make_vectors(n, unit=one, seed=first + seed) + np.float32(offset)
        for n, one, first in ((4000, unit, 0), (700, True, 5))
    )
    if metric == faiss.METRIC_L2 and not unit:
        xq *= 100  # queries among the documents
    quantizer = fit_quietly(
        x, layout="2x24" if unit else "2x36", queries=xq[:400] if real_queries else None, metric=metric
    )
    index = QamaIndex(quantizer, "fp32")
    index.add(x)
    flat = faiss.IndexFlat(x.shape[1], metric)
    flat.add(x)
    truth = {k: flat.search(xq[400:], k)[1] for k in ks}
    return [
        [
            np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth[k], strict=True)])
            for found in (index.search(xq[400:], k, recall=wanted)[1] for wanted in WANTED)
        ]
        for k in ks
    ]


def make_texts(n, seed=0):
    """Unit vectors of 60 topics in so many dimensions that noise leaves a vector nearer to itself than to others."""
    x = np.random.default_rng(7).standard_normal((60, 128))[np.random.default_rng(seed).integers(0, 60, n)]
    x = (x + np.random.default_rng(seed + 1).standard_normal(x.shape)) * 0.99 ** np.arange(128)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


COPIES = [  # real queries, noise, sample, metric
    (False, 0, 100_000, faiss.METRIC_INNER_PRODUCT),
    (False, 1e-4, 10_000, faiss.METRIC_L2),
    (True, 0, 10_000, faiss.METRIC_L2),
    (True, 1e-4, 10_000, faiss.METRIC_INNER_PRODUCT),
]


@pytest.mark.parametrize("repeated", slow_except(COPIES[2:3], COPIES), ids=str)
def test_a_calibrated_recall_is_kept_where_texts_repeat(repeated):
    """Twenty copies of each text, a whole corpus or a sample of it, exact ones or with the noise of a second run."""
    real_queries, noise, sample, metric = repeated
    x, xq = make_texts(1500), make_texts(1200, seed=5)
    rng = np.random.default_rng(0)
    x = np.tile(x, (20, 1))
    x = rng.permutation(x + noise * rng.standard_normal(x.shape, dtype=np.float32))
    quantizer = fit_quietly(x, layout="2x18", queries=xq[:900] if real_queries else None, metric=metric, sample=sample)
    index = QamaIndex(quantizer, "fp32")
    index.add(x)
    truth = exact(Dataset(Corpus(x), xq[900:]), 10, metric)
    assert recall(index.search(xq[900:], 10, recall=0.95)[1], truth, Dataset(Corpus(x), xq[900:])) >= 0.95


def test_copies_of_what_is_held_out_are_not_searched():
    """The other route: every distance, of documents that are there one to four times, with the noise of float16."""
    x = np.concatenate([make_vectors(900), np.repeat(make_vectors(300, seed=3), 3, axis=0)])
    x[1::2] = x[1::2].astype(np.float16)
    split = split_corpus(Corpus(x), None, 100_000, 0)
    searched = split.without_copies
    assert len(split.test) == len(searched.validation) == 180
    assert faiss.pairwise_distances(split.test, searched.train).min() > 1e-4
    copies = faiss.pairwise_distances(x, x) < 1e-5
    assert len(searched.train) == len(x) - np.count_nonzero(copies[split.test_rows].any(axis=0))


def test_copies_of_held_out_queries_are_not_searched_either():
    """As in a collection of questions: every query is a document too."""
    x = make_vectors(900)
    searched = split_corpus(Corpus(x), Corpus(x[300:]), 100_000, 0).without_copies
    assert (len(searched.validation), len(searched.train)) == (200, 700)
    assert faiss.pairwise_distances(searched.validation, searched.train).min() > 1e-3


def test_few_texts_are_not_all_held_out():
    """Fifty texts, 40 times each: as many are held out as leave half of the corpus."""
    split = split_corpus(Corpus(np.tile(make_vectors(50), (40, 1))), None, 100_000, 0)
    searched = split.without_copies
    assert 20 <= len(searched.validation) < 100
    assert 900 < len(searched.train) <= 1100
    assert faiss.pairwise_distances(split.test[: len(searched.validation)], searched.train).min() > 1e-3
    alike = split_corpus(Corpus(np.ones((400, 5), np.float32)), None, 100_000, 0).without_copies
    assert (len(alike.train), len(alike.test), len(alike.validation)) == (360, 40, 40)


def test_copies_in_the_corpus_are_estimated_from_those_in_a_sample():
    """Near each query: texts that are there once stand for one vector each, those of 30 copies for what is missing."""
    x, often = make_vectors(6000), make_vectors(200, seed=3)
    xq = make_vectors(300, seed=5)
    whole = np.random.default_rng(0).permutation(np.concatenate([x, np.repeat(often, 30, axis=0)]))
    for corpus, low, high in ((x, 1, 1.01), (np.repeat(often, 60, axis=0), 3.7, 4), (whole, 1.5, 4)):
        split = split_corpus(Corpus(corpus), Corpus(xq), len(corpus) // 4, 0)
        assert low <= np.mean(split.copies(faiss.METRIC_L2)[0]) <= high
        split = split_corpus(Corpus(corpus), Corpus(xq), len(corpus), 0)
        assert (split.copies(faiss.METRIC_L2)[0] == 1).all()


def test_a_curve_that_ends_too_early_goes_on_in_the_next():
    """1,024 candidates hold half of the nearest, 1,024 * 10 hold nearly all ten: so many hold the nearest."""
    floats = np.stack([np.full(len(OVERSAMPLES), r) for r in (0.5, 0.9, 0.9)])
    floats[1, 30:] = 0.99
    calibration = Calibration(1000, floats, floats)
    assert calibration.oversample(1, 1000, "floats", 0.95) == 10 * OVERSAMPLES[30]
    assert calibration.oversample(5, 1000, "floats", 0.95) == 2 * OVERSAMPLES[30]
    assert calibration.oversample(10, 1000, "floats", 0.95) == OVERSAMPLES[30]
    with pytest.raises(ValueError, match="recall 0.95 is out of reach: 0.900 was measured"):
        calibration.oversample(100, 1000, "floats", 0.95)


def test_duplicates_are_as_good_as_each_other():
    x = np.repeat(make_vectors(5), 200, axis=0)
    calibration = fit_quietly(x, layout="2x18", queries=x).calibration
    assert (calibration.floats == 1).all()


def test_nothing_held_out_means_no_calibration():
    assert fit_quietly(make_vectors(199), layout="1x8").calibration is None
    assert fit_quietly(make_vectors(200), layout="1x8").calibration.n == 180


def test_the_held_out_are_not_hits_of_their_own():
    """Documents that stand in for queries are searched among the others, which do not contain them."""
    x = make_vectors(500)
    split = split_corpus(Corpus(x), None, 100_000, 0)
    quantizer = dataclasses.replace(fit_quietly(x, layout="1x16"), calibration=None)
    measured = calibrate_module.calibrate(quantizer, split).calibration
    assert measured.n == 450
    assert measured.floats[0, 0] < 0.9
