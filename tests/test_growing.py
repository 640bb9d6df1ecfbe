"""Arrays that grow: in memory, in a file, and over a memory map, all as a list of rows does."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faiss_qama.growing import GrowingArray, with_room
from faiss_qama.storage.row_file import RowFile

FIRST = np.arange(12, dtype=np.int32).reshape(4, 3)
STEPS = st.lists(st.tuples(st.sampled_from(["append", "write", "shrink"]), st.integers(0, 40)), max_size=12)


def grown(kind, path):
    np.save(path, FIRST)
    if kind == "memory":
        return GrowingArray(FIRST.copy())
    if kind == "file":
        file = RowFile(path, writable=True)
        return GrowingArray(file.read(len(FIRST)), file)
    return with_room(np.load(path, mmap_mode="r"))


@pytest.mark.parametrize("kind", ["memory", "file", "map"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STEPS)
def test_it_holds_what_a_list_holds(tmp_path, kind, steps):
    path, rows, number = tmp_path / f"{kind}.npy", FIRST.tolist(), 100
    array = grown(kind, path)
    for step, n in steps:
        more = np.arange(number, number + 3 * n, dtype=np.int32).reshape(n, 3)
        number += 3 * n
        if step == "append":
            array.append(more)
            rows += more.tolist()
        elif step == "shrink":
            array.shrink(n)
            rows = rows[:n]
        else:
            at = n % (len(rows) + 1)
            array.write(at, more)
            rows[at : at + n] = more.tolist()
        assert len(array) == len(rows)
        assert array.array.tolist() == rows
    if kind == "map":
        np.testing.assert_array_equal(np.load(path), FIRST)


def test_a_map_is_copied_only_where_it_changes(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((100_000, 16), np.float32))
    array = with_room(np.load(path, mmap_mode="r"))
    where = array.array.ctypes.data
    array.append(np.ones((90_000, 16), np.float32))
    array.array[5] = 7
    assert array.array.ctypes.data == where
    assert array.array.sum() == (90_000 + 7) * 16
    assert np.load(path).sum() == 0
    array.append(np.ones((90_000, 16), np.float32))  # more than there is room
    assert array.array.sum() == (180_000 + 7) * 16
    base = with_room(np.load(path, mmap_mode="r")).array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(getattr(base, "obj", base), mmap.mmap)


def test_what_holds_nothing_and_what_is_no_map_are_taken_too(tmp_path):
    np.save(tmp_path / "none.npy", np.empty((0, 3), np.int32))
    for array in (np.load(tmp_path / "none.npy"), FIRST.copy()):
        one = with_room(array)
        one.append(FIRST)
        np.testing.assert_array_equal(one.array, np.concatenate([array, FIRST]))
