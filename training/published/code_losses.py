"""The losses of codes, a function each: they look at the columns or bits of documents, not at any query.

All return a scalar tensor to be minimised, of

- ``z`` (n, columns): the columns, in standard deviations of each
- ``bits`` (n, n_bits): the bits
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import relu


def information_bottleneck(z: Tensor) -> Tensor:
    """Later columns pay more for being far from 0: sum of (i / n) (|z|^2 / (.1 + |z|))^.3 (QAMA, methodology)."""
    weights = torch.arange(1, z.shape[1] + 1, device=z.device) / z.shape[1]
    size = z.abs()
    return (weights * (size.square() / (0.1 + size) + 1e-6).pow(0.3)).mean()


def orthogonality(z: Tensor, ends: list[int]) -> Tensor:
    """Overlap of what each slice adds with the slices before it, columns normalised (QAMA, methodology).

    The mean squared correlation of columns of different slices, so that it does not grow with them.
    """
    if len(ends) < 2:
        return z.new_zeros(())
    z = (z - z.mean(dim=0)) / (z.std(dim=0) + 1e-6)
    overlaps = [
        (z[:, start:end].T @ z[:, :start] / len(z)).square().mean() for start, end in zip(ends, ends[1:], strict=False)
    ]
    return torch.stack(overlaps).mean()


def variance(z: Tensor, done: float) -> Tensor:
    """Columns that do not vary are penalised by exp(-sigma), ever more (QAMA, "adaptive variance control").

    ``done`` is the share of the training that is over.
    """
    weight = max(0.2, (math.exp(done) - 1) / (math.e - 1))
    return weight * torch.exp(-z.std(dim=0)).mean()


def quantization(u: Tensor, done: float) -> Tensor:
    """Columns next to a threshold, and columns out of range, are penalised (QAMA, methodology, "quantization loss").

    ``u`` (n, columns, thresholds) is how far columns lie above their thresholds, in standard deviations of the column;
    it is -inf for unused thresholds. The weight rises from .2 to 1.
    """
    nearest = u.abs().amin(dim=2)
    lowest, highest = u.masked_fill(u.isinf(), float("inf")).amin(dim=2), u.amax(dim=2)
    beyond = relu(-2.5 - highest).square() + relu(lowest - 2.5).square()  # 2.5 deviations outside the outer thresholds
    return (0.2 + 0.8 * done) * (torch.exp(-nearest) + 0.1 * beyond).mean()


def balance(bits: Tensor, shares: Tensor) -> Tensor:
    """Bits that are set in other than their share of the documents, (n_bits,), carry less (BEBR, arXiv 2302.08714)."""
    return (bits.mean(dim=0) - shares).square().mean()


def decorrelation(bits: Tensor, same: Tensor) -> Tensor:
    """Squared correlation of the bits of different units (Barlow twins' off-diagonal term, arXiv 2103.03230).

    ``same`` (n_bits, n_bits) is true for bits of one unit.
    """
    centred = (bits - bits.mean(dim=0)) / (bits.std(dim=0) + 1e-3)
    return (centred.T @ centred / len(bits)).masked_fill(same, 0).square().mean()


def reconstruction(decoded: Tensor, x: Tensor) -> Tensor:
    """Squared distance of the decoded vectors from the vectors, both (n, d), as a share of their squared length."""
    return (decoded - x).square().sum(dim=1).mean() / x.square().sum(dim=1).mean()
