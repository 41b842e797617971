"""The contract of an attention mechanism: queries, keys and values by head -> outputs, and the weights behind them.

A model whose attention goes through mechanisms that declare a role can be captured, rolled out and explained
(`perceiver.inspection`), whatever else it consists of.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, nn

KeyMask: TypeAlias = Bool[Tensor, "batch keys"]
"""True where a key is real."""
Indices: TypeAlias = slice | Sequence[int]
ALL = slice(None)

TOKENS, LATENTS, MEMORY, OUTPUTS = "tokens", "latents", "memory", "outputs"
"""The sequences that attention connects. `memory` is whatever the decoder reads: the latents, or the tokens."""


@dataclass(frozen=True)
class Role:
    """Which sequence an attention updates, and which it reads.

    Attributes:
        name: layers are named by it and a number: `cross0`, `cross1`, …
        queries: the sequence that is updated.
        keys: the sequence that is read.
        decoder: which of several decoders it belongs to.
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
        role: what the attention is for; None: it takes no part in explanations.
    """

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
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        """What each query reads of the values; zeros where it sees no real key.

        Args:
            q, k, v: projected queries, keys and values.
            mask: True where a key is real.
            causal: query i sees keys up to its own place, counted from the end: the last query sees every key.
        """

    @abstractmethod
    def weights(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        queries: Indices = ALL,
    ) -> Float[Tensor, "batch heads chosen keys"]:
        """The weights of `forward` in float32, for the chosen queries; other arguments as there.

        Rows sum to one; masked keys are exactly zero; a row without a real key is all zeros.
        """


class Residual(nn.Module):
    """What attention read, added to its queries: a module, so that a capture sees both."""

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], read: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        return queries + read
