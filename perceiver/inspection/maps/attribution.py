"""Attributions that do not use attention, to compare maps with: all are signed and specific to an answer.

- Gradient × input (Shrikumar et al. 2016, arXiv:1605.01713): the product of a token and the gradient of the score.
- Integrated gradients (Sundararajan et al. 2017, eq. 1): the same with the mean gradient on the line from tokens of
  zeros; their sum is the difference of the scores at its ends. Deviation: the points are not uniform but the fourth
  power of uniform ones (midpoint rule), since layer normalization changes the score mostly near zero. With uniform
  points the sum is wrong by 60 % and more.
- Occlusion (Zeiler & Fergus 2014, section 4.2): the drop of the score when a single token is masked.

All of them explain the joined tokens, after encoders and positions, so that they have the resolution of the maps. The
score is that of `relevance`: the logit of a class, and of a word the sum over its tokens.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.maps.answers import answer_scores
from perceiver.inspection.maps.capture import undisturbed
from perceiver.inspection.maps.explainer import Explains
from perceiver.inspection.maps.explanation import Explanation

NUM_STEPS, POWER = 32, 4
"""Points of the integral, and the power of their distribution."""
TOKENS_AT_ONCE = 2**14
"""Tokens of a forward pass, unless a single sample has more."""
Scores = Callable[[Float[Tensor, "rows tokens dim"], Bool[Tensor, "rows tokens"]], Float[Tensor, "rows answers"]]


def rival_maps(explainer: Explains, explanation: Explanation) -> dict[str, Float[Tensor, "batch answers tokens"]]:
    """Return `gradient_input`, `integrated_gradients` and `occlusion` of the answers of an explanation."""
    record = explanation.record
    assert record.tokens is not None
    values, real = record.tokens.values.float(), record.real_tokens
    most = max(map(len, explanation.answers), default=0)
    shape = (len(values), most, values.shape[1])
    names = ("gradient_input", "integrated_gradients", "occlusion")
    found = {name: torch.zeros(shape, device=values.device) for name in names}
    if not most:
        return found
    size = max(TOKENS_AT_ONCE // values.shape[1], 1)
    with undisturbed(explainer.module), explainer.forward_context():
        for start in range(0, len(values), size):
            rows = slice(start, start + size)
            scores = _scores(explainer, explanation, rows)
            parts = (
                _gradient_input(scores, values[rows], real[rows]),
                _integrated_gradients(scores, values[rows], real[rows]),
                _occlusion(scores, values[rows], real[rows]),
            )
            for name, part in zip(names, parts, strict=True):
                found[name][rows, : part.shape[1]] = part
    return found


def _scores(explainer: Explains, explanation: Explanation, rows: slice) -> Scores:
    """Return the function from tokens and their mask to the scores of the answers of some rows."""
    record, answers = explanation.record, explanation.answers[rows]
    assert record.tokens is not None
    tokens, queries = record.tokens, {name: given[rows] for name, given in record.queries.items()}

    def scores(
        values: Float[Tensor, "rows tokens dim"], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows answers"]:
        outputs = explainer.forward_tokens(replace(tokens, values=values, mask=mask), queries)
        return answer_scores({name: output.float() for name, output in outputs.items()}, answers)

    return scores


def _gradients(
    scores: Scores, values: Float[Tensor, "rows tokens dim"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows answers tokens dim"]:
    with torch.enable_grad():
        values = values.detach().requires_grad_()
        found = scores(values, mask)
        slots = [
            torch.autograd.grad(found[:, slot].sum(), values, retain_graph=True)[0] for slot in range(found.shape[1])
        ]
    return torch.stack(slots, dim=1)


def _gradient_input(
    scores: Scores, values: Float[Tensor, "rows tokens dim"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows answers tokens"]:
    return torch.einsum("bstd,btd->bst", _gradients(scores, values, mask), values).masked_fill(~mask[:, None], 0.0)


def _integrated_gradients(
    scores: Scores, values: Float[Tensor, "rows tokens dim"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows answers tokens"]:
    total = torch.zeros(())
    for step in range(NUM_STEPS):
        uniform = (step + 0.5) / NUM_STEPS
        gradients = _gradients(scores, uniform**POWER * values, mask)
        weight = POWER * uniform ** (POWER - 1) / NUM_STEPS
        total = total + weight * torch.einsum("bstd,btd->bst", gradients, values)
    return total.masked_fill(~mask[:, None], 0.0)


def _occlusion(
    scores: Scores, values: Float[Tensor, "rows tokens dim"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "rows answers tokens"]:
    whole = scores(values, mask)
    found = whole.new_zeros(*whole.shape, values.shape[1])
    for token in mask.any(dim=0).nonzero()[:, 0].tolist():
        left = mask.clone()
        left[:, token] = False
        found[..., token] = whole - scores(values.masked_fill(~left[..., None], 0.0), left)
    return found.masked_fill(~mask[:, None], 0.0)
