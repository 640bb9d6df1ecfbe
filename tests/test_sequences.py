"""Any sequence of changes leaves what a dictionary of arrays would hold; searches meanwhile see before or after."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from faiss_qama import QamaIndex

pytestmark = pytest.mark.slow

POOL = make_vectors(400, seed=21)
QUERIES = make_vectors(5, seed=22)
QUANTIZER = fit_quietly(make_vectors(500), layout="2x18")


class AnIndexIsADictionary(RuleBasedStateMachine):
    """The dictionary's keys are ids; without ids of the user's own they are the places of the values."""

    @initialize(
        base=st.sampled_from(["Flat", "IVF4", "BFlat", "BIVF4", "BHNSW4", "BHash6", "BHash2x6"]),
        store=st.sampled_from(["none", "codes", "sq8", "fp16", "fp32"]),
        own=st.booleans(),
    )
    def start(self, base, store, own):
        self.index = self.empty(base, store)
        self.base, self.store, self.own = base, store, own
        self.held, self.next = {}, 10**6
        self.folder, self.reader = tempfile.TemporaryDirectory(), None  # of an index that is open for writing

    def teardown(self):
        if hasattr(self, "folder"):
            self.closed()
            self.folder.cleanup()

    @property
    def path(self):
        return Path(self.folder.name) / "i.qama"

    def closed(self):
        if self.reader is not None:
            self.index.close()
            self.reader = None

    @staticmethod
    def empty(base, store):
        index = QamaIndex(QUANTIZER, store, base=base)
        index.train(POOL)
        return index

    def ids(self, n):
        """New ids in an order of their own."""
        self.next += n
        return np.arange(self.next - n, self.next)[::-1] * 3

    @rule(rows=st.lists(st.integers(0, 399), min_size=1, max_size=40))
    def add(self, rows):
        x = POOL[rows]
        if self.own:
            ids = self.ids(len(x))
            self.index.add_with_ids(x, ids)
            self.held |= dict(zip(ids.tolist(), x, strict=True))
        else:
            self.index.add(x)
            self.held |= {len(self.held) + i: v for i, v in enumerate(x)}

    @precondition(lambda self: not self.own)
    @rule()
    def add_with_ids_from_here_on(self):
        ids = 10**9 + self.ids(3)
        self.index.add_with_ids(POOL[:3], ids)
        self.held |= dict(zip(ids.tolist(), POOL[:3], strict=True))
        self.own = True

    @rule(data=st.data(), by_selector=st.booleans())
    def remove(self, data, by_selector):
        known = sorted(self.held)
        gone = data.draw(st.lists(st.sampled_from([*known, 10**12]), max_size=20, unique=True))
        array = np.array(gone, dtype=np.int64)
        assert self.index.remove_ids(faiss.IDSelectorBatch(array) if by_selector else array) == len(
            set(gone) & set(known)
        )
        left = [(i, v) for i, v in self.held.items() if i not in gone]
        self.held = dict(left) if self.own else dict(enumerate(v for _, v in left))

    @rule(rows=st.lists(st.integers(0, 399), min_size=1, max_size=10), base=st.sampled_from(["BFlat", "BHNSW4"]))
    def merge(self, rows, base):
        other = self.empty(base, self.store)
        x = POOL[rows]
        if self.own:
            ids = self.ids(len(x))
            other.add_with_ids(x, ids)
            self.held |= dict(zip(ids.tolist(), x, strict=True))
        else:
            other.add(x)
            self.held |= {len(self.held) + i: v for i, v in enumerate(x)}
        self.index.merge_from(other)
        assert other.ntotal == 0

    @rule(rows=st.lists(st.integers(0, 399), min_size=1, max_size=10), data=st.data())
    def upsert(self, rows, data):
        known = sorted(self.held)[:3] if self.own else list(range(len(self.held)))[:3]
        ids = [data.draw(st.sampled_from([*known, 10**10 + 1, 10**10 + 2])) for _ in rows]
        self.index.upsert(POOL[rows], np.array(ids))
        for i, v in zip(ids, POOL[rows], strict=True):
            self.held.pop(i, None)
            self.held[i] = v
        self.own = True

    @rule()
    def compact(self):
        self.index.compact()
        self.commits()

    def commits(self):
        if self.reader is not None:
            self.committed = dict(self.held), self.own

    @precondition(lambda self: self.reader is None)
    @rule()
    def save_and_open(self):
        self.index.save(self.path)
        self.reader = QamaIndex.load(self.path, mmap=True)
        self.index = QamaIndex.open(self.path)
        self.commits()

    @precondition(lambda self: self.reader is not None)
    @rule(compact=st.sampled_from([None, "auto"]))
    def commit(self, compact):
        self.index.commit(compact=compact)
        self.commits()

    @precondition(lambda self: self.reader is not None)
    @rule()
    def lose_what_was_not_committed(self):
        self.index.close()
        self.index = QamaIndex.open(self.path)
        self.held, self.own = dict(self.committed[0]), self.committed[1]

    @precondition(lambda self: self.reader is not None)
    @rule(fresh=st.booleans())
    def read_the_last_commit(self, fresh):
        held = self.committed[0]
        self.reader.refresh()
        reader = QamaIndex.load(self.path) if fresh else self.reader
        assert reader.ntotal == len(held)
        if held:
            np.testing.assert_allclose(reader.reconstruct_batch(list(held)), self.stored(held), atol=5e-3)
            options = {} if self.store == "none" else {"oversample": 1e9}
            assert set(reader.search(QUERIES, len(held), **options)[1][0].tolist()) == set(held)

    def stored(self, held):
        want = np.stack(list(held.values()))
        return QUANTIZER.decode(QUANTIZER.encode(want)) if self.store in ("none", "codes") else want

    @rule()
    def reset(self):
        self.index.reset()
        self.held, self.own = {}, False

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(Path(folder) / "i.qama")
            self.closed()
            self.index = QamaIndex.load(Path(folder) / "i.qama")

    @invariant()
    def holds_what_it_should(self):
        assert self.index.ntotal == len(self.held)
        if not self.held:
            return
        keys = np.array(list(self.held), dtype=np.int64)
        np.testing.assert_allclose(self.index.reconstruct_batch(keys), self.stored(self.held), atol=5e-3)

    @invariant()
    def what_the_base_index_finds_has_its_own_score(self):
        options = {} if self.store == "none" else {"oversample": 2}
        scores, ids = self.index.search(QUERIES, 3, **options)
        known = list(self.held)
        for query, row, own in zip(range(5), ids, scores, strict=True):
            hits = row[row >= 0].tolist()
            assert len(set(hits)) == len(hits)
            assert set(hits) <= set(known)
            if self.store == "none":
                codes = QUANTIZER.encode(np.stack([self.held[i] for i in hits])) if hits else np.empty((0, 7), np.uint8)
                want = np.bitwise_count(QUANTIZER.encode_queries(QUERIES[query : query + 1]) ^ codes).sum(axis=1)
            else:
                want = self.index.reconstruct_batch(hits) @ QUERIES[query]
            np.testing.assert_allclose(own[: len(hits)], want, atol=1e-5)

    @invariant()
    def finds_what_is_nearest(self):
        options = {} if self.store == "none" else {"oversample": 1e9}
        scores, ids = self.index.search(QUERIES, max(4, len(self.held)), **options)  # exhaustive, whatever the base
        scores, ids = scores[:, :4], ids[:, :4]
        found = min(4, len(self.held))
        assert (ids[:, found:] == -1).all()
        if not found:
            return
        assert all(len(set(row)) == found and set(row) <= set(self.held) for row in ids[:, :found].tolist())
        if self.store == "none":
            codes = QUANTIZER.encode(np.stack(list(self.held.values())))
            distances = np.bitwise_count(QUANTIZER.encode_queries(QUERIES)[:, None] ^ codes[None]).sum(axis=2)
            np.testing.assert_array_equal(scores[:, :found], np.sort(distances, axis=1)[:, :found])
        else:
            vectors = self.index.reconstruct_batch(np.array(list(self.held), dtype=np.int64))
            products = -np.sort(-(QUERIES @ vectors.T), axis=1)[:, :found]
            np.testing.assert_allclose(scores[:, :found], products, atol=1e-5)


EXAMPLES = int(os.environ.get("SEQUENCES", "150"))  # make sequences runs 10,000
AnIndexIsADictionary.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=14, deadline=None)
TestAnIndexIsADictionary = AnIndexIsADictionary.TestCase


@pytest.mark.parametrize("base", ["Flat", "IVF4", "BFlat", "BIVF4", "BHNSW4"])
@pytest.mark.parametrize("store", ["codes", "fp32"])
def test_searches_see_before_or_after_a_change(base, store):
    """Blocks of 50 vectors come and go while four threads search: a search finds all of a block or none of it."""
    index = AnIndexIsADictionary.empty(base, store)
    index.add_with_ids(POOL[:100], np.arange(100))
    block = np.tile(POOL[300], (50, 1))  # nearer to its query than anything else
    stop, faults, seen = threading.Event(), [], set()
    settings = {"nprobe": 4} if base.endswith("IVF4") else {}

    def reader():
        while not stop.is_set():
            _, ids = index.search(POOL[300:301], 60, oversample=1, **settings)
            count = int((ids >= 1000).sum())
            seen.add(count)
            if (base != "BHNSW4" and count not in (0, 50)) or len(set(ids[ids >= 0].tolist())) != (ids >= 0).sum():
                faults.append(ids)

    readers = [threading.Thread(target=reader) for _ in range(4)]
    for thread in readers:
        thread.start()
    turn = 0
    while turn < 40 or (len(seen) < 2 and turn < 2000):
        turn += 1
        ids = 1000 + 50 * turn + np.arange(50)
        index.add_with_ids(block, ids)
        time.sleep(0.002)  # or the readers, who wait for changes, would see too few
        assert index.remove_ids(ids) == 50
        if turn % 10 == 9:
            index.compact()
    stop.set()
    for thread in readers:
        thread.join()
    assert not faults
    assert index.ntotal == 100
    assert seen == {0, 50} if base != "BHNSW4" else {0, 50} & seen  # a graph may miss some of many duplicates


def test_two_indexes_merged_into_each_other_by_two_threads_do_not_wait_for_ever():
    a, b = (AnIndexIsADictionary.empty("BFlat", "fp32") for _ in range(2))
    a.add(POOL[:100])
    b.add(POOL[100:150])
    threads = [
        threading.Thread(target=lambda x=x, y=y: [x.merge_from(y) for _ in range(50)], daemon=True)
        for x, y in ((a, b), (b, a))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert a.ntotal + b.ntotal == 150


def test_a_change_beside_a_reset_leaves_all_parts_in_step():
    """What add encodes outside of the lock is put where the index then is, not where it was."""
    index = AnIndexIsADictionary.empty("BFlat", "fp16")
    block = np.tile(POOL, (30, 1))
    for _ in range(20):
        thread = threading.Thread(target=index.add, args=(block,))
        thread.start()
        index.reset()
        index.add(POOL[:10])
        thread.join()
        assert index.ntotal in (10, 10 + len(block))
        assert index.ntotal == len(index.rescorer.rows) == index.base_index.ntotal
        assert (index.search(POOL[:5], 1, oversample=1e6)[1] >= 0).all()


def test_what_was_made_of_an_index_changes_with_it_or_says_so():
    index = AnIndexIsADictionary.empty("BFlat", "fp32")
    index.add(POOL)
    codes, short = index.with_rescore("codes"), index.truncate(9)
    first = codes.search(POOL[200:205], 1, truncate_dim=9, oversample=400)[1]
    index.remove_ids([0])
    np.testing.assert_array_equal(codes.search(POOL[200:205], 1, truncate_dim=9, oversample=400)[1], first - 1)
    for ask in (lambda: short.search(QUERIES, 3), lambda: short.ntotal, lambda: short.reconstruct(3)):
        with pytest.raises(ValueError, match="was changed since: truncate it again"):
            ask()
    index.reset()
    assert codes.ntotal == 0
    index.add_with_ids(POOL[:9], np.arange(9) + 50)
    assert set(codes.search(QUERIES, 9)[1].ravel().tolist()) == set(range(50, 59))
    for change in (codes.reset, lambda: codes.add(POOL), lambda: codes.remove_ids([1]), lambda: codes.train(POOL)):
        with pytest.raises(ValueError, match="read-only"):
            change()
    for other in (codes, index):
        with pytest.raises(ValueError, match="into itself or with an index that shares its codes"):
            index.merge_from(other)


@pytest.mark.parametrize(
    ("add_id", "error"), [(-15, ValueError), (20.7, TypeError), (2**63 - 5, ValueError), (None, TypeError)]
)
def test_merging_under_wrong_ids_moves_nothing(add_id, error):
    a, b = (AnIndexIsADictionary.empty("BFlat", "fp32") for _ in range(2))
    a.add_with_ids(POOL[:5], [1, 2, 3, 4, 5])
    b.add_with_ids(POOL[:10], np.arange(10))
    with pytest.raises(error):
        a.merge_from(b, add_id)
    untrained = QamaIndex(QUANTIZER, "fp32", base="BIVF4")
    with pytest.raises(ValueError, match="BIVF4 is not trained"):
        untrained.merge_from(b)
    assert (a.ntotal, b.ntotal, untrained.ntotal, len(untrained.rescorer.rows)) == (5, 10, 0, 0)
