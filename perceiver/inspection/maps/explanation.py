"""Explanations of batches: what a model answers for each sample, and how much each answer depends on each token."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.inspection.maps.capture import Capture, Explainable, capture
from perceiver.inspection.maps.contrast import Contrasts, choose_foils, padded
from perceiver.inspection.maps.record import Layer, Record
from perceiver.inspection.maps.relevance import evidence, no_relevance
from perceiver.inspection.maps.rollout import Alpha, Rollout, decoder_attention, mean_of_queries, rollout
from perceiver.roles import LATENTS, TOKENS
from perceiver.tasks.base import Task
from perceiver.types import Answer, Batch, Box, JoinedTokens

TOKENS_AT_ONCE = 2**16
"""Tokens of a forward pass with gradients, for which all activations are stored."""
Answers = Sequence[Sequence[Answer]]
"""The answers of each row of a batch."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of a batch; everything derived from it is computed on first use, once.

    Attributes:
        batch: the samples.
        record: the forward pass.
        answers: the model's answers for each sample.
        num_classes: of the data; 0 where answers are texts.
        probability: of each answer.
        alpha, rollout: see `rollout`.
        relevance: see `relevance`; zeros where it has no meaning.
        against: the relevance against each answer, see `evidence`; None if it is not known.
        contrasts: of each answer with other ones, if they were computed.
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

    def has_own_queries(self, answer: Answer) -> bool:
        """Return whether the decoder has queries for this answer alone, and so a rollout of its own."""
        return _has_own_queries(answer, self.record.for_output(answer.output), self.num_classes)

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
        """For each layer that reads the tokens the mean of its weights over heads and queries."""
        layers = {name: self.record.layers[name] for name in self.record.input_layers}
        return {
            name: self.record.on_tokens(layer, layer.propagate(layer.uniform)[:, 0]) for name, layer in layers.items()
        }

    @property
    def dense_outputs(self) -> list[str]:
        """The outputs that were queried at places."""
        return [output for output, given in self.record.queries.items() if given.is_floating_point()]

    def place_rollout(self, output: str, places: Sequence[int]) -> Float[Tensor, "batch places tokens"]:
        """Return the share of each token in some places of a dense output, by their numbers."""
        return self.record.rollout(places, output=output, alpha=self.alpha).inputs

    @cached_property
    def decoder_attention(self) -> Float[Tensor, "batch answers tokens"] | None:
        """The attention of each answer in the decoder alone; None where the decoder does not attend to the tokens."""
        if self.record.memory != TOKENS or not self.record.decode_layers:
            return None

        def of_output(output: str, own: Answers) -> dict[str, Tensor]:
            part = self.record.for_output(output)
            weights = _query_weights(part, own, self.num_classes)
            return {"attention": decoder_attention(part, weights)[0]}

        return _by_output(self.record, self.answers, of_output)["attention"]

    @property
    def no_relevance(self) -> str:
        """Why answers have no relevance; empty if they have."""
        return no_relevance(self.record)

    @property
    def maps(self) -> dict[str, Float[Tensor, "batch answers tokens"]]:
        """Kind of map -> its value at each token, for each answer.

        The mean map is the same for all answers; it is missing where only tokens read the tokens, and relevance where
        it has no meaning.
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
        """For each layer that reads the tokens its queries in order: latents by how much the outputs read from them.

        Without decoder attention, and where the outputs read the tokens themselves, by increasing entropy.
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


class Explains(Protocol):
    """A model whose explanations can be tested: of this package (`Explainer`), or watched."""

    @property
    def module(self) -> nn.Module:
        """The model as a module."""
        ...

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass, such as that of a precision."""
        ...

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for tokens; those that their mask excludes are read by none."""
        ...

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the probabilities of outputs."""
        ...

    def explain_again(self, explanation: Explanation) -> Explanation:
        """Explain the same answers to the same queries by the model as it is now."""
        ...


@dataclass(frozen=True)
class Explainer:
    """Explains the answers of a model for batches without windows.

    Attributes:
        model, task: the model, and what it is trained for.
        class_names: by label; empty where answers are texts.
        alpha: of rollouts.
        converted: converts inputs to the precision of the model.
        forward_context: the context of a forward pass, such as that of a precision.
    """

    model: Explainable
    task: Task
    class_names: Sequence[str]
    alpha: Alpha
    converted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def module(self) -> nn.Module:
        """The model as a module."""
        assert isinstance(self.model, nn.Module)
        return self.model

    def explain(
        self,
        batch: Batch,
        predicted: Sequence[Sequence[dict[str, Any]]] | None = None,
        *,
        foil: str | None = None,
    ) -> Explanation:
        """Explain the model's answers for a batch.

        Args:
            batch: the samples.
            predicted: the predictions for each row where they are known, see `Task.answer_queries`.
            foil: name of the class or token with which each answer is contrasted first, or `contrast.SECOND`; None for
                no contrasts. Each takes as long as the relevance of an answer.

        Raises:
            ValueError: the model has no answer called `foil`.
        """
        converted = replace(batch, inputs=self.converted(batch.inputs))
        with capture(self.module) as record, self.forward_context():
            queries = self.task.answer_queries(self.model, converted, predicted)
            outputs = self.model(converted.inputs, converted.masks, queries, self.task.hidden(converted))
            answers = self._with_boxes(self.task.answers(outputs, queries, converted, self.class_names), batch, outputs)
        return self._explanation(batch, record, answers, foil)

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for tokens; see `Explainable`."""
        return self.model.forward_tokens(tokens, queries)

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the probabilities of outputs."""
        return self.task.probabilities(outputs)

    def explain_again(self, explanation: Explanation) -> Explanation:
        """Explain the same answers to the same queries by the model as it is now."""
        batch = explanation.batch
        converted = replace(batch, inputs=self.converted(batch.inputs))
        with capture(self.module) as record, self.forward_context():
            self.model(converted.inputs, converted.masks, explanation.record.queries, self.task.hidden(converted))
        return self._explanation(batch, record, explanation.answers)

    def _explanation(
        self, batch: Batch, record: Capture, answers: list[list[Answer]], foil: str | None = None
    ) -> Explanation:
        """Return the explanation of answers of a forward pass."""
        num_classes = len(self.class_names)
        probabilities = self.task.probabilities(record.outputs)
        logs = {name: values.log() for name, values in probabilities.items()}
        foils = None
        if foil is not None and not record.without_relevance:
            foils = choose_foils(answers, probabilities, self.task.alternatives(self.class_names), first=foil)
        both, contrasted = self._evidence(batch, record, answers, foils)
        return Explanation(
            batch=batch,
            record=record,
            answers=answers,
            num_classes=num_classes,
            probability=answer_scores(logs, answers).exp(),
            alpha=self.alpha,
            rollout=answer_rollout(record, answers, num_classes=num_classes, alpha=self.alpha),
            relevance=both[:, :, 0],
            against=both[:, :, 1],
            contrasts=None if foils is None else answer_contrasts(foils, logs, contrasted),
        )

    def _with_boxes(self, answers: Answers, batch: Batch, outputs: Mapping[str, Tensor]) -> list[list[Answer]]:
        """Add the boxes of classes to answers, and the classes that apply but are not among the likeliest ones.

        Nothing is added for dense outputs, whose classes have no query where they are not predicted.
        """
        of_classes = dict.fromkeys(answer.output for row in answers for answer in row if not answer.is_word)
        per_sample = [output for output in of_classes if outputs[output].ndim == 2]
        found = []
        for row, boxes in zip(answers, batch.targets.get("boxes", [None] * len(batch)), strict=True):
            by_label: dict[int, list[Box]] = {}
            for box in boxes or ():
                by_label.setdefault(box.label, []).append(box)
            located = [
                one if one.label is None else replace(one, boxes=tuple(by_label.get(one.label, ()))) for one in row
            ]
            for output in per_sample:
                labels = {one.label for one in row if one.output == output}
                located += [
                    Answer(self.class_names[label], (label,), output, label=label, boxes=tuple(of_label))
                    for label, of_label in sorted(by_label.items())
                    if label not in labels
                ]
            found.append(located)
        return found

    def _evidence(
        self, batch: Batch, record: Capture, answers: Answers, foils: Sequence[Answers] | None
    ) -> tuple[Float[Tensor, "batch answers 2 tokens"], Float[Tensor, "batch pairs 2 tokens"]]:
        """Compute the evidence for and against each answer, and each answer and foil, a few rows at a time."""
        assert record.tokens is not None
        shape = (2, record.tokens.values.shape[1])
        zeros = record.tokens.values.new_zeros(len(batch), max(map(len, answers), default=0), *shape, dtype=torch.float)
        if record.without_relevance:
            return zeros, zeros[:, :0]
        found, contrasted = [], []
        for rows, part in in_parts(batch, max(TOKENS_AT_ONCE // record.tokens.values.shape[1], 1)):
            with capture(self.module, gradients=True) as again, self.forward_context():
                queries = {name: ids[rows] for name, ids in record.queries.items()}
                outputs = self.model(self.converted(part.inputs), part.masks, queries, self.task.hidden(part))
                logits = {name: values.float() for name, values in outputs.items()}
                found.append(answer_evidence(again, logits, answers[rows]))
                if foils is not None:
                    contrasted.append(pair_evidence(again, logits, answers[rows], foils[rows]))
        return _stacked(found), _stacked(contrasted) if contrasted else zeros[:, :0]


def _stacked(parts: Sequence[Float[Tensor, "_ _ *rest"]]) -> Float[Tensor, "batch _ *rest"]:
    """Concatenate parts of a batch whose second axes are padded with zeros."""
    most = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.ndim - 2) + (0, most - part.shape[1])) for part in parts])


def in_parts(batch: Batch, size: int) -> Iterator[tuple[slice, Batch]]:
    """Yield the batch in parts of `size` samples, with the rows of each."""
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        yield rows, batch.part(rows)


def real_tokens(record: Record) -> Bool[Tensor, "batch tokens"]:
    """Return True where a token is real."""
    assert record.tokens is not None
    shape, device = record.tokens.values.shape[:2], record.tokens.values.device
    return torch.ones(shape, dtype=torch.bool, device=device) if record.token_mask is None else record.token_mask


def normalized(values: Float[Tensor, "*rest tokens"]) -> Float[Tensor, "*rest tokens"]:
    """Divide by the sum over tokens; zeros stay zeros."""
    total = values.sum(dim=-1, keepdim=True)
    return values / total.where(total > 0, 1.0)


def answer_scores(
    values: Mapping[str, Float[Tensor, "batch *places answers"]], answers: Answers
) -> Float[Tensor, "batch answers"]:
    """Select the value of each answer from outputs, or from log probabilities of their shape.

    Of a class it is its own value, in a dense output the mean over its places; of a word the sum over its ids. 0 pads
    rows with fewer answers.
    """
    empty = next(iter(values.values()))
    rows = [
        torch.stack([answer_value(values[answer.output][row], answer) for answer in of_row])
        if of_row
        else empty.new_zeros(0)
        for row, of_row in enumerate(answers)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def answer_rollout(record: Record, answers: Answers, *, num_classes: int, alpha: Alpha) -> Rollout:
    """Return the rollout of each answer from its queries: from all queries where all classes share them."""

    def of_output(output: str, own: Answers) -> dict[str, Tensor]:
        part = record.for_output(output)
        found = rollout(part, alpha=alpha, query_weights=_query_weights(part, own, num_classes))
        latents = {f"latents/{name}": shares for name, shares in found.latents.items()}
        return {"inputs": found.inputs, "residual": found.residual} | latents

    merged = _by_output(record, answers, of_output)
    inputs, residual = merged.pop("inputs"), merged.pop("residual")
    return Rollout(inputs, residual, {name.removeprefix("latents/"): shares for name, shares in merged.items()})


def answer_evidence(
    record: Record,
    logits: Mapping[str, Float[Tensor, "batch *places answers"]],
    answers: Answers,
    foils: Answers | None = None,
) -> Float[Tensor, "batch answers 2 tokens"]:
    """Return the relevance of each token for and against the logits of each answer, see `evidence`.

    Args:
        record: the forward pass.
        logits: its outputs.
        answers: of each row.
        foils: for each answer another one of the same output, whose logit is subtracted; None for no difference.
    """

    def of_output(output: str, own: Answers) -> dict[str, Tensor]:
        scores = answer_scores(logits, own)
        if foils is not None:
            scores = scores - answer_scores(logits, [[foil for foil in row if foil.output == output] for row in foils])
        return {"tokens": evidence(record.for_output(output, all_queries=True), scores)}

    return _by_output(record, answers, of_output)["tokens"]


def pair_evidence(
    record: Record,
    logits: Mapping[str, Float[Tensor, "batch *places answers"]],
    answers: Answers,
    foils: Sequence[Answers],
) -> Float[Tensor, "batch pairs 2 tokens"]:
    """Return the relevance for and against each answer rather than each of its foils, in order."""
    pairs = [
        [(answer, foil) for answer, own in zip(*of_row, strict=True) for foil in own]
        for of_row in zip(answers, foils, strict=True)
    ]
    own, others = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    return answer_evidence(record, logits, own, others)


def answer_contrasts(
    foils: list[list[list[Answer]]],
    logs: Mapping[str, Float[Tensor, "batch *places answers"]],
    pairs: Float[Tensor, "batch pairs 2 tokens"],
) -> Contrasts:
    """Return contrasts from the log probabilities of all outputs and the evidence of all pairs (`pair_evidence`)."""
    counts = [[len(own) for own in row] for row in foils]
    probability = answer_scores(logs, [[foil for own in row for foil in own] for row in foils]).exp()
    both = padded(counts, pairs)
    return Contrasts(foils, padded(counts, probability), both[..., 0, :], both[..., 1, :])


def _by_output(
    record: Record, answers: Answers, compute: Callable[[str, Answers], Mapping[str, Float[Tensor, "batch _ *rest"]]]
) -> dict[str, Float[Tensor, "batch answers *rest"]]:
    """Compute tensors for the answers of each output alone, and merge them in the order of all answers.

    A tensor is zero for the answers of outputs that do not have it.
    """
    first = next(iter(record.outputs), "")
    merged: dict[str, Tensor] = {}
    for output in dict.fromkeys(answer.output for row in answers for answer in row) or [first]:
        own = [[answer for answer in row if answer.output == output] for row in answers]
        for name, values in compute(output, own).items():
            if name not in merged:
                merged[name] = values.new_zeros(len(answers), max(map(len, answers), default=0), *values.shape[2:])
            for row, of_row in enumerate(answers):
                slots = [slot for slot, answer in enumerate(of_row) if answer.output == output]
                merged[name][row, slots] = values[row, : len(slots)]
    return merged


def _query_weights(part: Record, answers: Answers, num_classes: int) -> Float[Tensor, "batch answers queries"]:
    """Return the mean of each answer's own queries, or of all where answers share them."""
    every = range(part.num_outputs)
    queries = [
        [answer.queries if _has_own_queries(answer, part, num_classes) else every for answer in row] for row in answers
    ]
    return mean_of_queries(queries, part.num_outputs)


def _has_own_queries(answer: Answer, part: Record, num_classes: int) -> bool:
    if not part.decode_layers:  # otherwise, the decoder reads all of the memory for every answer
        return bool(part.output_lengths)
    return answer.is_word or part.outputs[answer.output].ndim > 2 or part.num_outputs == num_classes


def answer_value(
    values: Float[Tensor, "*steps_and_places answers"], answer: Answer, *, num_steps: int = 0
) -> Float[Tensor, "*steps"]:
    """Select the value of an answer from those of one sample, see `answer_scores`; keep `num_steps` axes."""
    if answer.label is None:
        return values[..., list(answer.queries), list(answer.ids)].sum(dim=-1)
    if values.ndim == num_steps + 1:
        return values[..., answer.label]
    return values[..., list(answer.queries), answer.label].mean(dim=-1)


def _by_entropy(layer: Layer) -> Int[Tensor, "batch queries"]:
    """Return the queries of a layer by increasing entropy of their weights (mean over heads)."""
    entropies = [torch.special.entr(layer.weights(chunk).mean(dim=1)).sum(dim=-1) for chunk in layer.chunks()]
    return (-torch.cat(entropies, dim=1)).argsort(dim=1, descending=True, stable=True)
