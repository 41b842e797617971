"""From an output back to the inputs, through all layers: attention rollout (Abnar & Zuidema 2020), in reverse.

Each layer passes on (1 - α) of what flows through it by its residual and α by its attention. Followed backwards from
the outputs, `g` is how much of each latent an output rests on, in the beginning what its query reads of the latents
(the mean over the layers of a decoder that has several; a word's own reading, not that of the words before it):

    self-attention A:   g ← (1 - α) g + α g A
    cross-attention W:  inputs += α g W,   g ← (1 - α) g

so that any number of cross-attends costs memory for queries × tokens only. What is left in `g` at the end rests on the
initial latents, which are the same for every input; it is returned, not hidden. α is a convention (0.5 in the paper),
and the result says where information could come from, not what the answer depends on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.capture import Capture, Layer


@dataclass(frozen=True)
class Rollout:
    """Where outputs get their information from; `inputs` sums with `residual` to one.

    Attributes:
        inputs: share of each input token.
        residual: share of the initial latents, which know nothing of the input.
    """

    inputs: Float[Tensor, "batch readers tokens"]
    residual: Float[Tensor, "batch readers"]


def rollout(
    captured: Capture, *, alpha: float = 0.5, readers: Float[Tensor, "batch readers queries"] | None = None
) -> Rollout:
    """Roll the attention of a captured forward pass back from the decoder's queries to the input tokens.

    A decoder without attention pools: there is one query, which rests on all latents alike.

    Args:
        captured: the forward pass.
        alpha: share of attention against residual.
        readers: what is rolled back: mixtures of the decoder's queries, by the share of each (`mean_reader`,
            `readers_of`); None for each query by itself.
    """
    encoder = [layer for layer in captured.layers.values() if layer.role in ("cross", "self")]
    decoders = [captured.layers[name] for name in captured.named("decode")]
    if not decoders:
        share = even_share(encoder[-1])
    elif readers is None:
        share = torch.stack([captured.map(name) for name in captured.named("decode")]).mean(dim=0)
    else:
        share = torch.stack([layer.through(readers.to(layer.q.device)) for layer in decoders]).mean(dim=0)
    inputs = None
    for layer in reversed(encoder):
        read = layer.through(share)
        if layer.role == "self":
            share = (1 - alpha) * share + alpha * read
        else:
            inputs = alpha * read if inputs is None else inputs + alpha * read
            share = (1 - _shares_read(layer, alpha)) * share
    assert inputs is not None, "a Perceiver has at least one cross-attend"
    return Rollout(inputs=inputs, residual=share.sum(dim=-1))


def readers_of(
    queries: Sequence[Sequence[Sequence[int]]], num_queries: int
) -> Float[Tensor, "batch readers num_queries"]:
    """For each sample and reader the numbers of the queries it is the mean of -> shares; zeros fill up the samples."""
    shares = torch.zeros(len(queries), max(map(len, queries), default=0), num_queries)
    for sample, of_sample in enumerate(queries):
        for reader, chosen in enumerate(of_sample):
            shares[sample, reader, list(chosen)] = 1 / max(len(chosen), 1)
    return shares


def mean_reader(captured: Capture) -> Float[Tensor, "batch 1 queries"]:
    """The mean over all queries of the decoder."""
    batch_size = next(iter(captured.layers.values())).q.shape[0]
    return torch.full((batch_size, 1, captured.num_outputs), 1 / captured.num_outputs)


def even_share(layer: Layer) -> Float[Tensor, "batch 1 queries"]:
    """The share of each query of a layer where all have the same."""
    return layer.q.new_full((layer.q.shape[0], 1, layer.num_queries), 1 / layer.num_queries, dtype=torch.float32)


def _shares_read(layer: Layer, alpha: float) -> Float[Tensor, "batch 1 1"] | float:
    """What of a cross-attend comes from its inputs: α, and nothing where a sample has no real input."""
    return alpha if layer.mask is None else alpha * layer.mask.any(dim=1)[:, None, None].float()
