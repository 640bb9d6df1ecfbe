"""The main job: what it measures of the index that it writes."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.index.by_row import over_flat
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.quantizer.fit_record import TrainingRecord
from faiss_qama.report.tables import fit_summary, kept_text
from faiss_qama.training import FitConfig

INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT


def made(folder, x, metric=INNER_PRODUCT, layout="2x18", **spec):
    np.save(folder / "corpus.npy", x)
    return fit_index(
        Corpus(folder / "corpus.npy"), folder / "i.qama", FitConfig(layout=layout), metric, IndexSpec(**spec)
    )


@pytest.mark.parametrize("metric", [INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("rescore", ["codes", "none"])
def test_copies_of_held_out_documents_are_not_searched(tmp_path, metric, rescore):
    """Twenty copies of each text; the other route removes them by their number and searches an index of the others."""
    texts = make_vectors(400)
    number = np.random.default_rng(0).permutation(np.repeat(np.arange(400), 20))
    x = texts[number]
    outcome = made(tmp_path, x, metric, rescore=rescore)
    rows = outcome.split.test_rows[: int(outcome.queries.split()[0])]
    left = ~np.isin(number, number[rows])
    assert 100 < len(rows) < 300  # as many as leave half of the corpus
    assert left.mean() >= 0.5
    index = QamaIndex(outcome.index.quantizer, rescore)
    index.add(x[left])
    exact = faiss.IndexFlat(x.shape[1], metric)
    exact.add(x[left])
    D, _ = exact.search(x[rows], 10)
    found = index.search(x[rows], 10)[1]
    scores = np.einsum("qkd,qd->qk", x[left][found], x[rows])
    if metric == faiss.METRIC_L2:
        scores, D = -np.square(x[left][found] - x[rows][:, None]).sum(axis=2), -D
    by_hand = np.mean(scores >= D[:, -1:] - 1e-4)
    assert outcome.measured[1].mean.recall == pytest.approx(by_hand, abs=0.001 if rescore == "codes" else 0.02)
    assert by_hand < 0.99


def test_texts_that_are_all_alike_are_measured_too(tmp_path):
    outcome = made(tmp_path, np.repeat(make_vectors(3), 100, axis=0), layout="1x2")
    assert outcome.queries == "30 held-out documents"
    assert outcome.measured[-1].mean.recall == 1


def test_what_is_held_out_is_not_a_hit(tmp_path):
    """Without copies: each held-out document among those that are not held out."""
    x = make_vectors(600)
    outcome = made(tmp_path, x, rescore="codes")
    left = np.setdiff1d(np.arange(600), outcome.split.test_rows)
    index = QamaIndex(outcome.index.quantizer, "codes")
    index.add(x[left])
    truth = np.argsort(-x[outcome.split.test_rows] @ x[left].T, axis=1)[:, :10]
    found = index.search(x[outcome.split.test_rows], 10)[1]
    by_hand = np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=True)])
    assert outcome.measured[1].mean.recall == pytest.approx(by_hand, abs=0.002)


@pytest.mark.parametrize(("base", "timed"), [("BHNSW8", True), ("Flat", False), ("auto", False)])
def test_a_base_that_is_no_faster_than_flat_is_called_so(tmp_path, base, timed):
    outcome = made(tmp_path, make_vectors(1200), base=base, layout=None if base == "auto" else "2x18")
    assert (outcome.flat_speed is not None) == timed
    if timed:
        speed = outcome.measured[-1].mean.queries_per_second
        slower, faster = (fit_summary(replace(outcome, flat_speed=times * speed)) for times in (2, 0.5))
        wanted = f"note {base} is no faster than Flat here: {speed:,.0f} queries/s, with --base Flat {2 * speed:,.0f}"
        assert wanted in " ".join(slower.split())
        assert "no faster" not in faster


@pytest.mark.parametrize("falling", [False, True])
def test_vectors_of_a_matryoshka_model_are_called_so(tmp_path, falling):
    x = make_vectors(1200) * (0.9 ** np.arange(36) if falling else np.ones(36))
    printed = " ".join(fit_summary(made(tmp_path, x.astype(np.float32))).split())
    assert ("note the first 18 of 36 dimensions hold" in printed) == ("as in a Matryoshka model" in printed) == falling


def test_over_flat_is_the_same_index_in_another_base():
    x, xq = make_vectors(700), make_vectors(20, seed=1)
    quantizer = fit_quietly(x, layout="2x18")
    for rescore in ("codes", "fp16"):
        index = QamaIndex(quantizer, rescore, base="BFlat")
        index.add(x)
        flat = over_flat(index)
        assert ",Flat," in flat.factory_string
        for a, b in zip(index.search(xq, 5), flat.search(xq, 5), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_next_command_measures_what_keeps_no_vectors_with_its_corpus(tmp_path):
    outcome = made(tmp_path, make_vectors(300), rescore="codes")
    path, corpus = tmp_path / "i.qama", tmp_path / "corpus.npy"
    assert outcome.next_commands[0] == f"faiss-qama eval {path} queries.npy --corpus {corpus}"
    assert "Documents with noise stood in for queries" in fit_summary(outcome)
    asked = replace(outcome, split=replace(outcome.split, train_queries=make_vectors(30)))
    assert [command.split()[1] for command in asked.next_commands] == ["search"]
    assert "Real queries" not in fit_summary(asked)


def test_why_a_quantizer_was_kept_names_the_rule():
    before = {"adc": {"recall@10": 0.8}, "hamming": {"recall@10": 0.5}}
    after = {"adc": {"recall@10": 0.82}, "hamming": {"recall@10": 0.49}}
    record = {"adapter": "linear", "measure": "recall@10", "untrained": before, "seconds": 1.0, "log": []}
    worse = TrainingRecord(kept=False, trained=after, gain=0.0025, **record)
    assert kept_text(worse) == (
        "the untrained quantizer: recall@10 +0.2 % in the mean of the stages and -2.0 % in the worst; "
        "more than 0 % and at least -0.5 % are needed"
    )
    better = TrainingRecord(kept=True, trained=after, gain=0.09, **record)
    assert kept_text(better) == "the trained quantizer: recall@10 +9.0 % in the mean of the stages"
