"""Contrasts: why a model gives an answer rather than another one, its foil (Lipton 1990; Jacovi et al. 2021).

The foil of a class is another class; of a word, another token in place of its first one, so that the scores of both
differ at that position alone. `relevance.py` describes how relevance is computed from the difference of two scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.types import Answer

NUM_FOILS = 3
"""Foils of an answer."""
SECOND = "second"
"""The foil that has the highest probability apart from the answer itself."""


@dataclass(frozen=True)
class Contrasts:
    """The contrasts of each answer of a batch with some foils; zeros pad answers with fewer.

    Attributes:
        foils: of each row and answer, the requested one first.
        probability: of each foil.
        relevance: of each token for the answer rather than the foil.
        against: of each token for the foil rather than the answer.
    """

    foils: list[list[list[Answer]]]
    probability: Float[Tensor, "batch answers foils"]
    relevance: Float[Tensor, "batch answers foils tokens"]
    against: Float[Tensor, "batch answers foils tokens"]


def choose_foils(
    answers: Sequence[Sequence[Answer]],
    probabilities: Mapping[str, Float[Tensor, "batch *places alternatives"]],
    names: Mapping[str, Sequence[str]],
    *,
    foil: str = SECOND,
    num_foils: int = NUM_FOILS,
) -> list[list[list[Answer]]]:
    """Return the foils of each answer: the one called `foil`, then the likeliest ones.

    Args:
        answers: of each row.
        probabilities: of the outputs.
        names: output -> the names of its alternatives.
        foil: name of an alternative, or `SECOND` for the likeliest one.
        num_foils: largest number of foils of an answer.

    Raises:
        ValueError: no output has an alternative called `foil`.
    """
    numbers = foil_numbers(names, foil)

    def of_answer(answer: Answer, values: Float[Tensor, "*places alternatives"]) -> list[Answer]:
        alternatives = names.get(answer.output, ())
        if not alternatives or (answer.is_word and not answer.queries):
            return []
        if answer.label is None:
            own, ranked = answer.ids[0], values[answer.queries[0]]
        else:
            own, ranked = answer.label, values if values.ndim == 1 else values[list(answer.queries)].log().mean(dim=0)
        order = ranked[: len(alternatives)].topk(min(num_foils + 1, len(alternatives))).indices.tolist()
        chosen = dict.fromkeys([numbers[answer.output], *order] if answer.output in numbers else order)
        return [_instead(answer, number, alternatives[number]) for number in chosen if number != own][:num_foils]

    return [
        [of_answer(answer, probabilities[answer.output][row]) for answer in of_row]
        for row, of_row in enumerate(answers)
    ]


def foil_numbers(names: Mapping[str, Sequence[str]], foil: str) -> dict[str, int]:
    """Return output -> number of its alternative called `foil`, for the outputs that have one; empty for `SECOND`.

    Raises:
        ValueError: no output has one.
    """
    if foil == SECOND:
        return {}
    found: dict[str, int] = {}
    for output, of_output in names.items():
        numbers = [number for number, name in enumerate(of_output) if name.strip() == foil]
        found |= {output: numbers[0]} if numbers else {}
    if not found:
        some = ", ".join(name for of_output in names.values() for name in list(of_output[:10]))
        raise ValueError(f"foil={foil}: is not an answer of the model, such as {some}; or give {SECOND}")
    return found


def _instead(answer: Answer, number: int, name: str) -> Answer:
    """Return the answer with another class, or with another first token."""
    if answer.label is None:
        return replace(answer, name=name, ids=(number, *answer.ids[1:]), boxes=())
    queries = (number,) if answer.queries == (answer.label,) else answer.queries
    return replace(answer, name=name, label=number, queries=queries, boxes=())


def padded(rows: Sequence[Sequence[int]], values: Float[Tensor, "batch pairs *rest"]) -> Float[Tensor, "*_"]:
    """Return values of consecutive pairs as [batch, answers, foils, *rest].

    Args:
        rows: numbers of foils of each answer of each row.
        values: of the pairs of a row in order.
    """
    max_answers = max(map(len, rows), default=0)
    max_foils = max((count for row in rows for count in row), default=0)
    found = values.new_zeros(len(rows), max_answers, max_foils, *values.shape[2:])
    for row, counts in enumerate(rows):
        parts = torch.split(values[row, : sum(counts)], list(counts)) if counts else ()
        for slot, part in enumerate(parts):
            found[row, slot, : len(part)] = part
    return found
