from __future__ import annotations

import copy
import dataclasses
import gc
import pickle

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors

from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.decoder import Decoder
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training import FitConfig, fit

CLOSE = 1e-5  # projections this near to a threshold may round to either side


def is_clear(quantizer, x):
    """Rows of ``x`` whose projections all keep their distance from the thresholds."""
    z = quantizer.transform(x)
    return (np.abs(z[:, :, None] - quantizer.thresholds) > CLOSE).all(axis=(1, 2))


def test_codes_equal_a_stock_faiss_lsh(quantizer, corpus):
    if "0.5or" in str(quantizer.layout):
        pytest.skip("not linear: no stock index computes it")
    rows, biases = [], []
    for segment, columns, _ in quantizer.layout.slices():
        for column in range(columns.start, columns.stop):
            for cut in range(segment.levels - 1):
                rows.append(quantizer.transform.matrix[column])
                biases.append(quantizer.transform.bias[column] - quantizer.thresholds[column, cut])
    linear = faiss.LinearTransform(D, len(rows), True)
    faiss.copy_array_to_vector(np.concatenate(rows), linear.A)
    faiss.copy_array_to_vector(np.array(biases, dtype=np.float32), linear.b)
    linear.is_trained = True
    stock = faiss.IndexPreTransform(linear, faiss.IndexLSH(len(rows), len(rows), False, False))
    stock.is_trained = True
    clear = is_clear(quantizer, corpus)
    assert clear.sum() > 900
    np.testing.assert_array_equal(quantizer.encode(corpus[clear]), stock.sa_encode(corpus[clear]))


def test_sign_bits_when_nothing_is_fitted(corpus):
    raw = fit_quietly(corpus, layout=f"1x{D}", center=False, projection="none", rotation="none", thresholds="zero")
    np.testing.assert_array_equal(raw.encode(corpus), np.packbits(corpus >= 0, axis=1, bitorder="little"))


def test_codes_of_a_truncated_quantizer_are_prefixes(quantizer, corpus):
    full = bit_packing.unpack(quantizer.encode(corpus), quantizer.layout)
    for components in range(1, quantizer.layout.components + 1):
        try:
            shorter = quantizer.truncate(components)
        except ValueError as error:
            assert "pairs" in str(error)  # noqa: PT017
            continue
        clear = is_clear(quantizer, corpus)  # a narrower product may round differently
        bits = bit_packing.unpack(shorter.encode(corpus[clear]), shorter.layout)
        np.testing.assert_array_equal(bits, full[clear, : shorter.layout.n_bits])
        assert shorter.decode(shorter.encode(corpus)).shape == corpus.shape


def test_decode_is_the_sum_over_levels(quantizer, corpus):
    code = quantizer.encode(corpus[:50])
    level, decoder, want = bit_packing.levels(code, quantizer.layout), quantizer.decoder, []
    for row in level:
        x, unit = decoder.offset.astype(np.float64), 0
        for segment, columns, _ in quantizer.layout.slices():
            for column in range(columns.start, columns.stop):
                own = unit + (column - columns.start) * segment.units // segment.columns
                x = x + decoder.values[column, row[own]] * decoder.matrix[column].astype(np.float64)
            unit += segment.units
        want.append(x / np.linalg.norm(x) if quantizer.normalized else x)
    np.testing.assert_allclose(quantizer.decode(code), want, atol=2e-5)


@pytest.mark.parametrize("kind", ["transpose", "least-squares"])
def test_energy_of_bits_is_the_squared_norm(corpus, kind):
    quantizer = fit_quietly(corpus, layout="2x9,1.5x9,0.5orx6", decoder=kind)
    code = quantizer.encode(corpus)
    bits = bit_packing.unpack(code, quantizer.layout).astype(np.float32)
    decoder = quantizer.bit_decoder
    assert (decoder.energy_steps is None) == (kind == "least-squares")
    if decoder.energy_steps is not None:
        want = np.square(quantizer.decode_unnormalized(code).astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(bits @ decoder.energy_steps + decoder.energy_offset, want, rtol=1e-4)


@pytest.mark.parametrize("layout", ["2x18", "2x9,1.5x9,0.5orx6", "0.5x6,1x2,2x3", "0.5orx4"])
def test_weights_of_bits_are_inner_products_with_decoded_vectors(corpus, queries, layout):
    quantizer = fit_quietly(corpus, layout=layout)
    code = quantizer.encode(corpus)
    bits = bit_packing.unpack(code, quantizer.layout).astype(np.float32)
    weights, constant = quantizer.bit_decoder.weights(queries)
    got = weights @ bits.T + (constant + queries @ quantizer.decoder.offset)[:, None]
    np.testing.assert_allclose(got, queries @ quantizer.decode_unnormalized(code).T, atol=1e-5)


def test_level_means_decode_with_least_error(corpus):
    """Any other value for a level would raise the squared error of the vectors that the fit has seen."""
    quantizer = dataclasses.replace(fit(corpus, config=FitConfig(layout="2x18")), normalized=False)
    seen = np.sort(np.random.default_rng(0).choice(len(corpus), len(corpus), replace=False)[100:])

    def error(decoder: Decoder) -> float:
        moved = dataclasses.replace(quantizer, decoder=decoder)
        return float(np.square(moved.decode(moved.encode(corpus[seen])) - corpus[seen]).sum())

    best = error(quantizer.decoder)
    for column, level, step in [(0, 0, 0.02), (3, 1, -0.02), (17, 3, 0.02)]:
        values = quantizer.decoder.values.copy()
        values[column, level] += step
        assert error(dataclasses.replace(quantizer.decoder, values=values)) > best


def test_more_bits_decode_nearer(corpus):
    errors = [
        np.square(q.decode(q.encode(corpus)) - corpus).sum()
        for q in (fit_quietly(corpus, layout=f"{bits}x{D}") for bits in ("0.5", "1", "1.5", "2"))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[3]


def test_query_length_does_not_matter_under_inner_product(corpus, queries):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    np.testing.assert_array_equal(quantizer.encode_queries(queries * 64), quantizer.encode_queries(queries))
    euclidean = fit(corpus, config=FitConfig(layout="2x18"), metric=faiss.METRIC_L2)
    assert (euclidean.encode_queries(queries * 64) != euclidean.encode_queries(queries)).any()


def test_without_queries_both_sides_are_cut_alike(corpus):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    np.testing.assert_array_equal(quantizer.encode_queries(corpus), quantizer.encode(corpus))


def test_with_queries_their_centre_moves_to_where_documents_are_cut(corpus):
    shifted = make_vectors(400, seed=3) + np.float32(0.2)
    config = FitConfig(layout="2x18", query_center=1.0, query_gain=1.0)
    quantizer = fit(corpus, config=config, queries=shifted, metric=faiss.METRIC_L2)
    z = quantizer.query_transform(shifted)
    assert np.linalg.norm(z.mean(axis=0)) < 0.05 * np.sqrt(18)  # whatever the rotation
    assert np.abs(quantizer.transform(shifted).mean(axis=0)).max() > 0.2


@pytest.mark.parametrize("center", [True, False])
def test_queries_like_the_documents_are_cut_like_them(corpus, center):
    config = FitConfig(layout="2x18", query_center=1.0, query_gain=1.0, center=center)
    quantizer = fit(corpus, config=config, queries=corpus)
    difference = quantizer.query_transform.bias - quantizer.transform.bias
    assert np.linalg.norm(difference) < 0.01 * np.sqrt(18)  # whatever the rotation


def test_a_zero_row_does_not_undo_unit_length(corpus):
    x = corpus.copy()
    x[5] = 0
    assert fit(x, config=FitConfig(layout="2x18")).normalized
    assert not fit(corpus * np.float32(1.01), config=FitConfig(layout="2x18")).normalized
    assert not fit(0 * x, config=FitConfig(layout="2x18")).normalized


@pytest.mark.parametrize("bad", [np.zeros((3, 2), np.uint8), np.zeros(5, np.uint8), np.zeros((3, 7), np.int64)])
def test_decode_refuses_other_codes(corpus, bad):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    with pytest.raises(ValueError, match=r"\(n, 7\) uint8"):
        quantizer.decode(bad)


def test_parts_that_do_not_fit_together_are_refused(corpus):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    with pytest.raises(ValueError, match=r"thresholds has shape \(17, 3\).*needs \(18, 3\)"):
        dataclasses.replace(quantizer, thresholds=quantizer.thresholds[1:])


@pytest.mark.parametrize("settings", [{}, {"layout": "2x9+1x9"}, {"matryoshka_dims": (6, 18)}])
def test_one_matrix_is_held_once(corpus, queries, settings):
    """By the transform, the query side and the decoder; of prefixes, of copies and in the bundle too."""
    quantizer = fit_quietly(corpus, **{"layout": "2x18", **settings}, queries=np.concatenate([queries] * 3))
    assert quantizer.query_transform.gain != 1
    loaded = Quantizer.from_state(*quantizer.to_state())
    copied = pickle.loads(pickle.dumps(quantizer))
    code, query_code = quantizer.encode(corpus), quantizer.encode_queries(queries)
    for one in (quantizer, loaded, copied, copy.deepcopy(quantizer), quantizer.truncate(6)):
        matrix = one.transform.matrix
        assert one.decoder.matrix is matrix
        assert one.query_transform.matrix is matrix
        assert not {"decoder.matrix", "query_transform.matrix"} & one.to_state()[0].keys()
        if one.layout == quantizer.layout:
            np.testing.assert_array_equal(one.encode(corpus), code)
            np.testing.assert_array_equal(one.encode_queries(queries), query_code)
            np.testing.assert_array_equal(one.decode(code), quantizer.decode(code))


def test_a_matrix_outlives_its_transform(corpus):
    quantizer = fit_quietly(corpus, layout="2x18")
    matrix, kept = quantizer.transform.matrix, quantizer.transform.matrix.copy()
    del quantizer
    gc.collect()
    held = [np.full_like(kept, i) for i in range(50)]  # would lie where the matrix was
    np.testing.assert_array_equal(matrix, kept)
    del held


def test_a_state_with_every_matrix_is_read_as_before(corpus, queries):
    """As bundles from before matrices were shared have it."""
    quantizer = fit_quietly(corpus, layout="2x18", queries=np.concatenate([queries] * 3))
    arrays, settings = quantizer.to_state()
    gain = arrays.pop("query_transform.gain")
    arrays |= {"decoder.matrix": arrays["transform.matrix"].copy()}
    arrays |= {"query_transform.matrix": gain * arrays["transform.matrix"]}
    del arrays["transform.gain"]
    old = Quantizer.from_state(arrays, settings)
    assert old.decoder.matrix is old.transform.matrix
    np.testing.assert_array_equal(old.encode(corpus), quantizer.encode(corpus))
    assert (old.encode_queries(queries) != quantizer.encode_queries(queries)).mean() < 1e-3  # rounded in another order
