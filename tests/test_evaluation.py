from __future__ import annotations

import itertools
import warnings

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from faiss_qama import QamaIndex
from faiss_qama.comparison import methods
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation import recall as recall_module
from faiss_qama.evaluation.datasets import Dataset, read_rows
from faiss_qama.evaluation.exhaustive_search import search_decoded, search_hamming
from faiss_qama.evaluation.ranking_metrics import ndcg, ranking_metrics
from faiss_qama.evaluation.recall import evaluate, exact, found_with_ties, recall, recalls, speeds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports warns about itself
    import ir_measures

METRICS = [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2]


def make_dataset(n=700, nq=40, **fields):
    return Dataset(Corpus(make_vectors(n)), make_vectors(nq, seed=1), **fields)


def make_qrels(nq, n, seed=0):
    rng = np.random.default_rng(seed)
    rows = {(int(q), int(d)): int(g) for q, d, g in zip(*rng.integers(0, (nq, n, 4), (nq * 8, 3)).T, strict=True)}
    return np.array([(q, d, g) for (q, d), g in rows.items()])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 10]))
def test_judgements_equal_trec_eval_query_by_query(seed, k):
    rng = np.random.default_rng(seed)
    nq, n = 7, 30
    ids = np.stack([rng.permutation(n)[:12] for _ in range(nq)])
    qrels = make_qrels(nq, n, seed)
    run = [ir_measures.ScoredDoc(str(q), str(d), -r) for q, row in enumerate(ids) for r, d in enumerate(row)]
    graded = [ir_measures.Qrel(str(q), str(d), int(g)) for q, d, g in qrels]
    relevant = sorted({q for q, _, g in qrels.tolist() if g > 0})
    got = ranking_metrics(ids, qrels, k)
    oracles = {"ndcg": ir_measures.nDCG @ k, "relevant_recall": ir_measures.R @ k, "mrr": ir_measures.RR @ k}
    for name, oracle in oracles.items():
        want = {int(m.query_id): m.value for m in ir_measures.iter_calc([oracle], graded, run)}
        np.testing.assert_allclose(got[name], [want[q] for q in relevant], atol=1e-6)
    assert ndcg(ids, qrels, k) == pytest.approx(got["ndcg"].mean())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_measures_of_ties_are_the_mean_over_all_their_orders(seed, k):
    """The other route: trec_eval's measures and the recall of exact neighbours, of every order of six hits."""
    rng = np.random.default_rng(seed)
    ids, distances = rng.permutation(9)[:6], np.sort(rng.integers(0, 4, 6))
    qrels = np.array([(0, d, int(rng.integers(0, 3))) for d in range(9)] + [(0, -1, 1)])
    orders = [list(o) for o in itertools.permutations(range(6)) if (np.diff(distances[list(o)]) >= 0).all()]
    want = [ranking_metrics(ids[order][None], qrels, k) for order in orders]
    got = ranking_metrics(ids[None], qrels, k, distances[None])
    for measure, values in got.items():
        assert values == pytest.approx(np.mean([w[measure] for w in want])), measure
    dataset = Dataset(Corpus(make_vectors(9)), make_vectors(1, seed=1))
    truth = exact(dataset, k, faiss.METRIC_L2)
    recalled = np.mean([recalls(ids[order][None], truth, dataset) for order in orders])
    assert recalls(ids[None], truth, dataset, distances[None]) == pytest.approx(recalled)


def test_an_index_of_hamming_distances_is_measured_over_all_orders_of_its_ties():
    """Shuffling the corpus, which breaks ties another way, leaves every figure; excluded hits and few hits too."""
    x, xq = make_vectors(400), make_vectors(30, seed=1)
    qrels, exclude = make_qrels(30, 400), np.stack([np.arange(30), np.arange(30)], axis=1)
    quantizer = fit_quietly(x, layout="1x6")
    figures = []
    for seed in range(3):
        order = np.arange(400) if seed == 0 else np.random.default_rng(seed).permutation(400)
        row = np.argsort(order)
        dataset = Dataset(
            Corpus(x[order]),
            xq,
            np.stack([qrels[:, 0], row[qrels[:, 1]], qrels[:, 2]], axis=1),
            exclude=np.stack([exclude[:, 0], row[exclude[:, 1]]], axis=1),
        )
        index = QamaIndex(quantizer, "none")
        index.add(x[order])
        result = evaluate(index, dataset, exact(dataset, 10, faiss.METRIC_INNER_PRODUCT), runs=1)
        figures.append([values for _, values in sorted(result.values.items())])
    for other in figures[1:]:
        for a, b in zip(figures[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
    assert 0 < figures[0][-1].mean() < 1


@pytest.mark.parametrize("k", [3, 10, 20])
def test_ndcg_is_at_the_k_that_is_asked_for(k):
    dataset = make_dataset()
    near = exact(dataset, 20, faiss.METRIC_INNER_PRODUCT).I
    qrels = np.array([(q, d, 1) for q, row in enumerate(near) for d in row])
    dataset = make_dataset(qrels=qrels)
    truth = exact(dataset, k, faiss.METRIC_INNER_PRODUCT)
    assert truth.measured.mean.ndcg == pytest.approx(1)
    flat = faiss.IndexFlatIP(D)
    flat.add(make_vectors(700))
    assert evaluate(flat, dataset, truth).ndcg == pytest.approx(1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 4 * D * 100])
def test_exact_search_is_indexflat_in_any_blocks(monkeypatch, metric, chunk_bytes):
    monkeypatch.setattr("faiss_qama.corpus.CHUNK_BYTES", chunk_bytes)
    dataset = make_dataset()
    truth = exact(dataset, 10, metric)
    flat = faiss.IndexFlat(D, metric)
    flat.add(make_vectors(700))
    D_want, I_want = flat.search(dataset.queries, 10)
    np.testing.assert_array_equal(truth.I, I_want)
    np.testing.assert_allclose(truth.D, D_want, rtol=1e-5, atol=1e-6)
    assert recall(truth.I, truth, dataset) == 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_recall_is_the_overlap_of_ids_where_nothing_ties(metric):
    dataset = make_dataset()
    truth = exact(dataset, 10, metric)
    rng = np.random.default_rng(0)
    ids = np.where(rng.random(truth.I.shape) < 0.4, rng.integers(0, 700, truth.I.shape), truth.I)
    ids = np.stack([np.pad(u, (0, 10 - len(u)), constant_values=-1) for u in map(np.unique, ids)])
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, truth.I, strict=True)])
    assert recall(ids, truth, dataset) == pytest.approx(overlap)


def test_recall_takes_duplicates_for_each_other():
    x = np.repeat(make_vectors(20), 30, axis=0)
    dataset = Dataset(Corpus(x), make_vectors(10, seed=1))
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    twins = truth.I // 30 * 30 + (truth.I + 13) % 30
    assert recall(twins, truth, dataset) == 1.0
    assert recall((truth.I + 300) % 600, truth, dataset) == 0.0


def test_fewer_documents_than_k():
    dataset = make_dataset(n=4)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    assert truth.I.shape == (40, 4)
    padded = np.pad(truth.I, ((0, 0), (0, 6)), constant_values=-1)
    assert recall(padded, truth, dataset) == 1.0
    assert recall(np.full_like(padded, -1), truth, dataset) == 0.0


def test_excluded_hits_are_dropped_on_both_sides():
    x = make_vectors(500)
    itself = np.stack([np.arange(40)] * 2, axis=1)
    dataset = Dataset(Corpus(x), x[:40], exclude=itself)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    assert truth.I.shape == (40, 10)
    assert not (truth.I == np.arange(40)[:, None]).any()
    flat = faiss.IndexFlatIP(D)
    flat.add(x)
    assert evaluate(flat, dataset, truth).recall == 1.0


@pytest.mark.parametrize(
    "name",
    [*methods.METHODS, *methods.SCALAR, "2x18", "2x9,1x9", "2x18+none", "binary+fp16", "2x18+fp32"]
    + [
        "faiss:Flat",
        "faiss:RaBitQ",
        "faiss:PCA16,SQ8,Refine(Flat);k_factor_rf=4",
        "faiss:IVF8,Flat;nprobe=8",
        "faiss:HNSW8",
    ],
)
def test_every_method_builds_and_finds(name):
    dataset = make_dataset(qrels=make_qrels(40, 700))
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    measured = methods.measure(name, dataset, truth)
    assert measured.name == name
    assert measured.bytes[0] > 0
    assert 0.05 < measured.mean.recall <= 1
    assert 0 <= measured.mean.ndcg <= 1
    if name in ("faiss:Flat", "2x18+fp32", "binary+fp16", "faiss:IVF8,Flat;nprobe=8"):
        assert measured.mean.recall > 0.9


def levels_of(name, x, xq):
    """The published binary and ternary methods by numpy alone: levels of documents and queries."""
    if name.startswith("rotated"):
        _, _, rows = np.linalg.svd(x.astype(np.float64), full_matrices=False)
        x, xq = x @ rows.T, xq @ rows.T
    cuts = {
        "binary": np.zeros((1, D)),
        "rotated-binary": np.zeros((1, D)),
        "mean-binary": x.mean(axis=0, keepdims=True),
        "median-binary": np.median(x, axis=0, keepdims=True),
    }.get(name, np.quantile(x, [1 / 3, 2 / 3], axis=0))
    return ((v[:, None] >= cuts).sum(axis=1) for v in (x, xq))


@pytest.mark.parametrize(
    "name", ["binary", "mean-binary", "median-binary", "ternary", "rotated-binary", "rotated-ternary"]
)
def test_binary_and_ternary_methods_are_the_published_ones(name):
    """Two routes: the method, and numpy's L1 distances of levels. What is held out of the fit moves a cut a little."""
    dataset = make_dataset(n=2000)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    documents, queries = levels_of(name, make_vectors(2000), dataset.queries)
    distances = np.abs(queries[:, None].astype(int) - documents[None]).sum(axis=2)
    want = recall(np.argsort(distances, axis=1, kind="stable")[:, :10], truth, dataset)
    assert methods.measure(name, dataset, truth).mean.recall == pytest.approx(want, abs=0.03)


@pytest.mark.parametrize("name", methods.SCALAR)
def test_scalar_methods_keep_nearly_everything(name):
    dataset = make_dataset(n=2000)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    assert methods.measure(name, dataset, truth).mean.recall > 0.95


@pytest.mark.slow
def test_bytes_of_methods_by_hand():
    dataset = Dataset(Corpus(make_vectors(800, 384)), make_vectors(5, 384, seed=1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")
        sizes = {
            name: methods.build(name, dataset, faiss.METRIC_INNER_PRODUCT).bytes
            for name in ("binary", "ternary", "hybrid", "half-bit", "scalar", "rotated-scalar", "2x192", "2x192+fp16")
        }
    assert sizes == {
        "binary": (48, 0),
        "ternary": (96, 0),
        "hybrid": (68, 0),
        "half-bit": (24, 0),
        "scalar": (384, 0),
        "rotated-scalar": (384, 0),
        "2x192": (48, 0),
        "2x192+fp16": (48, 768),
    }


def test_the_mean_over_seeds():
    dataset = make_dataset()
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    measured = methods.measure("1x16", dataset, truth, seeds=3)
    recalls = [result.recall for result in measured.results]
    assert len(set(recalls)) == 3
    assert measured.mean.recall == pytest.approx(np.mean(recalls))
    assert len(measured.to_dict()["each"]) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown method 'nonsense'"),
        ("2x18+fp8", r"the second stage is one of \+none, \+codes"),
        ("faiss:Nonsense", "faiss:Nonsense"),
        ("faiss:Flat;nonsense=3", "nonsense"),
        ("faiss:IVF8,Flat;nprobe=8x", "'nprobe=8x' is not NAME=NUMBER"),
        ("faiss:IVF8,Flat;nprobe=1.7", "'nprobe=1.7' is not NAME=NUMBER; numbers are whole"),
        ("faiss:IVF8,Flat;nprobe=-3", "'nprobe=-3' is not"),
        ("faiss:IVF8,Flat;nprobe=8;efSearch=3", "'nprobe=8;efSearch=3' is not"),
        ("faiss:IVF8,Flat;nprobe=8,", "'' is not NAME=NUMBER"),
        ("faiss:HNSW8_PQ2x4np", "makes it for another metric than the one asked for"),
        ("faiss:HNSW8,", "a part of the factory string is empty"),
        ("faiss:IVF8_HSNW8,Flat", "IVF8_HSNW8,Flat"),
        ("2x18,", "unknown method '2x18,'"),
    ],
)
def test_unknown_methods_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        methods.build(name, make_dataset(), faiss.METRIC_INNER_PRODUCT)


def test_rabitq_quantizes_queries_to_8_bits():
    """FAISS's default is 4."""
    for name in ("faiss:RaBitQ", "faiss:RR36,RaBitQ4", "faiss:IVF4,RaBitQ2;nprobe=4"):
        index = methods.build(name, make_dataset(), faiss.METRIC_INNER_PRODUCT).index
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
        assert inner.qb == 8


def test_folder_is_read_and_train_queries_are_asked_for(tmp_path):
    np.save(tmp_path / "corpus.npy", make_vectors(100).astype(np.float16))
    np.save(tmp_path / "queries.npy", make_vectors(5, seed=1))
    dataset = Dataset.load(tmp_path)
    assert dataset.qrels is None
    with pytest.raises(ValueError, match=r"no train_queries\.npy"):
        methods.build("1x8", dataset, faiss.METRIC_INNER_PRODUCT, train_queries=True)
    (tmp_path / "qrels.tsv").write_text("q\td\tg\n0\t99\t2\n4\t0\t1\n")
    (tmp_path / "exclude.tsv").write_text("q\td\n0\t3\n")
    dataset = Dataset.load(tmp_path)
    np.testing.assert_array_equal(dataset.qrels, [[0, 99, 2], [4, 0, 1]])
    np.testing.assert_array_equal(dataset.exclude, [[0, 3]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5\t0\t1", "line 3: query row 5, but there are 5"),
        ("0\t100\t1", "line 3: corpus row 100, but there are 100"),
        ("-1\t0\t1", "line 3: query row -1"),
        ("0\t1", "line 3: 3 tab-separated columns are needed; got 2"),
        (f"0\t1\t{10**30}", "line 3: whole numbers are needed"),
        ("a\tb\tc", "line 3: whole numbers are needed"),
        ("0 1 2", "line 3: whole numbers are needed"),
    ],
)
def test_wrong_qrels_are_refused_by_line(tmp_path, line, message):
    (tmp_path / "qrels.tsv").write_text(f"q\td\tg\n0\t0\t1\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / "qrels.tsv", 3, (5, 100))


def test_qrels_need_no_header(tmp_path):
    for text in ("q\td\tg\n0\t3\t1\n2\t4\t2\n", "0\t3\t1\n2\t4\t2\n", "\ufeff0\t3\t1\n2\t4\t2\n"):
        (tmp_path / "qrels.tsv").write_text(text, encoding="utf-8")
        np.testing.assert_array_equal(read_rows(tmp_path / "qrels.tsv", 3, (5, 100)), [[0, 3, 1], [2, 4, 2]])
    (tmp_path / "qrels.tsv").write_text("0 3 1\n2\t4\t2\n")
    with pytest.raises(ValueError, match="line 1: whole numbers are needed; got '0 3 1'"):
        read_rows(tmp_path / "qrels.tsv", 3, (5, 100))


def test_an_index_of_ours_and_of_faiss_are_measured_alike():
    dataset = make_dataset()
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    built = methods.build("2x18+fp32", dataset, truth.metric)
    assert isinstance(built.index, QamaIndex)
    assert evaluate(built.index, dataset, truth, oversample=70).recall == 1.0


@pytest.mark.parametrize("metric", METRICS)
def test_exhaustive_searches_of_codes_are_an_index_that_re_ranks_all_of_them_and_one_that_re_ranks_none(metric):
    x, xq = make_vectors(300), make_vectors(20, seed=1)
    quantizer = fit_quietly(x, layout="2x18", metric=metric)
    code = quantizer.encode(x)
    for rescore, (D_got, I_got) in (
        ("codes", search_decoded(quantizer, code, xq, 10)),
        ("none", search_hamming(quantizer, code, xq, 10)),
    ):
        index = QamaIndex(quantizer, rescore)
        index.add(x)
        D_want, I_want = index.search(xq, 10, **{"oversample": 30} if rescore == "codes" else {})
        np.testing.assert_allclose(D_got, D_want, rtol=1e-4, atol=1e-5)
        assert np.mean(I_got == I_want) > 0.99


def test_ties_are_as_good_as_the_bound_and_what_is_worse_by_more_than_rounding_is_not():
    scores = np.array([[0.5, 0.5 - 1e-7, 0.5 - 1e-5], [-2.0, -2.000001, -2.1]], dtype=np.float32)
    got = found_with_ties(scores, np.array([0.5, -2.0], np.float32), np.array([0.5, 3.0], np.float32))
    np.testing.assert_array_equal(got, [[True, True, False], [True, True, False]])
    np.testing.assert_array_equal(found_with_ties(scores[0], 0.5, 0.5), [True, True, False])


def test_speeds_are_those_of_the_median_turn(monkeypatch):
    dataset, searched = make_dataset(n=300), []
    seconds = {"exact": iter([0.2, 0.1, 9.0] * 3), "one": iter([0.4, 0.5, 0.01] * 3)}

    def timed(name):
        searched.append(name)
        return (np.zeros((len(dataset.queries), 10)), np.zeros((len(dataset.queries), 10), int)), next(seconds[name])

    monkeypatch.setattr(recall_module, "_timed_exact_search", lambda *_: timed("exact"))
    monkeypatch.setattr(recall_module, "_timed_search", lambda index, *_: timed(index))
    monkeypatch.setattr(recall_module, "TURNS", 9)
    monkeypatch.setattr(recall_module, "MIN_SECONDS", 0)
    truth = recall_module.exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)  # whose time, 0.2 s, is that of the first turn
    assert speeds(["one"], dataset, truth) == [len(dataset.queries) / s for s in (0.2, 0.4)]
    assert searched == ["exact", "one"] * 9


def test_exact_search_compares_few_queries_as_fast_as_many_and_leaves_the_setting(monkeypatch):
    """FAISS compares few queries one by one (findings/faiss-few-queries.sh)."""
    before, during = faiss.cvar.distance_compute_blas_threshold, []
    search = recall_module.knn_ground_truth

    def watched(*arguments, **options):
        during.append(faiss.cvar.distance_compute_blas_threshold)
        return search(*arguments, **options)

    monkeypatch.setattr(recall_module, "knn_ground_truth", watched)
    x = make_vectors(200)
    recall_module.exact(Dataset(Corpus(x), x[:5]), 3, faiss.METRIC_INNER_PRODUCT)
    assert during == [1]
    assert faiss.cvar.distance_compute_blas_threshold == before
