"""Explanations of batches: what a model answers for each sample, and how much each answer depends on each token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceiver.inspection.maps.answers import answer_attention, answer_rollout, answer_scores, has_own_queries
from perceiver.inspection.maps.capture import Capture
from perceiver.inspection.maps.contrast import Contrasts
from perceiver.inspection.maps.record import Layer
from perceiver.inspection.maps.relevance import no_relevance
from perceiver.inspection.maps.rollout import Alpha, Rollout
from perceiver.roles import LATENTS
from perceiver.types import Answer, Batch, Box


@dataclass(frozen=True)
class Explanation:
    """The explanation of a batch; everything derived from it is computed on first use, once.

    Attributes:
        batch: the samples.
        record: the forward pass.
        answers: the model's answers for each sample.
        num_classes: number of classes; 0 if answers are texts.
        probability: of each answer.
        alpha, rollout: see `rollout`.
        relevance: see `relevance`; zeros if it is not defined (`no_relevance`).
        against: the evidence against each answer, see `evidence`; None if it was not computed.
        contrasts: of each answer with its foils; None if they were not computed.
    """

    batch: Batch
    record: Capture
    answers: list[list[Answer]]
    num_classes: int
    probability: Float[Tensor, "batch answers"]
    alpha: Alpha
    rollout: Rollout
    relevance: Float[Tensor, "batch answers tokens"]
    against: Float[Tensor, "batch answers tokens"] | None = None
    contrasts: Contrasts | None = None

    @classmethod
    def of_answers(
        cls,
        batch: Batch,
        record: Capture,
        answers: list[list[Answer]],
        log_probabilities: Mapping[str, Float[Tensor, "batch *places answers"]],
        evidence: Float[Tensor, "batch answers 2 tokens"],
        contrasts: Contrasts | None = None,
        *,
        num_classes: int,
        alpha: Alpha,
    ) -> Self:
        """Return the explanation of answers of a forward pass.

        Args:
            batch, record, answers, contrasts, num_classes, alpha: see the attributes.
            log_probabilities: of all alternatives, for each output.
            evidence: the relevance for and against each answer (`answer_evidence`).
        """
        return cls(
            batch=batch,
            record=record,
            answers=answers,
            num_classes=num_classes,
            probability=answer_scores(log_probabilities, answers).exp(),
            alpha=alpha,
            rollout=answer_rollout(record, answers, num_classes=num_classes, alpha=alpha),
            relevance=evidence[:, :, 0],
            against=evidence[:, :, 1],
            contrasts=contrasts,
        )

    def has_own_queries(self, answer: Answer) -> bool:
        """Return whether the decoder has queries for this answer alone, and so a rollout of its own."""
        return has_own_queries(answer, self.record.for_output(answer.output), self.num_classes)

    @property
    def boxes(self) -> list[list[Box]]:
        """The boxes of each sample; empty where they are unknown."""
        return [list(boxes or ()) for boxes in self.batch.targets.get("boxes", [None] * len(self.answers))]

    @cached_property
    def statistics(self) -> dict[str, float]:
        """`stat/<layer>/<name>` -> number; see `statistics`."""
        return {f"stat/{name}": value for name, value in self.record.statistics(alpha=self.alpha).items()}

    @cached_property
    def relevance_shares(self) -> Float[Tensor, "batch answers tokens"]:
        """The share of each token in an answer's relevance; zeros where it has none."""
        return normalized(self.relevance)

    @cached_property
    def mean_maps(self) -> dict[str, Float[Tensor, "batch tokens"]]:
        """The weights of each layer that reads the tokens, averaged over heads and queries."""
        layers = {name: self.record.layers[name] for name in self.record.input_layers}
        return {
            name: self.record.on_tokens(layer, layer.propagate(layer.uniform)[:, 0]) for name, layer in layers.items()
        }

    @property
    def dense_outputs(self) -> list[str]:
        """The outputs that were queried at places."""
        return [output for output, given in self.record.queries.items() if given.is_floating_point()]

    def place_rollout(self, output: str, places: Sequence[int]) -> Float[Tensor, "batch places tokens"]:
        """Return the rollout from places of a dense output, given by number: the share of each token."""
        return self.record.rollout(places, output=output, alpha=self.alpha).inputs

    @cached_property
    def decoder_attention(self) -> Float[Tensor, "batch answers tokens"] | None:
        """The attention of each answer in the decoder alone; None where the decoder does not attend to the tokens."""
        return answer_attention(self.record, self.answers, num_classes=self.num_classes)

    @property
    def no_relevance(self) -> str:
        """Why relevance is not defined for this model; empty if it is."""
        return no_relevance(self.record)

    @property
    def maps(self) -> dict[str, Float[Tensor, "batch answers tokens"]]:
        """Kind of map -> its value at each token, for each answer.

        The mean map is the same for all answers; it is missing if only tokens read the tokens. Relevance is missing if
        it is not defined.
        """
        maps = {"rollout": self.rollout.inputs}
        if not self.no_relevance:
            maps = {"relevance": self.relevance} | maps
        if self.mean_maps:
            mean = torch.stack(list(self.mean_maps.values())).mean(dim=0)
            maps["mean_map"] = mean[:, None].expand(-1, self.relevance.shape[1], -1)
        return maps

    @cached_property
    def query_rankings(self) -> dict[str, Int[Tensor, "batch queries"]]:
        """The queries of each layer that reads the tokens, those that the outputs read most first.

        Without attention in the decoder, or if the outputs read the tokens themselves, they are sorted by entropy.
        """
        record = self.record
        layers = {name: record.layers[name] for name in record.input_layers}
        if record.output_lengths:
            reads = {name: shares.mean(dim=1) for name, shares in self.rollout.latents.items()}
            return {name: shares.argsort(dim=1, descending=True, stable=True) for name, shares in reads.items()}
        if not all(layer.role.queries == LATENTS for layer in layers.values()):
            return {name: _by_entropy(layer) for name, layer in layers.items()}
        if not layers:
            return {}
        if decoders := record.decode_layers:
            ranking = record.map(decoders[-1]).mean(dim=1).argsort(dim=1, descending=True, stable=True)
        else:
            ranking = _by_entropy(layers[record.input_layers[-1]])
        return dict.fromkeys(layers, ranking)


def normalized(values: Float[Tensor, "*rest tokens"]) -> Float[Tensor, "*rest tokens"]:
    """Divide by the sum over tokens; zeros stay zeros."""
    total = values.sum(dim=-1, keepdim=True)
    return values / total.where(total > 0, 1.0)


def _by_entropy(layer: Layer) -> Int[Tensor, "batch queries"]:
    """Return the queries of a layer by increasing entropy of their weights (mean over heads)."""
    entropies = [torch.special.entr(layer.weights(chunk).mean(dim=1)).sum(dim=-1) for chunk in layer.chunks()]
    return (-torch.cat(entropies, dim=1)).argsort(dim=1, descending=True, stable=True)
