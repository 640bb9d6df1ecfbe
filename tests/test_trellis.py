"""Trellis-coded layouts: the best of all sequences, by two routes, and the same bytes and scores by every way."""

from __future__ import annotations

import dataclasses
import itertools

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors, slow_except
from hypothesis import given, settings
from hypothesis import strategies as st

from faiss_qama import QamaIndex, Quantizer, index_factory, reference
from faiss_qama.quantizer import bit_packing, trellis
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.trellis import Trellis
from faiss_qama.reference import ReferenceQuantizer
from faiss_qama.rescore import trellis as rescore
from faiss_qama.training import FitConfig, TrainConfig, candidate_layouts, trellis_points

METRICS = {"inner product": faiss.METRIC_INNER_PRODUCT}
LAYOUTS = (
    *("t2x18", "t1x35", "t2x9,1x18", "t2x20,1x11+2x3,1x9", "t1x33+1x33", "t1x36+2x5", "t2x36+2x36", "t1x1"),
    *("t2x9,0x20+0x3,1x26", "t1x5,0x3,2x11,0x9+2x11,0x8,1x9"),
)


@pytest.fixture(scope="module", params=LAYOUTS)
def fitted(request, case):
    x, xq, metric = case
    return fit_quietly(x, layout=request.param, metric=metric), x, xq


@pytest.fixture(params=["numba", "no numba"])
def kernels(request, monkeypatch):
    if request.param == "no numba":
        for module in (trellis, rescore, bit_packing):
            monkeypatch.setattr(module, "kernel", lambda name: None)


def random_trellis(layout, seed=0, whole=False):
    rng = np.random.default_rng(seed)
    values = np.zeros((layout.columns, trellis.n_points(layout)), np.float32)
    for own, bits in zip(values, trellis.bits(layout).sum(axis=1), strict=True):
        n = 2 << bits
        own[:n] = np.sort(rng.integers(-9, 10, n) if whole else rng.standard_normal(n))
    return Trellis(values[:, ::-1].copy(), values)


def errors(z, values, points):
    chosen = np.take_along_axis(values.T.astype(np.float64), points.astype(int), axis=0)
    return np.square(z - chosen).sum(axis=1)


@pytest.mark.parametrize("layout", ["t1x9", "t2x4", "t2x2,1x4", "t2x2,1x2+2x1,1x1"])
@pytest.mark.parametrize("whole", [True, False])
def test_no_sequence_is_nearer_than_the_one_that_is_taken(kernels, layout, whole):
    """Every sequence of stored bits is tried: any is allowed, and tells its parities."""
    layout = CodeLayout.parse(layout)
    held, own = trellis.bits(layout).sum(axis=1), random_trellis(layout, whole=whole)
    z = np.random.default_rng(1).standard_normal((7, layout.columns)).astype(np.float32)
    z = np.round(4 * z) if whole else z
    stored = np.array(list(itertools.product(*(range(1 << bits) for bits in held))), np.uint8)
    every = stored << 1 | reference.parities(stored & 1).astype(np.uint8)
    best = [errors(row, own.targets, every).min() for row in z]
    np.testing.assert_allclose(errors(z, own.targets, own.encode(z, layout)), best, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([*LAYOUTS, "t2x40,1x40+2x8,1x17"]), st.integers(0, 9999))
def test_both_routes_take_sequences_of_the_same_error(layout, seed):
    layout = CodeLayout.parse(layout)
    own, rng = random_trellis(layout, seed), np.random.default_rng(seed)
    z = rng.standard_normal((5, layout.columns)).astype(np.float32)
    points = own.encode(z, layout)
    np.testing.assert_array_equal(points & 1, reference.parities(points >> 1 & 1))
    wanted = reference.best_points(z.astype(np.float64), own.targets, trellis.bits(layout).sum(axis=1).tolist())
    np.testing.assert_allclose(errors(z, own.targets, points), errors(z, own.targets, wanted), rtol=1e-5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trellis, "kernel", lambda name: None)
        np.testing.assert_array_equal(own.encode(z, layout), points)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(LAYOUTS), st.integers(0, 9999))
def test_points_are_told_by_what_is_stored(layout, seed):
    """Any stored bits are a code, and a point that is encoded again stays itself."""
    layout, rng = CodeLayout.parse(layout), np.random.default_rng(seed)
    held = trellis.bits(layout)
    stored = rng.integers(0, 1 << held.sum(axis=1), (9, layout.columns)).astype(np.uint8)
    points = stored << 1 | reference.parities(stored & 1).astype(np.uint8)
    levels, rest = trellis.levels_of(points, layout)
    np.testing.assert_array_equal(trellis.points(levels, rest, layout), points)
    own = random_trellis(layout, seed)
    z = np.take_along_axis(own.targets.T, points.astype(int), axis=0)
    np.testing.assert_array_equal(own.encode(z, layout), points)
    np.testing.assert_array_equal(own.encode(z + np.float32(0.01), layout, levels) >> 1 + held[:, 1], levels)


def test_eight_parities_at_a_time_are_those_one_by_one():
    low = np.random.default_rng(0).integers(0, 2, (50, 48)).astype(np.uint8)
    of_state, of_bits = trellis.checks()
    state, found = np.zeros(50, np.uint16), []
    for byte in np.packbits(low, axis=1, bitorder="little").T:
        both = of_state[state] ^ of_bits[byte]
        found.append(both & 255)
        state = both >> 8
    parity = np.unpackbits(np.stack(found, axis=1).astype(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(parity, reference.parities(low.astype(int)))


@pytest.mark.parametrize("held", slow_except([2], [1, 2, 3, 4]))
def test_errors_of_a_normal_distribution_are_near_the_limit(held):
    """Within a decibel of rate-distortion theory up to two bits."""
    points, error = trellis_points.train(held, trellis_points.normal_points(held), rounds=2)
    np.testing.assert_allclose(points, trellis_points.NORMAL_POINTS[held], atol=0.02)
    assert error == pytest.approx(trellis_points.ERRORS[held], rel=0.01)
    assert error < {1: 0.363, 2: 0.1175, 3: 0.0345, 4: 0.0095}[held]  # of levels (Max, 1960, table I)


def test_codes_are_those_of_the_reference(fitted):
    quantizer, x, xq = fitted
    x, ref = x[:60], ReferenceQuantizer(*quantizer.to_state())
    held, rest = trellis.bits(quantizer.layout)[:, 0], quantizer.layout.residual
    code = quantizer.encode(x)
    finer = None if rest is None else quantizer.encode_residual(x, code)
    close = {"rtol": 1e-4, "atol": 1e-5 * np.abs(x).max()}
    np.testing.assert_allclose(quantizer.decode(code, finer), ref.decode(code, finer), **close)
    np.testing.assert_allclose(quantizer.decode(code), ref.decode(code), **close)
    assert held.max() <= 2
    # Sequences of nearly the same error may differ, so that most codes are equal, and all errors are.
    wanted = ref.encode(x)
    assert (wanted == code).all(axis=1).mean() > 0.9
    theirs = ref.decode_unnormalized(wanted, None if rest is None else ref.encode_residual(x, wanted))
    ours = ref.decode_unnormalized(code, finer)
    z = [np.square((x - y) @ quantizer.transform.matrix.T).sum(axis=1) for y in (ours, theirs)]
    np.testing.assert_allclose(*z, rtol=1e-3)


def test_a_trellis_is_nearer_than_levels_alone(case):
    x, _, metric = case
    for text, plain in (("t2x18", "2x18"), ("t2x36", "2x36"), ("t1x36+1x36", "2x36")):
        coded, levels = (fit_quietly(x, layout=layout, metric=metric) for layout in (text, plain))
        assert coded.distortion(x) < 0.97 * levels.distortion(x)


@pytest.mark.parametrize("base", ["Flat", "IVF4", "BFlat"])
def test_scores_are_those_of_decoded_vectors(fitted, base, kernels):
    quantizer, x, xq = fitted
    index = QamaIndex(quantizer, "codes", base=base)
    index.train(x)
    index.add(x)
    rows = np.random.default_rng(0).integers(0, len(x), (len(xq), 77))
    decoded = quantizer.encode_decode(x)
    np.testing.assert_allclose(index.rescorer.take(rows[0]), decoded[rows[0]], rtol=1e-5, atol=1e-5 * np.abs(x).max())
    wanted = np.take_along_axis(faiss.pairwise_distances(xq, decoded, quantizer.metric), rows, axis=1)
    np.testing.assert_allclose(index.rescorer.scores(xq, rows), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_very_long_and_very_short_vectors_are_coded_alike(size):
    x = make_vectors(900, unit=False) / 100
    plain, scaled = (
        fit_quietly(factor * x, layout="t2x18+1x5", rotation="random").distortion(factor * x)
        for factor in np.float32([1, size])
    )
    assert scaled == pytest.approx(plain, rel=0.05)


def test_a_decoder_without_orthogonal_rows_scores_too(case):
    x, xq, metric = case
    quantizer = fit_quietly(x, layout="t2x9,1x9+1x4", metric=metric, decoder="least-squares")
    assert not quantizer.decoder.is_orthogonal
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    rows = np.random.default_rng(0).integers(0, len(x), (len(xq), 9))
    wanted = np.take_along_axis(faiss.pairwise_distances(xq, quantizer.encode_decode(x), metric), rows, axis=1)
    np.testing.assert_allclose(index.rescorer.scores(xq, rows), wanted, atol=1e-4 * np.abs(wanted).max())


def test_prefixes_of_codes_decode_alone(corpus):
    quantizer = fit_quietly(corpus, layout="t2x18,1x10")
    code = quantizer.encode(corpus)
    shorter = quantizer.truncate(13)
    assert str(shorter.layout) == "t2x13"
    z = quantizer.trellis.decode(code, quantizer.layout)[:, :13]
    short = bit_packing.truncate(code, shorter.layout)
    np.testing.assert_array_equal(shorter.trellis.decode(short, shorter.layout), z)
    refined = fit_quietly(corpus, layout="t2x18,1x10+1x3")
    assert str(refined.truncate(13).layout) == "2x13"  # parities of the first code alone are unknown
    assert refined.truncate(28).trellis is None


def test_batches_do_not_matter(corpus):
    quantizer = fit_quietly(corpus, layout="t2x18,1x10+2x3,1x2")
    code = quantizer.encode(corpus)
    finer = quantizer.encode_residual(corpus, code)
    alone = np.concatenate([quantizer.encode_decode(x[None]) for x in corpus[:200]])
    np.testing.assert_allclose(alone, quantizer.decode(code, finer)[:200], atol=1e-5)


def test_states_travel(corpus):
    quantizer = fit_quietly(corpus, layout="t2x18,1x10+1x3")
    again = Quantizer.from_state(*quantizer.to_state())
    assert again.is_compatible_with(quantizer)
    np.testing.assert_array_equal(again.encode(corpus), quantizer.encode(corpus))
    arrays, own = quantizer.to_state()
    with pytest.raises(
        ValueError, match=r"trellis\.values has shape \(28, 15\) float32; layout .* needs \(28, 16\) float32"
    ):
        Quantizer.from_state(arrays | {"trellis.values": arrays["trellis.values"][:, 1:]}, own)
    del arrays["trellis.values"]
    with pytest.raises(ValueError, match=r"layout t2x18,1x10\+1x3 needs trellis\.values"):
        Quantizer.from_state(arrays, own)
    with pytest.raises(ValueError, match="layout 2x18 has no trellis.values"):
        dataclasses.replace(fit_quietly(corpus, layout="2x18"), trellis=quantizer.trellis)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t1.5x10", "a trellis takes 0, 1 or 2 bits per component in each code"),
        ("t2x8,0.5x4", "a trellis takes 0, 1 or 2 bits"),
        ("t2x8,0x4+1x8", "each component needs a bit in either code"),
        ("t0x8+1x8", "the first code needs one"),
        ("t2x8+1x9", "a trellis refines components of the first code, which has 8; the second has 9"),
        ("tt2x8", "is not BITSxCOMPONENTS"),
    ],
)
def test_layouts_that_no_trellis_has_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        CodeLayout.parse(text)


def test_layouts_that_nothing_can_be_fitted_to_are_refused():
    for layout in ("0x8", "2x8+0x8"):
        with pytest.raises(ValueError, match="each code needs a component with bits"):
            FitConfig(layout=layout)
    with pytest.raises(ValueError, match=r"a segment has 1 to 1,048,576 components; got 20000000"):
        FitConfig(layout="t2x20000000")
    with pytest.raises(ValueError, match="layout t2x8: a trellis has thresholds lloyd; got median"):
        FitConfig(layout="t2x8", thresholds="median")
    with pytest.raises(ValueError, match="the first 3 components have no bits in the first code"):
        CodeLayout.parse("t0x4,1x8+1x8").truncate(3)


@pytest.mark.parametrize("base", ["Flat", "IVF4"])
def test_an_index_that_is_truncated_or_re_ranks_by_codes_scores_by_points(base, tmp_path):
    x, xq = make_vectors(900), make_vectors(9, seed=1)
    for layout in ("t2x20", "t2x9,0x20+0x9,1x20"):
        quantizer = fit_quietly(x, layout=layout)
        index = QamaIndex(quantizer, "codes", base=base)
        index.train(x)
        index.add(x)
        stored = QamaIndex(quantizer, "fp16", base=base)
        stored.train(x)
        stored.add(x)
        for own in (index.truncate(13), stored.with_rescore("codes")):
            decoded = own.reconstruct_n(0, len(x))
            own.save(tmp_path / "i")
            for one in (own, QamaIndex.load(tmp_path / "i")):
                D, I = one.search(xq, 5, oversample=20)
                np.testing.assert_allclose(D, np.take_along_axis(xq @ decoded.T, I, axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "shorter"),
    [("t0x9,2x9+1x9", 17), ("t0x1,2x17,1x21+1x24", 18), ("t0x20,1x20+1x20,0x20", 21), ("2x9,0x9,1x9", 19)],
)
def test_components_without_bits_may_be_anywhere_and_names_make_what_they_name(layout, shorter):
    x = make_vectors(900, d=40)
    quantizer = fit_quietly(x, layout=layout)
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    assert quantizer.distortion(x) < 1
    for own in (index, index.truncate(shorter)):
        made = index_factory(40, own.factory_string, faiss.METRIC_INNER_PRODUCT)
        assert made.factory_string == own.factory_string


def test_what_is_no_code_or_no_vector_is_refused_before_anything_is_read():
    x = make_vectors(900)
    for layout, metric in (("t2x18+1x9", "cosine"), ("2x18+1x9", "cosine"), ("t2x18+1x9", "inner product")):
        quantizer = fit_quietly(x, layout=layout, metric=METRICS.get(metric, metric))
        code, finer = quantizer.encode_both(3 * x)
        np.testing.assert_array_equal(quantizer.encode_residual(3 * x.astype(np.float64), code), finer)
        for own, codes, message in (
            (x[:4, :30], code[:4], "dimension 30, but 36 is needed"),
            (np.full((2, 36), np.nan, np.float32), code[:2], "2 rows of 2 hold NaN"),
            (x[:4], code[:1], r"codes must be \(4, 7\) uint8; got \(1, 7\)"),
            (x[:4], code[:4, :3], r"codes must be \(4, 7\) uint8; got \(4, 3\)"),
        ):
            with pytest.raises(ValueError, match=message):
                quantizer.encode_residual(own, codes)
        with pytest.raises(ValueError, match=r"residual codes must be \(900, 2\) uint8; got \(900, 1\)"):
            quantizer.decode(code, finer[:, :1])
        with pytest.raises(TypeError, match="codes must be an array; got str"):
            quantizer.decode("abc")


@pytest.mark.parametrize(
    "damage",
    [
        lambda values, targets: (values * np.nan, targets),
        lambda values, targets: (values, np.where(targets == targets[3, 2], np.inf, targets)),
        lambda values, targets: (values, np.ascontiguousarray(targets[:, ::-1])),
        lambda values, targets: (values.astype(np.float64), targets),
    ],
)
def test_damaged_points_are_refused(corpus, damage):
    quantizer = fit_quietly(corpus, layout="t2x18+1x9")
    arrays, own = quantizer.to_state()
    values, targets = damage(arrays["trellis.values"], arrays["trellis.targets"])
    with pytest.raises(ValueError, match=r"must be finite, and the targets ascending|needs \(18, 16\) float32"):
        Quantizer.from_state(arrays | {"trellis.values": values, "trellis.targets": targets}, own)


@pytest.mark.parametrize("order", ["falling", "rising", "random"])
@pytest.mark.parametrize("size", [1, 4, 12, 33, 48, 96])
def test_layouts_of_a_size_fit_and_give_each_component_a_bit(order, size):
    variances = 0.97 ** np.arange(100.0)
    variances = {"falling": variances, "rising": variances[::-1], "random": variances[np.argsort(np.sin(range(100)))]}
    for layout in candidate_layouts.trellis_layouts_of_size(size, variances[order], "Flat"):
        assert candidate_layouts._trellis_bytes(layout, "Flat") <= size
        assert (trellis.bits(layout).sum(axis=1) > 0).all()
        words = [s.components * int(s.bits) for s in layout.segments]
        held = np.array(layout.bits_of_components)
        assert sum(words) <= 32 * candidate_layouts.FIRST_WORDS or (held[:, 1] == 2)[held[:, 0] > 0].all()


def test_vectors_that_are_far_longer_than_those_of_the_fit_keep_their_directions(kernels):
    x = make_vectors(900)
    quantizer = fit_quietly(x, layout="t2x30")
    near = np.sum(x * quantizer.encode_decode(x), axis=1).mean()
    for size in (1e8, 1e18):
        far = quantizer.encode(np.float32(size) * x)
        assert np.sum(x * quantizer.decode(far), axis=1).mean() > 0.7 * near


@pytest.mark.parametrize(("n", "factor"), [(3000, 100), (500, 1e4)])
def test_one_long_vector_does_not_spoil_the_others(n, factor):
    x = make_vectors(n, unit=False)
    x[7] *= np.float32(factor)
    others = np.arange(len(x)) != 7
    alone, beside = (fit_quietly(own, layout="t2x36", metric=faiss.METRIC_L2) for own in (x[others], x))
    levels = fit_quietly(x, layout="2x36", metric=faiss.METRIC_L2)
    assert beside.distortion(x[others]) < max(1.5 * alone.distortion(x[others]), 1.05 * levels.distortion(x[others]))


@pytest.mark.parametrize("layout", ["t2x20", "t2x9,1x9+1x4", "2x20"])
def test_a_fitted_map_decodes_columns_that_have_a_mean(layout):
    x = make_vectors(900, unit=False) + 3
    settings = {"layout": layout, "center": False, "metric": faiss.METRIC_L2}
    free = fit_quietly(x, decoder="least-squares", **settings)
    assert free.distortion(x) < 1.1 * fit_quietly(x, **settings).distortion(x)


def test_training_moves_the_points_with_the_transform_and_leaves_them_where_documents_stay():
    torch = pytest.importorskip("torch")
    from faiss_qama.training.gradient.model import Model
    from faiss_qama.training.gradient.train import _frozen

    x = make_vectors(1200)
    settings = TrainConfig(losses={"hamming.kl": 1.0})
    start = fit_quietly(x, layout="t2x18+1x4")
    model = Model(start, x, settings, [18])
    with torch.no_grad():  # as if a training had moved it
        for parameter in model.adapter.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    moved = _frozen(model, x)
    stayed = dataclasses.replace(moved, trellis=start.trellis)
    assert not np.array_equal(moved.trellis.targets, start.trellis.targets)
    assert moved.distortion(x) < 0.98 * stayed.distortion(x)
    alone = Model(start, x, TrainConfig(losses={"hamming.kl": 1.0}, adapter="none"), [18])
    np.testing.assert_array_equal(_frozen(alone, x).encode(x), start.encode(x))
