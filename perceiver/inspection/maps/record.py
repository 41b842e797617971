"""The attention of a forward pass: for each layer, the tensors that determine its weights.

Weights are recomputed in float32, only those requested and in bounded chunks: all weights of 512 latents that read
50,176 tokens take 98 MiB per head, sample and cross-attend.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.mechanisms.base import Mechanism
from perceiver.roles import MEMORY, OUTPUTS, TOKENS, Role
from perceiver.types import ALL, Indices, JoinedTokens, KeyMask, Span

MAX_WEIGHTS = 2**24
"""Weights in memory at the same time, unless more are requested: 64 MiB."""


@dataclass(frozen=True)
class Layer:
    """One attention of one forward pass.

    Attributes:
        role: the sequence that it updates, and the one that it reads.
        mechanism: computes its weights; None: they are a softmax, which a subclass computes.
        q, k: queries and keys by head.
        mask: True where a key is real.
        causal: whether a query sees only the keys up to its own place.
        attention_share: ‖attention‖ / (‖attention‖ + ‖queries‖), where the residual adds attention to the queries;
            1 without a residual.
        has_residual: whether attention is added to the queries.
        start: position of the first query, see `Mechanism.forward`.
        key_lengths: sequence -> length, of the sequences that make up the keys, in order; empty: the one of the role.
        v: values by head, if gradients are recorded.
        outs: weights times values, of each call of the mechanism, if gradients are recorded.
    """

    role: Role
    mechanism: Mechanism | None
    q: Float[Tensor, "batch heads queries qk_dim"]
    k: Float[Tensor, "batch heads keys qk_dim"]
    mask: KeyMask | None
    causal: bool
    attention_share: Float[Tensor, "batch queries"]
    has_residual: bool
    start: int = 0
    key_lengths: Mapping[str, int] = field(default_factory=dict)
    v: Float[Tensor, "batch heads keys v_dim"] | None = None
    outs: tuple[Float[Tensor, "batch heads queries v_dim"], ...] = ()

    @property
    def has_relevance(self) -> bool:
        """See `Mechanism`."""
        return self.mechanism is None or self.mechanism.has_relevance

    @property
    def has_scores(self) -> bool:
        """See `Mechanism`."""
        return self.mechanism is None or self.mechanism.has_scores

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
        assert self.mechanism is not None
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
        token_lengths: sequence -> length, of the sequences that make up the tokens, in order; empty: `TOKENS` alone.
        fixed: True for tokens that are never masked when maps are tested, such as a class token; None for no tokens.
        output_lengths: sequence -> length, of the sequences whose elements are outputs, if no decoder attends to them;
            empty: an output without attention of a decoder is the mean of the memory.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.tokens: JoinedTokens | None = None
        self.token_lengths: dict[str, int] = {}
        self.output_lengths: dict[str, int] = {}
        self.fixed: KeyMask | None = None
        self.queries: Mapping[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def for_output(self, output: str, *, all_queries: bool = False) -> "Record":
        """Return the part of the forward pass on which one output depends: without the layers of other decoders.

        Of a decoder with several outputs, the layers that read the memory have the queries of this output alone, and no
        gradients, unless `all_queries`.
        """
        decoder, _, _ = output.rpartition("/")
        part = Record()
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
        part.token_lengths, part.output_lengths = self.token_lengths, self.output_lengths
        return part

    @property
    def parts(self) -> list["Record"]:
        """The part of the forward pass on which each output depends; see `for_output`."""
        return [self.for_output(output) for output in self.outputs] or [self]

    @property
    def spans(self) -> dict[str, Span]:
        """Modality -> its place among the tokens."""
        return {} if self.tokens is None else self.tokens.spans

    @property
    def token_mask(self) -> KeyMask | None:
        """True where a token is real; None if all are."""
        return None if self.tokens is None else self.tokens.mask

    @property
    def real_tokens(self) -> Bool[Tensor, "batch tokens"]:
        """True where a token is real, also if no token is masked."""
        assert self.tokens is not None
        values, mask = self.tokens.values, self.tokens.mask
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if mask is None else mask

    @property
    def num_rows(self) -> int:
        assert self.tokens is not None
        return len(self.tokens.values)

    @property
    def num_outputs(self) -> int:
        """Number of queries of the decoder, or elements that are outputs; 1 for a decoder that pools."""
        decoders = self.decode_layers
        return self.layers[decoders[-1]].num_queries if decoders else sum(self.output_lengths.values()) or 1

    @property
    def memory(self) -> str:
        """The sequence that the decoder reads: the one that is updated last before it."""
        before = [layer.role.queries for layer in self.layers.values() if layer.role.queries != OUTPUTS]
        return before[-1] if before else TOKENS

    def key_parts(self, layer: Layer) -> dict[str, slice]:
        """Return the sequences that a layer reads, and the place of each among its keys."""
        lengths = layer.key_lengths or {self.memory if layer.role.keys == MEMORY else layer.role.keys: layer.num_keys}
        return _places(lengths)

    @property
    def token_places(self) -> dict[str, slice]:
        """The sequences that the tokens consist of, and the place of each."""
        assert self.tokens is not None
        return _places(self.token_lengths or {TOKENS: self.tokens.values.shape[1]})

    def on_tokens(self, layer: Layer, read: Float[Tensor, "*rest keys"]) -> Float[Tensor, "*rest tokens"]:
        """Return the part of values at the keys of a layer that lies on the tokens; zeros on others."""
        parts, places = self.key_parts(layer), self.token_places
        if list(parts) == list(places):
            return read
        found = [
            read[..., parts[name]] if name in parts else read.new_zeros(*read.shape[:-1], place.stop - place.start)
            for name, place in places.items()
        ]
        return torch.cat(found, dim=-1)

    def add_read(
        self, shares: dict[str, Float[Tensor, "*rest _"]], layer: Layer, read: Float[Tensor, "*rest keys"]
    ) -> None:
        """Add values at the keys of a layer to those of the sequences that it reads."""
        for name, place in self.key_parts(layer).items():
            part = read[..., place]
            shares[name] = shares[name] + part if name in shares else part

    def take_tokens(self, shares: dict[str, Float[Tensor, "*rest _"]]) -> Float[Tensor, "*rest tokens"]:
        """Remove and return the values at the tokens among those of all sequences; zeros if there are none."""
        found = next(iter(shares.values()))
        return torch.cat(
            [
                shares.pop(name) if name in shares else found.new_zeros(*found.shape[:-1], place.stop - place.start)
                for name, place in self.token_places.items()
            ],
            dim=-1,
        )

    def split_memory(self, memory: Float[Tensor, "*rest memory"]) -> dict[str, Float[Tensor, "*rest _"]]:
        """Return values at the memory by sequence."""
        if not self.output_lengths:
            return {self.memory: memory}
        return {name: memory[..., place] for name, place in _places(self.output_lengths).items()}

    @property
    def decode_layers(self) -> list[str]:
        """Names of the layers in which outputs read the memory."""
        return [name for name, layer in self.layers.items() if layer.role.queries == OUTPUTS != layer.role.keys]

    @property
    def without_relevance(self) -> list[str]:
        """Names of the layers whose outputs do not change smoothly with their weights, see `Mechanism`."""
        return [name for name, layer in self.layers.items() if not layer.has_relevance]

    @property
    def input_layers(self) -> list[str]:
        """Names of the layers in which another sequence reads the tokens: latents, or the outputs themselves.

        If tokens are outputs and no other sequence reads them, those in which they read each other.
        """
        inputs = self.token_lengths.keys() or {TOKENS}
        readers = [name for name, layer in self.layers.items() if not inputs.isdisjoint(self.key_parts(layer))]
        others = [name for name in readers if self.layers[name].role.queries not in inputs]
        return others or (readers if self.output_lengths else [])

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


def _places(lengths: Mapping[str, int]) -> dict[str, slice]:
    """Return the place of each sequence in their concatenation."""
    stops = accumulate(lengths.values())
    return {name: slice(stop - length, stop) for (name, length), stop in zip(lengths.items(), stops, strict=True)}
