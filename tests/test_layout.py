from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faiss_qama.quantizer.layout import LEVELS, CodeLayout, Segment

segments = st.builds(
    lambda bits, n: Segment(bits, 2 * n if bits.startswith("0.5") else n),
    st.sampled_from([bits for bits in LEVELS if bits != "0"]),
    st.integers(1, 40),
)
layouts = st.lists(segments, min_size=1, max_size=5).map(lambda s: CodeLayout(tuple(s)))


@given(layouts)
def test_text_reads_back(layout):
    assert CodeLayout.parse(str(layout)) == layout


@given(layouts)
def test_slices_tile_columns_and_bits(layout):
    ends = (0, 0)
    for segment, columns, bits in layout.slices():
        assert (columns.start, bits.start) == ends
        assert bits.stop - bits.start == segment.units * (segment.levels - 1)
        ends = (columns.stop, bits.stop)
    assert ends == (layout.columns, layout.n_bits)
    assert layout.code_size == -(-layout.n_bits // 8)


@given(layouts, st.data())
def test_truncated_layout_has_that_many_components_and_a_prefix_of_the_bits(layout, data):
    components = data.draw(st.integers(1, layout.components))
    at = 0
    for segment in layout.segments:
        if at < components < at + segment.components and (components - at) % segment.group:
            with pytest.raises(ValueError, match="in pairs"):
                layout.truncate(components)
            return
        at += segment.components
    shorter = layout.truncate(components)
    assert shorter.components == components
    for (a, columns, bits), (b, full_columns, full_bits) in zip(shorter.slices(), layout.slices(), strict=False):
        assert a.bits == b.bits
        assert columns.start == full_columns.start
        assert bits.start == full_bits.start
        assert bits.stop <= full_bits.stop


def test_bytes_by_hand():
    assert CodeLayout.parse("2x192").code_size == 72
    assert CodeLayout.parse("1x384").code_size == 48
    assert CodeLayout.parse("1.5x384").code_size == 96
    assert CodeLayout.parse("0.5x384").code_size == 24
    hybrid = CodeLayout.parse("2x96,1.5x96,1x96,0.5x96")
    assert hybrid.n_bits == 288 + 192 + 96 + 48
    assert hybrid.columns == 96 * 3 + 48
    assert CodeLayout.parse("0.5orx96").columns == 96


@pytest.mark.parametrize("text", ["", "2x", "x192", "3x10", "2x0", "2x-1", "2x1.5", "2x10,", "2*10", "2x10;1x3", "٢x3"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="is not BITSxCOMPONENTS"):
        CodeLayout.parse(text)


def test_odd_half_bits_and_lengths_out_of_range_are_refused():
    with pytest.raises(ValueError, match="in pairs; got 3"):
        CodeLayout.parse("0.5x3")
    with pytest.raises(ValueError, match="from 1 to 10; got 11"):
        CodeLayout.parse("2x10").truncate(11)
    with pytest.raises(ValueError, match="from 1 to 10; got 0"):
        CodeLayout.parse("2x10").truncate(0)
