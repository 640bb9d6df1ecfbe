"""Thresholds with a gradient: four ways for a training to pass them, though their own slope is 0.

Each takes ``u``, how far columns lie above a threshold in units of their spread, and the temperature, the width of the
transition in the same units. It returns bits in [0, 1] of the shape of ``u``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def straight_through(u: Tensor, temperature: float) -> Tensor:
    """Hard bits, with the gradient of the soft ones (Bengio et al., arXiv 1308.3432, section 4)."""
    return _hard(u >= 0, sigmoid(u, temperature))


def sigmoid(u: Tensor, temperature: float) -> Tensor:
    """Soft bits, which harden as the temperature falls."""
    return torch.sigmoid(u / temperature)


def tanh(u: Tensor, temperature: float) -> Tensor:
    """Soft bits by annealed tanh (Cao et al., "HashNet", ICCV 2017, section 3.2), from -1 and 1 brought to 0 and 1."""
    return (1 + torch.tanh(u / temperature)) / 2


def stochastic(u: Tensor, temperature: float) -> Tensor:
    """Bits drawn with the soft bits as their probabilities, straight through (arXiv 1308.3432, section 3)."""
    soft = sigmoid(u, temperature)
    return _hard(torch.rand_like(soft) < soft, soft)


def _hard(bits: Tensor, soft: Tensor) -> Tensor:
    return soft + (bits.to(soft.dtype) - soft).detach()


ESTIMATORS = {"straight-through": straight_through, "sigmoid": sigmoid, "tanh": tanh, "stochastic": stochastic}
