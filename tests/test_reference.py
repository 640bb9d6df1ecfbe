"""The library agrees with the plain numpy reference: codes, decoded vectors, scores and searches, by another route."""

from __future__ import annotations

import doctest
import itertools

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faiss_qama import QamaIndex, Quantizer, reference, topk
from faiss_qama.hamming import flat, ivf
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.reference import ReferenceQuantizer
from faiss_qama.rescore import rescorer

PLAIN = ("2x17", "1x35", "1.5x33", "0.5x34", "0.5orx34", "2x9,1.5x9,1x9,0.5x8", "2x5,0.5orx10,1x3")
RESIDUAL = ("2x9+2x17", "1.5x7,0.5x4+0.5orx10,1x3")
METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
CASES = list(itertools.product(["unit", "any"], METRICS, ["documents", "queries"]))
STAGES = ("none", "codes", "fp32")
D, N, NQ = 35, 301, 9  # none is even
COMPILED = (bit_packing, topk, rescorer, flat, ivf)  # modules that do without numba in numpy and FAISS
CLOSE = 1e-5  # columns this near to a threshold, beside the vector's norm, may be cut to either side


def leave_numba(monkeypatch):
    for module in COMPILED:
        monkeypatch.setattr(module, "kernel", lambda name: None)


@pytest.fixture(params=["numba", "no numba"])
def kernels(request, monkeypatch):
    """Both ways to cut, scan and score."""
    assert flat.kernel("scanning") is not None
    if request.param == "no numba":
        leave_numba(monkeypatch)


def is_clear(ref, x, name="transform"):
    """Rows of ``x`` whose columns, and those of their residual, all keep their distance from the thresholds."""
    z = reference.transform(x, ref.arrays, name)
    room = CLOSE * np.maximum(1, np.linalg.norm(x, axis=1))[:, None, None]
    clear = (np.abs(z[:, :, None] - ref.arrays["thresholds"]) > room).all(axis=(1, 2))
    if ref.residual is not None and name == "transform":
        clear &= is_clear(ref.residual, x - ref.decode_unnormalized(ref.encode(x)))
    return clear


def both(quantizer, x, xq):
    """The quantizer, its reference, and documents and queries that both surely cut alike."""
    ref = ReferenceQuantizer(*quantizer.to_state())
    scaled = reference.scale_to_norm(xq, ref.rms_norm) if ref.metric == "inner product" else xq
    x, xq = x[is_clear(ref, x)][:N], xq[is_clear(ref, scaled, "query_transform")][:NQ]
    assert (len(x), len(xq)) == (N, NQ)
    return quantizer, ref, x, xq


def fit_both(layout, lengths="unit", metric="ip", fitted_on="documents", **options):
    unit = lengths == "unit"
    x, asked, xq = (make_vectors(n, d=D, seed=seed, unit=unit) for n, seed in [(501, 0), (120, 3), (40, 1)])
    if fitted_on == "queries":
        options["queries"] = asked + np.float32(0.1 * np.abs(asked).mean())
    return both(fit_quietly(x, layout=layout, metric=METRICS[metric], **options), x, xq)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture(scope="module", params=[*PLAIN, *RESIDUAL])
def fitted(request, case):
    return fit_both(request.param, *case)


def filled(quantizer, x, rescore, base="Flat"):
    index = QamaIndex(quantizer, rescore, base=base)
    index.train(x)
    index.add(x)
    return index


def assert_searches_agree(quantizer, ref, x, xq, rescore, rtol=1e-5):
    """The same scores, best first, of rows that do have these scores: rows may differ where scores are equal."""
    index = filled(quantizer, x, rescore)
    options = {} if rescore == "none" else {"oversample": 3}
    D, I = index.search(xq, 7, **options)
    want_d, want_i = ref.search(xq, x, 7, rescore, **options)
    if rescore == "none":
        np.testing.assert_array_equal(D, want_d)
        np.testing.assert_array_equal(I, want_i)
        return
    all_d, all_i = ref.search(xq, x, 21, rescore, oversample=1)  # of the 21 candidates
    close = {"rtol": rtol, "atol": rtol * np.abs(all_d).max()}
    np.testing.assert_allclose(D, want_d, **close)
    for own_d, own_i, row_d, row_i in zip(D, I, all_d, all_i, strict=True):
        assert len(set(own_i)) == len(own_i)
        score = dict(zip(row_i, row_d, strict=True))
        np.testing.assert_allclose(own_d, [score[i] for i in own_i], **close)
    apart = np.abs(np.diff(all_d, axis=1)) > 3 * close["atol"]
    alone = (apart & np.pad(apart, ((0, 0), (1, 0)), constant_values=True)[:, :-1])[:, :7]
    np.testing.assert_array_equal(I[alone], want_i[alone])
    assert alone.any() or rtol > 1e-5


def test_doctests_run():
    failed, tried = doctest.testmod(reference)
    assert (failed, tried > 10) == (0, True)


def test_codes_and_vectors_are_those_of_the_reference(fitted):
    quantizer, ref, x, xq = fitted
    code = ref.encode(x)
    np.testing.assert_array_equal(quantizer.encode(x), code)
    np.testing.assert_array_equal(quantizer.encode_queries(xq), ref.encode_queries(xq))
    close = {"rtol": 1e-5, "atol": 2e-6 * np.abs(x).max()}
    np.testing.assert_allclose(quantizer.decode(code), ref.decode(code), **close)
    if ref.residual is not None:
        finer = ref.encode_residual(x, code)
        np.testing.assert_array_equal(quantizer.encode_residual(x, code), finer)
        np.testing.assert_allclose(quantizer.decode(code, finer), ref.decode(code, finer), **close)


@pytest.mark.parametrize("stage", STAGES)
def test_searches_are_those_of_the_reference(fitted, stage):
    quantizer, ref, _, _ = fitted
    # The index keeps norms of sums of two unit vectors in float16.
    rounded = stage == "codes" and ref.residual is not None and quantizer.normalized
    assert_searches_agree(*fitted, stage, rtol=1e-3 if rounded else 1e-5)


@pytest.mark.parametrize("case", [("unit", "ip", "queries"), ("any", "l2", "documents")], indirect=True, ids="-".join)
def test_without_numba_all_is_that_of_the_reference(fitted, monkeypatch):
    leave_numba(monkeypatch)
    test_codes_and_vectors_are_those_of_the_reference(fitted)
    for stage in STAGES:
        test_searches_are_those_of_the_reference(fitted, stage)


@pytest.mark.parametrize("lengths", ["unit", "any"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_least_squares_decoder_scores_as_the_reference(kernels, lengths, metric):
    """Its rows are not orthogonal, so that norms of decoded vectors are no sum over bits."""
    assert_searches_agree(*fit_both("2x9,1.5x9", lengths, metric, decoder="least-squares"), "codes")


@pytest.mark.parametrize("base", ["Flat", "IVF4", "BFlat"])
def test_other_base_indexes_find_the_same_distances(base):
    quantizer, ref, x, xq = fit_both("2x9,1.5x9,1x9,0.5x8")
    index = filled(quantizer, x, "none", base)
    probe_all = {"nprobe": 4} if base == "IVF4" else {}
    D, I = index.search(xq, 20, **probe_all)
    np.testing.assert_array_equal(D, ref.search(xq, x, 20)[0])
    distances = reference.hamming(ref.encode_queries(xq), ref.encode(x))
    np.testing.assert_array_equal(np.take_along_axis(distances, I, axis=1), D)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lengths", ["unit", "any"])
def test_networks_and_a_query_adapter_do_what_the_reference_does(kernels, lengths, metric):
    start, _, x, xq = fit_both("2x9,0.5orx8", lengths, metric)
    rng, (arrays, settings) = np.random.default_rng(0), start.to_state()
    columns, size = len(arrays["transform.matrix"]), np.linalg.norm(x, axis=1).mean()
    for name in ("transform", "query_transform"):
        arrays[f"{name}.hidden.matrix"] = rng.standard_normal((12, D)) / size
        arrays[f"{name}.hidden.bias"] = rng.standard_normal(12)
        arrays[f"{name}.out"] = 0.1 * size * rng.standard_normal((columns, 12))
    arrays["query_adapter.matrix"] = np.eye(D) + 0.1 * rng.standard_normal((D, D))
    arrays["query_adapter.bias"] = 0.1 * size * rng.standard_normal(D)
    quantizer = Quantizer.from_state({name: a.astype(np.float32) for name, a in arrays.items()}, settings)
    x, xq = (make_vectors(n, d=D, seed=seed, unit=lengths == "unit") for n, seed in [(501, 0), (40, 1)])
    trained = both(quantizer, x, xq)
    assert (trained[1].encode(trained[2]) != start.encode(trained[2])).any()
    test_codes_and_vectors_are_those_of_the_reference(trained)
    for stage in STAGES:
        assert_searches_agree(*trained, stage)


def whole_numbers(layout, metric, seed):
    """A quantizer of whole numbers, a few documents and queries: all sums are exact, and many lie on a threshold."""
    rng = np.random.default_rng(seed)

    def state(part):
        columns, levels = part.columns, part.max_levels
        thresholds = np.sort(rng.integers(-4, 5, (columns, levels - 1)), axis=1).astype(np.float32)
        for segment, of, _ in part.slices():
            thresholds[of, segment.levels - 1 :] = np.inf
        arrays = {"thresholds": thresholds, "decoder.values": rng.integers(-3, 4, (columns, levels))}
        arrays |= {"decoder.matrix": rng.integers(-1, 2, (columns, 5)), "decoder.offset": rng.integers(-3, 4, 5)}
        for name in ("transform", "query_transform"):
            arrays[f"{name}.matrix"] = rng.integers(-1, 2, (columns, 5))
            arrays[f"{name}.bias"] = rng.integers(-2, 3, columns)
        own = {
            "d": 5,
            "layout": str(part),
            "metric": metric,
            "normalized": False,
            "rms_norm": 4.0,
            "fit_record": FitRecord().to_dict(),
        }
        if part.residual is not None:
            finer, own["residual"] = state(part.residual)
            arrays |= {f"residual.{name}": array for name, array in finer.items()}
        return {name: array.astype(np.float32) for name, array in arrays.items()}, own

    x = rng.integers(-3, 4, (37, 5)).astype(np.float32)
    xq = rng.permuted(np.tile(np.float32([2, -2, 2, -2, 0]), (3, 1)), axis=1)  # of norm 4, like ``rms_norm``
    return *state(layout), x, xq


WHOLE = ("2x7", "1.5x5", "1x9", "0.5x6", "0.5orx6", "2x3,1.5x3,1x1,0.5x2,0.5orx4", "2x3+1x9,0.5orx2")


@settings(deadline=None, max_examples=40)  # the first call compiles
@given(st.sampled_from(WHOLE), st.sampled_from(["inner product", "L2"]), st.integers(0, 9999), st.booleans())
@example("2x7", "L2", 0, True)
def test_whole_numbers_are_cut_and_found_exactly(layout, metric, seed, compiled):
    arrays, own, x, xq = whole_numbers(CodeLayout.parse(layout), metric, seed)
    quantizer, ref = Quantizer.from_state(arrays, own), ReferenceQuantizer(arrays, own)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not compiled:
            leave_numba(monkeypatch)
        code = ref.encode(x)
        np.testing.assert_array_equal(quantizer.encode(x), code)
        np.testing.assert_array_equal(quantizer.encode_queries(xq), ref.encode_queries(xq))
        np.testing.assert_array_equal(quantizer.decode(code), ref.decode(code))
        for stage in STAGES:
            if stage == "codes" and metric == "L2" and ref.residual is not None:
                continue  # the index keeps a norm, a square root
            options = {} if stage == "none" else {"oversample": 2}
            found = filled(quantizer, x, stage).search(xq, 9, **options)
            for own_array, wanted in zip(found, ref.search(xq, x, 9, stage, **options), strict=True):
                np.testing.assert_array_equal(own_array, wanted)


KERNELS = ("2x7", "1.5x5", "1x9", "0.5orx4", "2x33,1.5x7,1x3,0.5x4")


@pytest.mark.parametrize("layout", KERNELS)
@pytest.mark.parametrize("n", [1, 37, 255])
def test_kernels_scan_and_sum_what_the_reference_does(kernels, layout, n):
    units, rng = reference.parse_layout(layout), np.random.default_rng(n)
    levels, asked = (rng.integers(0, [unit.levels for unit in units], (m, len(units))) for m in (n, 5))
    bits = reference.thermometer(levels, units)
    code, queries = reference.pack(bits), reference.pack(reference.thermometer(asked, units))
    base = FlatCodeIndex(CodeLayout.parse(layout))
    base.append(code)
    np.testing.assert_array_equal(base.codes, code)
    np.testing.assert_array_equal(reference.levels_of(base.codes, units), levels)
    distances = np.abs(asked[:, None] - levels).sum(axis=2)
    np.testing.assert_array_equal(reference.hamming(queries, code), distances)
    order = np.argsort(distances, axis=1, kind="stable")
    D, I = base.search(queries, n, None, {})
    np.testing.assert_array_equal(I, order)
    np.testing.assert_array_equal(D, np.take_along_axis(distances, order, axis=1))
    rows = rng.integers(0, n, (5, 11))
    np.testing.assert_array_equal(base.distances(queries, rows), np.take_along_axis(distances, rows, axis=1))
    weights, shared = rng.standard_normal((5, bits.shape[1])), rng.standard_normal(bits.shape[1])
    sums = base.weighted_sums(rows, weights.astype(np.float32), shared.astype(np.float32))
    np.testing.assert_allclose(sums[0], np.take_along_axis(weights @ bits.T, rows, axis=1), atol=1e-4)
    np.testing.assert_allclose(sums[1], (bits @ shared)[rows], atol=1e-4)


@pytest.mark.parametrize("text", ["", "3x4", "2x", "x4", "0.5x3", "0.5orx5", "2x-4", "2x4,"])
def test_a_layout_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="is not BITSxCOMPONENTS"):
        reference.parse_layout(text)


def test_a_second_stage_that_is_not_there_is_refused():
    _, ref, x, xq = fit_both("2x9")
    with pytest.raises(ValueError, match="rescore must be none, codes or fp32; got 'fp16'"):
        ref.search(xq, x, 5, "fp16")
