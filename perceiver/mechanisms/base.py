"""The contract of an attention mechanism: queries, keys and values by head -> outputs, and attention weights.

Any model whose attention consists of mechanisms with a role can be captured, rolled out and explained
(`perceiver.inspection`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

KeyMask: TypeAlias = Bool[Tensor, "batch keys"]
"""True where a key is real."""
Indices: TypeAlias = slice | Sequence[int]
ALL = slice(None)

TOKENS, LATENTS, MEMORY, OUTPUTS = "tokens", "latents", "memory", "outputs"
"""The sequences that attention connects. `memory` is what the decoder reads: the latents, or the tokens."""


@dataclass(frozen=True)
class Role:
    """The sequence that an attention updates, and the one that it reads.

    Attributes:
        name: prefix of the layer names `cross0`, `cross1`, …
        queries: the sequence that is updated.
        keys: the sequence that is read.
        decoder: name of the decoder it belongs to, if there are several.
    """

    name: str
    queries: str
    keys: str
    decoder: str | None = None


CROSS = Role("cross", LATENTS, TOKENS)
SELF = Role("self", LATENTS, LATENTS)
ENCODE = Role("encode", TOKENS, TOKENS)
DECODE = Role("decode", OUTPUTS, MEMORY)
DECODE_SELF = Role("decode_self", OUTPUTS, OUTPUTS)


class Mechanism(nn.Module, ABC):
    """Attention by head, without projections. In evaluation, `weights(q, k, …) @ v == forward(q, k, v, …)`.

    Attributes:
        role: its place in the model; None: it takes no part in explanations.
        reads_keys: whether weights depend on keys, and not only on their number.
        has_relevance: whether outputs change smoothly with weights, so that gradients of weights have a meaning.
    """

    reads_keys: bool = True
    has_relevance: bool = True

    def __init__(self, *, role: Role | None = None) -> None:
        super().__init__()
        self.role = role

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        v: Float[Tensor, "batch heads keys v_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        start: int = 0,
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        """Return the attended values of each query; zeros for a query without a real key.

        Args:
            q, k, v: projected queries, keys and values.
            mask: True where a key is real.
            causal: each query attends to the keys up to its own position, counted from the end: the last to all keys.
            start: position of the first query, if queries are processed one after another and are not causal.
        """

    @abstractmethod
    def weights(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        queries: Indices = ALL,
        start: int = 0,
    ) -> Float[Tensor, "batch heads chosen keys"]:
        """Return the weights of `forward` in float32, for the chosen queries; other arguments as there.

        Rows sum to one; masked keys are exactly zero; a row without a real key is all zeros.
        """


class MechanismFactory(Protocol):
    """Builds the mechanism of one attention, such as a mechanism's class or a `functools.partial` of it."""

    def __call__(self, *, num_heads: int, dim: int, dropout: float, role: Role | None) -> Mechanism:
        """Build a mechanism.

        Args:
            num_heads: heads.
            dim: width of queries and keys of a head.
            dropout: probability with which a weight is dropped in training.
            role: see `Mechanism`.
        """


def allowed_pairs(
    num_queries: int, num_keys: int, mask: KeyMask | None, causal: bool, device: torch.device
) -> Bool[Tensor, "_ 1 _ keys"] | None:
    """Return which query may attend to which key, or None for all keys; see `Mechanism.forward`."""
    allowed = None if mask is None else rearrange(mask, "batch keys -> batch 1 1 keys")
    if causal:
        pairs = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)
        allowed = pairs[None, None] if allowed is None else allowed & pairs
    return allowed


class Residual(nn.Module):
    """The sum of queries and attended values: a module, so that a capture sees both."""

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], read: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        return queries + read
