"""Health, calibration and quantizer of an index whose vectors have changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from stored import QUANTIZER, QUERIES, X, same, saved

from faiss_qama import QamaIndex
from faiss_qama.quantizer.quantizer import Quantizer


def test_health_says_what_to_do_and_doing_it_helps(tmp_path):
    path, rng = tmp_path / "i.qama", np.random.default_rng(0)
    x = make_vectors(4000, seed=51)
    index = QamaIndex(fit_quietly(x[:2000], layout="2x18"), "fp32")
    index.add_with_ids(x, np.arange(4000))
    assert index.health().advice == "keep"
    assert index.health(queries=make_vectors(100, seed=52)).recall > 0.9
    other = rng.standard_normal((4000, 36)).astype(np.float32)
    other[:, 18:] *= 5
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    index.save(path)
    with QamaIndex.open(path) as opened:
        for one in (index, opened):
            one.upsert(other, np.arange(4000))
            sick = one.health()
            assert sick.advice == "refit"
            assert "refit() fits a new quantizer" in str(sick)
            assert sick.distortion[1] > 1.2 * sick.distortion[0]
            assert one.quantizer.distortion(other) == pytest.approx(sick.distortion[1], rel=0.2)
            one.refit()
            assert one.health().advice == "keep"
            assert one.health().distortion[1] < sick.distortion[1]
            assert str(one.quantizer.layout) == "2x18"
            exact = np.argsort(-QUERIES @ one.reconstruct_batch(one.ids).T, axis=1)[:, :10]
            found = one.search(QUERIES, 10, recall=0.95)[1]
            shares = [len(set(a) & set(one.ids[b])) / 10 for a, b in zip(found, exact, strict=True)]
            assert np.mean(shares) > 0.9
        assert QamaIndex.load(path).quantizer.fit_record.fitted_on == opened.quantizer.fit_record.fitted_on
        same(QamaIndex.load(path), opened)


def test_a_calibration_that_no_longer_holds_is_measured_anew(tmp_path):
    x = make_vectors(3000, seed=53)
    index = QamaIndex(fit_quietly(x, layout="2x6"), "fp16")
    index.add(x)
    index.save(tmp_path / "i.qama")
    few = index.quantizer.calibration
    with QamaIndex.open(tmp_path / "i.qama") as opened:
        core = opened._fitted
        lying = np.ones_like(few.floats)
        core.quantizer = replace(core.quantizer, calibration=replace(few, floats=lying))
        assert opened.health().advice == "recalibrate"
        opened.recalibrate()
        assert opened.health().advice == "keep"
        opened.commit()
        held = QamaIndex.load(tmp_path / "i.qama").quantizer.calibration
        np.testing.assert_array_equal(held.floats, opened.quantizer.calibration.floats)
        opened.add(x[:5])
        np.testing.assert_array_equal(held.floats, opened.quantizer.calibration.floats)
    for rescore in ("codes", "none"):
        blind = index.with_rescore(rescore)
        with pytest.raises(ValueError, match=f"rescore='{rescore}' keeps no vectors to compare with"):
            blind.health()
    with pytest.raises(ValueError, match="at least 2 vectors are needed; the index holds 0"):
        QamaIndex(index.quantizer, "fp16").health()
    few_vectors = QamaIndex(index.quantizer, "fp16")
    few_vectors.add(x[:50])
    with pytest.raises(ValueError, match="50 vectors are too few to calibrate on; 200 are needed"):
        few_vectors.recalibrate()
    mapped = QamaIndex.load(tmp_path / "i.qama", mmap=True)
    assert mapped.health().advice == "keep"
    for change in (mapped.recalibrate, mapped.refit):
        with pytest.raises(ValueError, match="read-only"):
            change()


def test_what_is_added_beside_a_refit_is_encoded_by_the_new_quantizer(monkeypatch):
    index = QamaIndex(QUANTIZER, "fp32")
    index.add_with_ids(X[:600], np.arange(600))
    encode, once = Quantizer.encode, []

    def overtaken(quantizer, x):
        code = encode(quantizer, x)
        if len(x) == 50 and not once:
            once.append(True)
            index.refit()
        return code

    with monkeypatch.context() as patched:
        patched.setattr(Quantizer, "encode", overtaken)
        index.add_with_ids(X[600:650], np.arange(600, 650))
    np.testing.assert_array_equal(index._fitted.base.take(np.arange(600, 650)), index.quantizer.encode(X[600:650]))


def test_norms_that_change_the_quantizer_are_committed_with_it(tmp_path):
    path = tmp_path / "i.qama"
    saved(path, rescore="fp16")
    with QamaIndex.open(path) as index:
        with pytest.warns(UserWarning, match="vectors of norm"):
            index.add_with_ids(3 * X[:400], np.arange(1000, 1400))
        index.commit()
        same(QamaIndex.load(path, mmap=True), index, recall=0.9)


def test_vectors_of_other_norms_count_however_many_sessions_bring_them(tmp_path):
    path, x, xq = tmp_path / "i.qama", make_vectors(4000), make_vectors(200, seed=1)
    quantizer, rng = fit_quietly(x, layout="2x18", queries=make_vectors(300, seed=6)), np.random.default_rng(0)
    longer = make_vectors(600, seed=2) * rng.uniform(0.5, 4, (600, 1)).astype(np.float32)
    index = QamaIndex(quantizer, "fp32")
    index.add_with_ids(x, np.arange(4000))
    index.save(path)

    def sessions():
        for start in range(0, 600, 50):
            with QamaIndex.open(path) as opened:
                opened.add_with_ids(longer[start : start + 50], np.arange(4000 + start, 4050 + start))
                opened.commit()

    for change in (sessions, lambda: index.add_with_ids(longer, np.arange(4000, 4600))):
        with pytest.warns(UserWarning, match="vectors of norm"):
            change()
    whole = np.concatenate([x, longer])
    near = np.argsort(-xq @ whole.T, axis=1)[:, :10]
    for options in ({}, {"recall": 0.95}):
        recalls = [
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(one.search(xq, 10, **options)[1], near, strict=True)])
            for one in (QamaIndex.load(path), index)
        ]
        assert recalls[0] == pytest.approx(recalls[1], abs=0.02)
        assert recalls[1] > 0.85


def test_advice_can_be_followed():
    """Of vectors of other norms that nothing adapted to, and of a calibration that reaches no recall of 0.95."""
    x, rng = make_vectors(4000), np.random.default_rng(0)
    longer = make_vectors(600, seed=2) * rng.uniform(0.5, 4, (600, 1)).astype(np.float32)
    index = QamaIndex(fit_quietly(x, layout="2x18"), "fp32")
    index.add(x)
    core = index._fitted
    core.append(core.quantizer.encode(longer), longer, None)
    assert index.health().recall < 0.5
    index.recalibrate()
    assert index.health().recall > 0.93
    index.refit()
    assert index.health().advice == "keep"
    held = index.quantizer.calibration
    core = index._fitted
    core.quantizer = replace(core.quantizer, calibration=replace(held, floats=0.9 * held.floats))
    with pytest.raises(ValueError, match="out of reach"):
        index.search(x[:1], 10, recall=0.95)
    assert index.health().recall > 0.93


def test_a_calibration_says_whose_queries_it_has():
    x, xq = make_vectors(2000), make_vectors(300, seed=1)
    index = QamaIndex(fit_quietly(x, layout="2x18", queries=xq), "fp16")
    index.add(x)
    assert index.quantizer.fit_record.real_queries
    index.recalibrate()
    assert not index.quantizer.fit_record.real_queries
    index.recalibrate(queries=xq)
    assert index.quantizer.fit_record.real_queries


def test_distortion_is_that_of_the_whole_sample_in_any_order():
    x = make_vectors(9000)
    order = np.argsort(np.square(x - QUANTIZER.encode_decode(x)).sum(axis=1))
    for rows in (order, order[::-1]):
        quantizer = fit_quietly(x[rows], layout="2x18")
        assert quantizer.fit_record.distortion == pytest.approx(quantizer.distortion(x), rel=0.05)
