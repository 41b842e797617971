"""Explainers of models of this package (`Explainer`), and the protocol that the evaluation of maps relies on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.inspection.maps.answers import Answers, answer_contrasts, answer_evidence, pair_evidence
from perceiver.inspection.maps.capture import Capture, Explainable, capture
from perceiver.inspection.maps.contrast import choose_foils
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Alpha
from perceiver.tasks.base import Task
from perceiver.types import Answer, Batch, Box, JoinedTokens

TOKENS_AT_ONCE = 2**16
"""Tokens of a forward pass with gradients, for which all activations are stored."""


class Explains(Protocol):
    """A model whose maps can be evaluated: one of this package (`Explainer`), or a watched one."""

    @property
    def module(self) -> nn.Module:
        """The model as a module."""
        ...

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of each forward pass, such as autocast."""
        ...

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs for tokens; no query attends to those that the mask excludes."""
        ...

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the probabilities of outputs."""
        ...

    def explain_again(self, explanation: Explanation) -> Explanation:
        """Explain the same answers to the same queries with the current weights of the model."""
        ...


@dataclass(frozen=True)
class Explainer:
    """Explains the answers of a model for batches without windows.

    Attributes:
        model, task: the model, and the task that it is trained for.
        class_names: by label; empty where answers are texts.
        alpha: α of the rollouts, see `rollout`.
        converted: converts inputs to the precision of the model.
        forward_context: the context of each forward pass, such as autocast.
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
            predicted: the predictions for each row, if they are known; see `Task.answer_queries`.
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
        """Explain the same answers to the same queries with the current weights of the model."""
        batch = explanation.batch
        converted = replace(batch, inputs=self.converted(batch.inputs))
        with capture(self.module) as record, self.forward_context():
            self.model(converted.inputs, converted.masks, explanation.record.queries, self.task.hidden(converted))
        return self._explanation(batch, record, explanation.answers)

    def _explanation(
        self, batch: Batch, record: Capture, answers: list[list[Answer]], foil: str | None = None
    ) -> Explanation:
        """Return the explanation of answers of a forward pass."""
        probabilities = self.task.probabilities(record.outputs)
        logs = {name: values.log() for name, values in probabilities.items()}
        foils = None
        if foil is not None and not record.without_relevance:
            foils = choose_foils(answers, probabilities, self.task.alternatives(self.class_names), foil=foil)
        both, contrasted = self._evidence(batch, record, answers, foils)
        return Explanation.of_answers(
            batch,
            record,
            answers,
            logs,
            both,
            None if foils is None else answer_contrasts(foils, logs, contrasted),
            num_classes=len(self.class_names),
            alpha=self.alpha,
        )

    def _with_boxes(self, answers: Answers, batch: Batch, outputs: Mapping[str, Tensor]) -> list[list[Answer]]:
        """Add their boxes to answers that are classes, and the true classes that are not among the likeliest ones.

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
        """Compute the evidence for and against each answer and each pair of answer and foil, a few rows at a time."""
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
