"""Inverted lists: exactly what numpy finds in the lists that are probed, however they came about."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import PartsInMemory, slow_except
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flat import random_codes

from faiss_qama import topk
from faiss_qama.arrays import LANES, WORST
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming import flat, ivf
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.hamming.ivf import IVFCodeIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout

NLIST = 11


@pytest.fixture(params=["numba", "faiss"])
def kernels(request, monkeypatch):
    """Both ways to scan."""
    if request.param == "faiss":
        for module in (flat, ivf, topk):
            monkeypatch.setattr(module, "kernel", lambda name: None)


def filled(text: str, n: int, pieces: int = 3) -> tuple[IVFCodeIndex, np.ndarray]:
    layout = CodeLayout.parse(text)
    code = random_codes(layout, n, 1)
    base = IVFCodeIndex(layout, NLIST)
    base.train(random_codes(layout, 500, 3))
    for part in np.array_split(code, pieces):
        base.append(part)
    return base, code


def rounded(base: IVFCodeIndex) -> np.ndarray:
    """Levels (nlist, 2 * units) of the centroids: down from a quarter, and from three quarters to the next."""
    centroids = base._centroids / 64
    return np.concatenate([np.floor(centroids + 0.25), np.floor(centroids + 0.75)], axis=1)


def in_the_order_of_probing(base: IVFCodeIndex, code: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Some ``lists`` for each code (n, len(lists)): by the L1 distance of levels, but the first eight by L2."""
    levels = bit_packing.levels(code, base.layout).astype(float)
    distances = np.abs(np.tile(levels, 2)[:, None] - rounded(base)[lists]).sum(axis=2)
    order = lists[np.argsort(distances, axis=1, kind="stable")]
    near = order[:, :8]
    squares = np.square(levels[:, None] - base._centroids[near] / 64).sum(axis=2)
    near = np.take_along_axis(near, np.argsort(squares, axis=1, kind="stable"), axis=1)
    return np.concatenate([near, order[:, 8:]], axis=1)


def own_lists(base: IVFCodeIndex, code: np.ndarray) -> np.ndarray:
    """The list (n,) of each code: the one that it would probe first."""
    return in_the_order_of_probing(base, code, np.arange(base.nlist))[:, 0]


def probed(base: IVFCodeIndex, code: np.ndarray, query: np.ndarray, nprobe: int) -> np.ndarray:
    """The distances (n,) of the codes from a query, the worst outside of the lists that it probes."""
    own = own_lists(base, code)
    lists = in_the_order_of_probing(base, query[None], np.unique(own))[0, :nprobe]
    return np.where(np.isin(own, lists), bit_packing.hamming(query, code), WORST)


@pytest.mark.parametrize("text", ["2x7", "1x9", "2x33,1.5x7,1x3,0.5x4"])
@pytest.mark.parametrize("n", slow_except([255], [7, 255, 1025]))
@pytest.mark.parametrize("nprobe", [1, 2, NLIST])
def test_what_is_found_is_what_the_nearest_lists_hold(kernels, text, n, nprobe):
    base, code = filled(text, n)
    queries = random_codes(base.layout, 9, 2)
    np.testing.assert_array_equal(base.codes, code)
    some = np.random.default_rng(3).random(n) < 0.8
    for k in (1, 5, n, n + 3):
        for rows in (None, some, np.zeros(n, bool)):
            allowed = np.ones(n, bool) if rows is None else rows
            D, I = base.search(queries, k, rows, {"nprobe": nprobe})
            for query, distances, found in zip(queries, D, I, strict=True):
                wanted = np.where(allowed, probed(base, code, query, nprobe), WORST)
                few = rows is not None and (wanted < WORST).sum() < k
                if few or k >= allowed.sum() or 2 * allowed.sum() < n:  # then every list is probed
                    wanted = np.where(allowed, bit_packing.hamming(query, code), WORST)
                hits = found[found >= 0]
                assert len(set(hits.tolist())) == len(hits) == min(k, int((wanted < WORST).sum()))
                np.testing.assert_array_equal(distances[: len(hits)], np.sort(wanted)[:k][: len(hits)])
                np.testing.assert_array_equal(distances[: len(hits)], wanted[hits])
                assert (distances[len(hits) :] == WORST).all()


@pytest.mark.slow
@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 120), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_lists_hold_every_code_once_however_codes_come_and_go(sizes, seed):
    base, _ = filled("2x7,1x3", 0, 1)
    rng, held = np.random.default_rng(seed), np.empty((0, base.layout.code_size), np.uint8)
    for step, size in enumerate(sizes):
        new = random_codes(base.layout, size, seed + step)
        base.append(new)
        held = np.concatenate([held, new])
        if step % 3 == 2:
            kept = rng.random(len(held)) < 0.7
            base.keep(kept)
            held = held[kept]
        for there in (base, copied(base)):
            check_lists(there, held)


def copied(base: IVFCodeIndex) -> IVFCodeIndex:
    return IVFCodeIndex.from_parts(str(base), base.layout, len(base), PartsInMemory(base.parts()))


def check_lists(base: IVFCodeIndex, held: np.ndarray) -> None:
    """Every row is in the list of its centroid, in order, only groups at the end of a list have room, and a search of
    all lists finds every row.
    """
    np.testing.assert_array_equal(base.codes, held)
    parts, seen, first = base.parts(), [], 0
    for number, size in enumerate(parts["sizes"]):
        last = first - (-size // LANES)
        rows, first = parts["rows"][first:last].ravel(), last
        assert (rows[:size] >= 0).all()
        assert (rows[size:] == -1).all()
        assert (np.diff(rows[:size]) > 0).all()
        seen.append(rows[:size])
        assert (own_lists(base, held[rows[:size]]) == number).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(held)))
    if len(held):
        D, I = base.search(held[:3], len(held), None, {"nprobe": NLIST})
        np.testing.assert_array_equal(np.sort(I), np.tile(np.arange(len(held)), (len(I), 1)))
        np.testing.assert_array_equal(D, bit_packing.hamming(held[I], held[:3, None]))


def arrays_of(thing) -> list[np.ndarray]:
    """Every array that a base holds, however deep."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, GrowingArray):
        return [thing.array]
    return [array for value in vars(thing).values() for array in arrays_of(value)] if hasattr(thing, "__dict__") else []


def test_bytes_are_counted_in_full():
    base, _ = filled("2x192", 1025, 1)
    assert base.bytes_per_vector == round(sum(array.nbytes for array in arrays_of(base)) / 1025)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FlatCodeIndex, IVFCodeIndex])
@pytest.mark.parametrize("n", [3, 900])
def test_ctrl_c_at_any_line_leaves_everything_as_it_was(kind, n):
    """With few codes lists get longer, with many they are made anew."""
    filled_lists, code = filled("2x7,1x3", 1000)
    new, line = random_codes(filled_lists.layout, n, 5), 0
    lines = [0]

    def interrupting(frame, event, _):
        if not frame.f_code.co_filename.endswith(("flat.py", "ivf.py", "growing.py")):
            return None
        lines[0] += event == "line"
        if event == "line" and lines[0] == line:
            raise KeyboardInterrupt
        return interrupting

    while True:
        base = copied(filled_lists) if kind is IVFCodeIndex else FlatCodeIndex(filled_lists.layout)
        if kind is FlatCodeIndex:
            base.append(code)
        line, lines[0] = line + 1, 0
        sys.settrace(interrupting)
        try:
            base.append(new)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        for held in (code, np.concatenate([code, new])):
            if kind is IVFCodeIndex:
                check_lists(base, held)
            np.testing.assert_array_equal(base.codes, held)
            if held is code:
                base.append(new)
    assert line > 5


def test_a_code_finds_itself_in_one_list():
    base, code = filled("2x33", 800)
    base.nprobe = 1
    D, I = base.search(code, 1, None, {})
    assert not D.any()
    np.testing.assert_array_equal(code[I[:, 0]], code)


def test_of_equal_codes_some_are_found_in_one_list():
    """All lie in one list of many, and the others are not probed in its place."""
    layout = CodeLayout.parse("2x16")
    code = np.repeat(random_codes(layout, 1, 1), 5000, axis=0)
    base = IVFCodeIndex(layout, 64)
    base.train(code)
    base.append(code)
    D, I = base.search(code[:3], 10, None, {})
    assert not D.any()
    assert (I >= 0).all()


@pytest.mark.parametrize("nprobe", [1, 3, 7])
def test_a_query_alone_probes_the_lists_that_it_probes_among_others(nprobe):
    """Few queries convert the centroids of their lists alone; many convert all."""
    base, _ = filled("2x33", 3000)
    queries = random_codes(base.layout, 200, 2)
    together = base.search(queries, 20, None, {"nprobe": nprobe})
    for q in range(0, 200, 17):
        for alone, all_ in zip(base.search(queries[q : q + 1], 20, None, {"nprobe": nprobe}), together, strict=True):
            np.testing.assert_array_equal(alone[0], all_[q])
