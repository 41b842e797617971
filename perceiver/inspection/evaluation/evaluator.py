"""Scores of the maps of a set of samples: localization, and faithfulness beside other methods."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.evaluation.alignment import alignment_counts, alignment_error_rates
from perceiver.inspection.evaluation.faithfulness import FaithfulnessCurves, SampleMaps, faithfulness, last_sample
from perceiver.inspection.evaluation.localization import localization, mean_scores, pointing_games
from perceiver.inspection.evaluation.randomization import randomization
from perceiver.inspection.evaluation.verdicts import summarize
from perceiver.inspection.maps.attribution import rival_maps
from perceiver.inspection.maps.explainer import Explains
from perceiver.inspection.maps.explanation import Explanation


@dataclass(frozen=True)
class Evaluation:
    """Localization and faithfulness of the maps of some samples.

    Attributes:
        scores: name -> mean over samples or cases.
        faithfulness: see `verdicts.summarize`; None if it was not computed.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    faithfulness: Mapping[str, Any] | None = None

    def with_faithfulness(
        self,
        curves: Sequence[FaithfulnessCurves],
        more: Sequence[Mapping[str, Mapping[str, Float[Tensor, " samples"]]]] = (),
        stages: Sequence[Mapping[str, Float[Tensor, "stages samples"]]] = (),
    ) -> Self:
        """Add the summary of the curves of some batches, with further scores of each; see `summarize`.

        The pointing game is not among the `scores`, where localization has it.
        """
        whole = {kind: torch.cat([part[kind] for part in stages], dim=1) for kind in (stages[0] if stages else ())}
        summary = summarize(FaithfulnessCurves.concatenate(curves), _concatenated(more), whole)
        new = {
            f"{score}/{kind}": found["mean"]
            for kind, one in summary["maps"].items()
            for score, found in one["scores"].items()
            if score != "pointing_game" and found["mean"] is not None
        }
        return replace(self, scores={**self.scores, **new}, faithfulness=summary)


class Evaluator:
    """Scores maps on a set of samples.

    Args:
        num_samples: size of the set; 0 for no scores.
        num_orders: random orders with which deletion and insertion are compared.
        rivals: compare with the methods of `attribution`, which take longer than everything else.
        randomize: compute the correlation with the maps of a model with random weights (`randomization`).
    """

    def __init__(self, *, num_samples: int, num_orders: int, rivals: bool, randomize: bool) -> None:
        for name, value, least in (("num_samples", num_samples, 0), ("num_orders", num_orders, 1)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.num_samples = num_samples
        self.num_orders = num_orders
        self.rivals = rivals
        self.randomize = randomize

    def evaluate(
        self,
        explainer: Explains,
        explanations: Iterable[Explanation],
        *,
        with_localization: bool,
        with_faithfulness: bool,
    ) -> Evaluation:
        """Compute scores of the maps of several batches, one batch at a time; without batches the scores are empty."""
        cases, counts, curves, stages = [], [], [], []
        more: list[Mapping[str, Mapping[str, Tensor]]] = []
        before: SampleMaps | None = None
        for explanation in explanations:
            if with_localization:
                cases.append(localization(explanation))
                counts.append(alignment_counts(explanation))
            if with_faithfulness:
                maps = self._maps(explainer, explanation)
                curves.append(
                    faithfulness(explainer, explanation, maps=maps, num_orders=self.num_orders, before=before)
                )
                before = last_sample(explanation.record, maps, explanation.answers) or before
                more.append({"pointing_game": pointing_games(explanation, maps)})
                if self.randomize:
                    stages.append(randomization(explainer, explanation, maps, self._maps))
        evaluation = Evaluation(mean_scores(cases) | alignment_error_rates(counts))
        return evaluation.with_faithfulness(curves, more, stages) if curves else evaluation

    def _maps(self, explainer: Explains, explanation: Explanation) -> dict[str, Float[Tensor, "batch answers tokens"]]:
        return explanation.maps | (rival_maps(explainer, explanation) if self.rivals else {})


def _concatenated(
    parts: Sequence[Mapping[str, Mapping[str, Float[Tensor, " samples"]]]],
) -> dict[str, dict[str, Float[Tensor, " samples"]]]:
    """Return score -> kind of map -> the values of all parts."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for part in parts:
        for score, of_score in part.items():
            for kind, values in of_score.items():
                found.setdefault(score, {}).setdefault(kind, []).append(values)
    return {score: {kind: torch.cat(values) for kind, values in kinds.items()} for score, kinds in found.items()}
