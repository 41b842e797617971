"""The randomization check (Adebayo et al. 2018, section 3): maps of a model whose weights are random must fall apart.

Weights are randomized from the outputs to the inputs, in order of their registration and cumulatively ("cascading
randomization"), in `NUM_STAGES` stages. A map that stays similar to the original one does not depend on what the model
has learned. The similarity is the rank correlation (Spearman) over the real tokens.

Deviation: the entries of each tensor are permuted rather than initialized anew, so that activations keep their scale.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.maps.explainer import Explains
from perceiver.inspection.maps.explanation import Explanation

NUM_STAGES = 4
Maps = Mapping[str, Float[Tensor, "batch answers tokens"]]


def randomization(
    explainer: Explains, explanation: Explanation, maps: Maps, compute: Callable[[Explains, Explanation], Maps]
) -> dict[str, Float[Tensor, "stages samples"]]:
    """Return how similar the maps of an explanation stay when the model is randomized; it is restored afterwards.

    Args:
        explainer: of the model.
        explanation: of some samples.
        maps: its maps.
        compute: returns the same maps from the explanation of the same answers by the randomized model.

    Returns:
        Kind of map -> the mean rank correlation of the answers of each sample that has answers, after each stage.
    """
    parameters = list(explainer.module.parameters())[::-1]
    saved = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    real = explanation.record.real_tokens
    stages: dict[str, list[Tensor]] = {name: [] for name in maps}
    try:
        for stage in range(NUM_STAGES):
            first, last = (len(parameters) * number // NUM_STAGES for number in (stage, stage + 1))
            for parameter in parameters[first:last]:
                flat = parameter.detach().flatten()
                order = torch.randperm(len(flat), generator=generator).to(flat.device)
                parameter.data.copy_(flat[order].view_as(parameter))  # `data`: graphs that read it remain usable
            found = compute(explainer, explainer.explain_again(explanation))
            for name, values in maps.items():
                correlation = rank_correlation(values, found[name], real)
                counts = [len(row) for row in explanation.answers]
                stages[name].append(
                    torch.stack(
                        [of_row[:count].mean() for of_row, count in zip(correlation, counts, strict=True) if count]
                    )
                    if any(counts)
                    else torch.zeros(0)
                )
    finally:
        for parameter, before in zip(parameters, saved, strict=True):
            parameter.data.copy_(before)
    return {name: torch.stack(of_map).cpu() for name, of_map in stages.items()}


def rank_correlation(
    first: Float[Tensor, "batch answers tokens"],
    second: Float[Tensor, "batch answers tokens"],
    real: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch answers"]:
    """Return the rank correlation (Spearman) of two maps over the real tokens; 0 where one of them is constant."""
    weights = real[:, None].double()
    centered = []
    for values in (first, second):
        ranks = _ranks(values, real)
        mean = (ranks * weights).sum(dim=-1, keepdim=True) / weights.sum(dim=-1, keepdim=True).clamp_min(1)
        centered.append((ranks - mean) * weights)
    norms = centered[0].norm(dim=-1) * centered[1].norm(dim=-1)
    return ((centered[0] * centered[1]).sum(dim=-1) / norms.where(norms > 0, 1.0)).float()


def _ranks(
    values: Float[Tensor, "batch answers tokens"], real: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch answers tokens"]:
    """Return ranks among the real tokens; equal values share their mean rank."""
    values = values.float().masked_fill(~real[:, None], torch.inf).contiguous()  # last, so that they change no rank
    ordered = values.sort(dim=-1).values
    first, last = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return ((first + last) / 2).masked_fill(~real[:, None], 0.0)
