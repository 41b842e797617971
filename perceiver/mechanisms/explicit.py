"""Attention from a score, a choice and a reach: weights = choice(score(q, k) + reach), outputs = weights v.

Weights are computed in chunks of queries. If there are several, each is recomputed in the backward pass, so that memory
depends on the size of a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from perceiver.kernels import allowed_pairs, chunks, pairs_of, wide
from perceiver.mechanisms.base import Mechanism
from perceiver.mechanisms.choices import Soft
from perceiver.mechanisms.reaches import Everywhere
from perceiver.mechanisms.scores import DotProduct
from perceiver.roles import LATENTS, OUTPUTS, Role
from perceiver.types import ALL, Indices, Keys, Mask, Pairs, Pairwise, Queries, UnsuitableError, Values

MOST = 2**28
"""Numbers stored for the logits of the smallest chunk of queries: 1 GiB."""


class Explicit(Mechanism):
    """Attention whose weights are computed explicitly.

    Args:
        score, reach: build the score and the reach from `num_heads` and `dim`.
        choice: builds the choice.
        num_heads, dim, dropout, role: see `MechanismFactory`.

    Raises:
        ValueError: a choice over queries, in a decoder or of causal queries, which must not depend on each other.
        UnsuitableError: in a forward pass, the logits do not fit into memory.
    """

    def __init__(
        self,
        *,
        score: Callable[..., DotProduct],
        choice: Callable[[], Soft],
        reach: Callable[..., Everywhere],
        num_heads: int,
        dim: int,
        dropout: float = 0.0,
        role: Role | None = None,
    ) -> None:
        super().__init__(role=role)
        self.score = score(num_heads=num_heads, dim=dim)
        self.choice = choice()
        self.reach = reach(num_heads=num_heads, dim=dim)
        self.dropout = dropout
        self.reads_keys, self.has_relevance = self.score.reads_keys, self.choice.has_relevance
        self.has_scores = self.choice.has_scores
        if self.choice.over_queries and role is not None and role.queries == OUTPUTS:
            raise ValueError(f"{type(self.choice).__name__}: the queries of a decoder must not depend on each other")

    def forward(
        self, q: Queries, k: Keys, v: Values, mask: Mask = None, causal: bool = False, start: int = 0
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        found, parts = [], self._chunks(q, k, ALL)
        for chunk in parts:
            arguments = (q, k, v, mask, causal, start, chunk)
            if len(parts) > 1 and torch.is_grad_enabled():
                found.append(checkpoint(self._attend, *arguments, use_reentrant=False))
            else:
                found.append(self._attend(*arguments))
        out, *records = (torch.cat(one, dim=2) for one in zip(*found, strict=True))
        if records:
            self.choice.record(*records)
        return out

    def weights(
        self, q: Queries, k: Keys, mask: Mask = None, causal: bool = False, queries: Indices = ALL, start: int = 0
    ) -> Float[Tensor, "batch heads chosen keys"]:
        chosen = self._chunks(q, k, ALL if self.choice.over_queries else queries)
        with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
            parts = [self.choice.weights(*self._logits(q, k, mask, causal, start, chunk)) for chunk in chosen]
        return torch.cat(parts, dim=2)[:, :, queries if self.choice.over_queries else ALL]

    def _attend(self, q: Queries, k: Keys, v: Values, *options: Any) -> tuple[Tensor, ...]:
        """Return the outputs of a chunk of queries, and in training what the choice records."""
        with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
            logits, allowed = self._logits(q, k, *options)
            if not self.training:
                return ((self.choice.weights(logits, allowed) @ wide(v)).to(v.dtype),)
            weights, *records = self.choice.draw(logits, allowed)
            return (F.dropout(weights, self.dropout) @ wide(v)).to(v.dtype), *records

    def _logits(
        self, q: Queries, k: Keys, mask: Mask, causal: bool, start: int, chunk: Indices
    ) -> tuple[Pairwise, Pairs | None]:
        """Return the logits of a chunk of queries, and which keys each may attend to.

        The position of a query is its own among the keys, if it is one of them; that of a latent that reads other
        tokens is spread evenly over them, as latents have no order; others are counted from `start`.
        """
        if causal and self.choice.over_queries:
            raise ValueError(f"{type(self.choice).__name__}: causal queries must not depend on later ones")
        numbers = torch.arange(q.shape[2], device=q.device)
        own = (numbers + k.shape[2] - q.shape[2]).clamp_min(0)
        real = q.new_ones(1, k.shape[2], dtype=torch.bool) if mask is None else mask
        keys = real.cumsum(dim=1) - 1.0
        last = keys[:, own if causal else [-1]].clamp_min(0).expand(-1, q.shape[2])
        if causal or (self.role is not None and self.role.queries == self.role.keys):
            positions = keys[:, own].clamp_min(0)
        elif self.role is not None and self.role.queries == LATENTS:
            positions = numbers * last / max(q.shape[2] - 1, 1)
        else:
            positions = (numbers + start)[None]
        allowed = pairs_of(allowed_pairs(q, k, mask, causal), chunk)
        q = wide(q[:, :, chunk])
        logits, added = self.score(q, wide(k), keys), self.reach(q, positions[:, chunk], last[:, chunk], keys)
        if added is None:
            return logits, allowed
        return logits + added, added.isfinite() if allowed is None else added.isfinite() & allowed

    def _chunks(self, q: Queries, k: Keys, queries: Indices) -> list[Indices]:
        """Divide queries into parts whose logits fit into memory; at least one, and only one in an exported graph."""
        if torch.compiler.is_exporting():
            return [queries]
        batch, heads, num_queries, _ = q.shape
        numbers = list(range(num_queries))[queries] if isinstance(queries, slice) else queries
        row = max(batch * heads * k.shape[2] * self.score.width, 1)
        least = num_queries if self.choice.over_queries else 1
        if row * least > MOST:
            sizes = f"{num_queries:,} queries, {k.shape[2]:,} keys, {batch} samples and {heads} heads"
            memory = f"{4e-9 * row * num_queries:,.1f} GB, {4e-9 * row * least:,.1f} GB of them at a time"
            raise UnsuitableError(
                f"{type(self.score).__name__} scores of {sizes} would take {memory}, more than {4e-9 * MOST:.1f} GB; "
                "choose mechanism=scaled_dot_product, fewer keys, or a smaller batch"
            )
        parts: list[Indices] = [numbers[part] for part in chunks(len(numbers), row, least)]
        return parts if len(parts) > 1 else [queries]
