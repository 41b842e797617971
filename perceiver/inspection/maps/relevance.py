"""Gradient-weighted relevance (Chefer et al. 2021, arXiv:2103.15679): the tokens on which an answer depends.

Rollout uses the weights as they are; here a weight counts by how much an increase of it raises the score of an answer
(eq. 5): Ā = mean over heads of (∂score/∂A ⊙ A)⁺. Relevance is then propagated as R ← R + Ā R (eq. 6). Backwards, with
`g` the row of R that belongs to the answer:

    every attention, from its queries to its keys:   g[keys] += g[queries] Ā

Deviation: tokens, latents and outputs are treated as one sequence, in which all attention follows this one rule. The
paper has separate rules for attention between two modalities (eq. 8 to 11), which first normalize the self-attention of
each modality; the tokens of a Perceiver do not attend to each other.

Evidence against an answer follows the same rule with the negative parts, Ā⁻ = mean over heads of (∂score/∂A ⊙ A)⁻: it
is the relevance of minus the score. The paper discards it. The relevance of one answer rather than another is that of
the difference of their scores. Its gradient is the difference of two gradients, of which the positive part is then
taken, so that it is not the difference of two relevances; evidence for A rather than B is evidence against B rather
than A.

The fused kernel returns neither A nor its gradient. With out = A v, ∂score/∂A = ∂score/∂out vᵀ, which is exact and is
computed in bounded chunks like A itself.
"""

from collections.abc import Sequence
from itertools import chain, islice

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.maps.record import Layer, Record
from perceiver.inspection.maps.rollout import uniform_memory
from perceiver.roles import OUTPUTS

Gradients = dict[str, Float[Tensor, "batch heads queries v_dim"] | None]

NO_GRADIENTS = (
    "relevance needs scores that have a gradient with respect to the recorded attention: compute them from the outputs "
    "of the recorded forward pass, and both inside of capture(model, gradients=True)"
)


def no_relevance(record: Record) -> str:
    """Return why relevance is not defined for the model of a record; empty if it is."""
    if not (layers := record.without_relevance):
        return ""
    reason = f"the outputs of {', '.join(layers)} do not change smoothly with attention weights"
    return f"Relevance has no meaning here: {reason}."


def evidence(record: Record, scores: Float[Tensor, "batch answers"]) -> Float[Tensor, "batch answers 2 tokens"]:
    """Return the relevance of each token for each score, and against it; at least 0, without a unit.

    Args:
        record: the forward pass, captured with gradients.
        scores: differentiable scores of one output, such as logits; those of a sample depend on that sample only.

    Raises:
        ValueError: the forward pass was captured without gradients; the scores do not depend on it; or the outputs of a
            layer do not change smoothly with its weights.
    """
    if record.without_relevance:
        raise ValueError(no_relevance(record))
    outs = {name: layer.outs for name, layer in record.layers.items() if layer.outs}
    assert record.tokens is not None
    if scores.shape[1] == 0:
        return record.tokens.values.new_zeros(record.num_rows, 0, 2, record.tokens.values.shape[1], dtype=torch.float32)
    if len(outs) < len(record.layers) or not scores.requires_grad:
        raise ValueError(NO_GRADIENTS)
    found = []
    with torch.autocast(scores.device.type, enabled=False):
        for slot in range(scores.shape[1]):
            score, inputs = scores[:, slot].sum(), list(chain(*outs.values()))  # none: a mean over the tokens
            gradients = torch.autograd.grad(score, inputs, retain_graph=True, allow_unused=True) if inputs else ()
            if outs and all(gradient is None for gradient in gradients):
                raise ValueError(NO_GRADIENTS)
            calls = iter(gradients)
            by_name = {
                name: _concatenated(of_layer, [*islice(calls, len(of_layer))]) for name, of_layer in outs.items()
            }
            found.append(_propagate(record, by_name))
    return torch.stack(found, dim=1)


def relevance(record: Record, scores: Float[Tensor, "batch answers"]) -> Float[Tensor, "batch answers tokens"]:
    """Return how much each score depends on each token through attention, see `evidence`: the part for it alone."""
    return evidence(record, scores)[:, :, 0]


def _concatenated(
    outs: Sequence[Float[Tensor, "batch heads _ v_dim"]],
    gradients: Sequence[Float[Tensor, "batch heads _ v_dim"] | None],
) -> Float[Tensor, "batch heads queries v_dim"] | None:
    """Return the gradient of all calls of a layer: zeros for calls that do not affect the score, None if none does."""
    if all(gradient is None for gradient in gradients):
        return None
    parts = zip(outs, gradients, strict=True)
    return torch.cat([torch.zeros_like(out) if gradient is None else gradient for out, gradient in parts], dim=2)


def _propagate(record: Record, gradients: Gradients) -> Float[Tensor, "batch 2 tokens"]:
    """Propagate the relevance for and against one score of each sample from the queries it depends on to the tokens."""
    of_decoders = [gradient for name in record.decode_layers if (gradient := gradients[name]) is not None]
    shares: dict[str, Tensor] = {}
    if of_decoders:  # the queries of the last layer that change the score
        shares[OUTPUTS] = _changing(of_decoders[-1])
    elif record.output_lengths:
        for sequence in record.output_lengths:
            own = [gradients[name] for name, layer in record.layers.items() if layer.role.queries == sequence]
            if found := [gradient for gradient in own if gradient is not None]:
                shares[sequence] = _changing(found[-1])
        if not shares:
            raise ValueError(NO_GRADIENTS)
    else:
        shares[record.memory] = uniform_memory(record).expand(-1, 2, -1)
    for name, layer in reversed(record.layers.items()):
        gradient, queries = gradients[name], layer.role.queries
        if gradient is None or queries not in shares:  # the score does not depend on it
            continue
        record.add_read(shares, layer, _weighted(layer, gradient, shares[queries]))
    return record.take_tokens(shares)


def _changing(gradient: Float[Tensor, "batch heads queries v_dim"]) -> Float[Tensor, "batch 2 queries"]:
    """Return 1 for the queries of a layer whose output affects the score, for relevance and for evidence against."""
    return (gradient != 0).any(dim=-1).any(dim=1).float()[:, None].expand(-1, 2, -1)


def _weighted(
    layer: Layer, gradient: Float[Tensor, "batch heads queries v_dim"], share: Float[Tensor, "batch 2 queries"]
) -> Float[Tensor, "batch 2 keys"]:
    """Return the first row of `share` times Ā and the second times Ā⁻, computed in chunks."""
    assert layer.v is not None
    read = share.new_zeros(layer.num_rows, 2, layer.num_keys)
    for chunk in layer.chunks():
        changes = layer.weights(chunk) * (gradient[:, :, chunk].float() @ layer.v.float().mT)
        for side, signed in enumerate((changes, -changes)):
            positive = signed.clamp_min(0.0).mean(dim=1)
            read[:, side] += (share[:, side, None, chunk] @ positive)[:, 0]
    return read
