"""Residual codes: two sums that are one, by kernels, by numpy, and on disk."""

from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest
from conftest import D, PartsInMemory, fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.hamming import flat
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.residual import ResidualRescorer
from faiss_qama.training import FitConfig, fit

LAYOUTS = ("2x9+2x18", "1x36+1x1", "1.5x7,0.5x4+0.5orx10,1x3", "2x5+2x36", "2x36+1x36")


@pytest.fixture(scope="module", params=LAYOUTS)
def fitted(request, case):
    x, xq, metric = case
    return fit_quietly(x, layout=request.param, metric=metric), x, xq


def test_the_second_code_is_that_of_what_the_first_leaves_over(fitted):
    quantizer, x, _ = fitted
    code = quantizer.encode(x)
    left = x - quantizer.decode_unnormalized(code)
    finer = quantizer.encode_residual(x, code)
    np.testing.assert_array_equal(finer, quantizer.residual.encode(left))
    sums = quantizer.decode_unnormalized(code) + quantizer.residual.decode(finer)
    if quantizer.normalized:
        sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(quantizer.decode(code, finer), sums, rtol=1e-4, atol=1e-5 * np.abs(x).max())
    np.testing.assert_array_equal(quantizer.encode_decode(x), quantizer.decode(code, finer))


def test_two_codes_are_nearer_than_one(fitted):
    quantizer, x, _ = fitted
    one, two = (
        float(np.square(x - y).sum())
        for y in (quantizer.decode_unnormalized(quantizer.encode(x)), quantizer.encode_decode(x))
    )
    assert two < one


@pytest.mark.parametrize("base", ["Flat", "BFlat"])
def test_scores_are_those_of_decoded_vectors(fitted, base):
    quantizer, x, xq = fitted
    index = QamaIndex(quantizer, "codes", base=base)
    index.add(x)
    rows = np.random.default_rng(0).integers(0, len(x), (len(xq), 77))
    decoded = quantizer.encode_decode(x)
    wanted = np.take_along_axis(faiss.pairwise_distances(xq, decoded, quantizer.metric), rows, axis=1)
    # float16 keeps lengths of unit vectors to a part in 2048
    np.testing.assert_allclose(index.rescorer.scores(xq, rows), wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("layout", ["2x18+2x18", "t2x36", "t2x36+2x36"])
def test_small_distances_stay_apart_far_from_the_origin(layout):
    x, near = make_vectors(1003, unit=False) / 100, []
    for shift in np.float32([0, 500]):
        index = QamaIndex(fit_quietly(x + shift, layout=layout, metric=faiss.METRIC_L2), "codes")
        index.add(x + shift)
        found = index.search(x[:99] + shift, 10, oversample=100)[1]
        wanted = faiss.knn(x[:99], x, 10, metric=faiss.METRIC_L2)[1]
        near.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)]))
    assert min(near) > 0.6
    assert near[1] > near[0] - 0.03


def test_bytes_are_words_and_a_length(case):
    x, _, metric = case
    quantizer = fit_quietly(x, layout="2x18+2x18,1x3", metric=metric)
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    length = 2 if quantizer.normalized else 4 if metric == faiss.METRIC_L2 else 0
    assert index.bytes_per_vector == (8, 8 + 4 + length)
    kept = index.rescorer.growing()
    padded = -(-len(x) // 16) * 16
    assert sum(rows.array.nbytes for rows in kept.values()) == padded * 12 + len(x) * length


def test_other_second_stages_do_without(corpus, queries):
    layout = CodeLayout.parse("2x18+2x18")
    quantizer = fit(corpus, config=FitConfig(layout=str(layout)))
    plain = dataclasses.replace(quantizer, layout=layout.truncate(18), residual=None)
    for rescore in ("none", "sq8", "fp16"):
        found = []
        for own in (quantizer, plain):
            index = QamaIndex(own, rescore)
            index.add(corpus)
            found.append(index.search(queries, 5))
            assert index.bytes_per_vector[0] == 8
        np.testing.assert_array_equal(found[0][1], found[1][1])
        np.testing.assert_array_equal(found[0][0], found[1][0])


def test_codes_alone_of_an_index_that_kept_no_residual_are_saved_and_loaded(corpus, queries, tmp_path):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18+2x18")), "fp16")
    index.add(corpus)
    codes = index.with_rescore("codes")
    with pytest.raises(ValueError, match="recall= needs a calibration"):
        codes.search(queries, 5, recall=0.5)  # which was that of both codes
    want = codes.search(queries, 5)
    codes.save(tmp_path / "codes.qama")
    got = QamaIndex.load(tmp_path / "codes.qama").search(queries, 5)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def test_a_second_stage_that_was_there_comes_back(corpus, queries):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18+2x18")), "codes")
    index.add(corpus)
    again = index.with_rescore("none").with_rescore("codes")
    np.testing.assert_array_equal(again.search(queries, 5)[0], index.search(queries, 5)[0])


def test_an_add_that_fails_leaves_both_codes_as_they_were(corpus, queries, monkeypatch):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18+2x18")), "codes")
    index.add(corpus[:101])
    want = index.search(queries, 5)

    class Full:
        array = index.rescorer._norms.array

        def append(self, rows):
            raise MemoryError

        def shrink(self, n):
            assert n == 101

    with monkeypatch.context() as patched:
        patched.setattr(index.rescorer, "_norms", Full())
        with pytest.raises(MemoryError):
            index.add(corpus[101:200])
    np.testing.assert_array_equal(index.search(queries, 5)[1], want[1])
    index.add(corpus[101:])
    anew = QamaIndex(index.quantizer, "codes")
    anew.add(corpus)
    for name, rows in anew.rescorer.growing().items():
        np.testing.assert_array_equal(index.rescorer.growing()[name].array, rows.array)


@pytest.mark.parametrize("base", ["Flat", "IVF4"])
def test_a_compaction_that_fails_leaves_both_codes_as_they_were(corpus, queries, monkeypatch, base):
    index = QamaIndex(fit(corpus, config=FitConfig(layout="2x18+2x18")), "codes", base=base)
    index.train(corpus)
    index.add(corpus)

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(flat.FlatCodeIndex, "words", full)
        assert index.remove_ids(np.arange(900, 1003)) == 103  # they are marked
        with pytest.raises(MemoryError):
            index.compact()
    assert index.ntotal == 900
    got = index.search(queries, 5, oversample=1e9)
    index.compact()
    for scores, compacted in zip(got, index.search(queries, 5, oversample=1e9), strict=True):
        np.testing.assert_array_equal(scores, compacted)


def test_state_comes_back(fitted):
    quantizer, x, _ = fitted
    again = Quantizer.from_state(*quantizer.to_state())
    assert again.layout == quantizer.layout
    assert again.is_compatible_with(quantizer)
    np.testing.assert_array_equal(again.encode_decode(x), quantizer.encode_decode(x))
    other = dataclasses.replace(quantizer, layout=quantizer.layout.truncate(quantizer.layout.components), residual=None)
    assert not other.is_compatible_with(quantizer)


def test_a_prefix_has_no_residual(corpus):
    quantizer = fit_quietly(corpus, layout="2x18+2x18", matryoshka_dims=(9, 18))
    assert quantizer.truncate(9).residual is None
    assert str(quantizer.truncate(9).layout) == "2x9"
    assert quantizer.truncate(9).calibration.n == quantizer.calibration.n
    assert str(quantizer.truncate(18).layout) == "2x18"


def test_calibration_is_that_of_both_codes(corpus):
    one, two = (fit_quietly(corpus, layout=layout).calibration for layout in ("2x9", "2x9+2x18"))
    np.testing.assert_array_equal(one.floats, two.floats)
    assert (two.codes[:, -1] > one.codes[:, -1] + 0.1).all()


def test_parts_make_the_same_rescorer(case):
    x, xq, metric = case
    index = QamaIndex(fit_quietly(x, layout="2x9+1x36", metric=metric), "codes")
    index.add(x)
    base, rows = FlatCodeIndex(index.quantizer.layout), np.arange(570).reshape(len(xq), 10)
    base.append(index.quantizer.encode(x))
    parts = {name: rows.array for name, rows in index.rescorer.growing().items()}
    copy = ResidualRescorer.from_parts(index.quantizer, base, PartsInMemory(parts))
    np.testing.assert_array_equal(copy.scores(xq, rows), index.rescorer.scores(xq, rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "2x18+2x37"}, "has 37 components; the vectors have 36"),
        ({"layout": "2x18+2x9+1x3"}, "is not BITSxCOMPONENTS"),
        ({"layout": "2x18+"}, "is not BITSxCOMPONENTS"),
        ({"layout": "+2x18"}, "is not BITSxCOMPONENTS"),
        ({"layout": "hybrid+2x18"}, "is not BITSxCOMPONENTS"),
    ],
)
def test_a_residual_that_cannot_be_is_refused(corpus, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(corpus, config=FitConfig(**settings))


def test_pairs_are_refused(corpus, queries):
    with pytest.raises(ValueError, match="remove the part after \\+"):
        fit(corpus, config=FitConfig(layout="2x18+2x9"), pairs=(queries, np.array([[0, 1, 1]])))


def test_the_vectors_are_of_any_dimension():
    for d in (1, 7, D):
        x = make_vectors(300, d=d, unit=False)
        quantizer = fit_quietly(x, layout=f"2x1+2x{d}")
        index = QamaIndex(quantizer, "codes")
        index.add(x)
        assert index.search(x[:3], 400)[1].shape == (3, 400)
