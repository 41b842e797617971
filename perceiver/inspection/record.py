"""What a forward pass leaves for those who look at it: of each attention what its weights follow from.

Weights are recomputed in float32, only for what is asked for and in bounded chunks: all of them, for 512 latents that
read 50,176 tokens, would be 98 MiB a head, sample and cross-attend.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.mechanisms.base import ALL, MEMORY, OUTPUTS, TOKENS, Indices, KeyMask, Mechanism, Role
from perceiver.types import JoinedTokens, Span

HELD_WEIGHTS = 2**24
"""How many weights are held at once, where not all of them are asked for: 64 MiB."""


@dataclass(frozen=True)
class Layer:
    """One attention of one forward pass: what it is, and what its weights follow from.

    Attributes:
        role: which sequence it updates, and which it reads.
        mechanism: computes its weights.
        q, k: queries and keys by head.
        mask: True where a key is real.
        causal: whether a query sees only the keys up to its own place.
        added: norm of what attention added to its queries, over the sum of that norm and that of the queries
            themselves: 1 where there is no residual. None where that was not seen.
        has_residual: whether the queries go on beside what attention adds.
        v, out: values by head, and the weights times them; only where gradients are wanted.
    """

    role: Role
    mechanism: Mechanism
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
        return self.mechanism.weights(self.q, self.k, self.mask, self.causal, queries)[:, heads]

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
        layers: name -> layer, in the order in which they ran; named by role and number: `cross0`, `self0`, … `decode0`;
            of several decoders, with the name of theirs in front: `caption/decode0`.
        tokens: the tokens of all modalities.
        queries: the token ids that the decoder was given, by name of the output.
        outputs: the model's outputs by name.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.tokens: JoinedTokens | None = None
        self.queries: Mapping[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def for_output(self, output: str) -> Self:
        """The same forward pass as far as one output depends on it: without the layers of other decoders."""
        decoder, _, _ = output.rpartition("/")
        part = type(self)()
        part.layers = {
            name: layer for name, layer in self.layers.items() if layer.role.decoder in (None, decoder or None)
        }
        part.tokens, part.queries, part.outputs = self.tokens, self.queries, self.outputs
        return part

    @property
    def parts(self) -> list[Self]:
        """The forward pass as each output depends on it; see `for_output`."""
        return [self.for_output(output) for output in self.outputs] or [self]

    @property
    def spans(self) -> dict[str, Span]:
        """Modality name -> its place among the tokens."""
        return {} if self.tokens is None else self.tokens.spans

    @property
    def memory(self) -> str:
        """The sequence that the decoder reads: the one that was updated last before it."""
        before = [layer.role.queries for layer in self.layers.values() if layer.role.queries != OUTPUTS]
        return before[-1] if before else TOKENS

    def reads(self, layer: Layer) -> str:
        """The sequence of a layer's keys."""
        return self.memory if layer.role.keys == MEMORY else layer.role.keys

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
    def num_rows(self) -> int:
        assert self.tokens is not None
        return len(self.tokens.values)

    @property
    def num_outputs(self) -> int:
        """Queries of the decoder; where it pools, the one that stands for the mean."""
        decoders = self.decoders
        return self.layers[decoders[-1]].num_queries if decoders else 1

    @property
    def decoders(self) -> list[str]:
        """Names of the layers in which outputs read the memory."""
        return [name for name, layer in self.layers.items() if layer.role.queries == OUTPUTS != layer.role.keys]

    @property
    def readers(self) -> list[str]:
        """Names of the layers in which another sequence reads the tokens: latents, or the outputs themselves."""
        return [name for name, layer in self.layers.items() if self.reads(layer) == TOKENS != layer.role.queries]

    @property
    def token_mask(self) -> KeyMask | None:
        """True where a token is real."""
        return None if self.tokens is None else self.tokens.mask
