from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout import layouts

from faiss_qama.quantizer import bit_packing


def reference_levels(z, thresholds, layout):
    """Level of every unit, one value at a time."""
    out = []
    for segment, columns, _ in layout.slices():
        cuts = thresholds[columns, : segment.levels - 1]
        for row in range(columns.stop - columns.start):
            out.append([sum(value - t >= 0 for t in cuts[row]) for value in z[:, columns.start + row]])
        if segment.bits == "0.5or":
            pairs = out[-segment.components :]
            out[-segment.components :] = [
                [int(a or b) for a, b in zip(x, y, strict=True)] for x, y in zip(pairs[::2], pairs[1::2], strict=True)
            ]
    return np.array(out).T


def draw_case(layout, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n = data.draw(st.sampled_from([1, 2, 7]))
    thresholds = np.sort(rng.integers(-3, 4, (layout.columns, layout.max_levels - 1)), axis=1).astype(np.float32)
    z = rng.integers(-4, 5, (n, layout.columns)).astype(np.float32)  # whole numbers: many lie on a threshold
    return z, thresholds


@settings(deadline=None)  # the first compiles
@given(layouts, st.data())
def test_levels_survive_packing(layout, data):
    z, thresholds = draw_case(layout, data)
    code = bit_packing.encode(z, thresholds, layout)
    assert code.shape == (len(z), layout.code_size)
    np.testing.assert_array_equal(bit_packing.levels(code, layout), reference_levels(z, thresholds, layout))


@settings(deadline=None)  # the first compiles
@given(layouts, st.data())
def test_codes_are_the_same_without_numba(layout, data):
    z, thresholds = draw_case(layout, data)
    thresholds[:, -1:] = np.inf  # a cut that a column does not have
    code = bit_packing.encode(np.asfortranarray(z), thresholds, layout)
    values = np.arange(layout.columns * layout.max_levels, dtype=np.float32).reshape(layout.columns, -1)
    damaged = np.concatenate([code, code ^ 0b10110110])  # bits that no level has: as many as are set count
    decoded = bit_packing.decode(damaged, values, layout)
    with mock.patch.object(bit_packing, "kernel", return_value=None):
        np.testing.assert_array_equal(bit_packing.encode(z, thresholds, layout), code)
        np.testing.assert_array_equal(bit_packing.decode(damaged[::-1], values, layout), decoded[::-1])


@settings(deadline=None)  # the first compiles
@given(layouts, st.data())
def test_hamming_distance_is_the_l1_distance_of_levels(layout, data):
    z, thresholds = draw_case(layout, data)
    code, level = bit_packing.encode(z, thresholds, layout), reference_levels(z, thresholds, layout)
    hamming = np.bitwise_count(code[:, None] ^ code[None]).sum(axis=2, dtype=int)
    np.testing.assert_array_equal(hamming, np.abs(level[:, None] - level[None]).sum(axis=2))


@settings(deadline=None)  # the first compiles
@given(layouts, st.data())
def test_padding_is_zero_and_bits_are_lowest_first(layout, data):
    z, thresholds = draw_case(layout, data)
    code = bit_packing.encode(z, thresholds, layout)
    bits = [[int(byte) >> i & 1 for byte in row for i in range(8)] for row in code]
    np.testing.assert_array_equal(np.array(bits)[:, : layout.n_bits], bit_packing.unpack(code, layout))
    assert not np.array(bits)[:, layout.n_bits :].any()


@pytest.mark.parametrize("size", [1, 7, 8, 24, 48, 100])
def test_tables_of_distances_are_those_of_numpy(size):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (90, size), np.uint8), rng.integers(0, 256, (50, size), np.uint8)
    rows = np.arange(0, 90, 3)
    table = bit_packing.hamming_table(a[rows], b[:, ::-1])  # copies, and arrays in another order
    np.testing.assert_array_equal(table, bit_packing.hamming(a[::3, None], b[None, :, ::-1]))
