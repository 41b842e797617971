"""Looking at batches: what a model says of them, where each answer comes from, and how far that may be believed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.inspection.capture import Capture, Explainable, capture
from perceiver.inspection.record import Record
from perceiver.inspection.relevance import relevance
from perceiver.inspection.rollout import Alpha, Rollout, even_share, readers_of, rollout
from perceiver.tasks.base import Task
from perceiver.types import Answer, Batch, Box

TOKENS_AT_ONCE = 2**16
"""How many tokens take part at once where gradients are needed, for which all activations are kept."""
Answers = Sequence[Sequence[Answer]]
"""For each row of a batch what the model said of it."""
Weighed: TypeAlias = tuple[Answer, Float[Tensor, " tokens"]]
"""An answer, and the share that each token has in it."""


def shares_of(mass: Float[Tensor, "*rest tokens"]) -> Float[Tensor, "*rest tokens"]:
    """What each token has of the whole; 0 throughout where nothing has any."""
    total = mass.sum(dim=-1, keepdim=True)
    return mass / total.where(total > 0, 1.0)


def outputs_of(answers: Answers) -> list[str]:
    """The outputs of the model that some answers are read from."""
    return list(dict.fromkeys(answer.output for row in answers for answer in row))


def from_output(answers: Answers, output: str) -> list[list[Answer]]:
    """Those answers that are read from one output."""
    return [[answer for answer in row if answer.output == output] for row in answers]


def own_answers(record: Record, answers: Answers, num_classes: int) -> list[list[Answer]]:
    """Those answers for which the decoder has queries of their own: none where it asks for all classes at once."""
    per_class = {output for output in outputs_of(answers) if record.for_output(output).num_outputs == num_classes}
    return [[answer for answer in row if answer.is_word or answer.output in per_class] for row in answers]


def answer_readers(record: Record, answers: Answers, num_classes: int) -> Float[Tensor, "batch answers queries"]:
    """The decoder's queries that gave each answer of one output, as shares; all where it has none of its own."""
    every = range(record.num_outputs)
    asked = record.num_outputs == num_classes
    queries = [[answer.queries if asked or answer.is_word else every for answer in row] for row in answers]
    return readers_of(queries, record.num_outputs)


def rollout_of(record: Record, answers: Answers, *, num_classes: int, alpha: Alpha) -> Rollout:
    """The rollout from each answer; readers are answers."""
    outputs = outputs_of(answers)
    if len(outputs) <= 1:
        part = record.for_output(outputs[0]) if outputs else record.parts[0]
        return rollout(part, alpha=alpha, readers=answer_readers(part, answers, num_classes))
    found = {}
    for output in outputs:
        part, own = record.for_output(output), from_output(answers, output)
        found[output] = rollout(part, alpha=alpha, readers=answer_readers(part, own, num_classes))
    names = dict.fromkeys(name for one in found.values() for name in one.latents)
    return Rollout(
        inputs=_placed({output: one.inputs for output, one in found.items()}, answers),
        residual=_placed({output: one.residual for output, one in found.items()}, answers),
        latents={
            name: _placed({output: one.latents[name] for output, one in found.items() if name in one.latents}, answers)
            for name in names
        },
    )


def relevance_of(
    record: Record, logits: Mapping[str, Float[Tensor, "batch *places answers"]], answers: Answers
) -> Float[Tensor, "batch answers tokens"]:
    """The relevance of each token for the logits of each answer; see `relevance`."""
    outputs = outputs_of(answers)
    if len(outputs) <= 1:
        return relevance(record.for_output(outputs[0]) if outputs else record, said(logits, answers))
    found = {
        output: relevance(record.for_output(output), said(logits, from_output(answers, output))) for output in outputs
    }
    return _placed(found, answers)


def _placed(
    found: Mapping[str, Float[Tensor, "batch _ *rest"]], answers: Answers
) -> Float[Tensor, "batch answers *rest"]:
    """What was found for the answers of each output by itself, in the order of all; zero where nothing was."""
    first = next(iter(found.values()))
    placed = first.new_zeros(len(answers), max(map(len, answers)), *first.shape[2:])
    for output, values in found.items():
        for row, of_row in enumerate(answers):
            slots = [slot for slot, answer in enumerate(of_row) if answer.output == output]
            placed[row, slots] = values[row, : len(slots)]
    return placed


def said(
    values: Mapping[str, Float[Tensor, "batch *places answers"]], answers: Answers
) -> Float[Tensor, "batch slots"]:
    """What the outputs, or what follows from them place by place, are for each answer.

    Of a class its own value, of a word the sum over its ids; 0 where a row has no more answers.
    """
    empty = next(iter(values.values()))
    rows = [
        torch.stack([_value(values[answer.output][row], answer) for answer in of_row]) if of_row else empty.new_zeros(0)
        for row, of_row in enumerate(answers)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def probability_of(
    probabilities: Mapping[str, Float[Tensor, "batch *places answers"]], answers: Answers
) -> Float[Tensor, "batch slots"]:
    """How probable each answer is, from `Task.probabilities`: of a word, the product over its ids."""
    return said({name: values.log() for name, values in probabilities.items()}, answers).exp()


def _value(values: Float[Tensor, "*places answers"], answer: Answer) -> Float[Tensor, ""]:
    if answer.label is not None:
        return values[answer.label]
    return values[list(answer.queries), list(answer.ids)].sum()


@dataclass(frozen=True)
class Explanation:
    """What is seen of a batch.

    Attributes:
        batch: what was looked at.
        record: the forward pass.
        answers: for each row what the model said.
        own: of these the ones for which the decoder has queries of their own.
        probability: of each answer.
        alpha, rollout: see `rollout`; a reader an answer.
        relevance: see `relevance`; a score an answer.
    """

    batch: Batch
    record: Capture
    answers: list[list[Answer]]
    own: list[list[Answer]]
    probability: Float[Tensor, "batch answers"]
    alpha: Alpha
    rollout: Rollout
    relevance: Float[Tensor, "batch answers tokens"]

    @property
    def statistics(self) -> dict[str, float]:
        """`stat/<layer>/<name>` -> number; see `statistics`."""
        return {f"stat/{name}": value for name, value in self.record.statistics(alpha=self.alpha).items()}

    @property
    def relevance_shares(self) -> Float[Tensor, "batch answers tokens"]:
        """What of an answer's relevance each token has; 0 throughout where nothing has any."""
        return shares_of(self.relevance)

    @property
    def relevant(self) -> list[list[Weighed]]:
        """For each row its answers with the share of their relevance that each token has."""
        rows = zip(self.answers, self.relevance_shares, strict=True)
        return [list(zip(row, of_row, strict=False)) for row, of_row in rows]

    @property
    def maps(self) -> dict[str, Float[Tensor, "batch answers tokens"]]:
        """Kind of map -> how much it marks each token for each answer.

        The mean map is the same for all, and missing where nothing but tokens reads the tokens.
        """
        maps = {"relevance": self.relevance, "rollout": self.rollout.inputs}
        layers = [self.record.layers[name] for name in self.record.readers]
        if layers:
            mean = torch.stack([layer.through(even_share(layer)) for layer in layers]).mean(dim=0)
            maps["mean_map"] = mean.expand(-1, self.relevance.shape[1], -1)
        return maps


@dataclass(frozen=True)
class Explainer:
    """Looks at a model. Batches have no windows.

    Attributes:
        model, task: what is looked at, and how to ask it.
        class_names: by label; none where answers are texts.
        alpha: of rollouts.
        converted: brings inputs into the type that the model takes.
        forward_context: makes what the model runs in, such as the context of a precision.
    """

    model: Explainable
    task: Task
    class_names: Sequence[str]
    alpha: Alpha
    converted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def explain(self, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None) -> Explanation:
        """Everything there is to see of a batch.

        Args:
            batch: what the model is asked about.
            predicted: each row's predictions where they are known, see `Task.answer_queries`.
        """
        converted = replace(batch, inputs=self.converted(batch.inputs))
        with capture(self.module) as record, self.forward_context():
            queries = self.task.answer_queries(self.model, converted, predicted)
            outputs = self.model(converted.inputs, converted.masks, queries)
            answers = self._located(self.task.answers(outputs, queries, converted, self.class_names), batch)
        return Explanation(
            batch=batch,
            record=record,
            answers=answers,
            own=own_answers(record, answers, len(self.class_names)),
            probability=probability_of(self.task.probabilities(record.outputs), answers),
            alpha=self.alpha,
            rollout=rollout_of(record, answers, num_classes=len(self.class_names), alpha=self.alpha),
            relevance=self._relevance(batch, record, answers),
        )

    def _located(self, answers: Sequence[Sequence[Answer]], batch: Batch) -> list[list[Answer]]:
        """Answers with the boxes of their classes; those classes that truly apply follow the likeliest ones."""
        outputs = dict.fromkeys(answer.output for row in answers for answer in row if not answer.is_word)
        found = []
        for row, boxes in zip(answers, batch.targets.get("boxes", [None] * len(batch)), strict=True):
            of_label: dict[int, list[Box]] = {}
            for box in boxes or ():
                of_label.setdefault(box.label, []).append(box)
            located = [
                one if one.label is None else replace(one, boxes=tuple(of_label.get(one.label, ()))) for one in row
            ]
            for output in outputs:
                known = {one.label for one in row if one.output == output}
                located += [
                    Answer(self.class_names[label], (label,), output, label=label, boxes=tuple(there))
                    for label, there in sorted(of_label.items())
                    if label not in known
                ]
            found.append(located)
        return found

    @property
    def module(self) -> nn.Module:
        """The model as a module."""
        assert isinstance(self.model, nn.Module)
        return self.model

    def _relevance(
        self, batch: Batch, record: Capture, answers: Sequence[Sequence[Answer]]
    ) -> Float[Tensor, "batch answers tokens"]:
        """The relevance of each token for the logits of each answer, a few rows at a time."""
        assert record.tokens is not None
        at_once = max(TOKENS_AT_ONCE // record.tokens.values.shape[1], 1)
        found = []
        for rows, part in in_parts(batch, at_once):
            with capture(self.module, gradients=True) as again, self.forward_context():
                queries = {name: ids[rows] for name, ids in record.queries.items()}
                outputs = self.model(self.converted(part.inputs), part.masks, queries)
                logits = {name: values.float() for name, values in outputs.items()}
                found.append(relevance_of(again, logits, answers[rows]))
        most = max(part.shape[1] for part in found)
        return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[1])) for part in found])


def in_parts(batch: Batch, size: int) -> Iterator[tuple[slice, Batch]]:
    """The batch in parts of so many samples, and where each is."""
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        yield rows, batch.part(rows)
