from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.quantizer.calibration import GROWTH, KS, OVERSAMPLES, Calibration
from faiss_qama.training import calibrate as calibrate_module
from faiss_qama.training.split import split_corpus
from faiss_qama.vectors import Corpus


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
    x, xq = make_vectors(4000, unit=unit) + np.float32(offset), make_vectors(700, seed=5) + np.float32(offset)
    if metric == faiss.METRIC_L2 and not unit:
        xq *= 100  # queries among the documents
    quantizer = fit_quietly(
        x, layout="2x24" if unit else "2x36", queries=xq[:400] if real_queries else None, metric=metric
    )
    index = QamaIndex(quantizer, "fp32")
    index.add(x)
    flat = faiss.IndexFlat(x.shape[1], metric)
    flat.add(x)
    for k in (1, 10, 50) if unit else (10, 50):  # where lengths vary, more than 1024 candidates hold the nearest
        truth = flat.search(xq[400:], k)[1]
        for recall in (0.8, 0.95):
            found = index.search(xq[400:], k, recall=recall)[1]
            assert np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth, strict=True)]) >= recall


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
