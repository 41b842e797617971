"""What a forward pass leaves for those who look at it: of each attention what its weights follow from.

Weights are recomputed in float32, only for what is asked for and in bounded chunks: all of them, for 512 latents that
read 50,176 tokens, would be 98 MiB a head, sample and cross-attend.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.attention import KeyMask, attention_weights
from perceiver.types import JoinedTokens, Span

Role: TypeAlias = Literal["cross", "self", "decode", "words"]
"""Latents read tokens or each other; outputs read latents, or the words before them."""

Indices: TypeAlias = slice | Sequence[int]

ALL = slice(None)
HELD_WEIGHTS = 2**24
"""How many weights are held at once, where not all of them are asked for: 64 MiB."""


@dataclass(frozen=True)
class Layer:
    """One attention of one forward pass: what it is, and what its weights follow from.

    Attributes:
        role: who reads what.
        q, k: queries and keys by head.
        mask: True where a key is real.
        causal: whether a query sees only the keys up to its own place.
        added: norm of what attention added to its queries, over the sum of that norm and that of the queries
            themselves: 1 where there is no residual. None where no block of the Perceiver is around the attention.
        has_residual: whether the queries go on beside what attention adds.
        v, out: values by head, and the weights times them; only where gradients are wanted.
    """

    role: Role
    q: Float[Tensor, "batch heads queries qk_dim"]
    k: Float[Tensor, "batch heads keys qk_dim"]
    mask: KeyMask | None
    causal: bool
    added: Float[Tensor, "batch queries"] | None = None
    has_residual: bool = True
    v: Float[Tensor, "batch heads keys v_dim"] | None = None
    out: Float[Tensor, "batch heads queries v_dim"] | None = None

    @property
    def num_rows(self) -> int:
        return self.q.shape[0]

    @property
    def num_queries(self) -> int:
        return self.q.shape[2]

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def num_keys(self) -> int:
        return self.k.shape[2]

    def weights(self, queries: Indices = ALL, heads: Indices = ALL) -> Float[Tensor, "batch _ chosen keys"]:
        """Exact weights of the chosen queries and heads, in float32."""
        q, k = self.q[:, heads], self.k[:, heads]
        if self.causal:  # what a query may see depends on its place among all
            return attention_weights(q, k, mask=self.mask, causal=True)[:, :, queries]
        return attention_weights(q[:, :, queries], k, mask=self.mask)

    def sample(self, index: int) -> "Layer":
        """The same attention for one sample of the batch, without what gradients need."""
        one = slice(index, index + 1)
        mask = None if self.mask is None else self.mask[one]
        added = None if self.added is None else self.added[one]
        return replace(self, q=self.q[one], k=self.k[one], mask=mask, added=added, v=None, out=None)

    def chunks(self, queries: Sequence[int] | None = None) -> Iterator[Sequence[int]]:
        """The queries (None: all) in parts whose weights are few enough to be held at once."""
        queries = range(self.num_queries) if queries is None else queries
        size = max(HELD_WEIGHTS // (self.num_rows * self.num_heads * self.num_keys), 1)
        for start in range(0, max(len(queries), 1), size):  # of no queries there is one part, an empty one
            yield queries[start : start + size]

    def through(self, share: Float[Tensor, "batch rows queries"]) -> Float[Tensor, "batch rows keys"]:
        """`share` times the weights (mean over heads), without ever holding all of them."""
        read = share.new_zeros(*share.shape[:2], self.num_keys)
        with torch.autocast(read.device.type, enabled=False):
            for chunk in self.chunks():
                read += share[:, :, chunk] @ self.weights(chunk).mean(dim=1)
        return read


class Record:
    """The attention of the last forward pass.

    Attributes:
        layers: name -> layer, in the order in which they ran; named by role and number: `cross0`, `self0`, … `words0`,
            `decode0`.
        tokens: what the `cross` layers read.
        queries: what the decoder was asked with, where it does not ask by itself.
        outputs: what it answered.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.tokens: JoinedTokens | None = None
        self.queries: tuple[Tensor, ...] = ()
        self.outputs: Tensor | None = None

    @property
    def spans(self) -> dict[str, Span]:
        """Modality name -> its place among the keys of the `cross` layers."""
        return {} if self.tokens is None else self.tokens.spans

    def map(
        self, layer: str, head: int | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "batch queries keys"]:
        """Attention weights of one layer.

        Args:
            layer: its name.
            head: one head; None for the mean over heads.
            queries: which queries (latents, in `cross` and `self` layers); None for all.

        Raises:
            KeyError: there is no such layer.
            IndexError: there is no such head or query.
        """
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; there are {', '.join(self.layers)}")
        found = self.layers[layer]
        if head is not None and not 0 <= head < found.num_heads:
            raise IndexError(f"{layer} has heads 0 to {found.num_heads - 1}, not {head}")
        if wrong := [query for query in queries or () if not 0 <= query < found.num_queries]:
            raise IndexError(f"{layer} has queries 0 to {found.num_queries - 1}, not {wrong[0]}")
        heads = ALL if head is None else [head]
        return torch.cat([found.weights(chunk, heads).mean(dim=1) for chunk in found.chunks(queries)], dim=1)

    @property
    def num_outputs(self) -> int:
        """Queries that read the latents; where the decoder pools, the one that stands for the mean."""
        decoders = self.named("decode")
        return self.layers[decoders[-1]].num_queries if decoders else 1

    def named(self, role: Role) -> list[str]:
        """Names of the layers of a role, in order."""
        return [name for name, layer in self.layers.items() if layer.role == role]
