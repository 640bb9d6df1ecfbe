"""Training: what torch computes is what numpy computes, and what is kept is never worse than the closed form."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import partial

import faiss
import numpy as np
import pytest
import torch
from conftest import LAYOUTS, fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.transform import FeedForward
from faiss_qama.training import FitConfig, TrainConfig, fit
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.gradient import train as loop
from faiss_qama.training.gradient.batches import NEIGHBOURS, Batches
from faiss_qama.training.gradient.checkpoint import CHECKPOINT, LOG, locked
from faiss_qama.training.gradient.gradient_estimators import ESTIMATORS
from faiss_qama.training.gradient.model import Model
from faiss_qama.training.gradient.trellis_values import train_values
from faiss_qama.training.gradient.validation import Validation
from faiss_qama.training.pairs import read_pairs
from faiss_qama.training.split import split_corpus
from faiss_qama.training.train_config import ADAPTERS, QUANTIZERS, THRESHOLD_UPDATES, PruningConfig

CLOSE = 1e-5
SHORT = {
    "epochs": 2,
    "steps_per_epoch": 10,
    "batch_size": 32,
    "random_negatives": 64,
    "warmup_steps": 2,
    "expansion": 2.0,
}
SCORES = {f"{stage}.{loss}": 1.0 for stage in ("adc", "hamming") for loss in ("distillation", "contrastive")}


def make_pairs(n_queries=200, seed=3):
    """Queries that are moved documents; the relevant ones lie beyond a fixed linear map, which training can learn."""
    x = make_vectors(1003)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(x), n_queries)
    turn = np.linalg.qr(np.eye(x.shape[1]) + 0.25 * np.random.default_rng(5).standard_normal((x.shape[1],) * 2))[0]
    xq = (x[rows] + 0.02 * rng.standard_normal((n_queries, x.shape[1]))) @ turn.T
    return x, xq.astype(np.float32), np.stack([np.arange(n_queries), rows, np.full(n_queries, 2)], axis=1)


def trained(config: FitConfig, metric=faiss.METRIC_INNER_PRODUCT, unit=True):
    """A closed form and the model that trained from it, whether or not it became better."""
    x, xq, qrels = make_pairs()
    if not unit:
        x, xq = x * np.linspace(0.5, 2, len(x), dtype=np.float32)[:, None], xq * np.float32(1.5)
    split = split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x)))
    start = closed_form(split, config, metric)
    ends = sorted({*config.dims_in(start.layout), start.layout.components})
    model = Model(start, split.train, config.train, ends)
    batches = Batches(split, config.train, metric, 0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(10):
        batch = loop.tensors(model, batches[step], torch.device("cpu"))
        loss = torch.stack(list(loop.batch_losses(model, batch, step / 10, 1).values()))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        model.follow(partial(batches.documents, step))
    return start, model, x, xq


def seen(model, *vectors):
    """Vectors as the model sees them."""
    return [torch.from_numpy(v) / model.deviation for v in vectors]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("query_side", [True, False])
def test_numpy_forward_is_torchs(adapter, query_side):
    if adapter == "none" and not query_side:
        with pytest.raises(ValueError, match="nothing to train"):
            TrainConfig(adapter=adapter, query_side=query_side)
        return
    layout = "1x18" if adapter == "bottleneck" else "2x18"
    settings = TrainConfig(adapter=adapter, query_side=query_side, losses=SCORES, **SHORT)
    start, model, x, xq = trained(FitConfig(layout=layout, train=settings))
    quantizer = model.frozen()
    tx, txq = seen(model, x, xq)
    with torch.no_grad():
        z = model.adapter(tx) * model.deviation
        documents, queries = model.code_documents(tx, 0.1), model.code_queries(txq, 0.1)
        adc = model.adc_scores(txq, model.decode(documents.bits))[-1] * model.deviation**2
    np.testing.assert_allclose(quantizer.transform(x), z.numpy(), atol=CLOSE)
    for coded, encoded in ((documents, quantizer.encode(x)), (queries, quantizer.encode_queries(xq))):
        clear = (coded.u * model.spread[:, None]).abs().amin(dim=(1, 2)).numpy() > CLOSE
        assert clear.sum() > 0.9 * len(clear)
        np.testing.assert_array_equal(bit_packing.unpack(encoded, quantizer.layout)[clear], coded.bits.numpy()[clear])
    ours = (
        quantizer.adapt_queries(xq / np.linalg.norm(xq, axis=1, keepdims=True))
        @ quantizer.decode(quantizer.encode(x)).T
    )
    clear = (documents.u * model.spread[:, None]).abs().amin(dim=(1, 2)).numpy() > CLOSE
    np.testing.assert_allclose(ours[:, clear], adc.numpy()[:, clear], atol=1e-4)
    changed = (quantizer.encode(x) != start.encode(x)).any()
    assert changed == (adapter != "none")
    assert isinstance(quantizer.transform, FeedForward) == (adapter in ("residual", "feedforward", "bottleneck"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("adapter", ["linear", "residual", "feedforward"])
def test_every_adapter_starts_as_the_closed_form(layout, metric, adapter):
    config = FitConfig(layout=layout, train=TrainConfig(adapter=adapter, losses=SCORES, **SHORT))
    x = make_vectors(1003, unit=metric == faiss.METRIC_INNER_PRODUCT)
    split = split_corpus(Corpus(x), None, 10_000, 0)
    start = closed_form(split, config, metric)
    model = Model(start, split.train, config.train, [start.layout.components])
    quantizer = model.frozen()
    for a, b in ((quantizer.encode(x), start.encode(x)), (quantizer.encode_queries(x), start.encode_queries(x))):
        assert (a == b).all(axis=1).mean() > 0.97  # but for values next to a cut
    np.testing.assert_allclose(quantizer.decode(start.encode(x)), start.decode(start.encode(x)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_hard_bits_are_those_of_the_index(layout):
    config = FitConfig(layout=layout, train=TrainConfig(losses=SCORES, **SHORT))
    for metric, unit in [(faiss.METRIC_INNER_PRODUCT, True), (faiss.METRIC_L2, False)]:
        _, model, x, xq = trained(config, metric, unit)
        quantizer = model.frozen()
        tx, txq = seen(model, x, xq)
        with torch.no_grad():
            documents, queries = model.code_documents(tx, 0.1), model.code_queries(txq, 0.1)
            decoded = model.decode(documents.bits)[-1].numpy() * model.deviation
            hamming = model.hamming_scores(queries, documents)[-1].numpy()
        clear = (documents.u * model.spread[:, None]).abs().amin(dim=(1, 2)).numpy() > CLOSE
        np.testing.assert_allclose(quantizer.decode(quantizer.encode(x[clear])), decoded[clear], rtol=1e-3, atol=1e-3)
        distances = bit_packing.hamming(quantizer.encode_queries(xq)[:, None], quantizer.encode(x)[None])
        scale, shift = model.scales[1, -1].detach().numpy()
        want = np.exp(scale) * (1 - 2 * distances / quantizer.layout.n_bits) + shift
        assert np.mean(np.abs(hamming - want) < 1e-4) > 0.97


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_gradients_pass_the_cuts(quantizer):
    """QAMA's published code multiplies by (x > t) there, whose gradient is 0; ours is not, and points the right way."""
    u = torch.linspace(-0.5, 0.5, 11, requires_grad=True)
    ESTIMATORS[quantizer](u, 0.2).sum().backward()
    assert (u.grad > 0.05).all()
    settings = TrainConfig(quantizer=quantizer, losses={"hamming.distillation": 1.0}, **SHORT)
    _, model, *_ = trained(FitConfig(layout="2x18", train=settings))
    for parameter in (model.adapter.matrix, model.thresholds, model.query_adapter.matrix):
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_soft_bits_harden_as_the_temperature_falls(quantizer):
    u = torch.tensor([-1.0, -0.3, 0.3, 1.0])
    bits = ESTIMATORS[quantizer](u, 1e-3)
    np.testing.assert_allclose(bits, [0, 0, 1, 1], atol=1e-6)
    if quantizer in ("sigmoid", "tanh"):
        assert 0.2 < ESTIMATORS[quantizer](u, 1.0)[1] < 0.5
    if quantizer == "straight-through":
        np.testing.assert_allclose(ESTIMATORS[quantizer](u, 1.0), [0, 0, 1, 1], atol=1e-6)
    if quantizer == "stochastic":
        torch.manual_seed(0)
        split = ESTIMATORS[quantizer](torch.full((20_000,), -0.3), 1.0)
        assert set(split.unique().round(decimals=4).tolist()) <= {0.0, 1.0}
        assert split.mean() == pytest.approx(1 / (1 + np.exp(0.3)), abs=0.02)


@pytest.mark.parametrize("thresholds", THRESHOLD_UPDATES)
def test_thresholds_are_learned_or_follow_or_stay(thresholds):
    settings = TrainConfig(thresholds=thresholds, momentum=0.5, losses=SCORES, **SHORT)
    start, model, x, _ = trained(FitConfig(layout="2x18", train=settings))
    moved = np.abs(model.frozen().thresholds - start.thresholds).max()
    assert (moved > 1e-4) == (thresholds != "fixed")


def test_moving_thresholds_keep_the_share_of_documents_below_them():
    settings = TrainConfig(thresholds="moving", momentum=0.9, losses=SCORES, **SHORT)
    start, model, x, _ = trained(FitConfig(layout="2x18", train=settings))
    with torch.no_grad():
        model.adapter.bias += 0.7 * model.spread  # every column moves

    def off():
        now = model.frozen()
        shares = [(q.transform(x)[:, :, None] < q.thresholds).mean(axis=0) for q in (start, now)]
        return np.abs(shares[1] - shares[0]).max()

    rng = np.random.default_rng(0)
    before = off()
    for _ in range(100):
        model.follow(lambda: x[rng.integers(0, len(x), 512)])
    assert before > 0.15
    assert off() < 0.03


@pytest.mark.slow
def test_training_on_pairs_learns_what_floats_cannot_know():
    x, xq, qrels = make_pairs(900)
    settings = TrainConfig(
        losses={"adc.contrastive": 1.0, "hamming.contrastive": 1.0}, epochs=4, steps_per_epoch=60, learning_rate=3e-3
    )
    quantizer = fit(x, config=FitConfig(layout="2x18", train=settings), pairs=(xq[:600], qrels[:600]))
    record = quantizer.fit_record.training
    assert record.kept
    assert record.measure == "nDCG@10"
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    _, found = index.search(xq[600:], 1, oversample=100)
    _, by_floats = faiss.knn(xq[600:], x, 1, metric=faiss.METRIC_INNER_PRODUCT)
    ours, theirs = ((f[:, 0] == qrels[600:, 1]).mean() for f in (found, by_floats))
    assert ours > 1.5 * theirs
    assert record.trained["adc"]["nDCG@10"] > record.untrained["adc"]["nDCG@10"]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_training_does_not_depend_on_the_unit_of_length(metric, factor):
    x, xq, _ = make_pairs()
    # From no rotation, which even a short training betters.
    config = FitConfig(layout="2x18", rotation="none", train=TrainConfig(losses=SCORES, adapter="residual", **SHORT))
    x *= 3  # so that neither is of length 1
    a = fit(x, config=config, metric=metric, queries=xq)
    b = fit(np.float32(factor) * x, config=config, metric=metric, queries=np.float32(factor) * xq)
    assert a.fit_record.trained
    assert b.fit_record.trained
    np.testing.assert_array_equal(a.encode(x), b.encode(np.float32(factor) * x))


def test_a_stage_that_finds_nothing_does_not_decide():
    x, xq, qrels = make_pairs()
    held_out = Validation(
        split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x))), faiss.METRIC_INNER_PRODUCT
    )
    closed = {"adc": {"nDCG@10": 0.5}, "hamming": {"nDCG@10": 0.0}}
    assert held_out.gain(closed, closed) == 0
    assert held_out.never_worse(closed, closed)
    worse = {"adc": {"nDCG@10": 0.3}, "hamming": {"nDCG@10": 0.0001}}
    assert held_out.gain(worse, closed) < -0.1
    assert not held_out.never_worse(worse, closed)


def test_a_training_that_does_harm_is_not_kept():
    x, xq, qrels = make_pairs()
    settings = TrainConfig(**SHORT | {"epochs": 1, "steps_per_epoch": 3}, learning_rate=1e3, max_grad_norm=1e9)
    quantizer = fit(x, config=FitConfig(layout="2x18", train=settings), queries=xq)
    assert not quantizer.fit_record.training.kept
    assert not quantizer.fit_record.trained
    assert quantizer.fit_record.training.gain <= 0
    assert quantizer.is_compatible_with(fit(x, config=FitConfig(layout="2x18"), queries=xq))


@pytest.mark.slow
def test_same_seed_same_quantizer_and_another_seed_another():
    x, xq, qrels = make_pairs()
    a, b, c = (
        fit(
            x,
            config=FitConfig(layout="2x18", seed=s, train=TrainConfig(quantizer="stochastic", **SHORT)),
            pairs=(xq, qrels),
        )
        for s in (1, 1, 2)
    )
    for name, array in a.to_state()[0].items():
        np.testing.assert_array_equal(array, b.to_state()[0][name])
    assert (a.encode(x) != c.encode(x)).any()


def kept_in(folder, config):
    """``config`` with a checkpoint in ``folder``."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint=folder))


@pytest.mark.slow
@pytest.mark.parametrize("pruning", [None, PruningConfig(base=0.5)])
def test_an_interrupted_training_goes_on_to_the_same_end(tmp_path, monkeypatch, pruning):
    x, xq, qrels = make_pairs()
    quantizer = "stochastic" if pruning is None else "sigmoid"
    settings = TrainConfig(quantizer=quantizer, losses=SCORES, pruning=pruning, **SHORT | {"epochs": 4})
    config = FitConfig(layout="2x18" if pruning is None else "1x36", train=settings)
    straight = fit(x, config=kept_in(tmp_path / "straight", config), pairs=(xq, qrels))
    measure, calls = Validation.quality, []

    def interrupted(self, quantizer):
        calls.append(1)
        if len(calls) == 4:  # the closed form, two epochs, and in the third
            raise KeyboardInterrupt
        return measure(self, quantizer)

    monkeypatch.setattr(Validation, "quality", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(x, config=kept_in(tmp_path / "stopped", config), pairs=(xq, qrels))
    assert len((tmp_path / "stopped" / LOG).read_text().splitlines()) == 2
    resumed = fit(x, config=kept_in(tmp_path / "stopped", config), pairs=(xq, qrels))
    # The closed form, and the epochs that were left; where it was pruned, besides it the closed form's prefix.
    assert len(calls) == 4 + 1 + 2 * (1 if pruning is None else 2)
    for name, array in straight.to_state()[0].items():
        np.testing.assert_array_equal(array, resumed.to_state()[0][name])
    lines = [json.loads(line) for line in (tmp_path / "stopped" / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(list(line["losses"].values())).all() for line in lines)


@pytest.mark.slow
def test_another_or_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    x, xq, qrels = make_pairs()
    config = FitConfig(layout="2x18", train=TrainConfig(**SHORT))
    first = fit(x, config=kept_in(tmp_path / "t", config), pairs=(xq, qrels))
    other = dataclasses.replace(config, train=TrainConfig(**SHORT | {"learning_rate": 1e-2}))
    with pytest.warns(UserWarning, match=r"checkpoint.safetensors.old: the checkpoint of another training"):
        again = fit(x, config=kept_in(tmp_path / "t", other), pairs=(xq, qrels))
    assert (tmp_path / "t" / f"{CHECKPOINT}.old").exists()
    assert again.fit_record.training.log != first.fit_record.training.log
    whole = (tmp_path / "t" / CHECKPOINT).read_bytes()
    (tmp_path / "t" / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="checkpoint.safetensors: a damaged checkpoint, so the training begins anew"):
        anew = fit(x, config=kept_in(tmp_path / "t", config), pairs=(xq, qrels))
    np.testing.assert_array_equal(anew.encode(x), first.encode(x))


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    x, xq, qrels = make_pairs()
    config = FitConfig(layout="2x18", train=TrainConfig(**SHORT))
    with locked(tmp_path / "t"), pytest.raises(OSError, match="t: another process is training here"):
        fit(x, config=kept_in(tmp_path / "t", config), pairs=(xq, qrels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruning": True}, "pruning: a mapping of settings is needed; got True"),
        ({"losses": 5}, "losses: a mapping of weights by name is needed; got 5"),
        ({"losses": ["adc.mse"]}, "losses: a mapping of weights by name is needed"),
        ({"learning_rate": "fast"}, "train.learning_rate must be float; got 'fast'"),
        ({"steps_per_epoch": 10**20}, "steps_per_epoch must be from 1 to 1000000000"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FitConfig(train=settings)


def test_the_checkpoint_is_no_part_of_the_settings(tmp_path):
    here, there = (FitConfig(train=TrainConfig(checkpoint=tmp_path / name)) for name in ("here", "there"))
    assert here == there == FitConfig(train=TrainConfig())
    assert here.to_dict() == FitConfig(train=TrainConfig()).to_dict()
    assert "checkpoint" not in here.to_dict()["train"]
    with pytest.raises(TypeError, match="train.checkpoint must be the path of a folder; got 5"):
        TrainConfig(checkpoint=5)


def test_rates_may_be_written_as_yaml_does_not_read_them():
    assert FitConfig(train={"learning_rate": "1e-4", "temperature": ["1e0", 0.5]}).train == TrainConfig(
        learning_rate=1e-4, temperature=(1.0, 0.5)
    )


def test_early_stopping_keeps_the_best_epoch():
    x, xq, qrels = make_pairs()
    settings = TrainConfig(**SHORT | {"epochs": 30, "steps_per_epoch": 5}, patience=2, learning_rate=0.1)
    record = fit(x, config=FitConfig(layout="2x18", train=settings), pairs=(xq, qrels)).fit_record.training
    gains = [line["gain"] for line in record.log]
    assert len(gains) < 30
    assert len(gains) - 1 - int(np.argmax(gains)) == 2
    assert record.gain == pytest.approx(max(0, *gains))


def test_batches_hold_relevant_hard_and_random_documents():
    x, xq, qrels = make_pairs()
    split = split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x)))
    config = TrainConfig(batch_size=40, hard_negatives=3, random_negatives=50, documents_as_queries=0.25)
    batches = Batches(split, config, faiss.METRIC_INNER_PRODUCT, 0)
    batch = batches[0]
    assert batch.queries.shape == (40, x.shape[1])
    assert (batch.grades[:30].sum(axis=1) == 2).all()
    assert not batch.grades[30:].any()
    assert not batch.itself[:30].any()
    relevant = batch.documents[batch.grades[:30].argmax(axis=1)]
    for query, document in zip(batch.queries[:30], relevant, strict=True):
        own = np.flatnonzero((xq == query).all(axis=1))[0]
        np.testing.assert_array_equal(x[qrels[own, 1]], document)
    # At least three of each question's nearest are there, itself aside.
    _, near = faiss.knn(batch.queries, x, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    there = (x[near][:, :, None] == batch.documents).all(axis=3).any(axis=2).sum(axis=1)
    assert (there >= 1).all()
    assert there.mean() > 3
    np.testing.assert_array_equal(
        batches[7].documents, Batches(split, config, faiss.METRIC_INNER_PRODUCT, 0)[7].documents
    )


def test_documents_stand_in_for_queries_but_not_for_themselves():
    x = make_vectors(1003)
    split = split_corpus(Corpus(x), None, 10_000, 0)
    batch = Batches(split, TrainConfig(hard_negatives=5, random_negatives=500), faiss.METRIC_INNER_PRODUCT, 0)[0]
    for query, own in zip(batch.queries, batch.itself, strict=True):
        np.testing.assert_array_equal((batch.documents == query).all(axis=1), own)
    assert batch.itself.any()
    moved = Batches(split, TrainConfig(noise=1.0), faiss.METRIC_INNER_PRODUCT, 0)[0]
    assert not (moved.queries[:, None] == x).all(axis=2).any()


def test_a_document_that_is_the_query_is_no_answer_unless_it_is_labelled():
    """Collections of questions hold the questions that are asked: they are neither trained on nor counted."""
    x = make_vectors(1003)
    xq = x[:200] * np.float32(1.001)
    qrels = [(q, q if q % 2 else q + 300, 1) for q in range(200)]
    split = split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x)))
    batch = Batches(
        split, TrainConfig(batch_size=60, hard_negatives=5, random_negatives=900), faiss.METRIC_INNER_PRODUCT, 0
    )[0]
    twins = np.square(batch.documents - batch.queries[:, None]).sum(axis=2) < 1e-4
    assert twins.any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(batch.itself, twins & (batch.grades == 0))
    assert (twins & (batch.grades > 0)).any()
    held_out = Validation(split, faiss.METRIC_INNER_PRODUCT)
    exact = fit_quietly(x, layout="2x36")
    quality = held_out.quality(exact)["adc"]
    own = split.validation_qrels[:, 1] == np.argmax(split.validation @ split.train.T, axis=1)
    assert quality["nDCG@10"] >= own.mean()
    unlabelled = dataclasses.replace(split, validation_qrels=split.validation_qrels[:0])
    assert Validation(unlabelled, faiss.METRIC_INNER_PRODUCT).quality(exact)["adc"]["recall@10"] > 0.6


def test_a_slice_is_scored_as_the_truncated_quantizer():
    config = FitConfig(layout="2x18", matryoshka_dims=[9], train=TrainConfig(losses=SCORES, query_side=False, **SHORT))
    x, xq, _ = make_pairs()
    split = split_corpus(Corpus(x), None, 10_000, 0)
    start = closed_form(split, config, faiss.METRIC_INNER_PRODUCT)
    whole = Model(start, split.train, config.train, [9, 18])
    part = Model(start.truncate(9), split.train, config.train, [9])
    tx, txq = seen(whole, x, xq)
    scores = []
    with torch.no_grad():
        for model in (whole, part):
            documents, queries = model.code_documents(tx, 0.1), model.code_queries(txq, 0.1)
            adc = model.adc_scores(txq, model.decode(documents.bits))
            scores.append((adc, model.hamming_scores(queries, documents), model.float_scores(queries, documents)))
    for by_slice, alone in zip(*scores, strict=True):
        np.testing.assert_allclose(by_slice[0], alone[0], atol=1e-5)
        assert (by_slice[1] - by_slice[0]).abs().max() > 0.01


def test_the_loss_is_the_weighted_mean_over_the_slices():
    x, xq, qrels = make_pairs()
    split = split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x)))
    values = {}
    for power in (0.0, 1.0, 10.0, 0.5):
        settings = TrainConfig(losses={"adc.distillation": 1.0}, matryoshka_power=power, **SHORT)
        config = FitConfig(layout="2x18", matryoshka_dims=[9], train=settings)
        start = closed_form(split, config, faiss.METRIC_INNER_PRODUCT)
        model = Model(start, split.train, settings, [9, 18])
        batch = loop.tensors(model, Batches(split, settings, start.metric, 0)[0], torch.device("cpu"))
        values[power] = float(loop.batch_losses(model, batch, 0.0, 0)["adc.distillation"].detach())
    share = 1 / (1 + 2.0**10)  # of the slice at a power of 10
    whole = (values[10.0] - 2 * share * values[0.0]) / (1 - 2 * share)
    part = 2 * values[0.0] - whole
    assert part > 1.1 * whole
    assert values[1.0] == pytest.approx((9 * part + 18 * whole) / 27, rel=1e-5)
    assert values[0.5] == pytest.approx((3 * part + 18**0.5 * whole) / (3 + 18**0.5), rel=1e-5)


@pytest.mark.parametrize("layout", ["t2x18", "t2x9,1x9+1x12"])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_trained_points_lower_the_loss_of_the_scores_that_the_index_gives_and_leave_its_codes(layout, metric):
    x, xq, qrels = make_pairs()
    settings = TrainConfig(losses={"adc.contrastive": 1.0}, learning_rate=3e-3, **SHORT | {"steps_per_epoch": 30})
    split = split_corpus(Corpus(x), None, 10_000, 0, read_pairs(xq, qrels, Corpus(x)))
    start = closed_form(split, FitConfig(layout=layout, train=settings), metric)
    model, batches = Model(start, split.train, settings, [18]), Batches(split, settings, metric, 0)
    loss = partial(loop._loss_of_decoded, model, batches, torch.device("cpu"))
    after = train_values(start, model, loss)
    np.testing.assert_array_equal(after.encode_both(x)[0], start.encode_both(x)[0])
    assert not np.array_equal(after.trellis.values, start.trellis.values)

    def of_index(quantizer):
        """The loss of a batch, by the scores of an index."""
        batch = batches[100]
        index = QamaIndex(quantizer, "codes")
        index.add(batch.documents)
        own = loop.tensors(model, batch, torch.device("cpu"))
        rows = np.tile(np.arange(len(batch.documents)), (len(batch.queries), 1))
        q = batch.queries
        scores = index.rescorer.scores(q, rows)
        if metric == faiss.METRIC_INNER_PRODUCT:  # as the model sees them
            scores *= quantizer.rms_norm / np.linalg.norm(q, axis=1, keepdims=True)
        scores = torch.from_numpy(scores / model.deviation**2)
        parts = loop._score_losses(
            model, "adc", [(1.0, scores if metric == faiss.METRIC_INNER_PRODUCT else -scores / 2)], own, 1.0
        )
        return float(parts["adc.contrastive"])

    decode = partial(loss, 100)
    with torch.no_grad():
        points = torch.from_numpy(start.encode_decode(batches[100].documents)) / model.deviation
        assert float(decode(lambda _: points)) == pytest.approx(of_index(start), rel=1e-3)
    assert of_index(after) < 0.99 * of_index(start)


def test_slices_are_trained_and_calibrated():
    x, xq, qrels = make_pairs()
    settings = TrainConfig(losses={"hamming.distillation": 1.0, "orthogonality": 0.1}, **SHORT)
    quantizer = fit(x, config=FitConfig(layout="2x18", matryoshka_dims="nested", train=settings), queries=xq)
    assert sorted(quantizer.calibration.prefixes) == [2, 4, 6, 9]
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    assert index.search(xq, 3, truncate_dim=9)[1].shape == (len(xq), 3)


def test_the_search_of_a_trained_index_ranks_by_its_own_scores(tmp_path):
    """Codes, adapter and decoder agree in search, after saving, and in the stock exports."""
    settings = TrainConfig(adapter="residual", losses=SCORES, **SHORT)
    _, model, x, xq = trained(FitConfig(layout="2x18", train=settings))
    quantizer = model.frozen()
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    index.save(tmp_path / "i.qama")
    assert quantizer.bit_decoder.energy_steps is not None  # else rescoring from codes takes thirty times as long
    scores = quantizer.adapt_queries(xq) @ quantizer.decode(quantizer.encode(x)).T
    for one in (index, QamaIndex.load(tmp_path / "i.qama", mmap=True)):
        D, I = one.search(xq, 5, oversample=500)
        np.testing.assert_allclose(D, -np.sort(-scores, axis=1)[:, :5], atol=1e-5)
        np.testing.assert_allclose(D, np.take_along_axis(scores, I, axis=1), atol=1e-5)
    stock, ours = index.to_faiss("hamming"), index.with_rescore("none")
    np.testing.assert_allclose(stock.search(xq, 5)[0], ours.search(xq, 5)[0], atol=1)  # but for values next to a cut
    fast = index.to_faiss("fastscan").search(xq, 10)[1]
    best = np.argsort(-scores, axis=1)[:, :5]
    assert np.mean((best[:, :, None] == fast[:, None]).any(axis=2)) > 0.5  # 8-bit tables, not normalised


def test_shared_query_network_is_refused_by_the_stock_export():
    settings = TrainConfig(adapter="feedforward", query_side=False, losses=SCORES, **SHORT)
    _, model, x, xq = trained(FitConfig(layout="2x18", train=settings))
    index = QamaIndex(model.frozen(), "codes")
    index.add(x)
    with pytest.raises(ValueError, match="linear transform of queries"):
        index.to_faiss("hamming")
    assert index.to_faiss("binary").ntotal == len(x)


def test_run_time_never_imports_torch(tmp_path):
    settings = TrainConfig(adapter="feedforward", losses=SCORES, **SHORT)
    _, model, x, xq = trained(FitConfig(layout="2x18", train=settings))
    index = QamaIndex(model.frozen(), "codes")
    index.add(x)
    index.save(tmp_path / "i.qama")
    np.save(tmp_path / "q.npy", xq)
    program = (
        "import sys, numpy as np\nfrom faiss_qama import QamaIndex\n"
        "i = QamaIndex.load(sys.argv[1]); i.search(np.load(sys.argv[2]), 5); i.to_faiss('fastscan')\n"
        "from faiss_qama.training import fit\nfit(np.load(sys.argv[2]))\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "i.qama"), str(tmp_path / "q.npy")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_without_torch_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "faiss_qama.training.gradient.train")
    with pytest.raises(ImportError, match=r"pip install '.\[train\]' in the clone"):
        fit_quietly(make_vectors(400), layout="2x18", train=TrainConfig(**SHORT))


def test_too_few_to_judge_by_is_refused():
    with pytest.raises(
        ValueError, match="needs 60 of them, or without queries 200 documents; got no queries and 100 doc"
    ):
        fit_quietly(make_vectors(100), layout="2x18", train=TrainConfig(**SHORT))
    with pytest.raises(ValueError, match="got 45 queries"):
        fit_quietly(make_vectors(400), layout="2x18", train=TrainConfig(**SHORT), queries=make_vectors(45, seed=1))
