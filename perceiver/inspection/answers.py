"""What a model said, found again in its forward pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.record import Record
from perceiver.inspection.rollout import readers_of
from perceiver.types import Answer

Answers = Sequence[Sequence[Answer]]
"""For each row of a batch what the model said of it."""


def own_answers(record: Record, answers: Answers, num_classes: int) -> list[list[Answer]]:
    """Those answers for which the decoder has queries of their own: none where it asks for all classes at once."""
    if record.num_outputs == num_classes:
        return [list(row) for row in answers]
    return [[answer for answer in row if answer.is_word] for row in answers]


def answer_readers(record: Record, answers: Answers, num_classes: int) -> Float[Tensor, "batch answers queries"]:
    """The decoder's queries that gave each answer, as shares; all of them where it has none of its own."""
    every = range(record.num_outputs)
    asked = record.num_outputs == num_classes
    queries = [[answer.queries if asked or answer.is_word else every for answer in row] for row in answers]
    return readers_of(queries, record.num_outputs)


def said(values: Float[Tensor, "batch *places answers"], answers: Answers) -> Float[Tensor, "batch slots"]:
    """What the decoder's outputs, or what follows from them place by place, are for each answer.

    Of a class its own value, of a word the sum over its ids; 0 where a row has no more answers.
    """
    rows = [
        torch.stack([_value(values[row], answer) for answer in of_row]) if of_row else values.new_zeros(0)
        for row, of_row in enumerate(answers)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _value(values: Float[Tensor, "*places answers"], answer: Answer) -> Float[Tensor, ""]:
    if answer.label is not None:
        return values[answer.label]
    return values[list(answer.queries), list(answer.ids)].sum()
