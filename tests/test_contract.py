"""Every operation on every base index, with every second stage, in both metrics: the same answers as IndexFlat.

The oracle is a faiss.IndexFlat of what the index itself says that it holds, which is compared with what went in. Run
with ``-s`` or look at the end of the output for the table of combinations that passed; docs/operations.md shows it.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors, slow_except

from faiss_qama import QamaIndex, index_factory
from faiss_qama.index import two_stage
from faiss_qama.quantizer import bit_packing

LISTS = ("IVF", "BIVF")
BASES = ("Flat", "IVF8", "BFlat", "BIVF8", "BIVF8_HNSW4", "BHNSW8", "BHash8", "BHash3x8")
RESCORE_KINDS = ("none", "codes", "residual", "trellis", "sq8", "fp16", "fp32", "array", "faiss.Index")
METRICS = {"inner product": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}
DECODED = ("none", "codes", "residual", "trellis")  # stores that keep no vectors
N, K = 240, 5
OPERATIONS = {}


@pytest.fixture(scope="module", params=METRICS)
def metric(request):
    return METRICS[request.param]


@pytest.fixture(scope="module")
def world(metric):
    """A quantizer with slices and a residual, 240 vectors of any length, and queries."""
    x = make_vectors(1000, unit=False)
    quantizer = fit_quietly(x, layout="2x18+2x9,1x20", matryoshka_dims=(9, 18), metric=metric)
    return quantizer, x[:N], make_vectors(7, seed=1, unit=False)


@pytest.fixture(scope="module")
def coded_world(metric, world):
    """The same with a trellis-coded quantizer."""
    settings = {"layout": "t2x9,1x10,0x8+2x3,1x10,0x6,1x8", "matryoshka_dims": (9, 18)}
    return fit_quietly(make_vectors(1000, unit=False), metric=metric, **settings), *world[1:]


@pytest.fixture(params=slow_except(["codes", "fp16"], RESCORE_KINDS))
def store(request):
    return request.param


@pytest.fixture(params=slow_except(["Flat", "BFlat"], BASES))
def base(request):
    return request.param


class Subject:
    """An index, and a dictionary of what it should hold."""

    def __init__(self, world, store, base, ids=None, rows=slice(None)):
        self.quantizer, self.x, self.xq = world
        self.x = self.x[rows]
        self.store, self.base = store, base
        if store == "codes":
            layout = dataclasses.replace(self.quantizer.layout, residual=None)
            self.quantizer = dataclasses.replace(self.quantizer, layout=layout, residual=None)
        kept = {"array": self.x.copy(), "faiss.Index": faiss.IndexFlat(D, self.quantizer.metric), "residual": "codes"}
        kept["trellis"] = "codes"
        rescore = kept.get(store, store)
        self.index = QamaIndex(self.quantizer, rescore, base=base)
        assert self.index.is_trained == (not base.startswith(LISTS))
        self.index.train(world[1])
        assert self.index.is_trained
        if ids is None:
            self.index.add(self.x)
        else:
            self.index.add_with_ids(self.x, ids)
        self.held = dict(enumerate(self.x) if ids is None else zip(ids.tolist(), self.x, strict=True))

    def find(self, k=K, **options):
        """Search exhaustively, whatever the base index: for as many as there are, or among as many candidates."""
        if self.store != "none":
            return self.index.search(self.xq, k, oversample=1e9, **options)
        D, I = self.index.search(self.xq, max(k, self.index.ntotal), **options)
        return D[:, :k], I[:, :k]

    def scores(self, ids):
        """What the second stage says of ``ids``, (nq, len(ids)), smaller better."""
        vectors = self.index.reconstruct_batch(ids)
        if self.store == "none":
            code, query = (
                self.quantizer.encode(np.stack([self.held[i] for i in ids])),
                self.quantizer.encode_queries(self.xq),
            )
            return np.bitwise_count(query[:, None] ^ code[None]).sum(axis=2).astype(np.int64)
        distances = faiss.pairwise_distances(self.xq, vectors, self.quantizer.metric)
        return -distances if self.quantizer.metric == faiss.METRIC_INNER_PRODUCT else distances

    def check(self, found=None, allowed=None, k=K):
        """The hits are the k nearest of the allowed ids, or all of them, with their scores, best first."""
        allowed = np.array(sorted(self.held if allowed is None else allowed), dtype=np.int64)
        D, I = self.find(k) if found is None else found
        assert D.shape == I.shape == (len(self.xq), k)
        count = min(k, len(allowed))
        assert (I[:, count:] == -1).all()
        if count == 0:
            return
        assert all(len(set(row)) == count and set(row) <= set(allowed.tolist()) for row in I[:, :count].tolist())
        scores = self.scores(allowed)
        sign = -1 if self.store != "none" and self.quantizer.metric == faiss.METRIC_INNER_PRODUCT else 1
        size = np.abs(scores).max()
        np.testing.assert_allclose(sign * D[:, :count], np.sort(scores, axis=1)[:, :count], atol=1e-4 * size)
        own = np.take_along_axis(scores, np.searchsorted(allowed, I[:, :count]), axis=1)
        np.testing.assert_allclose(sign * D[:, :count], own, atol=1e-4 * size)

    def check_scores(self, D, I):
        """Each hit has its own score, best first."""
        for query, (scores, ids) in enumerate(zip(D, I, strict=True)):
            hits = ids[ids >= 0]
            own = self.scores(hits)[query] if len(hits) else np.empty(0)
            sign = -1 if self.quantizer.metric == faiss.METRIC_INNER_PRODUCT else 1
            np.testing.assert_allclose(sign * scores[: len(hits)], own, atol=1e-4 * max(1, np.abs(own).max(initial=0)))
            assert (np.diff(sign * scores[: len(hits)]) >= 0).all()
            assert len(set(hits.tolist())) == len(hits)

    def check_vectors(self):
        """What it gives back is what went in, as near as the store keeps it."""
        keys = np.array(sorted(self.held), dtype=np.int64)
        want = np.stack([self.held[key] for key in keys.tolist()]) if len(keys) else np.empty((0, D), np.float32)
        got = self.index.reconstruct_batch(keys)
        if self.store in ("none", "codes"):
            want = self.quantizer.decode(self.quantizer.encode(want)) if len(keys) else want
        elif self.store in ("residual", "trellis"):
            want = self.quantizer.encode_decode(want) if len(keys) else want
        error = {"sq8": 2e-2, "fp16": 1e-3}.get(self.store, 1e-5)
        np.testing.assert_allclose(got, want, atol=error * np.abs(self.x).max())


def operation(check):
    OPERATIONS[check.__name__] = check
    return check


@operation
def add(s):
    assert s.index.ntotal == N
    s.check_vectors()
    s.check()


@operation
def search_by_the_base_index(s):
    """Few candidates, so that the base index is asked: distances are right, and few nearer ones are missed."""
    codes = s.index.with_rescore("none")
    query = s.quantizer.encode_queries(s.xq)
    settings = {"nprobe": 8} if s.base.startswith(LISTS) else {"efSearch": 64} if s.base == "BHNSW8" else {}
    for _ in range(2):
        ids = codes.ids
        distances = np.bitwise_count(query[:, None] ^ s.quantizer.encode(np.stack(list(s.held.values())))[None]).sum(
            axis=2
        )
        for sel in (None, np.delete(ids, [3, 50])):  # most pass the filter
            allowed = np.ones(len(ids), bool) if sel is None else np.isin(ids, sel)
            D, I = codes.search(s.xq, K, sel=sel, **settings)
            rows = np.searchsorted(ids, I)
            for row, scores, own in zip(rows, D, distances, strict=True):
                there = row[: int((scores < np.iinfo(np.int32).max).sum())]
                assert allowed[there].all()
                assert len(set(there.tolist())) == len(there)
                np.testing.assert_array_equal(scores[: len(there)], own[there])
                assert (np.diff(scores) >= 0).all()
            best = np.sort(distances[:, allowed], axis=1)[:, :K]
            if s.base in ("Flat", "IVF8", "BFlat", "BIVF8"):
                np.testing.assert_array_equal(D, best)
            elif not s.base.startswith("BHash"):
                assert (best == D).mean() >= 0.9
            if s.store != "none":
                found = s.index.search(s.xq, K, oversample=3, sel=sel, **settings)
                s.check_scores(*found)
        s.index.remove_ids(np.arange(0, 40))
        s.held = dict(enumerate(s.x[40:]))


@operation
def search(s):
    D, I = s.index.search(s.xq, K)  # as the base index searches, by calibration
    assert I.dtype == np.int64
    assert D.dtype == (np.int32 if s.store == "none" else np.float32)
    for row, scores in zip(I, D, strict=True):
        hits = row[row >= 0]
        assert len(set(hits.tolist())) == len(hits)
        order = np.sort(scores[: len(hits)])
        smaller = s.store == "none" or s.quantizer.metric == faiss.METRIC_L2
        np.testing.assert_array_equal(scores[: len(hits)], order if smaller else order[::-1])
    if s.base in ("Flat", "BFlat", "BHNSW8"):
        assert (I >= 0).all()
    s.check(s.find(N + 3), k=N + 3)  # more than there are


@operation
def search_settings(s):
    names = {"IVF8": "nprobe", "BIVF8": "nprobe", "BIVF8_HNSW4": "nprobe", "BHNSW8": "efSearch"}
    name = names.get(s.base)
    for other in {"nprobe", "efSearch", "nonsense"} - {name}:
        with pytest.raises(ValueError, match=f"{other} means nothing to {s.base}"):
            s.index.search(s.xq, K, **{other: 8})
    if name:
        kind = faiss.SearchParametersIVF if name == "nprobe" else faiss.SearchParametersHNSW
        few_candidates = {} if s.store == "none" else {"oversample": 2}
        few, many = (s.index.search(s.xq, K, **few_candidates, **{name: n}) for n in (1, 8))
        for keyword, n in ((few, 1), (many, 8)):
            by_object = s.index.search(s.xq, K, **few_candidates, params=kind(**{name: n}))
            np.testing.assert_array_equal(keyword[1], by_object[1])
        if name == "nprobe":
            assert (few[1] != many[1]).any()
            flat = Subject((s.quantizer, s.x, s.xq), s.store, "BFlat")
            codes, flat_codes = s.index.with_rescore("none"), flat.index.with_rescore("none")
            np.testing.assert_array_equal(codes.search(s.xq, K, nprobe=8)[0], flat_codes.search(s.xq, K)[0])
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            s.index.search(s.xq, K, **{name: 0})


@operation
def add_with_ids(s):
    ids = np.random.default_rng(3).permutation(10**12 + np.arange(N) * 7)
    s = Subject((s.quantizer, s.x, s.xq), s.store, s.base, ids)
    s.check_vectors()
    s.check()
    with pytest.raises(ValueError, match="ids of its own: use add_with_ids"):
        s.index.add(s.x[:1])


@operation
def remove_ids(s):
    gone = np.r_[0:40, 100, N - 1]
    left = np.delete(s.x, gone, axis=0)
    assert s.index.remove_ids(gone) == len(gone)
    s.held = dict(enumerate(left))  # those that follow move up, as in IndexFlat
    assert s.index.ntotal == len(left)
    s.check_vectors()
    s.check()
    assert s.index.remove_ids(faiss.IDSelectorRange(190, 1000)) == len(left) - 190
    s.held = dict(enumerate(left[:190]))
    s.check()
    s.index.compact()
    s.check_vectors()
    s.check()
    assert s.index.remove_ids(np.array([10**6])) == 0
    if s.store != "array":
        s.index.add(s.x[:30])
        s.held |= {190 + i: x for i, x in enumerate(s.x[:30])}
        s.check_vectors()
        s.check()
    assert s.index.remove_ids(np.arange(1000)) == len(s.held)
    s.held = {}
    s.check()


@operation
def remove_ids_of_the_users_own(s):
    ids = np.random.default_rng(3).permutation(10**12 + np.arange(N) * 7)
    s = Subject((s.quantizer, s.x, s.xq), s.store, s.base, ids)
    assert s.index.remove_ids(ids[5:60]) == 55
    for i in ids[5:60].tolist():
        del s.held[i]
    s.check_vectors()
    s.check()
    with pytest.raises(IndexError, match=f"no vector with id {ids[5]}"):
        s.index.reconstruct(ids[5])


@operation
def filters(s):
    bits = np.random.default_rng(0).random(N) < 0.5
    batch = [3, 77, 200]
    selectors = {
        "range": (faiss.IDSelectorRange(50, 60), range(50, 60)),
        "batch": (faiss.IDSelectorBatch(np.array(batch)), batch),
        "array": (faiss.IDSelectorArray(np.array(batch)), batch),
        "bitmap": (faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little")), np.flatnonzero(bits)),
        "all but a few": (faiss.IDSelectorNot(faiss.IDSelectorBatch(np.array(batch))), set(range(N)) - set(batch)),
        "and": (faiss.IDSelectorAnd(faiss.IDSelectorRange(0, 100), faiss.IDSelectorRange(90, 200)), range(90, 100)),
        "or": (faiss.IDSelectorOr(faiss.IDSelectorRange(0, 3), faiss.IDSelectorRange(200, 201)), [0, 1, 2, 200]),
        "one in 240": (faiss.IDSelectorRange(7, 8), [7]),
        "none": (faiss.IDSelectorRange(N, N + 5), []),
        "an array of ids": (np.array(batch), batch),
    }
    for sel, allowed in selectors.values():
        s.check(s.find(sel=sel), allowed)
        found = s.index.search(s.xq, K, sel=sel)[1]  # by calibration: k of them, if there are so many
        assert ((found >= 0).sum(axis=1) == min(K, len(allowed))).all()
        assert set(found[found >= 0].tolist()) <= set(allowed)
    s.check_vectors()
    sel, allowed = selectors["range"]
    s.check(s.find(params=faiss.SearchParameters(sel=sel)), allowed)
    s.index.remove_ids(np.arange(10))
    s.held = dict(enumerate(s.x[10:]))
    s.check(s.find(sel=faiss.IDSelectorRange(50, 60)), range(50, 60))


@operation
def range_search(s, monkeypatch):
    monkeypatch.setattr(two_stage, "RANGE_START", 64)  # of 240, so that candidates are doubled
    scores = s.scores(np.arange(N))
    sign = -1 if s.store != "none" and s.quantizer.metric == faiss.METRIC_INNER_PRODUCT else 1
    for share in (0, 0.03, 0.3, 1.1):
        radius = np.quantile(scores, min(share, 1)) + (0.5 + abs(scores).max() if share > 1 else 0)
        lims, D, I = s.index.range_search(s.xq, float(sign * radius))
        assert lims[0] == 0
        assert lims[-1] == len(D) == len(I)
        missed = wanted = 0
        for query, own in enumerate(scores):
            hits, found = I[lims[query] : lims[query + 1]], sign * D[lims[query] : lims[query + 1]]
            margin = 1e-4 * np.abs(scores).max()
            near = np.flatnonzero(own < radius - margin if s.store != "none" else own < radius)
            missed += len(set(near.tolist()) - set(hits.tolist()))
            wanted += len(near)
            assert len(set(hits.tolist())) == len(hits)
            assert (found < radius + margin).all()
            np.testing.assert_allclose(found, own[hits], atol=margin)
            assert set(hits.tolist()) <= set(np.flatnonzero(own < radius + margin).tolist())
            assert (np.diff(found) >= 0).all()
        if s.base == "BFlat":
            exact = s.store == "none" or share in (0, 1.1)
            assert missed <= (0 if exact else 0.1 * wanted)  # beyond twice the candidates of the others


@operation
def search_and_reconstruct(s):
    options = {} if s.store == "none" else {"oversample": 3}
    D0, I0 = s.index.search(s.xq, K, **options)
    D, I, R = s.index.search_and_reconstruct(s.xq, K, **options)
    np.testing.assert_array_equal(I, I0)
    np.testing.assert_array_equal(D, D0)
    assert R.shape == (*I.shape, s.index.d)
    assert (np.isnan(R).all(axis=2) == (I == -1)).all()
    np.testing.assert_array_equal(R[I >= 0], s.index.reconstruct_batch(I[I >= 0]))
    _, I, R = s.index.search_and_reconstruct(s.xq, K, sel=np.array([3]), **options)
    assert (np.isnan(R).all(axis=2) == (I == -1)).all()
    assert (I[:, 0] == 3).all()


@operation
def reconstruct(s):
    np.testing.assert_array_equal(s.index.reconstruct(17), s.index.reconstruct_n(17, 1)[0])
    np.testing.assert_array_equal(s.index.reconstruct_n(), s.index.reconstruct_batch(np.arange(N)))
    for key in (-1, N, 10**15):
        with pytest.raises(IndexError, match=f"no vector with id {key} among {N}"):
            s.index.reconstruct(key)


@operation
def merge_from(s):
    other = Subject((s.quantizer, make_vectors(60, seed=9, unit=False), s.xq), s.store, "BFlat")
    if s.store in ("array", "faiss.Index"):
        with pytest.raises(ValueError, match="rescore is user there and user here"):
            s.index.merge_from(other.index)
        assert (s.index.ntotal, other.index.ntotal) == (N, 60)
        return
    s.index.merge_from(other.index)
    s.held |= {N + i: x for i, x in enumerate(other.x)}
    assert other.index.ntotal == 0
    s.check_vectors()
    s.check()
    other.index.add(other.x[:9])
    s.index.merge_from(other.index, add_id=10_000)  # ids of their own from here on
    s.held |= {10_000 + i: x for i, x in enumerate(other.x[:9])}
    s.check_vectors()
    s.check()


@operation
def reset(s):
    s.index.reset()
    assert s.index.ntotal == 0
    s.held = {}
    s.check()
    lims, *_ = s.index.range_search(s.xq, 0.0)
    assert (lims == 0).all()
    if s.store not in ("array", "faiss.Index"):
        s.index.add(s.x[:20])
        s.held = dict(enumerate(s.x[:20]))
        s.check()


@operation
def assign(s):
    np.testing.assert_array_equal(s.index.assign(s.xq), s.index.search(s.xq, 1)[1])
    np.testing.assert_array_equal(s.index.assign(s.xq, 3, sel=np.array([3])), [[3, -1, -1]] * len(s.xq))


@operation
def sa_codec(s):
    code = s.index.sa_encode(s.x)
    assert code.shape == (N, s.index.sa_code_size())
    np.testing.assert_array_equal(code, s.quantizer.encode(s.x))
    np.testing.assert_array_equal(s.index.sa_decode(code), s.quantizer.decode(code))


@operation
def truncate(s):
    short = s.index.truncate(9)
    assert short.factory_string.startswith(f"Qama(2x9),{s.base}")
    if s.store == "trellis":  # the prefix of the best sequence is a code, but not the best one of so few components
        for short in map(s.index.truncate, (9, 22)):  # the second ends within components without bits
            code = bit_packing.truncate(s.quantizer.encode(s.x), short.quantizer.layout)
            want = short.quantizer.decode(code)
            np.testing.assert_allclose(short.reconstruct_n(0, N), want, atol=1e-5 * np.abs(want).max())
            rows = np.tile(np.arange(N), (len(s.xq), 1))
            scores = faiss.pairwise_distances(s.xq, want, s.quantizer.metric)
            np.testing.assert_allclose(short.rescorer.scores(s.xq, rows), scores, atol=1e-4 * np.abs(scores).max())
            same = pickle.loads(pickle.dumps(short.quantizer))
            np.testing.assert_array_equal(same.decode(code), want)
        return
    np.testing.assert_array_equal(short.sa_encode(s.x), s.quantizer.truncate(9).encode(s.x))
    t = Subject((s.quantizer.truncate(9), s.x, s.xq), s.store, s.base)
    t.index = short
    t.check()
    t.check_vectors()
    found = short.search(s.xq, K)[1]
    assert ((found >= 0).all(axis=1) | s.base.startswith(("BHash", *LISTS))).all()
    with pytest.raises(ValueError, match="read-only"):
        short.add(s.x)


@operation
def prefix(s, monkeypatch):
    s.check(s.find(truncate_dim=9))
    by_calibration = s.index.search(s.xq, K, truncate_dim=9)[1]
    assert (by_calibration >= 0).all()
    with pytest.raises(ValueError, match="nprobe mean nothing to it"):
        s.index.search(s.xq, K, truncate_dim=9, nprobe=3)
    # The funnel by hand: the 80 nearest by prefix, of those the nearest by whole code.
    short = s.quantizer.truncate(9)
    hamming = [
        np.bitwise_count(q.encode_queries(s.xq)[:, None] ^ q.encode(s.x)[None]).sum(axis=2)
        for q in (short, s.quantizer)
    ]
    monkeypatch.setattr(two_stage, "PREFIX_WIDTH", 16)
    index = QamaIndex(dataclasses.replace(s.quantizer, calibration=None), "none", base=s.base)
    index.train(s.x)
    index.add(s.x)
    D, I = index.search(s.xq, K, truncate_dim=9)
    for query in range(len(s.xq)):
        edge = np.sort(hamming[0][query])[79]  # ties at the edge may go either way
        inside, outside = hamming[0][query] < edge, hamming[0][query] > edge
        assert not outside[I[query]].any()
        np.testing.assert_array_equal(D[query], hamming[1][query][I[query]])
        assert D[query, -1] <= np.sort(hamming[1][query][inside])[K - 1]
    if s.store not in DECODED:
        with pytest.raises(ValueError, match=r"truncate_dim=5 needs its calibration; there are those of \[9\]"):
            s.index.search(s.xq, K, truncate_dim=5, recall=0.9)
    s.index.remove_ids(np.arange(100))
    assert set(s.index.search(s.xq, K, truncate_dim=9, sel=np.arange(30, 37))[1].ravel().tolist()) <= set(range(30, 37))


@operation
def save_and_load(s, tmp_path):
    ids = 5 + 2 * np.arange(N)
    for subject in (s, Subject((s.quantizer, s.x, s.xq), s.store, s.base, ids)):
        subject.index.remove_ids(np.array([7, 9, 11]))
        want = subject.find()
        subject.index.save(tmp_path / "i.qama")
        for mmap in (False, True):
            loaded = QamaIndex.load(tmp_path / "i.qama", mmap=mmap)
            assert loaded.ntotal == N - 3
            subject.index = loaded
            got = subject.find()
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])
            refine = {"none": "", "sq8": ",Refine(SQ8)", "fp16": ",Refine(SQfp16)"}
            refine |= dict.fromkeys(("codes", "residual", "trellis"), ",Refine(codes)")
            assert loaded.factory_string == f"Qama({s.quantizer.layout}),{s.base}{refine.get(s.store, ',Refine(Flat)')}"
            assert loaded.is_trained


@operation
def factory_string(s):
    text = s.index.factory_string
    if s.store in ("array", "faiss.Index"):
        assert text == f"Qama({s.quantizer.layout}),{s.base}"
        return
    again = index_factory(D, text, s.quantizer.metric)
    assert not again.is_trained
    assert again.factory_string == text
    with pytest.raises(ValueError, match="call train"):
        again.add(s.x)
    again.train(make_vectors(400, unit=False))
    assert again.is_trained
    again.add(s.x)
    assert again.ntotal == N
    assert again.search(s.xq, K)[1].shape == (7, K)


@operation
def to_faiss(s):
    for own in (None, 5 + 2 * np.arange(N)):
        t = Subject((s.quantizer, s.x, s.xq), s.store, s.base, own)
        t.index.remove_ids(np.array([7, 9]))
        ids = np.delete(np.arange(N) if own is None else own, [7, 9] if own is None else [1, 2])
        ids = np.arange(N - 2) if own is None else ids
        code = np.delete(s.quantizer.encode(s.x), [7, 9] if own is None else [1, 2], axis=0)
        query = s.quantizer.encode_queries(s.xq)
        distances = np.bitwise_count(query[:, None] ^ code[None]).sum(axis=2)
        stock = t.index.to_faiss("binary")
        assert stock.ntotal == N - 2
        if s.base == "BFlat":
            D, I = stock.search(query, K)
            np.testing.assert_array_equal(D, np.sort(distances, axis=1)[:, :K])
            np.testing.assert_array_equal(D, np.take_along_axis(distances, np.searchsorted(ids, I), axis=1))
        vectors = {}
        for kind in ("hamming", "fastscan"):
            stock = faiss.deserialize_index(faiss.serialize_index(t.index.to_faiss(kind)))
            assert stock.ntotal == N - 2
            I = stock.search(s.xq, K)[1]
            assert set(I.ravel().tolist()) <= set(ids.tolist())
            if s.store in DECODED:
                scores, I = stock.search(s.xq, N - 2)
                vectors[kind] = scores, np.searchsorted(ids, I)
            else:  # everything is refined: the scores are those of the vectors
                inner = faiss.downcast_index(stock.index) if own is not None else stock
                inner.k_factor = (N - 2) / K
                D, I = stock.search(s.xq, K)
                t.held = {i: s.x[0] for i in ids.tolist()}  # whose scores are asked for, by id
                scores = t.scores(ids)
                sign = -1 if s.quantizer.metric == faiss.METRIC_INNER_PRODUCT else 1
                error = (0.03 if s.store == "sq8" else 2e-3) * np.abs(scores).max()
                np.testing.assert_allclose(sign * D, np.sort(scores, axis=1)[:, :K], atol=error)
        if vectors:
            scores, rows = vectors["hamming"]
            np.testing.assert_array_equal(scores, np.take_along_axis(distances, rows, axis=1))
            decoded = s.quantizer.decode(code) - (
                0 if s.quantizer.metric == faiss.METRIC_L2 else s.quantizer.decoder.offset
            )
            exact = faiss.pairwise_distances(s.xq, decoded, s.quantizer.metric)
            scores, rows = vectors["fastscan"]  # 8 bits of a score; L2 distances lack what lies outside the kept space
            for own_scores, own_rows, wanted in zip(scores, rows, exact, strict=True):
                assert np.corrcoef(own_scores, wanted[own_rows])[0, 1] > 0.999
    with pytest.raises(ValueError, match="kind must be one of hamming, fastscan, binary; got 'x'"):
        s.index.to_faiss("x")


@pytest.mark.parametrize("name", OPERATIONS)
def test_contract(name, world, coded_world, metric, store, base, tmp_path, monkeypatch, record_property):
    check = OPERATIONS[name]
    fixtures = {"tmp_path": tmp_path, "monkeypatch": monkeypatch}
    check(
        Subject(coded_world if store == "trellis" else world, store, base),
        **{n: f for n, f in fixtures.items() if n in inspect.signature(check).parameters},
    )
    record_property("combination", (name, base))


def test_the_docs_show_the_operations_and_bases(request):
    text = (request.config.rootpath / "docs" / "operations.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| operation"))
    assert [cell.strip(" `") for cell in header.split("|")[2:-1]] == [
        "Flat",
        "IVF",
        "BFlat",
        "BIVF",
        "BIVF_HNSW",
        "BHNSW",
        "BHash",
    ]
    rows = {line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")}
    assert rows >= set(OPERATIONS)
