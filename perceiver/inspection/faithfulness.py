"""Faithfulness of maps by deletion: hide what a map marks, and see what is left of the answer (Petsiuk et al. 2018).

Tokens are hidden from the most marked on, in growing shares, by masking them: nothing can read them any more. What is
left of an answer's probability is compared with what is left when as many random tokens are hidden. The area between
the two curves is the result: more than 0 where what the map marks matters more than chance, 0 for a map that says
nothing.

Deviations from the paper: tokens are masked instead of pixels blackened, so that the input stays one that the model
knows; curves are relative to the probability with nothing hidden; and the random curve is measured, not assumed.

Tokens of stems with overlapping fields still carry some of their hidden neighbours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceiver.inspection.capture import Explainable, undisturbed
from perceiver.inspection.explanation import Answers, Explainer, Explanation, probability_of
from perceiver.inspection.record import Record
from perceiver.types import JoinedTokens

FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the real tokens that are hidden: close together where maps differ from chance."""
NUM_RANDOM = 2
"""Random orders that are averaged."""
MOST_ANSWERS, LEAST_LOSS = 2, 0.1
"""Answers of a sample that are tested: at most so many, which lose at least so much when everything is hidden. What
needs no input, as some words do, tells nothing about maps."""
LEAST_SAMPLES = 8
"""Of fewer, the standard error is not told: it would be too uncertain itself to judge a map by."""
RANDOM = "random"
ERRORS = 2
"""Standard errors that a mean must be away from zero."""
TITLES = {"mean_map": "the mean attention of all layers"}
"""Kind of map -> what it is called in sentences, where that is not its name."""


@dataclass(frozen=True)
class Deletion:
    """What is left of the probability of each sample's tested answers (their mean), by share of the tokens hidden.

    Attributes:
        curves: name of a kind of map, and `random` -> relative to the probability with nothing hidden. Samples of which
            no answer was tested are left out.
    """

    curves: dict[str, Float[Tensor, "samples fractions"]]

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
        """`deletion/<kind of map>` -> mean area, by which it is logged; nothing where there is no sample."""
        return {f"deletion/{name}": float(area.mean()) for name, area in self.areas.items() if len(area)}

    @property
    def summary(self) -> dict[str, Any]:
        """Means over samples, and standard errors of the areas, as plain values; no curve where there is no sample."""
        return {
            "num_samples": self.num_samples,
            "fractions": list(FRACTIONS),
            "curves": {name: values.mean(dim=0).tolist() for name, values in self.curves.items() if len(values)},
            "areas": {
                name: judged(name, float(values.mean()), _standard_error(values), len(values))
                for name, values in self.areas.items()
                if len(values)
            },
        }


def judged(name: str, mean: float, error: float | None, num_samples: int) -> dict[str, Any]:
    """Mean and standard error of the area of a map, its title, and what follows from them; see `verdict_of`."""
    verdict = verdict_of(name, mean, error, num_samples)
    return {"title": TITLES.get(name, name), "mean": mean, "error": error, **asdict(verdict)}


@dataclass(frozen=True)
class Verdict:
    """What the area of a map says about it: as a sign, in a few words, and in a sentence."""

    mark: str
    brief: str
    sentence: str


def verdict_of(name: str, mean: float, error: float | None, num_samples: int) -> Verdict:
    """Judge a map by the mean area of the deletion test and its standard error.

    Args:
        name: of the kind of map.
        mean: of the area between the random curve and that of the map.
        error: standard error of the mean; None where too few samples were tested.
        num_samples: how many were.
    """
    title = TITLES.get(name, name)
    if error is None or not isfinite(mean) or not isfinite(error):
        sentence = f"Too few samples were tested to judge {title}: do not read the map as an explanation."
        return Verdict("?", "cannot be judged", sentence)
    size = f"area {mean:.2f} ± {error:.2f}, {num_samples} samples"
    marks = f"Hiding what {title} marks hurts the answer"
    if mean > ERRORS * error:
        brief = "points at what matters"
        return Verdict("✓", brief, f"{marks} more than hiding random inputs ({size}): it {brief}.")
    if mean < -ERRORS * error:
        brief = "worse than random"
        follows = f"{brief}, so what it marks is not what matters"
        return Verdict("✗", brief, f"{marks} less than hiding random inputs ({size}): {follows}.")
    brief = "no better than random"
    follows = f"{brief}, so do not read the map as an explanation"
    return Verdict("≈", brief, f"{marks} as much as hiding random inputs ({size}): {follows}.")


def _standard_error(values: Float[Tensor, " samples"]) -> float | None:
    """Of the mean; None where too few cannot tell."""
    return float(values.std()) / len(values) ** 0.5 if len(values) >= LEAST_SAMPLES else None


def together(parts: Sequence[Deletion]) -> Deletion:
    """The tests of several batches as one."""
    return Deletion({name: torch.cat([part.curves[name] for part in parts]) for name in parts[0].curves})


def faithfulness(explainer: Explainer, explanation: Explanation, *, seed: int) -> Deletion:
    """How much more than chance every kind of map marks what matters; see `deletion`."""
    with undisturbed(explainer.module), explainer.forward_context():
        return deletion(
            explainer.model,
            explanation.record,
            explanation.maps,
            explanation.answers,
            explainer.task.probabilities,
            seed=seed,
        )


def deletion(
    model: Explainable,
    record: Record,
    maps: Mapping[str, Float[Tensor, "batch answers tokens"]],
    answers: Answers,
    probabilities: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    seed: int = 0,
) -> Deletion:
    """Test maps by hiding what they mark.

    Args:
        model: in eval mode and without gradients, as inside of `capture`.
        record: its forward pass.
        maps: kind of map -> how much it marks each token, for each answer.
        answers: what was said of each row.
        probabilities: of the model's outputs.
        seed: of what is random.
    """
    trial = _Trial.of(model, record, answers, probabilities)
    whole, nothing = trial.probable(trial.real), trial.probable(torch.zeros_like(trial.real))
    loss = (whole - nothing).cpu()
    tested = [
        (row, slot)
        for row, of_row in enumerate(answers)
        for slot in loss[row, : len(of_row)].argsort(descending=True)[:MOST_ANSWERS].tolist()
        if loss[row, slot] >= LEAST_LOSS
    ]
    if not tested:
        return Deletion({name: torch.zeros(0, len(FRACTIONS)) for name in (RANDOM, *maps)})
    rows, slots = torch.tensor(tested).unbind(dim=1)
    cases = trial.cases(tested)
    generator = torch.Generator().manual_seed(seed)

    def curves(marked: Float[Tensor, "cases tokens"]) -> Float[Tensor, "samples fractions"]:
        left = [whole[rows, slots], *cases.without(ranks(marked, cases.real, generator)), nothing[rows, slots]]
        of_answers = (torch.stack(left, dim=1) / whole[rows, slots, None]).cpu()
        # The answers of one sample are no independent trials.
        return torch.stack([of_answers[rows == row].mean(dim=0) for row in sorted(set(rows.tolist()))])

    unmarked = torch.zeros(cases.real.shape, device=cases.real.device)
    by_chance = torch.stack([curves(unmarked) for _ in range(NUM_RANDOM)]).mean(dim=0)
    return Deletion({RANDOM: by_chance} | {name: curves(marked[rows, slots]) for name, marked in maps.items()})


def ranks(
    marked: Float[Tensor, "cases tokens"], real: Bool[Tensor, "cases tokens"], generator: torch.Generator
) -> Int[Tensor, "cases tokens"]:
    """The place of each token, the most marked first; among equals chance decides. What is not real comes last."""
    shuffled = torch.rand(marked.shape, generator=generator).argsort(dim=1).to(marked.device)
    marked = marked.masked_fill(~real, -torch.inf)
    order = marked.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order).argsort(dim=1)


@dataclass(frozen=True)
class _Trial:
    """A model that is run on the tokens of a forward pass, of which some are hidden.

    Attributes:
        model, probabilities: the model, and what its outputs mean.
        tokens, real, queries: of the forward pass; `real` is True where a token is real.
        answers: whose probability is wanted.
    """

    model: Explainable
    probabilities: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    tokens: JoinedTokens
    real: Bool[Tensor, "batch tokens"]
    queries: Mapping[str, Tensor]
    answers: Answers

    @classmethod
    def of(
        cls,
        model: Explainable,
        record: Record,
        answers: Answers,
        probabilities: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> "_Trial":
        """The forward pass as it was."""
        assert record.tokens is not None
        values, mask = record.tokens.values, record.tokens.mask
        real = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if mask is None else mask
        return cls(model, probabilities, record.tokens, real, record.queries, answers)

    def cases(self, chosen: Sequence[tuple[int, int]]) -> "_Trial":
        """A row for each of some answers, given by row and place."""
        rows = [row for row, _ in chosen]
        queries = {name: ids[rows] for name, ids in self.queries.items()}
        tokens = replace(self.tokens, values=self.tokens.values[rows])
        answers = [[self.answers[row][slot]] for row, slot in chosen]
        return replace(self, tokens=tokens, real=self.real[rows], queries=queries, answers=answers)

    def probable(self, shown: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch answers"]:
        """How probable the answers are when only some tokens are shown."""
        values = self.tokens.values.masked_fill(~shown[..., None], 0.0)
        outputs = self.model.forward_tokens(replace(self.tokens, values=values, mask=shown), self.queries)
        return probability_of(self.probabilities(outputs), self.answers)

    def without(self, ranks: Int[Tensor, "cases tokens"]) -> Iterator[Float[Tensor, " cases"]]:
        """How probable the answer of each case is, by share of the tokens that are hidden, those of low rank first."""
        num_real = self.real.sum(dim=1, keepdim=True)
        for share in FRACTIONS[1:-1]:
            yield self.probable(self.real & (ranks >= (share * num_real).round()))[:, 0]
