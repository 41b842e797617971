"""Faithfulness of maps by deletion of the tokens with the highest values (Petsiuk et al. 2018).

Increasing shares of the tokens are masked, those with the highest values first. The deletion curve is the remaining
probability of the answer; it is compared with the curve for tokens masked in random order. The score is the area
between the two curves: positive where the marked tokens matter more than random ones, 0 for an uninformative map.

Deviations from the paper: tokens are masked instead of pixels blackened, so that the input stays one that the model
knows; curves are relative to the probability of the complete input; and the random curve is measured, not assumed.

Tokens of stems with overlapping receptive fields still contain part of their masked neighbors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceiver.inspection.capture import Explainable, undisturbed
from perceiver.inspection.explanation import Answers, Explainer, Explanation, answer_scores
from perceiver.inspection.record import Record

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the real tokens that are masked: close together where maps differ from chance."""
NUM_RANDOM = 2
"""Random orders that are averaged."""
MOST_ANSWERS, LEAST_LOSS = 2, 0.1
"""Tested answers of a sample: at most so many, whose probability falls by at least so much without any input. Answers
that do not need the input, such as some words, cannot test a map."""
LEAST_SAMPLES = 8
"""Samples needed for a standard error: of fewer, it is too uncertain itself."""
RANDOM = "random"
ERRORS = 2
"""Standard errors between 0 and a mean that differs from it."""
TITLES = {"mean_map": "mean attention of all layers"}
"""Kind of map -> its name in sentences, where they differ."""


@dataclass(frozen=True)
class DeletionCurves:
    """The remaining probability of each sample's tested answers (their mean), by share of the tokens masked.

    Attributes:
        curves: kind of map, and `random` -> probability relative to that of the complete input. Samples without a
            tested answer are excluded.
    """

    curves: dict[str, Float[Tensor, "samples fractions"]]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the curves of several batches as one."""
        return cls({name: torch.cat([part.curves[name] for part in parts]) for name in parts[0].curves})

    @property
    def num_samples(self) -> int:
        return len(self.curves[RANDOM])

    @property
    def areas(self) -> dict[str, Float[Tensor, " samples"]]:
        """Kind of map -> area between the random curve and its own."""
        by_chance, shares = self.curves[RANDOM], torch.tensor(FRACTIONS)
        kinds = {name: curve for name, curve in self.curves.items() if name != RANDOM}
        return {name: torch.trapezoid(by_chance - curve, shares, dim=1) for name, curve in kinds.items()}

    @property
    def scores(self) -> dict[str, float]:
        """`deletion/<kind of map>` -> mean area; empty without samples."""
        return {f"deletion/{name}": float(area.mean()) for name, area in self.areas.items() if len(area)}

    @property
    def summary(self) -> dict[str, Any]:
        """Means over samples, and standard errors of the areas, as plain values; without samples, without curves."""
        return {
            "num_samples": self.num_samples,
            "fractions": list(FRACTIONS),
            "curves": {name: values.mean(dim=0).tolist() for name, values in self.curves.items() if len(values)},
            "areas": {
                name: area_summary(name, float(values.mean()), _standard_error(values), len(values))
                for name, values in self.areas.items()
                if len(values)
            },
        }


def area_summary(name: str, mean: float, error: float | None, num_samples: int) -> dict[str, Any]:
    """Compare the mean area of a kind of map with its standard error.

    Args:
        name: of the kind of map.
        mean: of the area between the random curve and that of the map.
        error: standard error of the mean; None with too few samples.
        num_samples: that were tested.

    Returns:
        `title` of the map, `mean`, `error`, and the conclusion as a sign (`mark`), in a few words (`brief`), and in a
        `sentence`.
    """
    title = TITLES.get(name, name)
    masking = f"Masking the tokens with the largest {title} lowers the probability of the answer"
    if error is None or not isfinite(mean) or not isfinite(error):
        mark, brief = "?", "too few samples"
        sentence = f"Too few samples were tested for a conclusion: do not read {title} as an explanation."
    else:
        size = f"area {mean:.2f} ± {error:.2f}, {num_samples} samples"
        if mean > ERRORS * error:
            mark, brief = "✓", "better than random"
            sentence = f"{masking} more than masking random tokens ({size}): the map is faithful."
        elif mean < -ERRORS * error:
            mark, brief = "✗", "worse than random"
            sentence = f"{masking} less than masking random tokens ({size}): the map is misleading."
        else:
            mark, brief = "≈", "no better than random"
            sentence = f"{masking} as much as masking random tokens ({size}): do not read the map as an explanation."
    return {"title": title, "mean": mean, "error": error, "mark": mark, "brief": brief, "sentence": sentence}


def _standard_error(values: Float[Tensor, " samples"]) -> float | None:
    """Return the standard error of the mean; None with too few samples."""
    return float(values.std()) / len(values) ** 0.5 if len(values) >= LEAST_SAMPLES else None


def faithfulness(explainer: Explainer, explanation: Explanation, *, seed: int) -> DeletionCurves:
    """Compute the deletion curves of all maps of an explanation; see `deletion_curves`."""
    with undisturbed(explainer.module), explainer.forward_context():
        return deletion_curves(
            explainer.model,
            explanation.record,
            explanation.maps,
            explanation.answers,
            explainer.task.probabilities,
            seed=seed,
        )


def deletion_curves(
    model: Explainable,
    record: Record,
    maps: Mapping[str, Float[Tensor, "batch answers tokens"]],
    answers: Answers,
    probabilities: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    seed: int = 0,
) -> DeletionCurves:
    """Compute the deletion curves of maps.

    Args:
        model: in eval mode and without gradients, as inside `capture`.
        record: its forward pass.
        maps: kind of map -> its value at each token, for each answer.
        answers: of each row.
        probabilities: of the model's outputs.
        seed: of the random orders.
    """
    assert record.tokens is not None
    tokens, mask = record.tokens, record.tokens.mask
    real = torch.ones(tokens.values.shape[:2], dtype=torch.bool, device=tokens.values.device) if mask is None else mask

    def probability(
        rows: Int[Tensor, " cases"], answers: Answers, visible: Bool[Tensor, "cases tokens"]
    ) -> Float[Tensor, "cases answers"]:
        """Return the probability of answers of some rows from the visible tokens alone."""
        values = tokens.values[rows].masked_fill(~visible[..., None], 0.0)
        queries = {name: ids[rows] for name, ids in record.queries.items()}
        outputs = probabilities(model.forward_tokens(replace(tokens, values=values, mask=visible), queries))
        return answer_scores({name: output.log() for name, output in outputs.items()}, answers).exp()

    every = torch.arange(len(real))
    complete, empty = (probability(every, answers, visible) for visible in (real, torch.zeros_like(real)))
    loss = (complete - empty).cpu()
    tested = [
        (row, slot)
        for row, of_row in enumerate(answers)
        for slot in loss[row, : len(of_row)].argsort(descending=True)[:MOST_ANSWERS].tolist()
        if loss[row, slot] >= LEAST_LOSS
    ]
    if not tested:
        return DeletionCurves({name: torch.zeros(0, len(FRACTIONS)) for name in (RANDOM, *maps)})
    rows, slots = torch.tensor(tested).unbind(dim=1)
    cases, num_real = [[answers[row][slot]] for row, slot in tested], real[rows].sum(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)

    def curves(values: Float[Tensor, "cases tokens"]) -> Float[Tensor, "samples fractions"]:
        ranks = deletion_ranks(values, real[rows], generator)
        masked = [real[rows] & (ranks >= (share * num_real).round()) for share in FRACTIONS[1:-1]]
        left = [probability(rows, cases, visible)[:, 0] for visible in masked]
        left = [complete[rows, slots], *left, empty[rows, slots]]
        of_answers = (torch.stack(left, dim=1) / complete[rows, slots, None]).cpu()
        # The answers of one sample are not independent.
        return torch.stack([of_answers[rows == row].mean(dim=0) for row in sorted(set(rows.tolist()))])

    equal = torch.zeros(real[rows].shape, device=real.device)
    by_chance = torch.stack([curves(equal) for _ in range(NUM_RANDOM)]).mean(dim=0)
    return DeletionCurves({RANDOM: by_chance} | {name: curves(values[rows, slots]) for name, values in maps.items()})


def deletion_ranks(
    values: Float[Tensor, "cases tokens"], real: Bool[Tensor, "cases tokens"], generator: torch.Generator
) -> Int[Tensor, "cases tokens"]:
    """Return the rank of each token: the highest value first, ties in random order, tokens that are not real last."""
    shuffled = torch.rand(values.shape, generator=generator).argsort(dim=1).to(values.device)
    values = values.masked_fill(~real, -torch.inf)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order).argsort(dim=1)
