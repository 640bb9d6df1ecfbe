"""Every loss by a second route in numpy, and which way it points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faiss_qama.training.gradient import losses
from faiss_qama.training.gradient.gradient_estimators import ESTIMATORS
from faiss_qama.training.published import code_losses
from faiss_qama.training.published.pruning import entropy
from faiss_qama.training.train_config import CODE_LOSSES, QUANTIZERS, SCORE_LOSSES

RNG = np.random.default_rng(0)
TEACHER = RNG.uniform(-0.2, 0.9, (5, 12))
SCORES = TEACHER + 0.2 * RNG.standard_normal(TEACHER.shape)
GRADES = (RNG.random((5, 12)) < 0.2) * RNG.integers(1, 3, (5, 12)).astype(float)
GRADES[0] = 0  # a query without a label
T = 0.1


def value(loss, *args):
    return float(loss(*(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in args)))


def softmax(x):
    e = np.exp(x / T - (x / T).max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def divergence(p, q):
    return (p * np.log(p / q)).sum(axis=1).mean()


def contrastive(scores, grades):
    total = 0
    for row, grade, teacher in zip(scores, grades, TEACHER, strict=True):
        grade = grade if grade.sum() else np.eye(12)[teacher.argmax()]
        others = np.exp(row[grade == 0] / T).sum()
        p = np.exp(row / T) / (np.exp(row / T) + others)
        total -= (grade / grade.sum() * np.log(p)).sum()
    return total / len(scores)


def rank(scores):
    order = np.argsort(-TEACHER, axis=1)
    ours = np.take_along_axis(scores, order, axis=1)
    return (1 / (1 + np.exp(-10 * np.diff(ours, axis=1)))).mean()


def correlation(scores):
    return 1 - np.mean([np.corrcoef(s, t)[0, 1] for s, t in zip(scores, TEACHER, strict=True)])


ORACLES = {
    "correlation": correlation,
    "mse": lambda s: np.square(s - TEACHER).mean(),
    "kl": lambda s: (divergence(softmax(TEACHER), softmax(s)) + divergence(softmax(s), softmax(TEACHER))) / 2,
    "distillation": lambda s: divergence(softmax(TEACHER), softmax(s)),
    "rank": rank,
    "contrastive": lambda s: contrastive(s, GRADES),
}


def test_every_loss_has_an_oracle():
    assert set(ORACLES) == set(losses.BY_NAME) == set(SCORE_LOSSES)
    for name in CODE_LOSSES:
        assert callable(getattr(code_losses, name))


@pytest.mark.parametrize("name", ORACLES)
def test_score_losses_are_numpys(name):
    got = value(losses.BY_NAME[name], SCORES, TEACHER, GRADES, T)
    assert got == pytest.approx(ORACLES[name](SCORES), rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "kl", "distillation"])
def test_the_teacher_has_no_loss(name):
    assert value(losses.BY_NAME[name], TEACHER, TEACHER, GRADES, T) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", ORACLES)
def test_pairs_that_are_not_to_be_looked_at_do_not_count(name):
    teacher = TEACHER.copy()
    teacher[np.arange(5), [1, 5, 7, 0, 11]] = -np.inf
    grades = np.where(np.isinf(teacher), 0, GRADES)
    other = np.where(np.isinf(teacher), 55.0, SCORES)
    a, b = (value(losses.BY_NAME[name], s, teacher, grades, T) for s in (SCORES, other))
    assert np.isfinite(a)
    assert a == pytest.approx(b)


@pytest.mark.parametrize("name", ORACLES)
def test_rows_without_differences_have_finite_gradients(name):
    """A zero vector scores the same against everything; a query of duplicates is left with nothing to look at."""
    scores = torch.zeros(3, 40, requires_grad=True)
    teacher = torch.zeros(3, 40)
    teacher[1] = -torch.inf
    teacher[2] = torch.linspace(0, 1, 40)
    losses.BY_NAME[name](scores, teacher, torch.zeros(3, 40), T).backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "rank"])
def test_steps_downhill_rank_better(name):
    scores = torch.tensor(SCORES, requires_grad=True)
    grades = torch.tensor(np.eye(5, 12)) if name == "contrastive" else torch.tensor(GRADES)
    teacher = torch.tensor(TEACHER)
    optimizer = torch.optim.Adam([scores], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        losses.BY_NAME[name](scores, teacher, grades, T).backward()
        optimizer.step()
    found = scores.detach().numpy()
    if name == "contrastive":
        assert (found.argmax(axis=1) == np.arange(5)).all()
        return

    def order(s):
        return np.mean(
            [np.corrcoef(a, b)[0, 1] for a, b in zip(s.argsort().argsort(), TEACHER.argsort().argsort(), strict=True)]
        )

    assert order(found) > max(0.97, order(SCORES))


def test_rank_counts_documents_that_change_places():
    right = np.argsort(np.argsort(TEACHER, axis=1), axis=1).astype(float)
    assert value(losses.rank, right, TEACHER, GRADES, T) == pytest.approx(0, abs=1e-4)
    assert value(losses.rank, -right, TEACHER, GRADES, T) == pytest.approx(1, abs=1e-4)


def test_correlation_looks_at_the_nearest_alone():
    """What is done to documents beyond the nearest, and a factor and a shift, change nothing."""
    teacher = RNG.uniform(0, 1, (3, 100))
    scores = teacher + 0.1 * RNG.standard_normal(teacher.shape)
    want = value(losses.correlation, scores, teacher, teacher, T)
    far = np.argsort(-teacher, axis=1)[:, losses.NEAREST :]
    moved = 7 * scores - 3
    np.put_along_axis(moved, far, 1e3, axis=1)
    assert value(losses.correlation, moved, teacher, teacher, T) == pytest.approx(want)


def test_information_bottleneck_prices_late_columns():
    early, late = np.zeros((4, 10)), np.zeros((4, 10))
    early[:, 0] = late[:, 9] = 1.0
    assert value(code_losses.information_bottleneck, early) < value(code_losses.information_bottleneck, late)
    z = RNG.standard_normal((6, 10))
    want = np.mean(np.arange(1, 11) / 10 * (z**2 / (0.1 + np.abs(z)) + 1e-6) ** 0.3)
    assert value(code_losses.information_bottleneck, z) == pytest.approx(want)


def test_orthogonality_is_what_slices_share():
    z = RNG.standard_normal((4000, 4))
    assert value(code_losses.orthogonality, z, [2, 4]) == pytest.approx(0, abs=1e-3)
    assert value(code_losses.orthogonality, np.concatenate([z[:, :2], z[:, :2]], axis=1), [2, 4]) == pytest.approx(
        0.5, abs=0.01
    )
    assert value(code_losses.orthogonality, z, [4]) == 0


def test_variance_prices_columns_that_stand_still():
    z = RNG.standard_normal((500, 3)) * [1, 2, 0]
    want = np.exp(-z.std(axis=0, ddof=1)).mean()
    assert value(code_losses.variance, z, 0.0) == pytest.approx(0.2 * want)
    assert value(code_losses.variance, z, 1.0) == pytest.approx(want)


def test_quantization_prices_the_neighbourhood_of_cuts_and_what_is_out_of_range():
    u = np.array([[[0.0, -np.inf]], [[1.0, -np.inf]]])
    assert value(code_losses.quantization, u, 1.0) == pytest.approx((1 + np.exp(-1)) / 2)
    assert value(code_losses.quantization, u, 0.0) == pytest.approx(0.2 * (1 + np.exp(-1)) / 2)
    far = np.array([[[6.0, 4.5]]])  # 4.5 above the upper cut, where 2.5 is free
    assert value(code_losses.quantization, far, 1.0) == pytest.approx(np.exp(-4.5) + 0.1 * 2.0**2)
    below = np.array([[[-4.5, -6.0]]])
    assert value(code_losses.quantization, below, 1.0) == pytest.approx(np.exp(-4.5) + 0.1 * 2.0**2)


def test_balance_and_decorrelation_are_0_for_bits_that_carry_all_they_can():
    bits = RNG.integers(0, 2, (40_000, 3)).astype(float)
    same = np.eye(3, dtype=bool)
    shares = np.full(3, 0.5)
    assert value(code_losses.balance, bits, shares) == pytest.approx(0, abs=1e-4)
    assert value(code_losses.balance, np.ones((9, 3)), shares) == pytest.approx(0.25)
    assert value(code_losses.decorrelation, bits, same) == pytest.approx(0, abs=1e-3)
    copied = np.repeat(bits[:, :1], 3, axis=1)
    assert value(code_losses.decorrelation, copied, same) == pytest.approx(6 / 9, abs=0.01)
    assert value(code_losses.decorrelation, copied, np.ones((3, 3), dtype=bool)) == 0


def test_reconstruction_is_the_share_that_is_lost():
    x = RNG.standard_normal((7, 4))
    assert value(code_losses.reconstruction, x, x) == 0
    assert value(code_losses.reconstruction, 0 * x, x) == pytest.approx(1)


def test_entropy_is_least_for_decided_bits():
    assert value(entropy, np.full((3, 2), 0.5)) == pytest.approx(np.log(2))
    assert value(entropy, np.ones((3, 2))) < 1e-4


def test_settings_name_every_way_through_the_thresholds():
    assert set(QUANTIZERS) == set(ESTIMATORS)
