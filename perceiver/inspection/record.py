"""The attention of a forward pass: for each layer, the tensors that determine its weights.

Weights are recomputed in float32, only those requested and in bounded chunks: all weights of 512 latents that read
50,176 tokens take 98 MiB per head, sample and cross-attend.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.mechanisms.base import ALL, MEMORY, OUTPUTS, TOKENS, Indices, KeyMask, Mechanism, Role
from perceiver.types import JoinedTokens, Span

MAX_WEIGHTS = 2**24
"""Weights in memory at the same time, unless more are requested: 64 MiB."""


@dataclass(frozen=True)
class Layer:
    """One attention of one forward pass.

    Attributes:
        role: the sequence that it updates, and the one that it reads.
        mechanism: computes its weights.
        q, k: queries and keys by head.
        mask: True where a key is real.
        causal: whether a query sees only the keys up to its own place.
        attention_share: ‖attention‖ / (‖attention‖ + ‖queries‖), where the residual adds attention to the queries;
            1 without a residual.
        has_residual: whether attention is added to the queries.
        start: position of the first query, see `Mechanism.forward`.
        v: values by head, only where gradients are recorded.
        outs: the weights times them, of each call of the mechanism; only where gradients are recorded.
    """

    role: Role
    mechanism: Mechanism
    q: Float[Tensor, "batch heads queries qk_dim"]
    k: Float[Tensor, "batch heads keys qk_dim"]
    mask: KeyMask | None
    causal: bool
    attention_share: Float[Tensor, "batch queries"]
    has_residual: bool
    start: int = 0
    v: Float[Tensor, "batch heads keys v_dim"] | None = None
    outs: tuple[Float[Tensor, "batch heads queries v_dim"], ...] = ()

    @property
    def num_rows(self) -> int:
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def num_queries(self) -> int:
        return self.q.shape[2]

    @property
    def num_keys(self) -> int:
        return self.k.shape[2]

    @torch.no_grad()
    def weights(self, queries: Indices = ALL, heads: Indices = ALL) -> Float[Tensor, "batch _ chosen keys"]:
        """Return the exact weights of the chosen queries and heads in float32."""
        return self.mechanism.weights(self.q, self.k, self.mask, self.causal, queries, self.start)[:, heads].float()

    def sample(self, index: int) -> "Layer":
        """Return the same attention for one sample of the batch, without values and outputs."""
        one = slice(index, index + 1)
        mask = None if self.mask is None else self.mask[one]
        share = self.attention_share[one]
        return replace(self, q=self.q[one], k=self.k[one], mask=mask, attention_share=share, v=None, outs=())

    def with_more_queries(self, other: "Layer") -> "Layer":
        """Return the attention of these queries and then those of `other`, which read the same keys."""
        share = torch.cat([self.attention_share, other.attention_share], dim=1)
        outs = (*self.outs, *other.outs)
        return replace(self, q=torch.cat([self.q, other.q], dim=2), attention_share=share, outs=outs)

    def part(self, queries: slice) -> "Layer":
        """Return the attention of some of the queries."""
        share, start = self.attention_share[:, queries], self.start + (queries.start or 0)
        return replace(self, q=self.q[:, :, queries], attention_share=share, start=start, v=None, outs=())

    def chunks(self, queries: Sequence[int] | None = None) -> Iterator[Sequence[int]]:
        """Yield the queries (None: all) in parts with at most `MAX_WEIGHTS` weights; at least one part."""
        queries = range(self.num_queries) if queries is None else queries
        size = max(MAX_WEIGHTS // (self.num_rows * self.num_heads * self.num_keys), 1)
        for start in range(0, max(len(queries), 1), size):
            yield queries[start : start + size]

    def propagate(self, shares: Float[Tensor, "batch rows queries"]) -> Float[Tensor, "batch rows keys"]:
        """Return `shares` times the weights (mean over heads), computed in chunks."""
        read = shares.new_zeros(*shares.shape[:2], self.num_keys)
        with torch.autocast(read.device.type, enabled=False):
            for chunk in self.chunks():
                read += shares[:, :, chunk] @ self.weights(chunk).mean(dim=1)
        return read

    @property
    def uniform(self) -> Float[Tensor, "batch 1 queries"]:
        """Equal shares of all queries."""
        return self.q.new_full((self.num_rows, 1, self.num_queries), 1 / self.num_queries, dtype=torch.float32)


class Record:
    """The attention of the last forward pass.

    Attributes:
        layers: name -> layer, in the order of execution; named by role and number: `cross0`, `self0`, … `decode0`; with
            several decoders, prefixed by the name of the decoder: `caption/decode0`.
        tokens: the tokens of all modalities.
        queries: the token ids given to the decoder, by name of the output.
        outputs: the model's outputs by name.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.tokens: JoinedTokens | None = None
        self.queries: Mapping[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def for_output(self, output: str, *, all_queries: bool = False) -> Self:
        """Return the part of the forward pass on which one output depends: without the layers of other decoders.

        Of a decoder with several outputs, the layers that read the memory have the queries of this output alone, and no
        gradients, unless `all_queries`.
        """
        decoder, _, _ = output.rpartition("/")
        part = type(self)()
        part.layers = {
            name: layer for name, layer in self.layers.items() if layer.role.decoder in (None, decoder or None)
        }
        own = {name: values for name, values in self.outputs.items() if name.rpartition("/")[0] == decoder}
        counts = [values.shape[1] if values.ndim > 2 else 1 for values in own.values()]
        if len(own) > 1 and not all_queries:
            start = sum(counts[: list(own).index(output)])
            queries = slice(start, start + counts[list(own).index(output)])
            part.layers |= {
                name: part.layers[name].part(queries)
                for name in part.decode_layers
                if part.layers[name].num_queries == sum(counts)
            }
        part.tokens, part.queries, part.outputs = self.tokens, self.queries, self.outputs
        return part

    @property
    def parts(self) -> list[Self]:
        """The part of the forward pass on which each output depends; see `for_output`."""
        return [self.for_output(output) for output in self.outputs] or [self]

    @property
    def spans(self) -> dict[str, Span]:
        """Modality -> its place among the tokens."""
        return {} if self.tokens is None else self.tokens.spans

    @property
    def token_mask(self) -> KeyMask | None:
        """True where a token is real."""
        return None if self.tokens is None else self.tokens.mask

    @property
    def num_rows(self) -> int:
        assert self.tokens is not None
        return len(self.tokens.values)

    @property
    def num_outputs(self) -> int:
        """Number of queries of the decoder; 1 for a decoder that pools."""
        decoders = self.decode_layers
        return self.layers[decoders[-1]].num_queries if decoders else 1

    @property
    def memory(self) -> str:
        """The sequence that the decoder reads: the one that is updated last before it."""
        before = [layer.role.queries for layer in self.layers.values() if layer.role.queries != OUTPUTS]
        return before[-1] if before else TOKENS

    def keys_of(self, layer: Layer) -> str:
        """Return the sequence that a layer reads."""
        return self.memory if layer.role.keys == MEMORY else layer.role.keys

    @property
    def decode_layers(self) -> list[str]:
        """Names of the layers in which outputs read the memory."""
        return [name for name, layer in self.layers.items() if layer.role.queries == OUTPUTS != layer.role.keys]

    @property
    def without_relevance(self) -> list[str]:
        """Names of the layers whose outputs do not change smoothly with their weights, see `Mechanism`."""
        return [name for name, layer in self.layers.items() if not layer.mechanism.has_relevance]

    @property
    def input_layers(self) -> list[str]:
        """Names of the layers in which another sequence reads the tokens: latents, or the outputs themselves."""
        return [name for name, layer in self.layers.items() if self.keys_of(layer) == TOKENS != layer.role.queries]

    def map(
        self, layer: str, head: int | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "batch queries keys"]:
        """Return attention weights of one layer.

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
