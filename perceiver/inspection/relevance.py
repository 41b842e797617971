"""What an answer depends on: gradient-weighted relevance (Chefer et al. 2021, arXiv:2103.15679).

Where rollout takes weights as they are, here a weight counts as far as more of it would raise the score of an answer
(eq. 5): Ā = mean over heads of (∂score/∂A ⊙ A)⁺. Relevance then flows as R ← R + Ā R (eq. 6). Followed backwards, with
`g` the row of R that belongs to the answer:

    every attention, from its queries to its keys:   g[keys] += g[queries] Ā

Deviation: tokens, latents and words are taken for one sequence, in which all attention follows that one rule. The paper
has rules of their own for attention between two modalities (eq. 8 to 11), which normalise what each modality has mixed
in itself before; tokens of a Perceiver do not attend to each other at all.

The fused kernel gives neither A nor its gradient, but both follow from what it was given: with out = A v it is
∂score/∂A = ∂score/∂out vᵀ, which is exact, and is computed in bounded chunks like A itself.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Layer, Record

Gradients = dict[str, Float[Tensor, "batch heads queries v_dim"] | None]

NEEDS = "relevance needs capture(model, gradients=True), and scores of the forward pass inside of it"


def relevance(record: Record, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers tokens"]:
    """How much each score depends on each token by the attention of a forward pass; at least 0, in no unit.

    Args:
        record: the forward pass, captured with gradients.
        scores: what is explained: differentiable scores, such as logits, that each sample has of itself alone.

    Raises:
        ValueError: the forward pass was captured without gradients, or the scores do not depend on it.
    """
    outs = {name: layer.out for name, layer in record.layers.items() if layer.out is not None}
    first = record.layers[record.named("cross")[0]]
    if scores.shape[1] == 0:
        return first.q.new_zeros(first.num_rows, 0, first.num_keys, dtype=torch.float32)
    if len(outs) < len(record.layers) or not scores.requires_grad:
        raise ValueError(NEEDS)
    found = []
    with torch.autocast(scores.device.type, enabled=False):
        for reader in range(scores.shape[1]):
            gradients = torch.autograd.grad(
                scores[:, reader].sum(), list(outs.values()), retain_graph=True, allow_unused=True
            )
            by_name: Gradients = dict(zip(outs, gradients, strict=True))
            if all(by_name[name] is None for name in record.named("cross")):
                raise ValueError(NEEDS)
            found.append(_followed_back(record, by_name))
    return torch.stack(found, dim=1)


def _followed_back(record: Record, gradients: Gradients) -> Float[Tensor, "batch tokens"]:
    """The row of one score for each sample, from its queries to the tokens."""
    first = record.layers[record.named("cross")[0]]
    latents = first.q.new_zeros(first.num_rows, first.num_queries, dtype=torch.float32)
    tokens = latents.new_zeros(first.num_rows, first.num_keys)
    decoders = record.named("decode")
    if decoders:
        words = _asked_by(gradients[decoders[-1]], record.layers[decoders[-1]])
    else:
        latents += 1 / first.num_queries  # the mean over them gives the scores
    for name, layer in reversed(record.layers.items()):
        gradient = gradients[name]
        if gradient is None:  # the score does not depend on it
            continue
        if layer.role == "decode":
            latents = latents + _through(layer, gradient, words)
        elif layer.role == "words":
            words = words + _through(layer, gradient, words)
        elif layer.role == "self":
            latents = latents + _through(layer, gradient, latents)
        else:
            tokens = tokens + _through(layer, gradient, latents)
    return tokens


def _asked_by(gradient: Tensor | None, layer: Layer) -> Float[Tensor, "batch queries"]:
    """Which queries a score is read from: those of the last reading of the latents that change it."""
    if gradient is None:
        return layer.q.new_zeros(layer.num_rows, layer.num_queries, dtype=torch.float32)
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
