"""The layout that is chosen is the best of what was measured, and what was measured is so."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import D, fit_quietly, make_vectors
from threadpoolctl import threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.cli import cli
from faiss_qama.corpus import Corpus
from faiss_qama.hamming.factory import code_bytes, make_base
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.quantizer.calibration import KS
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.training import FitConfig, fit
from faiss_qama.training.candidate_layouts import default_layout, layouts_of_size, residual_layouts_of_size
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.layout_choice import MOST_CANDIDATES, SAME_RECALL, choose_layout, planned_layout
from faiss_qama.training.residual import with_residual
from faiss_qama.training.split import split_corpus

INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT


def choose(split, config, metric, n, *, compare=False, rescore="codes", **spec):
    return choose_layout(split, config, metric, n, IndexSpec(rescore=rescore, **spec), compare=compare)


@pytest.fixture(scope="module")
def split():
    return split_corpus(Corpus(make_vectors(1200)), None, 10_000, 0)


@pytest.mark.parametrize("base", ["Flat", "IVF16", "auto", "BFlat", "BHNSW8"])
@pytest.mark.parametrize("d", [36, 100, 384])
@pytest.mark.parametrize("size", [4, 7, 24, 50, 96, 500])
def test_layouts_fill_the_bytes_and_no_more(base, d, size):
    layouts = list(layouts_of_size(size, d, base))
    assert layouts
    for layout in layouts:
        assert code_bytes(base, layout) <= size
        assert layout.components <= d
        assert layout.truncate(1).max_levels == layout.max_levels  # early components have the most
        more = CodeLayout.parse(f"{layout},1x8")
        assert layout.components > d - 8 or code_bytes(base, more) > size


@pytest.mark.parametrize("base", ["Flat", "BFlat"])
def test_bytes_are_those_that_the_base_holds(corpus, base):
    quantizer = fit_quietly(corpus, layout="2x9,1.5x9,1x9")
    held = make_base(base, quantizer.layout)
    held.append(quantizer.encode(corpus))
    assert code_bytes(base, quantizer.layout) == held.bytes_per_vector


@pytest.mark.parametrize("metric", [INNER_PRODUCT, faiss.METRIC_L2])
def test_a_trial_is_what_a_search_of_such_codes_finds(split, metric):
    choice = choose(split, FitConfig(bytes=24), metric, 1200)
    assert {trial.layout.residual is None for trial in choice.trials} == {True, False}
    for trial in choice.trials:
        config = FitConfig(layout=str(trial.layout), rotation=trial.rotation)
        with threadpool_limits(1):  # as in a trial; more threads round otherwise, and ITQ ends elsewhere
            quantizer = with_residual(closed_form(split, config, metric), trial.layout.residual, split, config)
        xq, x = split.validation, split.train
        near = faiss.knn(xq, x, 10, metric=metric)[1]
        found = faiss.knn(xq, quantizer.encode_decode(x), 10, metric=metric)[1]
        share = np.mean((near[:, :, None] == found[:, None]).any(axis=1))
        of_all = trial.calibration.codes[KS.index(10), -1]
        assert of_all == pytest.approx(share, abs=2 / near.size)
        assert trial.recall() >= of_all  # of fewer candidates codes may find a little more


@pytest.mark.parametrize("rescore", ["codes", "none", "fp16"])
def test_of_so_many_bytes_the_best_is_taken(split, rescore):
    choice = choose(split, FitConfig(bytes=8), INNER_PRODUCT, 1200, rescore=rescore)
    assert {trial.rotation for trial in choice.trials} == {"itq", "random"}
    assert len({trial.layout for trial in choice.trials}) > 1
    if rescore == "fp16":
        assert choice.chosen.candidates() == min(trial.candidates() for trial in choice.trials)
    else:
        best = max(trial.recall(rescore) for trial in choice.trials)
        good = {trial.layout for trial in choice.trials if trial.recall(rescore) >= best - SAME_RECALL}
        in_order = [*layouts_of_size(8, D), *residual_layouts_of_size(8, D, "Flat", 0)]
        nearest = next(trial.layout for trial in choice.trials if trial.recall(rescore) == best)
        assert choice.chosen.layout == next((layout for layout in in_order if layout in good), nearest)
        assert any(trial.layout.trellis for trial in choice.trials) == (rescore == "codes")
    config = choice.applied_to(FitConfig(bytes=8, seed=3))
    assert (config.layout, config.rotation, config.bytes, config.seed) == (
        str(choice.chosen.layout),
        choice.chosen.rotation,
        None,
        3,
    )


@pytest.mark.parametrize("metric", [INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("unit", [True, False])
def test_two_codes_fit_into_the_bytes_and_are_taken_for_so_much_more(metric, unit):
    x = make_vectors(1200, unit=unit)
    choice = choose(split_corpus(Corpus(x), None, 10_000, 0), FitConfig(bytes=24), metric, 1200)
    one, two = ([t for t in choice.trials if (t.layout.residual is not None) == double] for double in (False, True))
    for trial in two[::3]:
        index = QamaIndex(fit_quietly(x, layout=str(trial.layout), metric=metric), "codes")
        assert trial.bytes == sum(index.bytes_per_vector) <= 24
    most = [max(t.recall() for t in trials if t.rotation == "itq") for trials in (one, two)]
    assert choice.chosen.layout.residual is not None
    assert most[1] > most[0] + SAME_RECALL


def test_two_codes_that_find_little_more_are_not_taken_but_a_trellis_that_is_best(split, monkeypatch):
    config = FitConfig(bytes=24)
    assert choose(split, config, INNER_PRODUCT, 1200).chosen.layout.trellis
    monkeypatch.setattr("faiss_qama.training.candidate_layouts.TRELLIS_POWERS", ())
    assert choose(split, config, INNER_PRODUCT, 1200).chosen.layout.residual is not None
    monkeypatch.setattr("faiss_qama.training.layout_choice.SAME_RECALL", 1.0)
    assert choose(split, config, INNER_PRODUCT, 1200).chosen.layout.residual is None


def test_the_next_choice_is_larger_and_enough_or_refused(split):
    first = choose(split, FitConfig(), INNER_PRODUCT, 1200, recall=0.3)
    second = first.larger(0.3, 0.25, None)
    assert second.chosen.bytes > first.chosen.bytes
    assert second.chosen.recall() >= 0.3
    assert not any(t.recall() >= 0.3 for t in first.trials if first.chosen.bytes < t.bytes < second.chosen.bytes)
    assert f"{first.chosen.layout} reached 0.250" in second.reason
    with pytest.raises(ValueError, match="recall 0.3 takes more than the .* whose codes reach 0.250; rescore"):
        first.larger(0.3, 0.25, first.chosen.bytes)


@pytest.mark.parametrize(
    ("config", "rescore"),
    [
        (FitConfig(bytes=24), "fp16"),
        (FitConfig(bytes=24), "none"),
        (FitConfig(bytes=24, thresholds="median"), "codes"),
        (FitConfig(bytes=3 + 1), "codes"),  # no room for two
    ],
)
def test_two_codes_are_tried_where_they_can_be_read(split, config, rescore):
    choice = choose(split, config, INNER_PRODUCT, 1200, rescore=rescore)
    assert all(trial.layout.residual is None for trial in choice.trials)


def test_two_codes_are_not_tried_for_a_training_on_pairs(split):
    paired = replace(split, train_qrels=np.array([[0, 0, 1]]))
    choice = choose(paired, FitConfig(bytes=24), INNER_PRODUCT, 1200)
    assert all(trial.layout.residual is None for trial in choice.trials)


def test_rules_of_one_cut_get_layouts_of_one_bit(split):
    choice = choose(split, FitConfig(bytes=4, thresholds="median"), INNER_PRODUCT, 1200, compare=True)
    assert all(str(trial.layout).startswith("1x") for trial in choice.trials)


@pytest.mark.parametrize(("rescore", "recall"), [("codes", 0.4), ("codes", 0.6), ("none", 0.3), ("fp16", 0.8)])
def test_of_a_recall_the_fewest_bytes_are_taken(split, rescore, recall):
    choice = choose(split, FitConfig(), INNER_PRODUCT, 1200, rescore=rescore, recall=recall)

    def reaches(trial):
        return trial.candidates(recall) <= MOST_CANDIDATES if rescore == "fp16" else trial.recall(rescore) >= recall

    assert reaches(choice.chosen)
    assert not any(reaches(trial) for trial in choice.trials if trial.bytes < choice.chosen.bytes)


def test_others_to_compare_with_are_measured_and_not_taken(split):
    alone, beside = (choose(split, FitConfig(bytes=4), INNER_PRODUCT, 1200, compare=c) for c in (False, True))
    assert max(trial.bytes for trial in beside.trials) > 4 >= beside.chosen.bytes
    assert (beside.chosen.layout, beside.chosen.rotation) == (alone.chosen.layout, alone.chosen.rotation)


def test_where_few_candidates_are_not_enough_the_fewest_are_taken(split):
    choice = choose(split, FitConfig(bytes=4), INNER_PRODUCT, 10**6, rescore="fp16", recall=0.99)
    fewest = min(trial.candidates(0.99) for trial in choice.trials)
    assert MOST_CANDIDATES < fewest == choice.chosen.candidates(0.99) < np.inf


def test_a_layout_that_is_given_stays_and_others_are_measured_beside_it(split):
    config = FitConfig(layout="1.5x20", rotation="random")
    assert choose(split, config, INNER_PRODUCT, 1200) is None
    choice = choose(split, config, INNER_PRODUCT, 1200, compare=True)
    assert (str(choice.chosen.layout), choice.chosen.rotation) == ("1.5x20", "random")
    assert {trial.bytes for trial in choice.trials} > {choice.chosen.bytes}


def test_fit_takes_what_is_chosen():
    x = make_vectors(1200)
    split = split_corpus(Corpus(x), None, 10_000, 0)
    wanted = choose(split, FitConfig(bytes=8), INNER_PRODUCT, 1200, rescore="fp16").chosen
    quantizer = fit_quietly(x, bytes=8, sample=10_000)
    assert (quantizer.layout, quantizer.fit_record.rotation) == (wanted.layout, wanted.rotation)
    assert str(fit_quietly(x[:150], bytes=8).layout) == "2x32"  # too few to measure with


@pytest.mark.parametrize("d", [1, 36, 384])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 9, 15, 16, 100])
def test_where_nothing_is_measured_so_many_bytes_are_enough(size, d):
    base = "BFlat" if size < 4 else "Flat"
    layout = default_layout(size, d, base)
    assert code_bytes(base, layout) <= size
    assert layout.components == d or code_bytes(base, CodeLayout.parse(f"{layout},1x33")) > size


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"bytes": 3}, {}, "bytes: base Flat takes 4 per code at least; got 3"),
        ({"bytes": 3}, {"compare": True}, "bytes: base Flat takes 4 per code at least; got 3"),
        (
            {},
            {"recall": 0.9999},
            "recall 0.9999 takes more than the .* bytes of .*; rescore from floats, or allow more",
        ),
    ],
)
def test_what_cannot_be_is_refused(split, settings, options, message):
    with pytest.raises(ValueError, match=message):
        choose(split, FitConfig(**settings), INNER_PRODUCT, 10**9, **options)


def test_without_held_out_queries_nothing_is_chosen(split):
    few = replace(split, validation=np.empty((0, D), np.float32))
    with pytest.raises(ValueError, match="a layout is chosen by measuring, on 200 documents or 60 queries; got 1080"):
        choose(few, FitConfig(bytes=8), INNER_PRODUCT, 1200, recall=0.5)
    assert choose(few, FitConfig(bytes=8), INNER_PRODUCT, 1200) is None
    assert planned_layout(FitConfig(bytes=8), IndexSpec(), D) == default_layout(8, D)


def test_a_recall_that_a_sample_promised_is_kept_by_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr("faiss_qama.training.layout_choice.TRIAL_DOCUMENTS", 150)  # among so few, codes find more
    x = make_vectors(1200)
    np.save(tmp_path / "corpus.npy", x)
    spec = IndexSpec(rescore="codes", recall=0.6)
    outcome = fit_index(Corpus(tmp_path / "corpus.npy"), tmp_path / "i.qama", FitConfig(), INNER_PRODUCT, spec)
    assert "on the whole sample" in outcome.choice.reason
    assert outcome.index.search(x[:5], 10, recall=0.6)[1].shape == (5, 10)


@pytest.mark.parametrize("base", ["Flat", "BFlat"])
def test_too_few_to_measure_get_no_more_bytes_than_they_may(tmp_path, base):
    np.save(tmp_path / "few.npy", make_vectors(100))
    corpus, config = Corpus(tmp_path / "few.npy"), FitConfig(bytes=9)
    with pytest.warns(UserWarning, match="fitted on 90 vectors"):
        outcome = fit_index(corpus, tmp_path / "i.qama", config, INNER_PRODUCT, IndexSpec(rescore="none", base=base))
    assert 0 < outcome.index.bytes_per_vector[0] <= 9


def test_a_second_code_that_nothing_reads_is_refused_before_anything_is_written(tmp_path):
    np.save(tmp_path / "corpus.npy", make_vectors(300))
    corpus, config = Corpus(tmp_path / "corpus.npy"), FitConfig(layout="2x9+2x9")
    with pytest.raises(ValueError, match=r"layout 2x9\+2x9: only rescore codes reads its residual code, not fp16"):
        fit_index(corpus, tmp_path / "i.qama", config, INNER_PRODUCT, IndexSpec())
    assert not (tmp_path / "i.qama").exists()


def test_of_too_few_bytes_nothing_is_fitted():
    for n in (100, 1200):
        with pytest.raises(ValueError, match="bytes: base Flat takes 4 per code at least; got 3"):
            fit_quietly(make_vectors(n), bytes=3)


@pytest.mark.parametrize("d", [1, 7])
def test_of_few_dimensions_a_recall_is_chosen_for_too(d):
    x = make_vectors(400, d=d, unit=False)
    choice = choose(
        split_corpus(Corpus(x), None, 10_000, 0), FitConfig(), faiss.METRIC_L2, 400, rescore="fp16", recall=0.5
    )
    assert choice.chosen.candidates(0.5) < np.inf


def test_a_layout_is_chosen_of_those_that_end_at_the_matryoshka_dims(split):
    for trial in choose(split, FitConfig(bytes=8, matryoshka_dims=(32,)), INNER_PRODUCT, 1200).trials:
        assert trial.layout.components >= 32
    with pytest.raises(ValueError, match="matryoshka_dims end at 33; layout .* has 32 components"):
        choose(split, FitConfig(bytes=4, matryoshka_dims=(33,)), INNER_PRODUCT, 1200)


@pytest.mark.parametrize("recall", [0.0, 1.0, np.nan])
def test_a_recall_that_is_none_is_refused_before_anything_is_read(tmp_path, recall):
    np.save(tmp_path / "corpus.npy", make_vectors(300))
    with pytest.raises(ValueError, match="recall must be above 0 and below 1; got"):
        fit_index(
            Corpus(tmp_path / "corpus.npy"),
            tmp_path / "i.qama",
            FitConfig(),
            INNER_PRODUCT,
            IndexSpec(rescore="codes", recall=recall),
        )
    with pytest.raises(ValueError, match="recall must be above 0 and below 1; got"):
        fit(make_vectors(300), recall=recall)


SAME_CODES = {
    "units": {"bytes": 8},
    "units, with codes": {"bytes": 24, "rescore": "codes"},
    "lengths": {"bytes": 12, "unit": False},
    "lengths, with codes": {"bytes": 12, "unit": False, "rescore": "codes"},
    "L2": {"bytes": 16, "unit": False, "metric": faiss.METRIC_L2},
    "queries": {"bytes": 8, "queries": 90},
    "queries, with codes": {"bytes": 16, "queries": 90, "rescore": "codes"},
    "seed and rules": {"bytes": 16, "config": {"seed": 3, "thresholds": "median", "matryoshka_dims": [8]}},
    "too few to measure": {"bytes": 9, "n": 150},
    "recall": {"recall": 0.8},
    "recall, with codes": {"recall": 0.5, "rescore": "codes"},
    "recall within bytes": {"recall": 0.3, "bytes": 12, "rescore": "none"},
    "residual": {"config": {"layout": "2x8+2x8"}},
}


@pytest.mark.parametrize("case", SAME_CODES)
def test_python_and_the_command_line_choose_the_same_codes(tmp_path, case):
    options = dict(SAME_CODES[case])
    x = make_vectors(options.pop("n", 900), seed=5, unit=options.pop("unit", True))
    config, metric = options.pop("config", {}), options.pop("metric", INNER_PRODUCT)
    queries = make_vectors(options.pop("queries", 0), seed=6)
    np.save(tmp_path / "corpus.npy", x)
    np.save(tmp_path / "queries.npy", queries)
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    arguments = ["fit", tmp_path / "corpus.npy", "--config", tmp_path / "c.yaml"]
    arguments += ["--metric", "ip" if metric == INNER_PRODUCT else "l2"]
    arguments += [part for name, value in options.items() for part in (f"--{name}", value)]
    arguments += ["--queries", tmp_path / "queries.npy"] if len(queries) else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")
        assert CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False).exit_code == 0
        given = queries if len(queries) else None
        ours = fit(x, config=FitConfig(**config), metric=metric, queries=given, **options)
        if "bytes" in options and "recall" not in options:  # in the settings, too
            rescore = options.get("rescore")
            config |= {"bytes": options["bytes"]}
            again = fit(x, config=FitConfig(**config), metric=metric, queries=given, rescore=rescore)
            np.testing.assert_array_equal(again.encode(x), ours.encode(x))
    theirs = QamaIndex.load(tmp_path / "corpus.qama").quantizer
    assert ours.layout == theirs.layout
    assert ours.fit_record == theirs.fit_record
    np.testing.assert_array_equal(ours.encode(x), theirs.encode(x))
    for name, array in ours.to_state()[0].items():
        np.testing.assert_array_equal(array, theirs.to_state()[0][name])


def test_fit_grows_the_layout_until_codes_alone_reach_the_recall(monkeypatch):
    x = make_vectors(1200)
    wanted = 0.6
    monkeypatch.setattr("faiss_qama.training.layout_choice.TRIAL_DOCUMENTS", 150)  # among so few, codes find more
    quantizer = fit(x, rescore="codes", recall=wanted)
    assert quantizer.calibration.codes[KS.index(10)].max() >= wanted
    first = choose(
        split_corpus(Corpus(x), None, 100_000, 0), FitConfig(), INNER_PRODUCT, 1200, recall=wanted
    ).chosen.layout
    assert sum(code.code_size for code in (quantizer.layout, quantizer.layout.residual) if code) > sum(
        code.code_size for code in (first, first.residual) if code
    )


@pytest.mark.parametrize(
    ("settings", "spec", "message"),
    [
        ({"layout": "2x8"}, {"recall": 0.9}, "recall chooses the layout, or base auto; the layout is 2x8, the base F"),
        ({}, {"memory": 20.0}, "memory is for base auto; the base is Flat"),
        ({}, {"base": "auto", "settings": {"nprobe": 3}}, "base auto sets nprobe itself"),
        ({}, {"base": "auto", "memory": 3.0}, "memory: 3 bytes"),
        ({"bytes": 8}, {"base": "auto", "memory": 3.0}, "memory: 3 bytes"),
        ({"bytes": 3}, {}, "bytes: base Flat takes 4 per code"),
        ({"layout": "2x40"}, {}, "has 40 components; the vectors have 36"),
        ({"layout": "2x8+2x8"}, {"rescore": "none"}, "only rescore codes reads its residual code, not none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_read(tmp_path, settings, spec, message):
    corpus = np.empty((300, D), np.float32)
    corpus.fill(np.nan)  # which reading would refuse first
    np.save(tmp_path / "corpus.npy", corpus)
    with pytest.raises(ValueError, match=message):
        fit_index(
            Corpus(tmp_path / "corpus.npy"), tmp_path / "i", FitConfig(**settings), INNER_PRODUCT, IndexSpec(**spec)
        )
