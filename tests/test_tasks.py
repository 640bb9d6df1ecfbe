from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace

import faiss
import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from conftest import D, make_vectors
from sklearn.linear_model import LogisticRegression

from faiss_qama.cli.app import cli
from faiss_qama.comparison import methods, tasks
from faiss_qama.comparison.tasks import Classification, Similarity, load_task
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.bootstrap import bootstrap_interval

pytestmark = pytest.mark.slow

NAMES = ["2x18", "2x18+none", "binary", "rotated-ternary", "scalar", "rotated-scalar"]
NAMES += [f"faiss:{factory}" for factory in ("LSH", "PQ9x4fs", "PCAR16,SQ8", "RaBitQ", "IVF4,PQ9x4")]


def save_similarity(folder, n=400, m=101):
    rng = np.random.default_rng(3)
    for name, size, seed in (("train", n, 0), ("test", m, 1)):
        a = make_vectors(size, seed=seed)
        b = a + rng.random((size, 1)) * 0.4 * rng.standard_normal((size, D))
        np.save(folder / f"{name}_a.npy", a)
        np.save(folder / f"{name}_b.npy", b.astype(np.float16))
        cosines = np.einsum("nd,nd->n", a, b) / np.linalg.norm(b, axis=1)
        np.save(folder / f"{name}_scores.npy", cosines + 0.02 * rng.standard_normal(size))


def save_classification(folder, n=300, m=90):
    for name, size, seed in (("train", n, 0), ("test", m, 1)):
        x = make_vectors(size, seed=seed)
        np.save(folder / f"{name}.npy", x)
        np.save(folder / f"{name}_labels.npy", x[:, :4].argmax(axis=1))


@pytest.fixture
def similarity(tmp_path):
    save_similarity(tmp_path)
    return tmp_path


@pytest.fixture
def classification(tmp_path):
    save_classification(tmp_path)
    return tmp_path


def test_floats_reach_what_scipy_says(similarity):
    task = load_task(similarity)
    assert isinstance(task, Similarity)
    a, b = np.load(similarity / "test_a.npy"), np.load(similarity / "test_b.npy").astype(np.float32)
    cosines = [x @ y / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    want = scipy.stats.spearmanr(cosines, np.load(similarity / "test_scores.npy")).statistic
    assert tasks.measure(task, [])[0].score == pytest.approx(want, abs=1e-6)


def test_hamming_features_rank_as_minus_the_distance(similarity):
    task = load_task(similarity)
    codec = methods.codec("2x18+none", Corpus(task.train))
    code = [codec.features(side) > 0 for side in (task.a, task.b)]
    distances = (code[0] != code[1]).sum(axis=1)
    np.testing.assert_allclose(task.items(codec.features), 1 - 2 * distances / code[0].shape[1], atol=1e-6)
    want = scipy.stats.spearmanr(-distances, task.scores).statistic
    assert tasks.measure(task, ["2x18+none"])[1].score == pytest.approx(want, abs=1e-6)


def test_accuracy_is_that_of_a_regression_by_hand(classification):
    task = load_task(classification)
    assert isinstance(task, Classification)
    codec = methods.codec("1x36", Corpus(task.train))
    model = LogisticRegression(max_iter=1000).fit(codec.features(task.train), task.train_labels)
    want = model.score(codec.features(task.test), task.test_labels)
    measured = tasks.measure(task, ["1x36"])
    assert measured[1].score == pytest.approx(want)
    assert measured[1].retained[0] == pytest.approx(100 * want / measured[0].score)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_method_keeps_most_of_the_similarity(similarity, name):
    floats, method = tasks.measure(load_task(similarity), [name])
    low, high = method.retained[1]
    assert 60 < low <= method.retained[0] <= high < 110
    assert 0 < method.bytes < floats.bytes


@pytest.mark.parametrize(
    ("name", "size"),
    [("1x36", 8), ("2x18", 8), ("2x18+none", 8), ("2x36", 16), ("2x18+2x18,1x3", 20), ("faiss:SQ8", 36)],
)
def test_bytes_are_those_that_an_index_holds(name, size):
    assert methods.codec(name, Corpus(make_vectors(500))).bytes == size


def test_a_resample_without_anything_is_left_out(similarity):
    task = load_task(similarity)
    few = replace(task, a=task.a[:3], b=task.b[:3], scores=np.array([0.0, 1.0, 2.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy says that ranks are all the same
        assert all(np.isfinite(tasks.measure(few, ["1x36"])[1].retained[1]))


def test_faiss_features_are_what_its_index_reconstructs():
    x = make_vectors(500)
    index = faiss.index_factory(D, "PCA16,SQ8", faiss.METRIC_L2)
    index.train(x)
    index.add(x)
    got = methods.codec("faiss:PCA16,SQ8", Corpus(x)).features(x)
    np.testing.assert_allclose(got, index.reconstruct_n(0, 500), atol=1e-5)


def test_intervals_are_scipys():
    values = np.random.default_rng(0).exponential(size=200)
    want = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    got = bootstrap_interval(lambda rows: values[rows].mean(), 200)
    np.testing.assert_allclose(got, want.confidence_interval, atol=0.02)


def test_paired_differences_are_surer_than_the_methods_themselves():
    rng = np.random.default_rng(0)
    a = rng.random(300)
    b = a - 0.01 + 0.001 * rng.standard_normal(300)
    low, high = bootstrap_interval(lambda rows: a[rows].mean() - b[rows].mean(), 300)
    assert 0.009 < low < high < 0.011
    low, high = bootstrap_interval(lambda rows: a[rows].mean(), 300)
    assert high - low > 0.05


def test_seeds_are_averaged(similarity):
    measured = tasks.measure(load_task(similarity), ["1x8"], seeds=3)[1].to_dict()
    assert len(set(measured["each"])) == 3
    assert measured["score"] == pytest.approx(np.mean(measured["each"]))


def test_the_command_recognises_both(similarity, tmp_path_factory):
    labelled = tmp_path_factory.mktemp("labelled")
    save_classification(labelled)
    for folder, measure in ((similarity, "Spearman"), (labelled, "accuracy")):
        arguments = ["eval", str(folder), "--method", "2x18", "--json", str(folder / "r.json")]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        lines = done.stdout.splitlines()
        assert lines[1].split() == f"bytes/vector {measure} % of float 95 % interval".split()
        assert [line.split()[0] for line in lines[2:]] == ["exact", "2x18"]
        record = json.loads((folder / "r.json").read_text())
        assert record["results"][1]["score"] == pytest.approx(float(lines[3].split()[2]), abs=1e-4)


def test_json_says_null_where_there_is_no_figure(classification):
    np.save(classification / "test_labels.npy", np.full(90, 99))  # floats are never right: there is no share of that
    path = classification / "r.json"
    CliRunner().invoke(cli, ["eval", str(classification), "--json", str(path)], catch_exceptions=False)
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [result["retained"] for result in record["results"]] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "5"], "-k is for retrieval"),
        (["--train-queries"], "--train-queries is for retrieval"),
        (["--method", "2x18+fp16"], r"\+none or \+codes; got \+fp16"),
        (["--method", "faiss:HNSW8"], "faiss:HNSW8: only codes are measured here"),
        (["--method", "faiss:RaBitQ4"], "faiss:RaBitQ4: FAISS decodes 1 of its 4 bits per component"),
        (["--method", "faiss:PCA16,IVF4,RaBitQ2"], "FAISS decodes 1 of its 2 bits per component"),
        (["--method", "nonsense"], "unknown method 'nonsense'"),
    ],
)
def test_what_a_task_cannot_do_is_refused(similarity, arguments, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(cli, ["eval", str(similarity), *arguments], catch_exceptions=False)


def test_files_that_do_not_fit_are_named(similarity):
    np.save(similarity / "test_scores.npy", np.zeros(7))
    with pytest.raises(ValueError, match=r"test_scores\.npy: a number for each of 101 and 101 vectors .* got \(7,\)"):
        load_task(similarity)
    np.save(similarity / "test_scores.npy", np.full(101, np.nan))
    with pytest.raises(ValueError, match=r"test_scores\.npy: row 0 holds NaN"):
        load_task(similarity)


def test_missing_packages_are_named(similarity, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"pip install '.\[eval\]' in the clone"):
        load_task(similarity)
