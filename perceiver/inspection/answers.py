"""What a model said, found again in its forward pass."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Record
from perceiver.inspection.relevance import relevance
from perceiver.inspection.rollout import Alpha, Rollout, readers_of, rollout
from perceiver.types import Answer

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


def _value(values: Float[Tensor, "*places answers"], answer: Answer) -> Float[Tensor, ""]:
    if answer.label is not None:
        return values[answer.label]
    return values[list(answer.queries), list(answer.ids)].sum()
