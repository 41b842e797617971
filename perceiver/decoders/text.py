"""A text, word by word: an autoregressive transformer decoder that reads the latents.

Layers are those of Vaswani et al. (2017, section 3.1), pre-norm: causal self-attention over the words so far, then
cross-attention to the latents. Deviation: an MLP follows each of the two, since they are the blocks of the Perceiver.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock, KeyValueCache, SelfBlock
from perceiver.decoders.base import Decoder

Words = Int[Tensor, "batch length"]
Logits = Float[Tensor, "batch length vocab"]


class LayerCache:
    """What one layer keeps between two words."""

    def __init__(self) -> None:
        self.words = KeyValueCache(grows=True)
        self.latents = KeyValueCache(grows=False)


class TextLayer(nn.Module):
    """Words read the words before them, then the latents."""

    def __init__(self, *, dim: int, latent_dim: int, self_attention: BlockSpec, cross_attention: BlockSpec) -> None:
        super().__init__()
        self.self_block = SelfBlock(dim=dim, spec=self_attention)
        self.cross_block = CrossBlock(query_dim=dim, input_dim=latent_dim, spec=cross_attention)

    def forward(
        self,
        words: Float[Tensor, "batch length dim"],
        latents: Float[Tensor, "batch latents latent_dim"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        if cache is None:
            return self.cross_block(self.self_block(words, causal=True), latents)
        words = self.self_block(words, causal=True, cache=cache.words)
        return self.cross_block(words, latents, cache=cache.latents)


class TextDecoder(Decoder):
    """Latents and words -> for each place the logits of the word behind it.

    Args:
        dim: width of the latents.
        vocab_size: how many words there are.
        max_length: most words in a text.
        word_dim: width of the words' vectors.
        num_layers: layers.
        self_attention, cross_attention: sizes of a layer's two blocks.
        dropout: of the words' vectors.
        tied: whether the logits are products with the embeddings themselves (Press & Wolf 2017).
    """

    is_asked: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int,
        max_length: int,
        word_dim: int,
        num_layers: int,
        self_attention: BlockSpec,
        cross_attention: BlockSpec,
        dropout: float,
        tied: bool,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("max_length", max_length), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.embedding = nn.Embedding(vocab_size, word_dim)
        self.positions = nn.Parameter(torch.empty(max_length, word_dim))
        for weights in (self.embedding.weight, self.positions):
            nn.init.trunc_normal_(weights, std=0.02, a=-2.0, b=2.0)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TextLayer(dim=word_dim, latent_dim=dim, self_attention=self_attention, cross_attention=cross_attention)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(word_dim)
        self.head = nn.Linear(word_dim, vocab_size)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, latents: Float[Tensor, "batch latents dim"], words: Words) -> Logits:
        """All places at once, as for training: place i sees the words up to i.

        There may be several texts for each sample, as many for each, one behind the other.

        Raises:
            ValueError: the text is longer than `max_length`.
        """
        latents = latents.repeat_interleave(len(words) // len(latents), dim=0)
        return self.logits(latents, words, start=0, caches=None)

    def begin(self, latents: Float[Tensor, "batch latents dim"]) -> "Writing":
        """Begin to generate."""
        return Writing(self, latents)

    def logits(
        self, latents: Float[Tensor, "batch latents dim"], words: Words, start: int, caches: list[LayerCache] | None
    ) -> Logits:
        stop = start + words.shape[1]
        if stop > len(self.positions):
            raise ValueError(f"max_length={len(self.positions)} is less than the {stop} words of a text")
        x = self.dropout(self.embedding(words) + self.positions[start:stop])
        for number, layer in enumerate(self.layers):
            x = layer(x, latents, None if caches is None else caches[number])
        return self.head(self.norm(x))


class Writing:
    """Texts that are being written, one row each; keys and values of what is done are kept.

    Args:
        decoder: writes them.
        latents: what about, a row a text.
    """

    def __init__(self, decoder: TextDecoder, latents: Float[Tensor, "rows latents dim"]) -> None:
        self.decoder = decoder
        self.latents = latents
        self.caches = [LayerCache() for _ in decoder.layers]
        self.length = 0

    def next(self, words: Int[Tensor, "rows more"]) -> Float[Tensor, "rows vocab"]:
        """The words that come next in each text -> the logits of the one behind them."""
        logits = self.decoder.logits(self.latents, words, self.length, self.caches)
        self.length += words.shape[1]
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Go on with some of the texts, in a new order; any may be there several times."""
        self.latents = self.latents[rows]
        for cache in self.caches:
            cache.words.select(rows)
            cache.latents.select(rows)
