"""Looking at batches: what a model says of them, where each answer comes from, and how far that may be believed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.inspection.answers import Weighed, own_answers, relevance_of, rollout_of, said, shares_of
from perceiver.inspection.capture import Capture, Explainable, capture, undisturbed
from perceiver.inspection.deletion import Deletion, deletion
from perceiver.inspection.rollout import Alpha, Rollout, even_share
from perceiver.tasks.base import Task
from perceiver.types import Answer, Batch, Box

TOKENS_AT_ONCE = 2**16
"""How many tokens take part at once where gradients are needed, for which all activations are kept."""


@dataclass(frozen=True)
class Look:
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
class Observer:
    """Looks at a model. Batches have no views.

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

    def look(self, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None) -> Look:
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
        probabilities = self.task.probabilities(record.outputs)
        return Look(
            batch=batch,
            record=record,
            answers=answers,
            own=own_answers(record, answers, len(self.class_names)),
            probability=said({name: values.log() for name, values in probabilities.items()}, answers).exp(),
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

    def deletion(self, look: Look, *, seed: int) -> Deletion:
        """How much more than chance every kind of map marks what matters; see `deletion`."""
        with undisturbed(self.module), self.forward_context():
            return deletion(self.model, look.record, look.maps, look.answers, self.task.probabilities, seed=seed)


def in_parts(batch: Batch, size: int) -> Iterator[tuple[slice, Batch]]:
    """The batch in parts of so many samples, and where each is."""
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        yield rows, batch.part(rows)
