"""The contract of an attention mechanism: queries, keys and values by head -> outputs, and attention weights.

Any model whose attention consists of mechanisms with a role can be captured, rolled out and explained
(`perceiver.inspection`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, nn

Queries: TypeAlias = Float[Tensor, "batch heads queries qk_dim"]
Keys: TypeAlias = Float[Tensor, "batch heads keys qk_dim"]
Values: TypeAlias = Float[Tensor, "batch heads keys v_dim"]
Pairwise: TypeAlias = Float[Tensor, "batch heads queries keys"]
"""Logits or weights."""
KeyMask: TypeAlias = Bool[Tensor, "batch keys"]
"""True where a key is real."""
Mask: TypeAlias = KeyMask | None
Pairs: TypeAlias = Bool[Tensor, "_ _ _ keys"]
"""True where a query may attend to a key, by sample, head, query and key; an axis of size 1 holds for all."""
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
        has_scores: whether weights are a softmax over keys, so that their logarithms are the scores before it, up to a
            number of each query.
        is_linear: whether weights are the softmax of the scaled dot products of queries and keys, and nothing else, so
            that the projections of keys and values can be applied to queries and outputs instead.
    """

    reads_keys: bool = True
    has_relevance: bool = True
    has_scores: bool = False
    is_linear: bool = False

    def __init__(self, *, role: Role | None = None) -> None:
        super().__init__()
        self.role = role

    @abstractmethod
    def forward(
        self, q: Queries, k: Keys, v: Values, mask: Mask = None, causal: bool = False, start: int = 0
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
        self, q: Queries, k: Keys, mask: Mask = None, causal: bool = False, queries: Indices = ALL, start: int = 0
    ) -> Float[Tensor, "batch heads chosen keys"]:
        """Return the weights of `forward` in float32, for the chosen queries; other arguments as there.

        Rows sum to one; masked keys are exactly zero; a row without a real key is all zeros.
        """


MechanismFactory: TypeAlias = Callable[..., Mechanism]
"""Builds the mechanism of an attention from the keywords `num_heads`, `dim` (width of queries and keys of a head),
`dropout` (probability with which a weight is dropped in training), and `role`."""
