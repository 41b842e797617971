"""Score, rollout, relevance and contrasts of each answer of a batch, whatever output of the model it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.inspection.maps.contrast import Contrasts, padded
from perceiver.inspection.maps.record import Record
from perceiver.inspection.maps.relevance import evidence
from perceiver.inspection.maps.rollout import Alpha, Rollout, decoder_attention, mean_of_queries, rollout
from perceiver.roles import TOKENS
from perceiver.types import Answer

Answers: TypeAlias = Sequence[Sequence[Answer]]
"""The answers of each row of a batch."""


def answer_scores(
    values: Mapping[str, Float[Tensor, "batch *places answers"]], answers: Answers
) -> Float[Tensor, "batch answers"]:
    """Select the value of each answer from outputs, or from log probabilities of their shape.

    The value of a class is the one at its label, averaged over its places in a dense output; that of a word is the sum
    over its token ids. Rows with fewer answers are padded with 0.
    """
    empty = next(iter(values.values()))
    rows = [
        torch.stack([answer_value(values[answer.output][row], answer) for answer in of_row])
        if of_row
        else empty.new_zeros(0)
        for row, of_row in enumerate(answers)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def answer_value(
    values: Float[Tensor, "*steps_and_places answers"], answer: Answer, *, num_steps: int = 0
) -> Float[Tensor, "*steps"]:
    """Select the value of an answer from those of one sample, see `answer_scores`; keep `num_steps` axes."""
    if answer.label is None:
        return values[..., list(answer.queries), list(answer.ids)].sum(dim=-1)
    if values.ndim == num_steps + 1:
        return values[..., answer.label]
    return values[..., list(answer.queries), answer.label].mean(dim=-1)


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


def answer_attention(
    record: Record, answers: Answers, *, num_classes: int
) -> Float[Tensor, "batch answers tokens"] | None:
    """Return the attention of each answer in the decoder alone; None if the decoder does not attend to the tokens."""
    if record.memory != TOKENS or not record.decode_layers:
        return None

    def of_output(output: str, own: Answers) -> dict[str, Tensor]:
        part = record.for_output(output)
        return {"attention": decoder_attention(part, _query_weights(part, own, num_classes))[0]}

    return _by_output(record, answers, of_output)["attention"]


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
        foils: for each answer another one of the same output, whose logit is subtracted; None: nothing is subtracted.
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
    """Return weights that average each answer's own queries, or all queries if the answers share them."""
    every = range(part.num_outputs)
    queries = [
        [answer.queries if has_own_queries(answer, part, num_classes) else every for answer in row] for row in answers
    ]
    return mean_of_queries(queries, part.num_outputs)


def has_own_queries(answer: Answer, part: Record, num_classes: int) -> bool:
    """Return whether the decoder has queries for this answer alone, and so a rollout of its own.

    Args:
        answer: of the model.
        part: the record of the output of the answer alone (`Record.for_output`).
        num_classes: of the data; 0 where answers are texts.
    """
    if not part.decode_layers:  # otherwise, the decoder reads all of the memory for every answer
        return bool(part.output_lengths)
    return answer.is_word or part.outputs[answer.output].ndim > 2 or part.num_outputs == num_classes
