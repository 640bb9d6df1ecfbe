"""Improved binary quantization with adaptive pruning: scales and thresholds per component, and fewer components.

A bit is sigmoid((z s m - t') / temperature), s a learned scale, m 1 or, once it is pruned, 0. The threshold t is
adjusted by the curvature of the loss there, t' = t sqrt(h + eps), h being a moving average of the squared gradient (the
diagonal of the Gauss-Newton Hessian) in units of its mean. A component's importance is a moving average of its gradient
and its magnitude; a later component needs more of it to stay.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from faiss_qama.quantizer.decoder import Decoder
from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.quantizer.transform import FeedForward, Linear, Transform
from faiss_qama.training.train_config import PruningConfig

CURVATURE_MOMENTUM = 0.9
IMPORTANCE_MOMENTUM = 0.99
EPSILON = 1e-8
MIN_COMPONENTS = 8  # that always stay: a byte


class Pruning(nn.Module):
    """Scales, mask and importance of ``columns`` components."""

    mask: Tensor
    curvature: Tensor
    importance: Tensor

    def __init__(self, columns: int, config: PruningConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(columns))
        self.register_buffer("mask", torch.ones(columns))
        self.register_buffer("curvature", torch.ones(columns))
        self.register_buffer("importance", torch.ones(columns))
        self._z: Tensor | None = None

    def forward(self, z: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor]:
        """Return columns (n, columns) scaled and masked, and adjusted cuts (columns, 1)."""
        z = z * self.scale * self.mask
        if z.requires_grad:
            z.retain_grad()
            self._z = z  # the documents', which are cut last
        return z, cuts * (self.curvature + EPSILON).sqrt()[:, None]

    def loss(self, cuts: Tensor) -> Tensor:
        """Return the regularisation of scales and ``cuts``, weighted by importance."""
        return (self.importance * ((self.scale - 1).square() + cuts[:, 0].square())).mean() * self.config.regularisation

    @torch.no_grad()
    def observe(self) -> None:
        """Update curvature and importance from the gradient of the last step."""
        assert self._z is not None
        assert self._z.grad is not None
        gradient, magnitude = self._z.grad, self._z.abs().mean(dim=0)
        squared = gradient.square().mean(dim=0)
        self.curvature.lerp_(squared / squared.mean().clamp(min=1e-30), 1 - CURVATURE_MOMENTUM)
        size = gradient.abs().mean(dim=0)
        seen = self.config.gradient * size / size.mean().clamp(min=1e-30)
        seen += self.config.magnitude * magnitude / magnitude.mean().clamp(min=1e-30)
        self.importance.lerp_(seen, 1 - IMPORTANCE_MOMENTUM)

    @torch.no_grad()
    def prune(self, done: float) -> dict[str, float]:
        """Drop the components whose importance is too low for their place, when ``done`` of the training is over.

        Returns how many are left, and the least, mean and greatest importance.
        """
        a = self.importance
        if done > self.config.start:
            place = torch.arange(len(a), device=a.device)
            base = self.config.base * (1 + done)
            stays = a >= base / torch.exp(-self.config.decay * place)
            if stays.sum() < MIN_COMPONENTS:
                stays[a.topk(min(MIN_COMPONENTS, len(a))).indices] = True
            self.mask *= stays
        return {
            "active": int(self.mask.sum()),
            "importance_min": float(a.min()),
            "importance_mean": float(a.mean()),
            "importance_max": float(a.max()),
        }

    def applied(self, quantizer: Quantizer) -> Quantizer:
        """Return ``quantizer`` with the scales multiplied in, without the pruned components."""
        kept = np.flatnonzero(self.mask.cpu().numpy())
        scale = self.scale.detach().cpu().numpy()
        adjusted = np.sqrt(self.curvature.cpu().numpy() + np.float32(EPSILON))
        decoder = quantizer.decoder
        dropped = np.setdiff1d(np.arange(len(scale)), kept)
        # The bit of a pruned component is the same for all: what it decodes to moves into the offset.
        bit = (quantizer.thresholds[dropped, 0] * adjusted[dropped] <= 0).astype(np.intp)
        constant = decoder.values[dropped, bit] @ decoder.matrix[dropped]
        return replace(
            quantizer,
            layout=CodeLayout((Segment("1", len(kept)),)),
            transform=_kept(quantizer.transform, kept, scale),
            query_transform=_kept(quantizer.query_transform, kept, scale),
            thresholds=(quantizer.thresholds * adjusted[:, None])[kept],
            decoder=Decoder(decoder.values[kept], decoder.matrix[kept], decoder.offset + constant),
        )


def entropy(soft: Tensor) -> Tensor:
    """Undecided bits: the entropy of soft bits in (0, 1), in nats."""
    soft = soft.clamp(1e-6, 1 - 1e-6)
    return -(soft * soft.log() + (1 - soft) * (1 - soft).log()).mean()


def _kept(transform: Transform, kept: np.ndarray, scale: np.ndarray) -> Transform:
    if isinstance(transform, Linear):
        return Linear(transform.scaled_matrix[kept] * scale[kept, None], transform.bias[kept] * scale[kept])
    skip = _kept(transform.skip, kept, scale)
    assert isinstance(skip, Linear)
    return FeedForward(skip, transform.hidden, transform.out[kept] * scale[kept, None])
