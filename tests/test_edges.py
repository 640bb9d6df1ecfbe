"""What FAISS's own tests of its binary indexes ask at the edges, asked of QamaIndex over each of them."""

from __future__ import annotations

import gc
import itertools
import pickle

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors

from faiss_qama import QamaIndex, index_factory

BASES = ("Flat", "IVF4", "BFlat", "BIVF4", "BIVF4_HNSW4", "BHNSW4", "BHash6", "BHash2x6")
X = make_vectors(300, seed=51)
QUANTIZER = fit_quietly(X, layout="2x18")
QUERIES = make_vectors(4, seed=52)


@pytest.fixture(params=BASES)
def index(request):
    index = QamaIndex(QUANTIZER, "fp32", base=request.param)
    index.train(X)
    return index


def test_empty(index):
    scores, ids = index.search(QUERIES, 3)
    assert (ids == -1).all()
    assert (scores == np.finfo(np.float32).min).all()
    lims, scores, ids = index.range_search(QUERIES, 0.5)
    assert (lims.tolist(), len(scores), len(ids)) == ([0] * 5, 0, 0)
    assert index.remove_ids(np.arange(10)) == 0
    assert index.reconstruct_n().shape == (0, D)
    assert index.reconstruct_batch([]).shape == (0, D)
    index.compact()
    index.reset()
    assert (index.search(QUERIES, 2, sel=np.arange(3))[1] == -1).all()


def test_one_vector(index, tmp_path):
    index.add(X[:1])
    scores, ids = index.search(QUERIES, 3)
    assert ids.tolist() == [[0, -1, -1]] * 4
    np.testing.assert_allclose(scores[:, 0], QUERIES @ X[0], rtol=1e-5)
    index.save(tmp_path / "one.qama")
    assert QamaIndex.load(tmp_path / "one.qama").search(QUERIES, 1)[1].tolist() == [[0]] * 4
    for kind in ("hamming", "fastscan"):
        assert index.to_faiss(kind).search(QUERIES, 1)[1].tolist() == [[0]] * 4
    assert index.remove_ids([0]) == 1
    assert index.ntotal == 0


def test_a_prefix_of_nothing_finds_nothing(index):
    for sel in (None, faiss.IDSelectorBatch([])):
        scores, ids = index.search(QUERIES, 3, truncate_dim=8, sel=sel)
        assert (ids == -1).all()
        assert ids.shape == scores.shape == (4, 3)
        index.add(X)


def test_what_was_made_of_an_index_in_several_steps_knows_that_it_changed(index, tmp_path):
    index.add(X)
    derived = [
        index.truncate(18).truncate(9),
        index.with_rescore("codes").truncate(9),
        index.truncate(9).with_rescore("none"),
    ]
    index.remove_ids(np.arange(5))
    for other in derived:
        for ask in (lambda o=other: o.search(QUERIES, 3), lambda o=other: o.save(tmp_path / "o.qama")):
            with pytest.raises(ValueError, match="was changed since: truncate it again"):
                ask()
    assert not (tmp_path / "o.qama").exists()


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-3, ValueError), (2**70, ValueError), (2.0, TypeError), ("2", TypeError)]
)
def test_k_must_be_a_positive_integer(index, k, error):
    index.add(X)
    for ask in (index.search, index.assign, index.search_and_reconstruct):
        with pytest.raises(error):
            ask(QUERIES, k)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[:, :20], ValueError, "dimension 20, but 36 is needed"),
        (X[0], ValueError, "for one vector use"),
        (np.empty((0, D), np.float32), ValueError, "no vectors"),
        ((X > 0).astype(np.uint8), TypeError, "float32 is needed"),
        (np.where(np.arange(300)[:, None] == 7, np.nan, X), ValueError, "row 7 holds NaN"),
    ],
)
def test_wrong_vectors_change_nothing(index, x, error, message):
    index.add(X[:50])
    before = index.search(QUERIES, 5)
    for ask in (
        index.add,
        lambda x: index.add_with_ids(x, np.arange(len(x))),
        lambda x: index.search(x, 3),
        lambda x: index.range_search(x, 0.5),
        index.sa_encode,
    ):
        with pytest.raises(error, match=message):
            ask(x)
    assert index.ntotal == 50
    np.testing.assert_array_equal(index.search(QUERIES, 5)[1], before[1])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.arange(9), ValueError, r"one per vector is needed, shape \(10,\); got shape \(9,\)"),
        (np.arange(10.0), TypeError, "ids are int64; got float64"),
        (np.arange(10) - 1, ValueError, "0 or more, as -1 marks a missing hit; got -1"),
        (np.full(10, 2**63, np.uint64), ValueError, "ids are int64; got 9223372036854775808"),
        (["a"] * 10, TypeError, "ids are int64"),
    ],
)
def test_wrong_ids_change_nothing(index, ids, error, message):
    with pytest.raises(error, match=message):
        index.add_with_ids(X[:10], ids)
    assert index.ntotal == 0


def test_one_id_for_several_vectors_is_as_in_idmap2(index):
    index.add_with_ids(X[:4], [5, 6, 5, 7])
    np.testing.assert_array_equal(index.reconstruct(5), X[2])
    assert index.remove_ids([5]) == 2
    assert sorted(index.search(QUERIES[:1], 5)[1][0].tolist()) == [-1, -1, -1, 6, 7]


def test_ids_given_late_are_none_of_those_that_vectors_without_ids_have(index):
    index.add(X[:10])
    before = index.search(QUERIES, 12)
    other = QamaIndex(QUANTIZER, index.rescore, base="Flat")
    other.add(X[20:22])
    refusal = "id 5 is taken: 10 vectors were added without ids, and are 0 to 9; give ids from 10 on"
    for late in (lambda: index.add_with_ids(X[10:12], [12, 5]), lambda: index.merge_from(other, add_id=5)):
        with pytest.raises(ValueError, match=refusal):
            late()
        assert (index.ntotal, other.ntotal) == (10, 2)
        for a, b in zip(before, index.search(QUERIES, 12), strict=True):
            np.testing.assert_array_equal(a, b)
    index.add(X[10:11])  # as before
    index.add_with_ids(X[11:12], [50])
    assert index.ids.tolist() == [*range(11), 50]
    assert index.remove_ids([5]) == 1
    index.reset()
    index.add_with_ids(X[:1], [0])
    assert index.ids.tolist() == [0]


def test_ids_given_late_are_refused_before_the_users_index_grows():
    flat = faiss.IndexFlatIP(D)
    index = QamaIndex(QUANTIZER, flat)
    index.add(X[:10])
    with pytest.raises(ValueError, match="id 0 is taken: 10 vectors"):
        index.add_with_ids(X[10:11], [0])
    assert (index.ntotal, flat.ntotal) == (10, 10)


def test_duplicates(index):
    index.add(np.tile(X[:1], (2000, 1)))
    _, ids = index.search(X[:1], 30)
    assert all(len(set(row)) == 30 and min(row) >= 0 for row in ids.tolist())
    assert index.remove_ids(np.arange(1990)) == 1990
    assert sorted(index.search(X[:1], 20)[1][0].tolist()) == [-1] * 10 + list(range(10))


def test_ready_objects_and_id_maps():
    made = faiss.index_binary_factory(8 * QUANTIZER.code_size, "BIVF4")
    index = QamaIndex(QUANTIZER, "codes", base=made)
    with pytest.raises(ValueError, match="the base index BIVF4 is not trained: call train"):
        index.add(X)
    index.train(X)
    index.add(X)
    assert made.ntotal == 300
    for text in ("IDMap2,BFlat", "BHNSW4,IDMap2", "IDMap,BHNSW4"):
        index = QamaIndex(QUANTIZER, "fp32", base=text)
        gc.collect()
        index.add_with_ids(X, np.arange(300) + 7)
        assert (index.search(X, 1, oversample=300)[1][:, 0] == np.arange(300) + 7).all()
    filled = faiss.IndexBinaryFlat(8 * QUANTIZER.code_size)
    filled.add(QUANTIZER.encode(X))
    for base, error, message in [
        ("nonsense", ValueError, "base 'nonsense' is not one of BFlat, BIVFn"),
        ("BHNSW1", ValueError, "links 2 or more"),
        ("HNSW32", ValueError, "base 'HNSW32' is an index of floats; the index of codes is 'BHNSW32'"),
        ("Hash12", ValueError, "the index of codes is 'BHash12'"),
        ("BIVF0", ValueError, "lists must be 1 or more"),
        ("IVF0", ValueError, "lists must be 1 to 16,777,216; got 0"),
        ("IVF99999999999", ValueError, "lists must be 1 to 16,777,216; got 99999999999"),
        ("IVF", ValueError, "base 'IVF' is not one of BFlat, BIVFn"),
        ("BHash1000", ValueError, "hashed bits from 1 to 56"),
        (3, TypeError, "base must be one of BFlat"),
        (faiss.IndexFlatL2(8), TypeError, "got IndexFlatL2"),
        (faiss.IndexBinaryFlat(8), ValueError, "codes of 1 bytes; the quantizer's have 7"),
        (filled, ValueError, "base must be empty; it holds 300 codes"),
    ]:
        with pytest.raises(error, match=message):
            QamaIndex(QUANTIZER, base=base)
    for base in ("BIVF64", "IVF64"):
        with pytest.raises(ValueError, match=f"{base} needs at least 64 vectors to train; got 5"):
            QamaIndex(QUANTIZER, base=base).train(X[:5])


def test_settings_are_faiss_attributes_and_are_kept(tmp_path):
    for base, name in (("BIVF4", "nprobe"), ("IVF4", "nprobe"), ("BHNSW4", "efSearch")):
        index = QamaIndex(QUANTIZER, "fp32", base=base)
        index.train(X)
        index.add(X)
        setattr(index, name, 3)
        index.save(tmp_path / "i.qama")
        for other in (QamaIndex.load(tmp_path / "i.qama"), index.truncate(9)):
            assert getattr(other, name) == 3
        with pytest.raises(AttributeError, match=f"{base} has no"):
            setattr(index, {"nprobe": "efSearch", "efSearch": "nprobe"}[name], 3)
    index = QamaIndex(QUANTIZER, "fp32", base="BHash6")
    index.base_index.nflip = 2
    index.add(X)
    index.save(tmp_path / "i.qama")
    assert QamaIndex.load(tmp_path / "i.qama").base_index.nflip == index.truncate(9).base_index.nflip == 2


def test_recall_is_promised_only_where_it_can_be_kept():
    x = make_vectors(3000, seed=54)
    quantizer = fit_quietly(x, layout="2x18")
    flat = faiss.IndexFlatIP(D)
    flat.add(x)
    queries = make_vectors(200, seed=55)
    truth = flat.search(queries, 10)[1]
    for base, settings in (("BFlat", {}), ("BHNSW16", {}), ("BIVF16", {"nprobe": 12})):
        index = QamaIndex(quantizer, "fp32", base=base)
        index.train(x)
        index.add(x)
        found = index.search(queries, 10, recall=0.9, **settings)[1]
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]) >= 0.9
    with pytest.raises(ValueError, match="BIVF16 probes 1 list: set nprobe too"):
        index.search(queries, 10, recall=0.9)
    hashed = QamaIndex(quantizer, "fp32", base="BHash6")
    hashed.add(x)
    with pytest.raises(ValueError, match="BHash6 finds only what shares a bucket"):
        hashed.search(queries, 10, recall=0.9)


DIFFERENCES = {
    "unknown id": (lambda index: index.reconstruct(999), IndexError, "no vector with id 999 among 300"),
    "no queries": (lambda index: index.search(X[:0], 3), ValueError, r"queries: no vectors, shape \(0, 36\)"),
    "k": (lambda index: index.search(X, 0), ValueError, "k must be at least 1"),
    "integers": (lambda index: index.add(np.ones((2, D), int)), TypeError, "float32 is needed"),
    "metric": (lambda _: index_factory(D, "Qama2x18", faiss.METRIC_L1), ValueError, "metric must be"),
    "dimension": (lambda _: index_factory(36.5, "Qama2x18"), TypeError, "integer"),
    "labels": (lambda index: index.assign(X, 3, labels=np.empty((300, 3))), ValueError, "labels means nothing to"),
    "D": (lambda index: index.search(X, 3, D=np.empty((300, 3))), ValueError, "D means nothing to"),
    "is_trained": (lambda index: setattr(index, "is_trained", True), AttributeError, "no setter|can't set"),
    "k_factor": (lambda index: setattr(index, "k_factor", 20), AttributeError, "has no k_factor: .* takes oversample="),
    "nflip": (lambda index: setattr(index, "nflip", 2), AttributeError, "has no nflip: .* base_index has the settings"),
    "verbose": (lambda index: setattr(index, "verbose", True), AttributeError, "has no verbose: it has nprobe"),
    "read": (lambda _: QamaIndex(QUANTIZER, base="BHNSW16x"), ValueError, "read as BHNSW16: 'x' is not understood"),
    "late": (lambda index: index.add_with_ids(X[:1], [5]), ValueError, "id 5 is taken"),
    "write_index": (lambda index: faiss.write_index(index, "x"), TypeError, "write_index"),
    "clone_index": (lambda index: faiss.clone_index(index), TypeError, "clone_index"),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_differences_from_faiss_are_errors_before_anything_changes(index, what):
    index.add(X)
    do, error, message = DIFFERENCES[what]
    before = index.search(QUERIES, 3)
    with pytest.raises(error, match=message):
        do(index)
    np.testing.assert_array_equal(index.search(QUERIES, 3)[1], before[1])
    assert (index.ntotal, index.is_trained) == (300, True)


@pytest.mark.parametrize("kind", [faiss.SearchParametersIVF, faiss.SearchParametersHNSW])
def test_fields_of_faiss_search_parameters_that_mean_nothing_are_refused(kind):
    name, base = {"IVF": ("nprobe", "BIVF4"), "HNSW": ("efSearch", "BHNSW4")}[kind.__name__[16:]]
    index = QamaIndex(QUANTIZER, "fp32", base=base)
    index.train(X)
    index.add(X)
    values = {"quantizer_params": faiss.SearchParameters()}
    fields = {field for field, member in vars(kind).items() if isinstance(member, property)}
    for field in fields - {name, "thisown", "inverted_list_context"}:  # no such context can be made in Python
        params = kind()
        setattr(params, field, values.get(field, not getattr(params, field)))
        message = f"{field} of {kind.__name__} means nothing here, only sel and {name} do"
        for ask in (index.search, index.search_and_reconstruct, index.range_search):
            with pytest.raises(ValueError, match=message):
                ask(QUERIES, 3, params=params)
    every = kind(**{name: 300}, sel=faiss.IDSelectorRange(5, 9))
    assert set(index.search(QUERIES, 4, params=every)[1].ravel().tolist()) == {5, 6, 7, 8}


def test_the_k_factor_of_faiss_is_the_oversample():
    index = QamaIndex(QUANTIZER, "fp32")
    index.add(X)
    for factor in (1, 2.5, 300):
        params = faiss.IndexRefineSearchParameters(k_factor=factor)
        found, want = index.search(QUERIES, 5, params=params), index.search(QUERIES, 5, oversample=factor)
        np.testing.assert_array_equal(found[0], want[0])
        np.testing.assert_array_equal(found[1], want[1])
    for options, message in (
        ({"oversample": 3}, "pass k_factor or oversample=, not both"),
        ({"recall": 0.9}, "pass oversample= or recall=, not both"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(QUERIES, 5, params=params, **options)
    with pytest.raises(ValueError, match="k_factor means nothing to it"):
        index.range_search(QUERIES, 0.5, params=params)
    with pytest.raises(ValueError, match="no second stage"):
        index.with_rescore("none").search(QUERIES, 5, params=params)
    base_params = faiss.IndexRefineSearchParameters(base_index_params=faiss.SearchParametersIVF())
    with pytest.raises(ValueError, match="base_index_params of IndexRefineSearchParameters means nothing"):
        index.search(QUERIES, 5, params=base_params)


def test_a_base_index_that_was_told_that_it_is_trained_is_taken():
    centroids = faiss.IndexBinaryFlat(8 * QUANTIZER.code_size)
    centroids.add(QUANTIZER.encode(X[:1]))
    base = faiss.IndexBinaryIVF(centroids, 8 * QUANTIZER.code_size, 1)
    base.is_trained = True
    index = QamaIndex(QUANTIZER, "none", base=base)
    index.add(X)
    flat = QamaIndex(QUANTIZER, "none", base="BFlat")
    flat.add(X)
    np.testing.assert_array_equal(index.search(QUERIES, 9)[0], flat.search(QUERIES, 9)[0])


def test_a_range_search_is_best_first(index):
    index.add(X)
    lims, D, _ = index.range_search(QUERIES, 0.5)
    assert lims[-1] > 4
    assert all((np.diff(D[a:b]) <= 0).all() for a, b in itertools.pairwise(lims))


def test_an_index_is_not_pickled():
    with pytest.raises(TypeError, match=r"use save\(\) and QamaIndex.load\(\)"):
        pickle.dumps(QamaIndex(QUANTIZER))


@pytest.mark.parametrize("kind", ["hamming", "fastscan", "binary"])
@pytest.mark.parametrize("store", ["none", "sq8", "fp16"])
def test_an_empty_index_is_exported(kind, store):
    stock = QamaIndex(QUANTIZER, store).to_faiss(kind)
    assert stock.ntotal == 0


@pytest.mark.parametrize("kind", ["hamming", "fastscan", "binary"])
def test_an_export_lives_on_without_the_index(kind):
    index = QamaIndex(QUANTIZER, "fp16", base="BHNSW4")
    index.add_with_ids(X, np.arange(300) * 2)
    stock = index.to_faiss(kind)
    del index
    gc.collect()
    queries = QUANTIZER.encode_queries(X) if kind == "binary" else X
    found = stock.search(queries, 5)[1]
    assert (found[:, :1] == np.arange(300)[:, None] * 2).mean() > 0.9
    assert np.isin(found, np.arange(300) * 2).all()


@pytest.mark.parametrize("text", ["Qama2x18", "Qama(2x9,1x9),BHNSW8,Refine(codes)", "Qama(hybrid),BFlat,Refine(SQ8)"])
@pytest.mark.parametrize("metric", [None, faiss.METRIC_INNER_PRODUCT])
def test_factory_strings(text, metric):
    index = index_factory(D, text) if metric is None else index_factory(D, text, metric)
    assert index.metric_type == (faiss.METRIC_L2 if metric is None else metric)
    assert (index.ntotal, index.d, index.is_trained) == (0, D, False)
    for ask in (
        lambda: index.search(QUERIES, 1),
        lambda: index.add(X),
        lambda: index.save("x"),
        lambda: index.quantizer,
    ):
        with pytest.raises(ValueError, match="this index is not trained: call train"):
            ask()
    index.train(X)
    index.add(X)
    assert (index.search(X, 1)[1][:, 0] == np.arange(300)).mean() > 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Flat", "'Flat' is not Qama2x192"),
        ("Qama7x12", "layout '7x12' is not BITSxCOMPONENTS"),
        ("Qama2x18,BNope", "base 'BNope' is not one of"),
        ("Qama2x18,BFlat,Refine(SQ4)", "Refine takes codes, SQ8, SQfp16, Flat, RFlat; got SQ4"),
        ("Qama2x99", "has 99 components; the vectors have 36"),
    ],
)
def test_wrong_factory_strings(text, message):
    with pytest.raises(ValueError, match=message):
        index_factory(D, text)


WHOLE = ["BFlat", "BIVF4", "BIVF4_HNSW8", "BHNSW8", "BHash12", "BHash2x8", "Flat", "IVF4"]


@pytest.mark.parametrize("base", WHOLE)
@pytest.mark.parametrize("rest", ["x", "_HSNW8", ",Rflat", ",", " ", "\n", ".5"])
def test_what_is_not_understood_to_the_last_character_is_refused(base, rest):
    for make in (lambda: QamaIndex(QUANTIZER, base=base + rest), lambda: index_factory(D, f"Qama2x18,{base}{rest}")):
        with pytest.raises(ValueError, match="base|is not understood") as refused:
            make()
        assert rest.strip(",\n") in str(refused.value)


@pytest.mark.parametrize("base", WHOLE)
def test_a_base_is_written_back_as_it_was_read(base):
    for text in [base, *(f"{wrapper},{base}" for wrapper in ("IDMap", "IDMap2") if base.startswith("B"))]:
        assert str(QamaIndex(QUANTIZER, base=text)._core.base) == base


@pytest.mark.parametrize("rest", [",RFlatx", ",Refine(SQ8)x", ",Rflat", ",Refine(SQ8),RFlat", ",,RFlat"])
def test_the_part_of_a_factory_string_that_is_not_understood_is_shown(rest):
    with pytest.raises(ValueError, match="is not understood") as refused:
        index_factory(D, f"Qama2x18,Flat{rest}")
    shown = str(refused.value).rpartition(": ")[2].removesuffix(" is not understood").strip("'")
    assert shown
    assert rest.endswith(shown)


def test_range_search_far_beyond_the_first_candidates():
    """More hits than a range search starts with."""
    x = make_vectors(5000, seed=53)
    index = QamaIndex(QUANTIZER, "fp32")
    index.add(x)
    radius = float(np.quantile(QUERIES @ x.T, 0.4))
    lims, scores, ids = index.range_search(QUERIES, radius)
    flat = faiss.IndexFlatIP(D)
    flat.add(x)
    want_lims, _, want = flat.range_search(QUERIES, radius)
    for i in range(4):
        hits, wanted = (set(a[b[i] : b[i + 1]].tolist()) for a, b in ((ids, lims), (want, want_lims)))
        assert hits <= wanted
        assert len(hits) > 0.99 * len(wanted) > 2000
    assert (scores > radius).all()


@pytest.mark.parametrize(("old", "new"), [("Scan", "Flat"), ("ScanIVF16", "IVF16")])
def test_names_from_before_the_release_are_refused_with_the_new_ones(old, new):
    quantizer = fit_quietly(make_vectors(100), layout="2x8")
    for make in (lambda: QamaIndex(quantizer, base=old), lambda: index_factory(D, f"Qama2x8,{old},RFlat")):
        with pytest.raises(ValueError, match=f"base '{old}' is called '{new}' now"):
            make()


def stale_view(x):
    index = QamaIndex(fit_quietly(x))
    index.add(x)
    view = index.truncate(9)
    index.add(x)
    return view


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: index_factory(x.shape[1], "Qama2x18,Flat"), "not trained: call train|base Flat is no"),
        (lambda x: QamaIndex(fit_quietly(x), base="auto"), "base auto is not|not trained: call train"),
        (lambda x: QamaIndex(fit_quietly(x), base="IVF4"), "base IVF4 is no faiss.IndexBinary"),
        (lambda x: QamaIndex(fit_quietly(x)), "base Flat is no faiss.IndexBinary"),
        (stale_view, "truncate it again|base Flat is no"),
    ],
    ids=["unfitted", "auto", "IVF", "Flat", "stale"],
)
def test_hasattr_tells_whether_an_index_has_a_property(make, message):
    index = make(make_vectors(200))
    names = [name for name in dir(QamaIndex) if isinstance(getattr(QamaIndex, name), property) and name[0] != "_"]
    missing = [name for name in names if not hasattr(index, name)]
    assert "base_index" in missing
    assert set(names) - set(missing) >= {"d", "metric_type", "is_trained", "rescore", "factory_string"}
    for name in missing:
        assert getattr(index, name, "another") == "another"
        if name not in ("nprobe", "efSearch"):  # settings of some bases only, as in FAISS
            with pytest.raises(ValueError, match=message):
                getattr(index, name)
