"""QamaIndex around FAISS indexes that are there: their vectors, their ids, no copy where they are flat."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from conftest import D, make_vectors, slow_except

from faiss_qama import QamaIndex
from faiss_qama.formats.faiss_vectors import FaissVectors
from faiss_qama.training import FitConfig, fit

N = 900
CONFIG = FitConfig(layout="2x36")
X = make_vectors(N, seed=4)
QUERIES = make_vectors(30, seed=5)
IDS = np.random.default_rng(0).permutation(10**9 + 3 * np.arange(N))
# Factory string, and how near its vectors are to those that were added; 1 is any distance.
FLOAT_INDEXES = {
    "Flat": 1e-6,
    "IVF8,Flat": 1e-6,
    "HNSW8": 1e-6,
    "SQ8": 0.02,
    "SQfp16": 1e-3,
    "PQ18x4": 1,
    "IVF8,SQ8": 0.02,
    "RR36,Flat": 1e-5,
    "PCA30,IVF8,Flat": 1,
    "SQ8,RFlat": 1e-6,
    "PCA12,SQ8,Refine(SQfp16)": 1e-3,
    "HNSW8_SQ8": 0.02,
    "IVF8,FlatPanorama": 1e-6,
    "PQ18x4fs": 1,
    "IVF8,RaBitQ4,RFlat": 1e-6,
}


def make(factory, metric, ids=None):
    index = faiss.index_factory(D, factory, metric)
    index.train(X)
    if ids is None:
        index.add(X)
        return index
    if not factory.startswith(("IVF", "PCA30")):  # inverted lists have ids of their own
        index = faiss.IndexIDMap2(index)
    index.add_with_ids(X, ids)
    return index


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("factory", slow_except(["Flat", "SQfp16"], FLOAT_INDEXES))
def test_the_vectors_and_ids_are_those_of_the_index(factory, own_ids, metric):
    if "Refine" in factory or "RFlat" in factory:
        own_ids = False  # FAISS gives a refined index no ids of its own
    index = make(factory, metric, IDS if own_ids else None)
    wrapped = QamaIndex.wrap(index, config=CONFIG)
    keys = IDS if own_ids else np.arange(N)
    assert (wrapped.d, wrapped.ntotal, wrapped.metric_type) == (D, N, metric)
    held = wrapped.reconstruct_batch(keys)
    assert np.abs(held - X).max() <= FLOAT_INDEXES[factory]
    if FLOAT_INDEXES[factory] == 1:
        theirs = make(factory, metric, None).reconstruct_n(0, N) if "IVF" not in factory else held
        np.testing.assert_array_equal(held, theirs)
    oracle = faiss.IndexIDMap2(faiss.IndexFlat(D, metric))
    oracle.add_with_ids(held, keys)
    scores, ids = oracle.search(QUERIES, 10)
    D_, I = wrapped.search(QUERIES, 10, oversample=N)
    np.testing.assert_allclose(D_, scores, rtol=1e-4, atol=1e-5)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(I, ids, strict=True)]) > 0.99  # PQ has ties
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(wrapped.search(QUERIES, 10)[1], ids, strict=True)]) > 0.9


def test_a_flat_index_is_read_in_place_and_grows_with_the_wrapper():
    index = make("Flat", faiss.METRIC_L2)
    wrapped = QamaIndex.wrap(index, config=CONFIG)
    faiss.rev_swig_ptr(index.get_xb(), N * D)[:] = 7
    assert (wrapped.reconstruct(3) == 7).all()
    wrapped.add(QUERIES)
    assert index.ntotal == wrapped.ntotal == N + 30
    np.testing.assert_array_equal(wrapped.reconstruct(N + 2), QUERIES[2])
    assert wrapped.remove_ids(np.arange(N)) == N
    assert index.ntotal == N + 30  # removed here, left there
    np.testing.assert_array_equal(wrapped.reconstruct(2), QUERIES[2])
    np.testing.assert_array_equal(wrapped.search(QUERIES, 1)[1][:, 0], np.arange(30))


def test_adding_to_an_index_with_ids_of_its_own_is_refused_before_anything_changes():
    index = make("IVF8,Flat", faiss.METRIC_L2, IDS)
    wrapped = QamaIndex.wrap(index, config=CONFIG)
    with pytest.raises(ValueError, match="IndexIVFFlat has ids of its own; add to it first, then here"):
        wrapped.add_with_ids(QUERIES, np.arange(30))
    assert index.ntotal == wrapped.ntotal == N


def test_wrapped_over_another_base_and_saved(tmp_path):
    wrapped = QamaIndex.wrap(make("HNSW8", faiss.METRIC_INNER_PRODUCT, IDS), config=CONFIG, base="BIVF8")
    wrapped.base_index.nprobe = 8
    want = wrapped.search(QUERIES, 5, oversample=N)
    wrapped.save(tmp_path / "w.qama")
    loaded = QamaIndex.load(tmp_path / "w.qama", mmap=True)
    assert loaded.rescore == "fp32"
    assert loaded.factory_string == "Qama(2x36),BIVF8,Refine(Flat)"
    np.testing.assert_array_equal(loaded.search(QUERIES, 5, oversample=N)[1], want[1])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (faiss.IndexFlatL2(D), ValueError, "at least 2 vectors; the index to wrap holds 0"),
        (np.zeros((3, D)), TypeError, "a faiss.Index of float vectors is needed; got ndarray"),
        (faiss.IndexBinaryFlat(64), TypeError, "a faiss.Index of float vectors is needed; got IndexBinaryFlat"),
    ],
)
def test_what_cannot_be_wrapped(index, error, message):
    with pytest.raises(error, match=message):
        QamaIndex.wrap(index)


def test_vectors_of_the_users_own_stay_in_step():
    quantizer = QamaIndex.wrap(make("Flat", faiss.METRIC_L2), config=CONFIG).quantizer
    index = QamaIndex(quantizer, rescore=X[:100])
    index.add(X[:60])
    with pytest.raises(ValueError, match="110 vectors are needed, and there are 100"):
        index.add(X[60:110])
    assert index.ntotal == 60
    index.add(X[60:100])
    assert (index.search(X[:100], 1)[1][:, 0] == np.arange(100)).all()
    for bad, message in (
        (X[:, :30], "rescore: dimension 30, but 36 is needed"),
        (np.zeros(3), "no vectors|1 dimensions"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            QamaIndex(quantizer, rescore=bad)
    with pytest.raises(ValueError, match="rescore: dimension 30, but 36 is needed"):
        QamaIndex(quantizer, rescore=faiss.IndexFlatL2(30))


def test_emptied_and_filled_again_it_rescores_from_what_was_added():
    index = make("Flat", faiss.METRIC_L2)
    wrapped = QamaIndex.wrap(index, config=CONFIG)
    wrapped.reset()
    assert wrapped.ntotal == 0
    wrapped.add(QUERIES)
    np.testing.assert_array_equal(wrapped.reconstruct_n(), QUERIES)
    np.testing.assert_array_equal(wrapped.search(QUERIES, 1)[1][:, 0], np.arange(30))


def test_ids_that_cannot_be_kept_are_refused():
    twice = faiss.index_factory(D, "IVF8,Flat")
    twice.train(X)
    twice.add_with_ids(X[:4], np.array([1, 1, 2, 2]))
    with pytest.raises(ValueError, match="id 1 stands for several vectors"):
        QamaIndex.wrap(twice, config=CONFIG)
    negative = faiss.IndexIDMap2(faiss.IndexFlatL2(D))
    negative.add_with_ids(X, np.arange(N) - 5)
    with pytest.raises(ValueError, match="ids are 0 or more, as -1 marks a missing hit; got -5"):
        QamaIndex.wrap(negative, config=CONFIG)


def test_a_vector_that_is_no_number_is_named():
    index = faiss.IndexFlatL2(D)
    index.add(np.where(np.arange(N)[:, None] == 700, np.nan, X))
    with pytest.raises(ValueError, match="row 7.* holds NaN"):
        QamaIndex.wrap(index, config=CONFIG)


PANORAMA = {faiss.METRIC_L2: faiss.IndexFlatL2Panorama, faiss.METRIC_INNER_PRODUCT: faiss.IndexFlatIPPanorama}


@pytest.mark.parametrize("metric", PANORAMA)
@pytest.mark.parametrize("own_ids", [False, True])
def test_memory_need_not_lie_row_by_row(metric, own_ids):
    index = PANORAMA[metric](D, 4)
    keys = IDS if own_ids else np.arange(N)
    if own_ids:
        index = faiss.IndexIDMap2(index)
        index.add_with_ids(X, IDS)
    else:
        index.add(X)
    wrapped = QamaIndex.wrap(index, config=CONFIG)
    np.testing.assert_array_equal(wrapped.reconstruct_batch(keys), X)
    np.testing.assert_array_equal(wrapped.search(QUERIES, 10, oversample=N)[1], index.search(QUERIES, 10)[1])
    over = QamaIndex(wrapped.quantizer, PANORAMA[metric](D, 4))  # filled through this index
    over.add(X)
    np.testing.assert_array_equal(over.reconstruct_n(), X)


OTHER_VECTORS = ["RaBitQ4", "RaBitQ9", "RR36,RaBitQ3", "IVF8,RaBitQ2", "RaBitQ2,Refine(RaBitQ4)", "IVF8,RaBitQfs"]


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("factory", OTHER_VECTORS)
def test_an_index_that_gives_back_other_vectors_than_it_ranks_by_is_refused(factory, metric):
    refusal = pytest.raises(ValueError, match="gives back other vectors than it ranks by: its scores and theirs differ")
    with refusal:
        QamaIndex.wrap(make(factory, metric), config=CONFIG)
    with refusal:
        FaissVectors(make(factory, metric))


@pytest.mark.parametrize("filled_first", [False, True])
def test_an_empty_index_is_looked_at_once_it_holds_vectors(filled_first):
    quantizer = QamaIndex.wrap(make("Flat", faiss.METRIC_L2), config=CONFIG).quantizer
    rabitq = faiss.index_factory(D, "RaBitQ4")
    rabitq.train(X)
    index = QamaIndex(quantizer, rabitq)
    if filled_first:
        rabitq.add(X)
    with pytest.raises(ValueError, match="IndexRaBitQ gives back other vectors than it ranks by"):
        index.add(X)
    assert (index.ntotal, rabitq.ntotal) == (0, N if filled_first else 0)


@pytest.mark.parametrize("factory", ["Flat", "PQ18x4fs", "SQ8", "IVF8,PQ18x4fs"])
@pytest.mark.parametrize("kind", ["equal", "nearly equal", "two", "far from the origin"])
def test_an_index_that_ranks_by_its_vectors_is_taken_whatever_they_are(factory, kind):
    x = {
        "equal": np.repeat(X[:1], 300, axis=0),
        "nearly equal": np.repeat(X[:10], 30, axis=0) + np.float32(1e-4) * make_vectors(300, seed=6),
        "two": X[:2],
        "far from the origin": X + 30,
    }[kind]
    index = faiss.index_factory(D, factory)
    index.train(X if len(x) < N else x)
    index.add(x)
    assert len(FaissVectors(index)) == len(x)


@pytest.mark.parametrize("flag", ["IO_FLAG_MMAP", "IO_FLAG_MMAP_IFC"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "SQ8", "HNSW8", "PCA30,SQ8", "SQ8,RFlat", "IVF8,SQ8,RFlat"])
def test_what_faiss_holds_mapped_stays_read_only(tmp_path, factory, flag):
    original = make(factory, faiss.METRIC_L2)
    faiss.write_index(original, str(tmp_path / "x.faiss"))
    mapped = faiss.read_index(str(tmp_path / "x.faiss"), getattr(faiss, flag))
    wrapped = QamaIndex.wrap(mapped, config=CONFIG)
    want = QamaIndex.wrap(original, config=CONFIG).search(QUERIES, 5)
    np.testing.assert_array_equal(wrapped.search(QUERIES, 5)[1], want[1])
    if flag == "IO_FLAG_MMAP" and not factory.startswith("IVF"):
        wrapped.add(QUERIES)  # this flag maps lists alone
        assert mapped.ntotal == wrapped.ntotal == N + 30
        return
    with pytest.raises(ValueError, match="is read-only: it is mapped from a file; read it into memory"):
        wrapped.add(QUERIES)
    assert mapped.ntotal == wrapped.ntotal == N


@pytest.mark.parametrize("own", [False, True])
def test_inverted_lists_stay_as_useful_as_they_were(own):
    for map_type in (faiss.DirectMap.NoMap, faiss.DirectMap.Hashtable, *([] if own else [faiss.DirectMap.Array])):
        index = faiss.index_factory(36, "IVF8,Flat")
        index.train(X)
        index.add_with_ids(X, np.arange(N) * 3) if own else index.add(X)
        index.set_direct_map_type(map_type)
        QamaIndex.wrap(index, config=CONFIG)
        if map_type == faiss.DirectMap.Array:
            assert index.direct_map.type == map_type
            continue
        assert index.remove_ids(np.array([3])) == 1
        index.add_with_ids(X[:1], np.array([10**6]))
    refused = faiss.index_factory(36, "IVF8,RaBitQ4")
    refused.train(X)
    refused.add(X)
    with pytest.raises(ValueError, match="gives back other vectors"):
        QamaIndex.wrap(refused, config=CONFIG)
    assert refused.direct_map.type == faiss.DirectMap.NoMap


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_of_yours_that_is_no_number_is_named_by_the_search_that_meets_it(value):
    x = X.copy()
    index = QamaIndex(fit(X, config=CONFIG), x)
    index.add(X)
    x[7] = value
    with pytest.raises(ValueError, match="rescore: vector 7 of yours holds NaN, infinity or huge values"):
        index.search(X[7:8], 3)
