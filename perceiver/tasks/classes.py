"""The base of tasks over classes: one logit for each class of a sample."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perceiver.tasks.base import TableRow, Task
from perceiver.tasks.losses import (
    LossSpec,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    total_weight,
    weights_by_class,
)
from perceiver.tasks.mixing import Mixing
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import Answer, Batch, Model, Outcome

SHOWN_CLASSES = 3
"""The number of classes of a sample that are explained."""


class ClassTask(Task):
    """Loss, predictions and answers of a task over classes; targets and metrics are those of the subclasses.

    Attributes:
        score: the key under which `predictions` have the probability of a class.

    Args:
        num_classes: classes.
        multi_label: True: classes are independent; sigmoid and binary cross-entropy. False: a sample has one; softmax
            and cross-entropy.
        loss: smoothing, class weights and focal modulation.
        mixup, cutmix: see `Mixing`.
        output: the model's output that holds the logits.

    Raises:
        ValueError: a value is out of range, or has no meaning for independent classes, or for one per sample.
    """

    score: ClassVar[str] = "probability"
    class_weights: Float[Tensor, " classes"] | None
    positive_weight: Float[Tensor, " classes"]

    def __init__(
        self, *, num_classes: int, multi_label: bool, loss: LossSpec, mixup: float, cutmix: float, output: str
    ) -> None:
        super().__init__()
        if num_classes < (min_classes := 1 if multi_label else 2):
            raise ValueError(f"num_classes={num_classes} must be at least {min_classes}")
        self.num_classes = self.max_answers = num_classes
        self.multi_label = multi_label
        self.loss_spec = loss
        self.output = output
        self.needs_class_counts = loss.is_balanced
        weights = None
        if loss.class_weights is not None:
            weights = weights_by_class("class_weights", loss.class_weights, num_classes)
        positive_weight = weights_by_class("positive_weight", loss.positive_weight, num_classes)
        if multi_label and weights is not None:
            raise ValueError(f"class_weights={loss.class_weights} needs multi_label=false; use positive_weight")
        if not multi_label and (positive_weight != 1.0).any():
            raise ValueError(f"positive_weight={loss.positive_weight} needs multi_label=true; use class_weights")
        self.register_buffer("class_weights", weights, persistent=loss.is_balanced and not multi_label)
        self.register_buffer("positive_weight", positive_weight, persistent=loss.is_balanced and multi_label)
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=cutmix)
        self.mixes_samples = bool(self.mixing.methods)

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        if self.multi_label:
            self.positive_weight.copy_((num_samples - counts).clamp_min(1) / counts.clamp_min(1))
        else:
            assert self.class_weights is not None
            self.class_weights.copy_(num_samples / (self.num_classes * counts.clamp_min(1)))

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        return self.mixing(batch) if train else batch

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits = self.get_output(outputs)
        if (num := logits.shape[-1]) != self.num_classes:
            raise ValueError(f"its output {self.output} has {num} classes, and the data {self.num_classes}")
        return {**outputs, self.output: self._mean_logits(logits.float(), batch) if batch.windows else logits}

    def _mean_logits(self, logits: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        """Return the logits of the mean probabilities over the windows of each sample."""
        if not self.multi_label:
            return batch.log_mean_over_windows(logits.log_softmax(dim=-1))
        positive, negative = (batch.log_mean_over_windows(F.logsigmoid(sign * logits)) for sign in (1, -1))
        return positive - negative

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest classes"]]:
        return {self.output: self.class_probabilities(self.get_output(outputs).float())}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {self.output: class_names}

    def class_probabilities(self, logits: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    @abstractmethod
    def class_targets(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Return what the loss is computed against: which classes apply, or the distribution of the one that does."""

    @abstractmethod
    def true_classes(self, batch: Batch) -> list[list[int]]:
        """Return the classes that apply to each sample."""

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        logits, targets, spec = self.get_output(outputs), self.class_targets(batch), self.loss_spec
        if self.multi_label:
            smooth = targets * (1.0 - spec.label_smoothing) + spec.label_smoothing / 2.0
            gamma = spec.focal_gamma
            return sigmoid_cross_entropy(logits, smooth, positive_weight=self.positive_weight, focal_gamma=gamma)
        return softmax_cross_entropy(
            logits,
            targets,
            label_smoothing=spec.label_smoothing,
            class_weights=self.class_weights,
            focal_gamma=spec.focal_gamma,
        )

    def num_terms(self, batch: Batch) -> float | Tensor:
        return len(batch) if self.multi_label else total_weight(self.class_targets(batch), self.class_weights)

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        true = [[class_names[label] for label in labels] for labels in self.true_classes(batch)]
        logits = self.get_output(outputs).float()
        probabilities = self.class_probabilities(logits)
        rows = prediction_rows(batch.ids, true, probabilities, logits.argmax(dim=1), class_names)
        losses, _ = self.sample_losses(outputs, batch)
        rows = [
            replace(row, values=row.values | {"loss": loss}) for row, loss in zip(rows, losses.tolist(), strict=True)
        ]
        if "group" in batch.targets:
            rows = [
                replace(row, values=row.values | {"group": group})
                for row, group in zip(rows, batch.groups, strict=True)
            ]
        return {"predictions": rows}

    def outcomes(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[Outcome]]:
        logits, true = self.get_output(outputs).float(), self.true_classes(batch)
        applies = torch.zeros_like(logits, dtype=torch.bool)
        for row, labels in enumerate(true):
            applies[row, labels] = True
        if self.multi_label:
            logs = F.logsigmoid(torch.stack([logits, -logits]))
            confidence = logs.amax(dim=0).mean(dim=1).exp()
            of_truth = logs[0].where(applies, logs[1]).mean(dim=1).exp()
            predicted = [row.nonzero()[:, 0].tolist() for row in (logits > 0.0).cpu()]
        else:
            probabilities = self.class_probabilities(logits)
            confidence = probabilities.amax(dim=1)
            of_truth = probabilities.where(applies, 0.0).amax(dim=1)
            predicted = logits.argmax(dim=1, keepdim=True).tolist()
        columns = (self.sample_losses(outputs, batch)[0].tolist(), confidence.tolist(), of_truth.tolist())

        def named(labels: Sequence[int]) -> str:
            return "; ".join(class_names[label] for label in labels)

        return {
            self.output: [
                Outcome(loss, named(own), named(labels), sure, of_labels, tuple(own), tuple(labels))
                for loss, sure, of_labels, own, labels in zip(*columns, predicted, true, strict=True)
            ]
        }

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        logits = self.get_output(self.average_windows(self.outputs(model, batch), batch)).float()
        labels = logits.topk(min(top, self.num_classes), dim=1).indices
        scores = self.class_probabilities(logits).gather(1, labels)
        return [
            [{"class": class_names[label], self.score: score} for score, label in zip(row, row_labels, strict=True)]
            for row, row_labels in zip(scores.tolist(), labels.tolist(), strict=True)
        ]

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        best = self.get_output(outputs).float().topk(min(SHOWN_CLASSES, self.num_classes), dim=1).indices
        return [
            [Answer(class_names[label], (label,), self.output, label=label) for label in row] for row in best.tolist()
        ]


def prediction_rows(
    ids: Sequence[str],
    true: Sequence[Sequence[str]],
    probabilities: Float[Tensor, "batch classes"],
    predicted: Int[Tensor, " batch"],
    class_names: Sequence[str],
) -> list[TableRow]:
    """Return a row for each sample with its true classes and the predicted one.

    Wrong predictions come first, by descending confidence; correct ones follow, by ascending confidence.
    """
    chosen = probabilities.gather(1, predicted[:, None])[:, 0].tolist()
    rows = []
    for id, names, label, probability in zip(ids, true, predicted.tolist(), chosen, strict=True):
        name = class_names[label]
        values = {"id": id, "true": "; ".join(names), "predicted": name, "probability": probability}
        rows.append(TableRow(values, probability if name in names else -probability))
    return rows
