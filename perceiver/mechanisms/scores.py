"""Scores: how well each key fits each query, as logits.

Deviation: each head has weights of its own, which start uniform in ±1/√d, as those of torch's linear layers.
"""

from math import inf, log

import torch
from einops import einsum
from torch import nn
from torch.nn import functional as F

from perceiver.kernels import headwise, uniform
from perceiver.types import Keys, Pairwise, Positions, Queries, UnsuitableError


class DotProduct(nn.Module):
    """q · k (Luong et al. 2015, "dot"), `scaled` by 1/√d (Vaswani et al. 2017).

    It is the base of all scores, which are built from `num_heads` and the width `dim` of a head.

    Attributes:
        reads_keys: whether the logits depend on keys.
        width: numbers that are stored for each logit.
    """

    reads_keys: bool = True
    width: int = 1

    def __init__(self, *, scaled: bool = False, num_heads: int, dim: int) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, q: Queries, k: Keys, positions: Positions) -> Pairwise:
        return q @ k.mT * (q.shape[-1] ** -0.5 if self.scaled else 1.0)


class Bilinear(DotProduct):
    """qᵀ W k (Luong et al. 2015: "general")."""

    def __init__(self, *, num_heads: int, dim: int) -> None:
        super().__init__(num_heads=num_heads, dim=dim)
        self.weight = uniform(num_heads, dim, dim, fan_in=dim)

    def forward(self, q: Queries, k: Keys, positions: Positions) -> Pairwise:
        return headwise(q, self.weight) @ k.mT


class Additive(DotProduct):
    """vᵀ tanh(W q + U k) (Bahdanau et al. 2015, A.1.2; Luong et al.: "concat"), with `hidden_dim` or dim units."""

    def __init__(self, *, hidden_dim: int | None, num_heads: int, dim: int) -> None:
        super().__init__(num_heads=num_heads, dim=dim)
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim={hidden_dim} of additive scores must be at least 1")
        self.width = dim if hidden_dim is None else hidden_dim
        self.query, self.key = (uniform(num_heads, dim, self.width, fan_in=dim) for _ in range(2))
        self.vector = uniform(num_heads, self.width, fan_in=self.width)

    def forward(self, q: Queries, k: Keys, positions: Positions) -> Pairwise:
        hidden = torch.tanh(headwise(q, self.query)[:, :, :, None] + headwise(k, self.key)[:, :, None])
        return einsum(
            hidden, self.vector.to(q.dtype), "batch heads queries keys dim, heads dim -> batch heads queries keys"
        )


class Location(DotProduct):
    """W q + b (Luong et al. 2015, eq. 8): logits of `max_keys` positions; more keys raise an UnsuitableError."""

    reads_keys = False

    def __init__(self, *, max_keys: int, num_heads: int, dim: int) -> None:
        super().__init__(num_heads=num_heads, dim=dim)
        if max_keys < 1:
            raise ValueError(f"max_keys={max_keys} of location scores must be at least 1")
        self.weight = uniform(num_heads, dim, max_keys, fan_in=dim)
        self.bias = uniform(num_heads, 1, max_keys, fan_in=dim)

    def forward(self, q: Queries, k: Keys, positions: Positions) -> Pairwise:
        if (num_keys := k.shape[2]) > (max_keys := self.bias.shape[2]):
            raise UnsuitableError(
                f"max_keys={max_keys} of location scores must be at least the {num_keys} keys of the input"
            )
        logits = headwise(q, self.weight) + self.bias.to(q.dtype)
        return logits.gather(3, positions.long().clamp_min(0)[:, None, None].expand(len(q), *logits.shape[1:3], -1))


class Cosine(DotProduct):
    """β q · k / (‖q‖ ‖k‖) (Graves et al. 2014, eq. 5 and 6), but with a learned β, first `sharpness`, for each head."""

    def __init__(self, *, sharpness: float, num_heads: int, dim: int) -> None:
        super().__init__(num_heads=num_heads, dim=dim)
        if not 0.0 < sharpness < inf:
            raise ValueError(f"sharpness={sharpness} of cosine scores must be finite and more than 0")
        self.log_sharpness = nn.Parameter(torch.full((num_heads, 1, 1), log(sharpness)))

    def forward(self, q: Queries, k: Keys, positions: Positions) -> Pairwise:
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.log_sharpness.to(q.dtype).exp()
