from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
import yaml
from conftest import D, fit_quietly, make_vectors, slow_except

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.training import FitConfig, TrainConfig, fit, rotation, thresholds
from faiss_qama.training.candidate_layouts import default_layout
from faiss_qama.training.closed_form import merge_pairs
from faiss_qama.training.split import HELD_OUT, split_corpus
from faiss_qama.training.train_config import PruningConfig

NORMAL = np.random.default_rng(0).standard_normal((200_000, 2)).astype(np.float32) * [2, 0.5] + [1, -3]


def distortion(z, cuts):
    level = (z[:, :, None] >= cuts).sum(axis=2)
    total = 0.0
    for column in range(z.shape[1]):
        for i in range(cuts.shape[1] + 1):
            members = z[level[:, column] == i, column]
            total += np.square(members - members.mean()).sum() if len(members) else 0
    return total / len(z)


@pytest.mark.parametrize(("levels", "share"), [(2, 0.3634), (3, 0.1902), (4, 0.1175)])
def test_lloyd_reaches_the_published_distortion_of_a_normal_distribution(levels, share):
    """Max 1960, table I."""
    cuts = thresholds.lloyd(NORMAL, levels)
    assert distortion(NORMAL, cuts) == pytest.approx(share * NORMAL.var(axis=0).sum(), rel=0.01)
    np.testing.assert_allclose(cuts, thresholds.normal(NORMAL, levels), atol=0.05)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_lloyd_loses_least_on_skewed_data(levels):
    z = np.random.default_rng(1).exponential(size=(20_000, 3)).astype(np.float32)
    best = distortion(z, thresholds.lloyd(z, levels))
    for rule in ("normal", "uniform", "quantile", "log"):
        assert best <= distortion(z, thresholds.RULES[rule](z, levels)) * 1.0001


def test_quantiles_fill_levels_evenly():
    for levels in (2, 3, 4):
        level = (NORMAL[:, :, None] >= thresholds.quantile(NORMAL, levels)).sum(axis=2)
        for column in range(2):
            np.testing.assert_allclose(np.bincount(level[:, column]) / len(NORMAL), 1 / levels, atol=1e-3)


def test_cuts_in_standard_deviations():
    z = (NORMAL - NORMAL.mean(axis=0)) / NORMAL.std(axis=0)
    np.testing.assert_allclose(thresholds.uniform(z, 4), [[-1, 0, 1]] * 2, atol=1e-4)
    np.testing.assert_allclose(thresholds.uniform(z, 3), [[-2 / 3, 2 / 3]] * 2, atol=1e-4)
    middle = np.sqrt(5) - 1  # log(1 + middle) is half of log(1 + 4)
    np.testing.assert_allclose(thresholds.log(z, 4), [[-middle, 0, middle]] * 2, atol=1e-4)
    np.testing.assert_allclose(thresholds.mean(NORMAL, 2)[:, 0], NORMAL.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(thresholds.median(NORMAL, 2)[:, 0], np.median(NORMAL, axis=0))
    assert not thresholds.zero(NORMAL, 2).any()


@pytest.mark.parametrize("rule", ["zero", "mean", "median"])
def test_single_cuts_refuse_more_levels(corpus, rule):
    with pytest.raises(ValueError, match=f"'{rule}' is one cut.*has 4 levels"):
        fit(corpus, config=FitConfig(layout="2x18", thresholds=rule))


def test_pca_is_numpys_svd(corpus):
    centred = corpus - corpus.mean(axis=0)
    rows, variances = rotation.pca(rotation.scatter_matrix(corpus, corpus.mean(axis=0)), 5)
    _, values, want = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(rows * want[:5], axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(variances, values**2, rtol=1e-3)


@pytest.mark.parametrize("falling", [False, True])
def test_a_matryoshka_model_is_seen_by_its_leading_dimensions(corpus, falling):
    x = corpus * (0.9 ** np.arange(D) if falling else np.ones(D)).astype(np.float32)
    record = fit(x, config=FitConfig(layout="2x18", sample=10**6)).fit_record
    assert record.of_matryoshka_model == falling
    assert [n for n, _, _ in record.explained_variance] == [4, 9, 18]
    variance = np.var(x, axis=0)
    for n, own, components in record.explained_variance:
        assert own == pytest.approx(variance[:n].sum() / variance.sum(), abs=0.03)  # of all, the held-out ones too
        assert own < components < 1
    assert FitRecord.from_dict(json.loads(json.dumps(record.to_dict()))).explained_variance == record.explained_variance
    assert not fit(x, config=FitConfig(layout="2x18", projection="none", rotation="none")).fit_record.explained_variance


def test_truncated_vectors_are_fitted_with_cosine(corpus, queries):
    """As a Matryoshka model's are used: its first dimensions, whose norms are no longer 1."""
    x, xq = corpus[:, :24], queries[:, :24]
    index = QamaIndex(fit_quietly(x, layout="2x24", metric="cosine"), "fp32")
    index.add(x)
    flat = faiss.IndexFlatIP(24)
    flat.add(x / np.linalg.norm(x, axis=1, keepdims=True))
    found, want = index.search(xq, 10, oversample=20)[1], flat.search(xq, 10)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)]) > 0.99


def test_itq_is_a_rotation_that_loses_less_than_where_it_starts(corpus):
    mean = corpus.mean(axis=0)
    z = (corpus - mean) @ rotation.pca(rotation.scatter_matrix(corpus, mean), 18)[0].T
    for levels in (2, 3, 4):
        centroids = np.array(thresholds.NORMAL_CENTROIDS[levels], dtype=np.float32)
        found = rotation.itq(z, centroids, np.random.default_rng(0))
        start = rotation.random_rotation(18, np.random.default_rng(0))
        np.testing.assert_allclose(found @ found.T, np.eye(18), atol=1e-5)
        losses = [distortion(u, thresholds.normal(u, levels)) for u in (z @ found.T, z @ start.T)]
        assert losses[0] < losses[1]


@pytest.mark.parametrize(("n", "m"), [(1, 7), (60, 40), (200, 192), (700, 100)])
@pytest.mark.parametrize("spread", [0.0, 0.9, 1.0])
def test_itq_is_a_rotation_however_few_vectors_there_are(n, m, spread):
    """Also of components that fall to nothing, or are nothing; its steps are mostly noise then."""
    z = np.random.default_rng(0).standard_normal((n, m)) * spread ** np.arange(m)
    centroids = np.array(thresholds.NORMAL_CENTROIDS[4], dtype=np.float32)
    found = rotation.itq(z.astype(np.float32), centroids, np.random.default_rng(1))
    np.testing.assert_allclose(found @ found.T, np.eye(m), atol=1e-5)


@pytest.mark.parametrize("kind", ["itq", "random"])
def test_slices_and_segments_confine_rotations(corpus, kind):
    """The span of each slice's rows is the span of the principal directions it stands for."""
    quantizer = fit(corpus, config=FitConfig(layout="2x12,1x12", matryoshka_dims=(6, 12), rotation=kind, sample=10**6))
    held_in = fit(corpus, config=FitConfig(layout="2x12,1x12", rotation="none")).transform.matrix
    for a, b in [(0, 6), (6, 12), (12, 24)]:
        mixed = quantizer.transform.matrix[a:b] @ held_in[a:b].T
        np.testing.assert_allclose(mixed @ mixed.T, np.eye(b - a), atol=1e-4)
        assert np.abs(mixed - np.eye(b - a)).max() > 0.1


def test_rows_are_orthonormal_and_mean_is_the_origin(corpus):
    quantizer = fit(corpus, config=FitConfig(layout="2x18"))
    matrix = quantizer.transform.matrix
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(18), atol=1e-5)
    np.testing.assert_allclose(quantizer.transform(corpus).mean(axis=0), 0, atol=0.02)


def test_merged_pairs_are_orthonormal_sums():
    layout = FitConfig(layout="1x2,0.5x4").layout_in(6)
    merged = merge_pairs(np.eye(6, dtype=np.float32), layout)
    half = np.sqrt(0.5)
    want = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, half, half, 0, 0], [0, 0, 0, 0, half, half]]
    np.testing.assert_allclose(merged, want, atol=1e-6)


def test_or_bit_is_set_where_either_component_is_above(corpus):
    quantizer = fit_quietly(corpus, layout="0.5orx10")
    z = quantizer.transform(corpus)
    either = (z >= quantizer.thresholds[:, 0]).reshape(len(z), 5, 2).any(axis=2)
    np.testing.assert_array_equal(bit_packing.unpack(quantizer.encode(corpus), quantizer.layout), either)


def test_same_seed_same_quantizer(corpus):
    a, b, c = (fit(corpus, config=FitConfig(layout="2x18", seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.transform.matrix, b.transform.matrix)
    np.testing.assert_array_equal(a.encode(corpus), b.encode(corpus))
    assert (a.encode(corpus) != c.encode(corpus)).any()


def test_a_file_shards_and_a_memory_map_fit_alike(corpus, tmp_path):
    np.save(tmp_path / "all.npy", corpus)
    np.save(tmp_path / "a.npy", corpus[:300])
    np.save(tmp_path / "b.npy", corpus[300:])
    want = fit(corpus, config=FitConfig(layout="2x18")).encode(corpus)
    sources = [
        tmp_path / "all.npy",
        str(tmp_path / "all.npy"),
        [tmp_path / "a.npy", tmp_path / "b.npy"],
        np.load(tmp_path / "all.npy", mmap_mode="r"),
        corpus.astype(np.float64),
        np.asfortranarray(corpus),
    ]
    for source in sources:
        np.testing.assert_array_equal(fit(source, config=FitConfig(layout="2x18")).encode(corpus), want)


def test_draw_is_disjoint_and_bounded():
    x = np.arange(2000, dtype=np.float32)[:, None]
    split = split_corpus(Corpus(x), None, 500, 0)
    assert len(split.train) == 500
    assert len(split.test) == 200
    assert not set(split.train[:, 0]) & set(split.test[:, 0])
    np.testing.assert_array_equal(x[split.test_rows], split.test)
    assert split.validation.shape == split.test.shape
    queries = -np.arange(1, 1501, dtype=np.float32)[:, None]
    split = split_corpus(Corpus(x), Corpus(queries), 10_000, 0)
    assert len(split.train) == 2000
    assert len(split.validation) == len(split.test) == HELD_OUT
    parts = [set(part[:, 0]) for part in (split.train_queries, split.validation, split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1500
    assert (split.test_rows == -1).all()
    assert len(split_corpus(Corpus(x), Corpus(queries[:59]), 10_000, 0).validation) == 0
    assert len(split_corpus(Corpus(x[:199]), None, 10_000, 0).validation) == 0


def test_the_example_of_fit_runs():
    failed, tried = doctest.testmod(importlib.import_module("faiss_qama.training.fit"))
    assert tried > 0
    assert failed == 0


def test_few_vectors_fit_and_say_so():
    x = make_vectors(40)
    with pytest.warns(UserWarning, match="fitted on 36 vectors; 18 components need 72"):
        quantizer = fit(x)
    assert np.isfinite(quantizer.decode(quantizer.encode(x))).all()
    with pytest.raises(ValueError, match="corpus: fitting needs at least 2 vectors; got 1"):
        fit(x[:1])
    with pytest.raises(ValueError, match="at least 20 are needed; got 3"):
        fit(x, queries=x[:3])


@pytest.mark.parametrize("what", ["constant", "zero", "duplicates", "one dimension varies", "d = 1"])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_degenerate_corpora_give_finite_quantizers(what, metric):
    x = {
        "constant": np.ones((300, D), np.float32),
        "zero": np.zeros((300, D), np.float32),
        "duplicates": np.repeat(make_vectors(3), 100, axis=0),
        "one dimension varies": np.eye(1, D, dtype=np.float32) * np.arange(300, dtype=np.float32)[:, None],
        "d = 1": np.arange(300, dtype=np.float32)[:, None],
    }[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer = fit(x, metric=metric)
    arrays = [quantizer.transform.matrix, quantizer.decoder.values, quantizer.decode(quantizer.encode(x))]
    assert all(np.isfinite(array).all() for array in arrays)


def test_bytes_beyond_two_bits_buy_nothing():
    assert str(default_layout(1000, 384)) == "2x384"
    assert str(default_layout(4, 1)) == "1x1"
    assert str(default_layout(48, 384)) == "2x192"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text("query_gain: 1e1\ntrain: {learning_rate: 1e-4, temperature: [1e0, 5e-1]}")
    config = FitConfig.from_yaml(tmp_path / "c.yaml")
    assert config.query_gain == 10
    assert config.train == TrainConfig(learning_rate=1e-4, temperature=(1.0, 0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matryoshka_dims": (4, 8.0)}, "matryoshka_dims must be component counts"),
        ({"matryoshka_dims": (True,)}, "matryoshka_dims must be component counts"),
        ({"bytes": True}, "bytes must be int or None; got True"),
        ({"query_gain": "far"}, "query_gain must be float or None; got 'far'"),
    ],
)
def test_settings_of_the_wrong_type_are_named(settings, message):
    with pytest.raises(TypeError, match=message):
        FitConfig(**settings)


def test_settings_are_checked_wherever_they_are_made():
    with pytest.raises(TypeError, match="train.epochs must be int; got '3'"):
        TrainConfig(epochs="3")
    with pytest.raises(TypeError, match="pruning.decay must be float; got None"):
        PruningConfig(decay=None)


def test_config_survives_yaml(tmp_path):
    config = FitConfig(layout="2x10,1x5", matryoshka_dims=(5, 10), query_center=0.5)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert FitConfig.from_yaml(tmp_path / "c.yaml") == config


PRESETS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
AT_LAYOUTS = [("distill", "binary"), ("distill", "ternary"), ("qama", "2-bit"), ("fast", "hybrid")]
QUICK = [("fast", None), ("fast", "hybrid")]


@pytest.mark.parametrize("preset", slow_except(QUICK, [*((name, None) for name in PRESETS), *AT_LAYOUTS]), ids=str)
def test_presets_fit(preset, request):
    """Each is read, fits, and, where it trains, goes through three steps of its own training."""
    name, layout = preset
    config = FitConfig.from_yaml(request.config.rootpath / "configs" / f"{name}.yaml")
    if layout is not None:
        config = dataclasses.replace(config, layout=layout)
    assert (config.train is None) == (name == "fast")
    if config.train is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1, steps_per_epoch=3))
    x = make_vectors(800, 384)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")
        quantizer = fit(x, config=config)
    if name != "adaptive-pruning":
        assert quantizer.layout == config.layout_in(384)
    if config.train is not None:
        losses = quantizer.fit_record.training.log[0]["losses"]
        assert {loss for loss in losses if loss not in ("entropy", "pruning")} == set(config.train.losses)
        assert np.isfinite(list(losses.values())).all()


def test_the_preset_for_pairs_is_the_default(request):
    assert FitConfig.from_yaml(request.config.rootpath / "configs" / "pairs.yaml").train == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layuot: 2x192", "unknown setting 'layuot'"),
        ("layout: 7x192", "is not BITSxCOMPONENTS"),
        ("seed: one", "seed must be int; got 'one'"),
        ("center: 1", "center must be bool; got 1"),
        ("matryoshka_dims: [8, 4]", "ascending"),
        ("matryoshka_dims: 8", "matryoshka_dims must be component counts"),
        ("rotation: spin", "rotation must be one of itq"),
        ("{layout: 2x8, bytes: 3}", "layout or bytes, not both"),
        ("bytes: 0", "at least 1; got 0"),
        ("seed: -1", "seed must be from 0 to 4294967295; got -1"),
        ("query_gain: .inf", "above 0 and finite; got inf"),
        ("query_gain: .nan", "above 0 and finite; got nan"),
        ("seed: 2001-99-99", "not YAML"),
        ("[" * 100_000, "not YAML"),
        ("query_center: 2", "from 0 to 1; got 2"),
        ("- 1", "mapping of settings"),
        ("train: 5", "train: a mapping of settings is needed; got 5"),
        ("train: {adaptor: linear}", "train: unknown setting 'adaptor'"),
        ("train: {adapter: cubic}", "unknown adapter 'cubic'; there are none, linear"),
        ("train: {quantizer: hard}", "unknown quantizer 'hard'"),
        ("train: {losses: {adc.mae: 1}}", "unknown loss 'adc.mae'; there are float.mse"),
        ("train: {losses: {adc.mse: 0}}", "at least one weight above 0"),
        ("train: {losses: {adc.mse: [1, 2, 3]}}", r"losses.adc.mse must be a number, or \[first, last\]"),
        ("train: {losses: {adc.mse: -1}}", "losses.adc.mse must be at least 0; got -1"),
        ("train: {temperature: 0}", "temperature must be from 1e-08 to inf"),
        ("train: {epochs: 0}", "epochs must be from 1"),
        ("train: {epochs: 1.5}", "train.epochs must be int; got 1.5"),
        ("train: {learning_rate: .inf}", "learning_rate must be from 1e-08 to inf, and finite; got inf"),
        ("train: {documents_as_queries: 2}", "from 0 to 1, and finite; got 2"),
        ("train: {hard_negatives: 0, random_negatives: 0}", "no documents"),
        ("train: {pruning: {decoy: 1}}", "pruning: unknown setting 'decoy'"),
        ("{layout: 2x8, matryoshka_dims: some}", "matryoshka_dims must be component counts, or 'nested'; got 'some'"),
        ("a: [", "not YAML"),
    ],
)
def test_wrong_yaml_is_refused_by_file_and_fault(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        FitConfig.from_yaml(path)
    assert str(path) in str(error.value)


def test_layouts_that_do_not_fit_are_refused(corpus):
    with pytest.raises(ValueError, match=f"has 40 components; the vectors have {D}"):
        fit(corpus, config=FitConfig(layout="2x40"))
    with pytest.raises(ValueError, match="matryoshka_dims end at 20; layout 2x18 has 18"):
        fit(corpus, config=FitConfig(layout="2x18", matryoshka_dims=(20,)))
    with pytest.raises(ValueError, match="matryoshka_dims end at 20; layout 2x18 has 18"):
        fit(corpus, config=FitConfig(layout="2x18", matryoshka_dims=(20,), rotation="none"))
    with pytest.raises(ValueError, match="in pairs; got 3"):
        fit(corpus, config=FitConfig(layout="0.5x18", matryoshka_dims=(3,)))
    with pytest.raises(ValueError, match="METRIC_INNER_PRODUCT or METRIC_L2; got 3"):
        fit(corpus, metric=3)
    with pytest.raises(ValueError, match="dimension 10, but 36 is needed"):
        fit(corpus, queries=corpus[:, :10])
    for scale in (1e-20, 1e20):
        with pytest.raises(ValueError, match="1e-18 to 1e18 is possible"):
            fit(corpus * np.float32(scale))


@pytest.mark.parametrize("config", [{"layout": "2x8"}, "2x8"])
def test_settings_of_another_type_are_refused(corpus, config):
    with pytest.raises(TypeError, match=r"config is a FitConfig, such as FitConfig\(layout='2x192'\); got (dict|str)"):
        fit(corpus, config=config)


def test_the_sample_of_large_embeddings_takes_no_more_memory():
    sizes = {d: FitConfig().sample_in(d) for d in (64, 384, 768, 1536, 3072, 4096, 100_000)}
    assert sizes == {64: 100_000, 384: 100_000, 768: 100_000, 1536: 50_000, 3072: 25_000, 4096: 25_000, 100_000: 25_000}
    assert FitConfig(sample=77).sample_in(4096) == 77


def test_one_vector_may_be_very_long():
    x = make_vectors(600, unit=False)
    for factor in (1e10, 1e14, 1e16):
        quantizer = fit_quietly(np.concatenate([x, np.float32(factor) * x[:1] / np.linalg.norm(x[0])]), layout="2x18")
        assert np.isfinite(quantizer.calibration.floats).all()
