"""From an output back to the inputs, through all layers: attention rollout (Abnar & Zuidema 2020), in reverse.

Each layer passes on (1 - α) of what flows through it by its residual and α by its attention. Followed backwards from
the output queries, `g` is how much of each latent an output rests on:

    self-attention A:   g ← (1 - α) g + α g A
    cross-attention W:  inputs += α g W,   g ← (1 - α) g

so that any number of cross-attends costs memory for queries × tokens only. What is left in `g` at the end rests on the
initial latents, which are the same for every input; it is returned, not hidden. α is a convention (0.5 in the paper),
and the result says where information could come from, not what the answer depends on.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceiver.inspection.capture import Capture, Layer


@dataclass(frozen=True)
class Rollout:
    """Where outputs get their information from; `inputs` sums with `residual` to one.

    Attributes:
        inputs: share of each input token.
        residual: share of the initial latents, which know nothing of the input.
    """

    inputs: Float[Tensor, "batch queries tokens"]
    residual: Float[Tensor, "batch queries"]


def rollout(
    captured: Capture, *, alpha: float = 0.5, mean: bool = False, queries: Int[Tensor, "batch chosen"] | None = None
) -> Rollout:
    """Roll the attention of a captured forward pass back from the decoder's queries to the input tokens.

    A decoder without attention pools: there is one query, which rests on all latents alike.

    Args:
        captured: the forward pass.
        alpha: share of attention against residual.
        mean: one query, the mean over all, instead of each.
        queries: for each sample, those of the decoder's queries that are wanted; None for all. They cost what they are
            and not what all would.
    """
    encoder = [layer for layer in captured.layers.values() if layer.role != "decode"]
    decoders = captured.named("decode")
    if decoders:
        share = captured.map(decoders[-1])
        if queries is not None:
            share = share.take_along_dim(queries.to(share.device)[..., None], dim=1)
        share = share.mean(dim=1, keepdim=True) if mean else share
    else:
        share = even_share(encoder[-1])
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


def even_share(layer: Layer) -> Float[Tensor, "batch 1 queries"]:
    """The share of each query of a layer where all have the same."""
    return layer.q.new_full((layer.q.shape[0], 1, layer.num_queries), 1 / layer.num_queries, dtype=torch.float32)


def _shares_read(layer: Layer, alpha: float) -> Float[Tensor, "batch 1 1"] | float:
    """What of a cross-attend comes from its inputs: α, and nothing where a sample has no real input."""
    return alpha if layer.mask is None else alpha * layer.mask.any(dim=1)[:, None, None].float()
