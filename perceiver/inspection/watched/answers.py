"""The answers of a watched model, taken from its logits, and their explanation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from perceiver.inspection.maps.answers import answer_contrasts, answer_evidence, answer_scores, pair_evidence
from perceiver.inspection.maps.contrast import choose_foils
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Alpha
from perceiver.inspection.watched.record import WatchedRecord
from perceiver.types import Answer, Batch

LOGITS = "logits"
SHOWN_CLASSES = 3
"""Classes of a sample that are explained, unless `top` is given."""
MAX_WORDS = 32
"""Positions of a text that are explained, unless others are chosen."""
Read: TypeAlias = Callable[[Any], Tensor]
"""Takes logits, [batch, classes] or [batch, length, vocab], from the output of a model."""


def usual_logits(output: Any) -> Tensor:
    """Return the logits among what a model returned: a tensor, or the attribute or key `logits`.

    Raises:
        ValueError: it returned no logits.
    """
    found = output if isinstance(output, Tensor) else getattr(output, LOGITS, None)
    if found is None and isinstance(output, Mapping):
        found = output.get(LOGITS)
    if not isinstance(found, Tensor):
        raise ValueError(f"no logits in a {type(output).__name__}: give explain(logits=lambda output: …)")
    return found


@dataclass(frozen=True)
class WatchedAnswers:
    """Chooses the answers of a call of a model, and explains them.

    Attributes:
        read: takes the logits from what the model returned.
        class_name: number of a class or token -> its name.
        alpha: α of the rollouts, see `rollout`.
    """

    read: Read
    class_name: Callable[[int], str]
    alpha: Alpha

    def logits(self, record: WatchedRecord) -> Tensor:
        """Return the logits of a call, with gradients.

        Raises:
            ValueError: they have another shape, or no gradient.
        """
        values = self.read(record.output)
        if values.ndim not in (2, 3) or len(values) != record.num_rows:
            raise ValueError(f"logits have the shape {list(values.shape)}, not [{record.num_rows}, (length,) classes]")
        if not values.requires_grad:
            hint = "if its parameters are frozen, give watch(model, …, gradients=True)"
            raise ValueError(f"the model was called without gradients, as by torch.no_grad(), or has none: {hint}")
        return values

    def explain(
        self, record: WatchedRecord, batch: Batch, *, top: int | None, positions: Sequence[int] | None, foil: str | None
    ) -> Explanation:
        """Explain the likeliest answers of a call; see `WatchedAttention.explain`."""
        logits = self.logits(record)
        num_classes = logits.shape[-1]
        if wrong := [label for label in batch.targets.get("label", ()) if not 0 <= int(label) < num_classes]:
            raise ValueError(f"labels: {int(wrong[0])} is none of {num_classes} classes")
        record.outputs = {LOGITS: logits.detach().float()}
        if top is not None and (top < 1 or (logits.ndim == 2 and top > num_classes)):
            raise ValueError(f"top={top} must be from 1 to the number of classes, {num_classes}")
        if logits.ndim == 2:
            count = min(SHOWN_CLASSES, num_classes) if top is None else top
            answers = [
                [Answer(self.class_name(label), (), LOGITS, label=label) for label in row.topk(count).indices.tolist()]
                for row in record.outputs[LOGITS]
            ]
            answers = _with_queries(record, logits, answers)
        else:
            chosen = list(range(logits.shape[1]))[:MAX_WORDS] if positions is None else list(positions)
            best = record.outputs[LOGITS].argmax(dim=-1)[:, chosen].tolist()
            answers = [
                [
                    Answer(self.class_name(one), (place,), LOGITS, ids=(one,))
                    for place, one in zip(chosen, row, strict=True)
                ]
                for row in best
            ]
        return self.explanation(record, batch, logits, answers, foil)

    def explanation(
        self, record: WatchedRecord, batch: Batch, logits: Tensor, answers: list[list[Answer]], foil: str | None = None
    ) -> Explanation:
        """Explain given answers of a call."""
        logs, given = {LOGITS: logits.detach().float().log_softmax(dim=-1)}, {LOGITS: logits.float()}
        both, contrasts = answer_evidence(record, given, answers), None
        if foil is not None:
            probabilities = {LOGITS: logs[LOGITS].exp()}
            names = {LOGITS: _Names(self.class_name, logits.shape[-1])}
            foils = choose_foils(answers, probabilities, names, foil=foil)
            contrasts = answer_contrasts(foils, logs, pair_evidence(record, given, answers, foils))
        return Explanation.of_answers(
            batch,
            record,
            answers,
            logs,
            both,
            contrasts,
            num_classes=logits.shape[-1] if logits.ndim == 2 else 0,
            alpha=self.alpha,
        )


def _with_queries(record: WatchedRecord, logits: Tensor, answers: list[list[Answer]]) -> list[list[Answer]]:
    """Give each answer the queries whose last attention affects its logit."""
    if record.decode_layers:
        every = tuple(range(record.num_outputs))
        return [[replace(one, queries=every) for one in row] for row in answers]
    found = []
    for slot in range(len(answers[0])):
        score = answer_scores({LOGITS: logits}, [row[slot : slot + 1] for row in answers]).sum()
        found.append(_elements_read(record, score))
    return [
        [replace(one, queries=tuple(found[slot][row].nonzero()[:, 0].tolist())) for slot, one in enumerate(of_row)]
        for row, of_row in enumerate(answers)
    ]


def _elements_read(record: WatchedRecord, score: Tensor) -> Bool[Tensor, "batch outputs"]:
    """Return True for the elements of the final sequences whose last attention affects a score."""
    parts = []
    for sequence, length in record.output_lengths.items():
        layers = [layer for layer in record.layers.values() if layer.role.queries == sequence and layer.outs]
        outs = [layer.outs[0] for layer in layers]
        found = torch.autograd.grad(score, outs, retain_graph=True, allow_unused=True) if outs else ()
        own = [gradient for gradient in found if gradient is not None]
        changes = (own[-1] != 0).any(dim=-1).any(dim=1) if own else score.new_zeros(record.num_rows, length).bool()
        parts.append(changes)
    return torch.cat(parts, dim=1)


class _Names(Sequence[str]):
    """The names of classes or tokens, computed on access."""

    def __init__(self, name: Callable[[int], str], count: int) -> None:
        self.name = name
        self.numbers = [*range(count)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.numbers[place]
        return self.name(chosen) if isinstance(chosen, int) else [self.name(number) for number in chosen]
