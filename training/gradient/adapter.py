"""The networks before the thresholds, in torch. Each starts as exactly the linear map without training.

Kinds:

- ``none``: that map, as it is.
- ``linear``: that map, trained.
- ``residual``: that map, trained, plus a feed-forward network that starts at 0.
- ``feedforward``: QAMA's W2 gelu(W1 x) (methodology, "Matryoshka adapter"), any width.
- ``bottleneck``: the same through a hidden layer of two units a column, to binary outputs.

The last two start as that map because gelu(a) - gelu(-a) = a: hidden rows come in pairs m and -m.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from faiss_qama.arrays import Floats
from faiss_qama.quantizer.transform import FeedForward, Linear, Transform


class Adapter(nn.Module):
    """z = skip(x) + out @ gelu(hidden(x)); without a hidden layer, skip(x) alone.

    Parameters
    ----------
    start : Linear
        The map without training.
    kind : str
        One of ``ADAPTERS``.
    width : int
        Hidden units; at least two per column for ``feedforward``.
    """

    def __init__(self, start: Linear, kind: str, width: int = 0) -> None:
        super().__init__()
        columns, d = start.shape
        matrix, bias = torch.from_numpy(start.scaled_matrix), torch.from_numpy(start.bias.copy())
        through = kind in ("feedforward", "bottleneck")  # nothing goes past the hidden layer
        self.bias = nn.Parameter(bias, requires_grad=kind != "none")
        self.matrix = nn.Parameter(
            torch.zeros_like(matrix) if through else matrix, requires_grad=kind in ("linear", "residual")
        )
        self.hidden: nn.Linear | None = None
        if kind in ("none", "linear"):
            return
        width = 2 * columns if kind == "bottleneck" else width
        self.hidden = nn.Linear(d, width)
        self.out = nn.Parameter(torch.zeros(columns, width))
        with torch.no_grad():
            self.hidden.bias.zero_()
            if through:
                self.hidden.weight[: 2 * columns] = torch.cat([matrix, -matrix])
                self.out[:, : 2 * columns] = torch.cat([torch.eye(columns), -torch.eye(columns)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, d) to (n, columns)."""
        z = linear(x, self.matrix, self.bias)
        if self.hidden is not None:
            z = z + linear(gelu(self.hidden(x), approximate="tanh"), self.out)
        return z

    def frozen(self) -> Transform:
        """Return the same map in numpy."""
        skip = Linear(to_numpy(self.matrix), to_numpy(self.bias))
        if self.hidden is None:
            return skip
        hidden = Linear(to_numpy(self.hidden.weight), to_numpy(self.hidden.bias))
        return FeedForward(skip, hidden, to_numpy(self.out))


def to_numpy(tensor: Tensor) -> Floats:
    """Return a float32 copy of ``tensor``."""
    array: Floats = tensor.detach().float().cpu().numpy().copy()
    return array
