"""An autoregressive transformer decoder over the memory.

Layers are those of Vaswani et al. (2017, section 3.1), pre-norm: causal self-attention over the tokens so far, then
cross-attention to the memory. Deviation: each of the two is a block of the Perceiver, with an MLP.
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock, KeyValueCache, SelfBlock
from perceiver.decoders.base import LOGITS, Decoder, given_token_ids
from perceiver.queries.text import Text
from perceiver.roles import DECODE, DECODE_SELF
from perceiver.types import IncrementalDecoder, Memory, QueryKind

Ids = Int[Tensor, "batch length"]
Logits = Float[Tensor, "batch length vocab"]


class LayerCache:
    """Cached keys and values of a layer."""

    def __init__(self) -> None:
        self.text = KeyValueCache(grows=True)
        self.memory = KeyValueCache(grows=False)


class TextLayer(nn.Module):
    """Causal self-attention, then cross-attention to the memory."""

    def __init__(self, *, dim: int, memory_dim: int, self_attention: BlockSpec, cross_attention: BlockSpec) -> None:
        super().__init__()
        self.self_block = SelfBlock(dim=dim, spec=self_attention, role=DECODE_SELF)
        self.cross_block = CrossBlock(query_dim=dim, input_dim=memory_dim, spec=cross_attention, role=DECODE)

    def forward(
        self, x: Float[Tensor, "batch length dim"], memory: Memory, cache: LayerCache | None = None
    ) -> Float[Tensor, "batch length dim"]:
        if cache is None:
            return self.cross_block(self.self_block(x, causal=True), memory.values, mask=memory.mask)
        x = self.self_block(x, causal=True, cache=cache.text)
        return self.cross_block(x, memory.values, mask=memory.mask, cache=cache.memory)


class TextDecoder(Decoder):
    """Memory and token ids -> `logits` of the next token at each position.

    Args:
        dim: width of the memory.
        queries: embeds the token ids, at the width of the layers.
        num_layers: layers.
        self_attention, cross_attention: sizes of a layer's two blocks.
        dropout: of the embedded tokens.
        tied: whether the embeddings are also the weights of the output layer (Press & Wolf 2017).

    Raises:
        ValueError: `num_layers` is less than 1, or `dropout` is not in [0, 1).
    """

    def __init__(
        self,
        *,
        dim: int,
        queries: Text,
        num_layers: int,
        self_attention: BlockSpec,
        cross_attention: BlockSpec,
        dropout: float,
        tied: bool,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        self.queries = queries
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TextLayer(dim=queries.dim, memory_dim=dim, self_attention=self_attention, cross_attention=cross_attention)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(queries.dim)
        self.head = nn.Linear(queries.dim, queries.embedding.num_embeddings)
        if tied:
            self.head.weight = queries.embedding.weight

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        return {LOGITS: "token_ids"}

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        ids = given_token_ids(queries)
        return {LOGITS: self.logits(memory.repeat(ids.shape[0] // memory.values.shape[0]), ids)}

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        return CachedText(self, memory) if output == LOGITS else super().incremental_decoder(memory, output)

    def logits(self, memory: Memory, ids: Ids, start: int = 0, caches: list[LayerCache] | None = None) -> Logits:
        """Return logits of the next token at each position, the first of which is `start`."""
        x = self.dropout(self.queries(ids, start).values)
        for number, layer in enumerate(self.layers):
            x = layer(x, memory, None if caches is None else caches[number])
        return self.head(self.norm(x))


class CachedText:
    """Texts in generation, one per row, with cached keys and values."""

    def __init__(self, decoder: TextDecoder, memory: Memory) -> None:
        self.decoder = decoder
        self.memory = memory
        self.caches = [LayerCache() for _ in decoder.layers]
        self.length = 0

    def next(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Append a token to each text, and return logits of the next one."""
        logits = self.decoder.logits(self.memory, ids[:, None], self.length, self.caches)
        self.length += 1
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Continue with some of the texts, in any order, each any number of times."""
        self.memory = self.memory.select(rows)
        for cache in self.caches:
            cache.text.select(rows)
            cache.memory.select(rows)
