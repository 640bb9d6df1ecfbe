"""Searches that stop reading vectors: what they find, what they read, and when they are taken."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from faiss_qama import QamaIndex, Quantizer, growing
from faiss_qama.corpus import Corpus
from faiss_qama.quantizer.calibration import KS
from faiss_qama.quantizer.depth import MARGINS, Depth
from faiss_qama.rescore import early_stop
from faiss_qama.rescore.rescorer import Rescorer
from faiss_qama.training import calibrate
from faiss_qama.training.split import split_corpus

METRICS = {"inner product": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}


class Table(Rescorer):
    """Scores (nq, n) from a table, whose queries are the numbers of its rows; counts what is read."""

    def __init__(self, scores):
        self._scores, self.read = scores.astype(np.float32), 0

    def scores(self, xq, rows):
        self.read += rows.size
        return self._scores[xq[:, 0].astype(int)[:, None], rows]


@pytest.fixture(scope="module", params=METRICS.values(), ids=list(METRICS))
def world(request):
    x, xq = make_vectors(3000), make_vectors(40, seed=1)
    return fit_quietly(x, layout="2x18", metric=request.param), x, xq


def filled(quantizer, x, rescore="fp32", base="Flat"):
    index = QamaIndex(quantizer, rescore, base=base)
    index.train(x)
    index.add(x)
    return index


def reads(index, *arguments, **options):
    """Return hits, and the vectors that were read per query."""
    count, scores = [0], index.rescorer.scores

    def counted(xq, rows):
        count[0] += rows.size
        return scores(xq, rows)

    index.rescorer.scores = counted
    try:
        D, I = index.search(*arguments, **options)
    finally:
        del index.rescorer.scores
    return D, I, count[0] / len(I)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 9999))
def test_with_true_bounds_the_best_are_found_whatever_is_not_read(nq, n, k, larger, seed):
    rng = np.random.default_rng(seed)
    table = Table(rng.integers(-9, 10, (nq, n)))
    rows = np.argsort(rng.random((nq, n)), axis=1)
    rows[rng.random((nq, n)) < 0.1] = -1
    own = np.where(rows < 0, -np.inf, (1 if larger else -1) * np.take_along_axis(table._scores, np.maximum(rows, 0), 1))
    bounds = own + rng.integers(0, 4, (nq, n))
    D, I = early_stop.nearest(table, np.arange(nq)[:, None].astype(np.float32), rows, bounds, k, larger)
    wanted = -np.sort(-own, axis=1)[:, :k]
    np.testing.assert_array_equal(D, wanted if larger else -wanted)
    there = I >= 0
    np.testing.assert_array_equal(there, np.isfinite(wanted))
    got = np.take_along_axis(table._scores, np.maximum(I, 0), axis=1)
    np.testing.assert_array_equal(got[there], D[there])
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in I)
    assert table.read <= rows.size


def test_reading_ends_before_a_bound_that_is_too_low():
    scores = np.arange(100.0)[None, ::-1].copy()
    table = Table(scores)
    early_stop.nearest(table, np.zeros((1, 1), np.float32), np.arange(100)[None], scores, 10, True)
    assert table.read == 10  # the eleventh may score 89 at most, and the tenth has 90
    table.read = 0
    early_stop.nearest(table, np.zeros((1, 1), np.float32), np.arange(100)[None], scores + 7.5, 10, True)
    assert table.read == 10 + early_stop.READ
    table.read = 0
    early_stop.nearest(table, np.zeros((1, 1), np.float32), np.arange(100)[None], scores + np.inf, 10, True)
    assert table.read >= 100


@pytest.mark.parametrize("rescore", ["sq8", "fp16", "fp32", "array", "faiss.Index"])
@pytest.mark.parametrize("base", ["Flat", "IVF8", "BHNSW8"])
def test_far_fewer_vectors_are_read_and_hardly_fewer_neighbours_found(world, rescore, base):
    quantizer, x, xq = world
    vectors = {"array": x, "faiss.Index": faiss.IndexFlat(x.shape[1], quantizer.metric)}
    index = filled(quantizer, x, vectors.get(rescore, rescore), base)
    if base == "IVF8":
        index.nprobe = 8
    D, I, all_read = reads(index, xq, 10, recall=0.95)
    index.early_stop = True
    D_few, I_few, few_read = reads(index, xq, 10, recall=0.95)
    assert few_read < 0.7 * all_read
    assert np.mean((I[:, :, None] == I_few[:, None]).any(axis=2)) > 0.97
    same = I == I_few
    np.testing.assert_allclose(D[same], D_few[same], rtol=1e-5, atol=1e-5)
    assert reads(index, xq, 10, oversample=20)[2] == 200  # who names candidates has them read


def test_the_recall_of_a_margin_is_that_of_reading_one_by_one(world):
    quantizer, x, _ = world
    split = split_corpus(Corpus(x), None, 100_000, 0).without_copies
    sign = 1 if quantizer.metric == faiss.METRIC_INNER_PRODUCT else -1
    slope, intercept, deviation = quantizer.calibration.depth.line
    xq, train = split.validation, split.train
    true = sign * faiss.pairwise_distances(xq, train, quantizer.metric)
    guesses = sign * faiss.pairwise_distances(xq, quantizer.encode_decode(train), quantizer.metric)
    for column in (0, 4, 8):
        found = []
        for own, guess in zip(true, guesses, strict=True):
            order = np.argsort(-guess, kind="stable")
            best = []
            for row in order:
                if len(best) >= 10 and slope * guess[row] + intercept + MARGINS[column] * deviation < sorted(best)[-10]:
                    break
                best.append(own[row])
            found.append(np.mean(np.isin(np.sort(own)[-10:], best)))
        assert quantizer.calibration.depth.recall[KS.index(10), column] == pytest.approx(np.mean(found), abs=0.003)


def test_calibrations_do_not_depend_on_which_thread_is_first(monkeypatch):
    x = make_vectors(1500)
    monkeypatch.setattr(calibrate, "PRODUCTS", 5 * len(x))
    curves, slow = calibrate._curves, threading.Lock()

    def delayed(*arguments):
        if slow.acquire(blocking=False):  # the first block is measured last
            time.sleep(0.5)
        return curves(*arguments)

    quantizer, split = fit_quietly(x, layout="2x18"), split_corpus(Corpus(x), None, 100_000, 0)
    alone = calibrate.calibrate(quantizer, split).calibration.arrays()
    monkeypatch.setattr(calibrate, "_curves", delayed)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        beside = calibrate.calibrate(quantizer, split).calibration.arrays()
    finally:
        faiss.omp_set_num_threads(threads)
    for name in ("calibration.depth.line", "calibration.depth.recall"):
        np.testing.assert_array_equal(alone[name], beside[name])


def test_margins_are_wide_enough_for_the_recall():
    recall = np.tile(np.linspace(0.76, 1, len(MARGINS)), (len(KS), 1))
    depth = Depth(np.array([2.0, 1.0, 0.5]), recall)
    np.testing.assert_allclose(depth.bounds(np.array([3.0]), 1, 0.88), 7 + MARGINS[12] * 0.5)
    assert depth.bounds(np.array([3.0]), 1, 1.01) == np.inf


def test_a_damaged_calibration_is_refused(world):
    arrays, settings = world[0].to_state()
    for name in ("line", "recall"):
        key = f"calibration.depth.{name}"
        with pytest.raises(ValueError, match=f"{key} has shape .* is needed"):
            Quantizer.from_state(arrays | {key: arrays[key][..., 1:]}, settings)


def test_it_is_the_default_where_vectors_on_disk_exceed_memory(world, tmp_path, monkeypatch):
    quantizer, x, xq = world
    filled(quantizer, x).save(tmp_path / "i")
    mapped, held = QamaIndex.load(tmp_path / "i", mmap=True), filled(quantizer, x)
    many = reads(mapped, xq, 10)[2]
    monkeypatch.setattr(growing, "_memory", lambda: 1.0)
    assert reads(mapped, xq, 10)[2] < many
    assert reads(held, xq, 10)[2] == many
    np.save(tmp_path / "x.npy", x)
    users = filled(quantizer, np.load(tmp_path / "x.npy", mmap_mode="r"), np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert reads(users, xq, 10)[2] < many
    mapped.early_stop = False
    assert reads(mapped, xq, 10)[2] == many


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
@pytest.mark.parametrize("rescore", ["fp16", "sq8", "array"])
def test_the_system_is_told_of_random_reads_where_vectors_exceed_memory(world, tmp_path, monkeypatch, rescore):
    quantizer, x, xq = world

    def flags(name):
        """The flags of a mapped file; rr: random reads."""
        lines = Path("/proc/self/smaps").read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if name in line]
        return [next(line for line in lines[i:] if line.startswith("VmFlags")).split() for i in starts]

    np.save(tmp_path / "users.npy", x)
    if rescore == "array":
        name, index = "users.npy", filled(quantizer, x, np.load(tmp_path / "users.npy", mmap_mode="r"))
    else:
        filled(quantizer, x, rescore).save(tmp_path / "i")
        name, index = str(next((tmp_path / "i").glob("vectors*"))), QamaIndex.load(tmp_path / "i", mmap=True)
    index.search(xq, 5)
    assert not any("rr" in own for own in flags(name))
    monkeypatch.setattr(growing, "_memory", lambda: 1.0)
    index.search(xq, 5)
    assert any("rr" in own for own in flags(name))


def test_what_cannot_stop_says_so(world):
    quantizer, x, xq = world
    for rescore in ("codes", "none"):
        index = filled(quantizer, x, rescore)
        index.search(xq, 1)
        index.early_stop = True
        with pytest.raises(ValueError, match=f"early_stop needs vectors to re-rank from; rescore is '{rescore}'"):
            index.search(xq, 1)
    earlier = dataclasses.replace(quantizer, calibration=dataclasses.replace(quantizer.calibration, depth=None))
    index = filled(earlier, x)
    index.search(xq, 1)
    index.early_stop = True
    with pytest.raises(ValueError, match="early_stop needs a calibration, which this fit lacks"):
        index.search(xq, 1)
    with pytest.raises(TypeError, match="early_stop must be True, False or None; got 'yes'"):
        index.early_stop = "yes"
    index = filled(fit_quietly(x, layout="t2x18+1x9"), x)
    index.early_stop = True
    with pytest.raises(ValueError, match=r"early_stop needs a layout without a second part; this one is t2x18\+1x9"):
        index.search(xq, 1)
