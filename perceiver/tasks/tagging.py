"""Any number of classes per sample: binary cross-entropy; or one class per sample on the same terms: softmax."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection

from perceiver.tasks.base import TableRow, Task, prediction_rows
from perceiver.tasks.losses import (
    ClassWeights,
    check_focal_gamma,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    total_weight,
    weights_by_class,
)
from perceiver.tasks.mixing import Mixing
from perceiver.tasks.ranking import Ranking
from perceiver.types import Batch, Stage


class Tagging(Task):
    """Scores for classes, from the target `tags` (1 where a class applies), or `label` where there is one a sample.

    Metrics: `loss`, and in evaluation those of `Ranking`; with `multi_label=false` also `accuracy`: how often the best
    class is one that applies, of mixed samples one of the larger part.

    Args:
        num_classes: classes.
        multi_label: True: classes are independent; sigmoid and binary cross-entropy. False: one applies; softmax and
            cross-entropy, of whose target several classes have equal shares.
        label_smoothing: how far targets are moved: to half of it and its complement, or as in `Classification`.
        positive_weight: factor of the loss of what applies, for all classes or one a class; or `balanced`: training
            samples without the class / those with it. Multi-label only.
        mixup: see `Mixing`. Where the encoder makes the spectrogram, it is waves that are mixed.
        class_weights: as in `Classification`. Single-label only.
        focal_gamma: γ of the focal loss; 0 for cross-entropy.
        monitor: the metric of validation that says which checkpoint is best.
    """

    table: ClassVar[str] = "predictions"
    class_weights: Float[Tensor, " classes"] | None
    positive_weight: Float[Tensor, " classes"]

    def __init__(
        self,
        *,
        num_classes: int,
        multi_label: bool,
        label_smoothing: float,
        positive_weight: ClassWeights,
        mixup: float,
        class_weights: ClassWeights = None,
        focal_gamma: float = 0.0,
        monitor: str = "mAP",
    ) -> None:
        super().__init__()
        if num_classes < 1 + (not multi_label):
            raise ValueError(f"num_classes={num_classes} is too few with multi_label={str(multi_label).lower()}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        positive = weights_by_class("positive_weight", 1.0 if positive_weight is None else positive_weight, num_classes)
        assert positive is not None
        if not multi_label and (positive != 1.0).any():
            raise ValueError(
                f"positive_weight={positive_weight} goes with multi_label=true only; there is class_weights"
            )
        if multi_label and class_weights is not None:
            raise ValueError(
                f"class_weights={class_weights} goes with multi_label=false only; there is positive_weight"
            )
        check_focal_gamma(focal_gamma)
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.needs_class_counts = "balanced" in (positive_weight, class_weights)
        self.register_buffer("positive_weight", positive, persistent=positive_weight == "balanced")
        weights = weights_by_class("class_weights", class_weights, num_classes)
        self.register_buffer("class_weights", weights, persistent=class_weights == "balanced")
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=0.0)
        self.keep_metrics(self._metrics)
        self.set_monitor(monitor)

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        if self.multi_label:
            self.positive_weight.copy_((num_samples - counts).clamp_min(1) / counts.clamp_min(1))
        else:
            assert self.class_weights is not None
            self.class_weights.copy_(num_samples / (self.num_classes * counts.clamp_min(1)))

    def _metrics(self, stage: Stage) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy=math.nan)}
        if not self.multi_label:
            metrics["accuracy"] = MeanMetric()
        if stage != "train":  # it keeps all scores, which of a large training set are too many
            metrics["ranking"] = Ranking(self.num_classes)
        return MetricCollection(metrics, compute_groups=False)

    def training_batch(self, batch: Batch) -> Batch:
        return self.mixing(batch)

    def merged(self, outputs: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        if not batch.views:
            return outputs
        if not self.multi_label:
            return batch.log_mean_over_views(outputs.float().log_softmax(dim=-1))
        applies, does_not = (batch.log_mean_over_views(F.logsigmoid(sign * outputs.float())) for sign in (1, -1))
        return applies - does_not

    def probabilities(self, outputs: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return outputs.float().sigmoid() if self.multi_label else outputs.float().softmax(dim=-1)

    def _tags(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        if "tags" in batch.targets:
            return batch.targets["tags"].float()
        label = batch.targets["label"]  # mixed, it is a distribution
        return label.float() if label.ndim == 2 else F.one_hot(label, self.num_classes).float()

    def loss(self, outputs: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        if not self.multi_label:
            return softmax_cross_entropy(
                outputs,
                self._shares(batch),
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,
                focal_gamma=self.focal_gamma,
            )
        smooth = self._tags(batch) * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        return sigmoid_cross_entropy(
            outputs, smooth, positive_weight=self.positive_weight, focal_gamma=self.focal_gamma
        )

    def num_terms(self, batch: Batch) -> float | Tensor:
        return len(batch) if self.multi_label else total_weight(self._shares(batch), self.class_weights)

    def _shares(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        tags = self._tags(batch)
        total = tags.sum(dim=1, keepdim=True)
        return tags / total.where(total > 0.0, 1.0)  # of a sample without any class there are none

    def update(
        self, stage: Stage, outputs: Float[Tensor, "batch classes"], loss: Float[Tensor, ""], batch: Batch
    ) -> None:
        tags, outputs = self._tags(batch), outputs.detach().float()
        for name, metric in self.metrics(stage).items(keep_base=True):
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "accuracy":
                of_best = tags.gather(1, outputs.argmax(dim=1, keepdim=True))[:, 0]
                metric.update(((of_best > 0.0) & (of_best == tags.amax(dim=1))).float())
            else:
                # Not by probabilities, which in float32 all are 1 above a logit of 17.
                metric.update(outputs if self.multi_label else log_odds(outputs), tags > 0.5)

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        rankings = [metric for metric in self.metrics(stage).values() if isinstance(metric, Ranking)]
        return {name: values for ranking in rankings for name, values in ranking.by_class.items()}

    def rows(self, outputs: Tensor, batch: Batch, texts: Sequence[str], class_names: Sequence[str]) -> list[TableRow]:
        applies = (self._tags(batch) > 0.5).tolist()
        true = [[name for name, tag in zip(class_names, of_sample, strict=True) if tag] for of_sample in applies]
        outputs = outputs.float()
        return prediction_rows(batch.ids, true, self.probabilities(outputs), outputs.argmax(dim=1), class_names)

    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        outputs = self.merged(self.outputs(model, batch), batch).float()
        labels = outputs.topk(min(top, self.num_classes), dim=1).indices
        scores = self.probabilities(outputs).gather(1, labels)
        return [
            [{"class": class_names[label], "score": score} for score, label in zip(row, row_labels, strict=True)]
            for row, row_labels in zip(scores.tolist(), labels.tolist(), strict=True)
        ]


def log_odds(outputs: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Outputs of a softmax -> log p / (1 - p) of each class, which tells apart what rounds to p = 1."""
    logs = outputs.log_softmax(dim=1)
    best = logs.argmax(dim=1, keepdim=True)
    others = logs.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    # Of all but the best, p is at most 1/2, and 1 - p well known.
    return (logs - torch.log1p(-logs.exp().clamp_max(0.5))).scatter(1, best, logs.gather(1, best) - others)
