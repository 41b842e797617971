"""Reaches: the keys that a query may attend to. The local ones are those of Luong et al. (2015, section 3.2).

Deviations: positions start at 0 and count real keys only, so that padding has no influence; p ends at the last key, so
that no window is empty; and the logarithm of the Gaussian is added to logits, so that weights still sum to one.
"""

import torch
from torch import nn

from perceiver.kernels import headwise, uniform
from perceiver.types import Pairwise, Positions, Queries


class Everywhere(nn.Module):
    """All keys; and the base of all reaches, built from `num_heads` and the width `dim` of a head."""

    def __init__(self, *, num_heads: int, dim: int) -> None:
        super().__init__()

    def forward(self, q: Queries, positions: Positions, last: Positions, keys: Positions) -> Pairwise | None:
        """Return what is added to the logits, -inf for keys out of reach.

        Args:
            q: queries by head.
            positions, last: of each query: its position, and that of the last key that it may attend to.
            keys: position of each key.
        """
        return None


class MonotonicWindow(Everywhere):
    """The keys within `width` of the position of the query ("local-m"); of dense outputs, that in their chunk."""

    def __init__(self, *, width: float, num_heads: int, dim: int) -> None:
        super().__init__(num_heads=num_heads, dim=dim)
        if width < 1:
            raise ValueError(f"width={width} of a window must be at least 1")
        self.width = width

    def forward(self, q: Queries, positions: Positions, last: Positions, keys: Positions) -> Pairwise | None:
        distances = keys[:, None, None] - positions.minimum(last)[:, None, :, None]
        return torch.zeros_like(distances).masked_fill(distances.abs() > self.width, -torch.inf)


class PredictedWindow(MonotonicWindow):
    """The keys within `width` of a position that the query predicts ("local-p").

    It is S σ(vᵀ tanh(W q)) among S keys (eq. 9); weights fall off as a Gaussian with half the width as its standard
    deviation (eq. 10).
    """

    def __init__(self, *, width: float, num_heads: int, dim: int) -> None:
        super().__init__(width=width, num_heads=num_heads, dim=dim)
        self.weight = uniform(num_heads, dim, dim, fan_in=dim)
        self.vector = uniform(num_heads, dim, 1, fan_in=dim)

    def forward(self, q: Queries, positions: Positions, last: Positions, keys: Positions) -> Pairwise | None:
        predicted = headwise(torch.tanh(headwise(q, self.weight)), self.vector).sigmoid()
        distances = keys[:, None, None] - last[:, None, :, None] * predicted
        return (-2 * (distances / self.width).square()).masked_fill(distances.abs() > self.width, -torch.inf)
