"""Adaptive pruning: what goes leaves the code, and nothing else changes."""

from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest
import torch
from conftest import D, fit_quietly, make_vectors
from test_gradient_training import seen, trained

from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.training import FitConfig, TrainConfig
from faiss_qama.training.published.pruning import MIN_COMPONENTS, Pruning
from faiss_qama.training.train_config import PruningConfig

PRUNED = {
    "losses": {"hamming.distillation": 1.0},
    "epochs": 4,
    "steps_per_epoch": 10,
    "batch_size": 32,
    "random_negatives": 64,
}


@pytest.mark.slow
def test_pruned_codes_are_shorter_and_rank_as_the_masked_ones():
    settings = TrainConfig(pruning=PruningConfig(), **PRUNED)
    _, model, x, xq = trained(FitConfig(layout=f"1x{D}", rotation="none", train=settings))
    whole = model.frozen()
    gone = [3, 17, 20, 35]
    model.pruning.mask[gone] = 0
    pruned = model.frozen()
    assert str(pruned.layout) == f"1x{D - 4}"
    assert whole.code_size == 5
    assert pruned.code_size == 4
    kept = np.setdiff1d(np.arange(D), gone)
    np.testing.assert_array_equal(
        bit_packing.unpack(whole.encode(x), whole.layout)[:, kept], bit_packing.unpack(pruned.encode(x), pruned.layout)
    )
    # What torch computes with the mask, whose pruned bits are the same for all.
    tx, txq = seen(model, x, xq)
    with torch.no_grad():
        documents, queries = model.code_documents(tx, 0.1), model.code_queries(txq, 0.1)
        decoded = model.decode(documents.bits)[-1].numpy() * model.deviation
    assert (documents.bits[:, gone] == documents.bits[0, gone]).all()
    masked = (queries.bits[:, None] != documents.bits[None]).sum(dim=2).numpy()
    ours = bit_packing.hamming(pruned.encode_queries(xq)[:, None], pruned.encode(x)[None])
    assert np.mean(masked == ours) > 0.999  # but for values next to a cut
    near = (documents.bits.numpy()[:, kept] == bit_packing.unpack(pruned.encode(x), pruned.layout)).all(axis=1)
    np.testing.assert_allclose(pruned.decode(pruned.encode(x))[near], decoded[near], atol=1e-4)


def test_what_is_unimportant_for_its_place_goes():
    pruning = Pruning(100, PruningConfig(base=0.1, decay=0.01, start=0.5))
    pruning.importance[:] = 0.25
    assert pruning.prune(0.5)["active"] == 100  # not yet
    statistics = pruning.prune(1.0)
    stays = 0.25 >= 0.2 * np.exp(0.01 * np.arange(100))
    np.testing.assert_array_equal(pruning.mask.numpy(), stays)
    assert statistics["active"] == stays.sum()
    pruning = Pruning(100, PruningConfig())
    pruning.importance[:] = 0
    assert pruning.prune(1.0)["active"] == MIN_COMPONENTS


def test_importance_and_curvature_are_moving_averages():
    pruning = Pruning(2, PruningConfig(gradient=1.0, magnitude=0.0))
    z = torch.tensor([[1.0, 2.0], [3.0, -4.0]], requires_grad=True)
    out, cuts = pruning(z * 1, torch.ones(2, 1))
    np.testing.assert_allclose(cuts.detach(), 1, rtol=1e-6)
    (out * torch.tensor([3.0, 1.0])).sum().backward()
    pruning.observe()
    np.testing.assert_allclose(pruning.importance, 0.99 + 0.01 * np.array([1.5, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(pruning.curvature, 0.9 + 0.1 * np.array([1.8, 0.2]), rtol=1e-5)


def test_the_loss_draws_important_components_to_where_they_began():
    pruning = Pruning(3, PruningConfig(regularisation=1.0))
    assert float(pruning.loss(torch.zeros(3, 1)).detach()) == 0
    pruning.scale.data[:] = torch.tensor([2.0, 1.0, 1.0])
    pruning.importance[:] = torch.tensor([3.0, 1.0, 1.0])
    assert float(pruning.loss(torch.tensor([[0.0], [0.0], [2.0]])).detach()) == pytest.approx((3 + 4) / 3)


def test_a_fit_with_pruning_logs_what_is_left():
    x = make_vectors(1003)
    settings = TrainConfig(pruning=PruningConfig(base=0.4), **PRUNED, learning_rate=1e-3)
    quantizer = fit_quietly(x, layout=f"1x{D}", rotation="none", train=settings)
    assert quantizer.fit_record.trained
    record = quantizer.fit_record.training
    log = record.log
    kept = log[-1]["active"] if record.kept else D
    assert quantizer.layout.components == kept
    assert [line["active"] for line in log[:2]] == [D, D]
    assert MIN_COMPONENTS <= log[-1]["active"] < D
    assert {"importance_min", "importance_mean", "importance_max", "temperature", "losses"} <= set(log[-1])
    assert {"entropy", "pruning"} <= set(log[-1]["losses"])


@pytest.mark.parametrize("layout", ["2x18", "1x10,0.5x10", "1.5x5", "t1x18"])
def test_only_1_bit_layouts_are_pruned(layout):
    settings = TrainConfig(pruning=PruningConfig(), **PRUNED)
    with pytest.raises(ValueError, match=f"pruning needs a layout of 1 bit that is not trellis-coded; got {layout}"):
        fit_quietly(make_vectors(400), layout=layout, train=settings)


def test_l2_prunes_too():
    settings = TrainConfig(pruning=PruningConfig(), **PRUNED)
    _, model, x, xq = trained(FitConfig(layout=f"1x{D}", train=settings), faiss.METRIC_L2, unit=False)
    model.pruning.mask[[1, 2]] = 0
    quantizer = model.frozen()
    assert dataclasses.replace(quantizer, fit_record=FitRecord()).layout.components == D - 2
    assert np.isfinite(quantizer.decode(quantizer.encode(x))).all()
