"""What an answer depends on: gradient-weighted relevance (Chefer et al. 2021, arXiv:2103.15679).

Where rollout takes weights as they are, here a weight counts as far as more of it would raise the score of an answer
(eq. 5): Ā = mean over heads of (∂score/∂A ⊙ A)⁺. Relevance then flows as R ← R + Ā R (eq. 6). Followed backwards, with
`g` the row of R that belongs to the answer:

    every attention, from its queries to its keys:   g[keys] += g[queries] Ā

Deviation: tokens, latents and outputs are taken for one sequence, in which all attention follows that one rule. The
paper has rules of their own for attention between two modalities (eq. 8 to 11), which normalise what each modality has
mixed in itself before; tokens of a Perceiver do not attend to each other at all.

The fused kernel gives neither A nor its gradient, but both follow from what it was given: with out = A v it is
∂score/∂A = ∂score/∂out vᵀ, which is exact, and is computed in bounded chunks like A itself.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Layer, Record
from perceiver.inspection.rollout import even_memory
from perceiver.mechanisms.base import OUTPUTS, TOKENS

Gradients = dict[str, Float[Tensor, "batch heads queries v_dim"] | None]

NEEDS = "relevance needs capture(model, gradients=True), and scores of the forward pass inside of it"


def relevance(record: Record, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers tokens"]:
    """How much each score depends on each token by the attention of a forward pass; at least 0, in no unit.

    Args:
        record: the forward pass, captured with gradients.
        scores: what is explained: differentiable scores, such as logits, that each sample has of itself alone.
            All are of one output.

    Raises:
        ValueError: the forward pass was captured without gradients, or the scores do not depend on it.
    """
    outs = {name: layer.out for name, layer in record.layers.items() if layer.out is not None}
    assert record.tokens is not None
    if scores.shape[1] == 0:
        return record.tokens.values.new_zeros(record.num_rows, 0, record.tokens.values.shape[1], dtype=torch.float32)
    if len(outs) < len(record.layers) or not scores.requires_grad:
        raise ValueError(NEEDS)
    found = []
    with torch.autocast(scores.device.type, enabled=False):
        for reader in range(scores.shape[1]):
            score, read = scores[:, reader].sum(), list(outs.values())  # nothing, for a mean over the tokens themselves
            gradients = torch.autograd.grad(score, read, retain_graph=True, allow_unused=True) if read else ()
            by_name: Gradients = dict(zip(outs, gradients, strict=True))
            if outs and all(gradient is None for gradient in gradients):
                raise ValueError(NEEDS)
            found.append(_followed_back(record, by_name))
    return torch.stack(found, dim=1)


def _followed_back(record: Record, gradients: Gradients) -> Float[Tensor, "batch tokens"]:
    """The row of one score for each sample, from its queries to the tokens."""
    shares: dict[str, Tensor] = {}
    of_decoders = [gradients[name] for name in record.decoders]
    if asked := [gradient for gradient in of_decoders if gradient is not None]:
        shares[OUTPUTS] = _asked_by(asked[-1])
    else:
        shares[record.memory] = even_memory(record)[:, 0]  # the mean over it gives the scores
    for name, layer in reversed(record.layers.items()):
        gradient, queries, keys = gradients[name], layer.role.queries, record.reads(layer)
        if gradient is None or queries not in shares:  # the score does not depend on it
            continue
        read = _through(layer, gradient, shares[queries])
        shares[keys] = shares[keys] + read if keys in shares else read
    return shares[TOKENS]


def _asked_by(gradient: Float[Tensor, "batch heads queries v_dim"]) -> Float[Tensor, "batch queries"]:
    """Which queries a score is read from: those of the last reading of the memory that change it."""
    return (gradient != 0).any(dim=-1).any(dim=1).float()


def _through(
    layer: Layer, gradient: Float[Tensor, "batch heads queries v_dim"], share: Float[Tensor, "batch queries"]
) -> Float[Tensor, "batch keys"]:
    """`share` times Ā, without ever holding all of it."""
    assert layer.v is not None
    read = share.new_zeros(layer.num_rows, layer.num_keys)
    for chunk in layer.chunks():
        slopes = gradient[:, :, chunk].float() @ layer.v.float().mT
        useful = (layer.weights(chunk) * slopes).clamp_min(0.0).mean(dim=1)
        read += (share[:, None, chunk] @ useful)[:, 0]
    return read
