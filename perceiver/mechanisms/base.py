"""The contract of an attention mechanism: queries, keys and values by head -> outputs, and attention weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from perceiver.roles import Role
from perceiver.types import ALL, Indices, Keys, Mask, Queries, Values


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
