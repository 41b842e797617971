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

    inputs: Float[Tensor, "batch queries tokens"]
    residual: Float[Tensor, "batch queries"]


def rollout(captured: Capture, *, alpha: float = 0.5) -> Rollout:
    """Roll the attention of a captured forward pass back from the decoder's queries to the input tokens.

    A decoder without attention pools: there is one query, which rests on all latents alike.
    """
    encoder = [layer for layer in captured.layers.values() if layer.role != "decode"]
    decoders = captured.named("decode")
    if decoders:
        latents_share = captured.map(decoders[-1])
    else:
        batch, _, num_latents, _ = encoder[-1].q.shape
        latents_share = encoder[-1].q.new_full((batch, 1, num_latents), 1 / num_latents, dtype=torch.float32)
    inputs = None
    for layer in reversed(encoder):
        read = _through(layer, latents_share)
        if layer.role == "cross":
            inputs = alpha * read if inputs is None else inputs + alpha * read
            latents_share = (1 - alpha) * latents_share
        else:
            latents_share = (1 - alpha) * latents_share + alpha * read
    assert inputs is not None, "a Perceiver has at least one cross-attend"
    return Rollout(inputs=inputs, residual=latents_share.sum(dim=-1))


def _through(layer: Layer, share: Float[Tensor, "batch queries latents"]) -> Float[Tensor, "batch queries keys"]:
    """`share` times the layer's weights (mean over heads), without ever holding all of them."""
    parts = [share[:, :, chunk] @ layer.weights(chunk).mean(dim=1) for chunk in layer.chunks()]
    return torch.stack(parts).sum(dim=0)
