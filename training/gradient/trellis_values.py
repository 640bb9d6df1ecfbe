"""What the points of a trellis decode to, trained by gradient. Codes stay as the encoder makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from faiss_qama.arrays import Floats
from faiss_qama.progress import progress
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.quantizer.trellis import Trellis
from faiss_qama.training.gradient.adapter import to_numpy
from faiss_qama.training.gradient.model import Model

# Takes the number of a batch, and a function that encodes documents (n, d) and returns what they decode to, as the
# model sees them. Returns a scalar.
LossOfDecoded: TypeAlias = Callable[[int, Callable[[Floats], Tensor]], Tensor]


def train_values(quantizer: Quantizer, model: Model, loss: LossOfDecoded) -> Quantizer:
    """Return a trellis-coded quantizer whose points decode to what lowers ``loss``, in an epoch's steps.

    Parameters
    ----------
    quantizer : Quantizer
        A trellis-coded one, frozen from ``model``.
    model : Model
        The unit of length, and the settings.
    loss : callable
        Of asymmetric scores.

    Returns
    -------
    Quantizer
        With the same codes.
    """
    trellis, config = quantizer.trellis, model.config
    assert trellis is not None
    values = nn.Parameter(torch.from_numpy(trellis.values / np.float32(model.deviation)).to(model.offset.device))
    optimizer = torch.optim.Adam([values], lr=config.learning_rate)

    def decode(x: Floats) -> Tensor:
        points = trellis.encode(quantizer.transform(x), quantizer.layout).astype(np.int64)
        z = values.gather(1, torch.from_numpy(points.T).to(values.device)).T
        decoded = model.offset + z @ model.matrix
        return normalize(decoded) * model.scale if quantizer.normalized else decoded

    for step in progress(range(config.steps_per_epoch), "points"):
        optimizer.zero_grad()
        loss(step, decode).backward()
        optimizer.step()
    return replace(quantizer, trellis=Trellis(to_numpy(values) * np.float32(model.deviation), trellis.targets))
