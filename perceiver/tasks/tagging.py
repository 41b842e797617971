"""Any number of classes per sample: binary cross-entropy; or one class per sample on the same terms: softmax."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection

from perceiver.tasks.classes import ClassTask
from perceiver.tasks.losses import (
    ClassWeights,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    total_weight,
    weights_by_class,
)
from perceiver.tasks.ranking import Ranking
from perceiver.types import Batch, Stage


class Tagging(ClassTask):
    """Scores for classes, from the target `tags` (1 where a class applies), or `label` where there is one a sample.

    Metrics: `loss`, and in evaluation those of `Ranking`; with `multi_label=false` also `accuracy`: how often the best
    class is one that applies, of mixed samples one of the larger part.

    Args:
        multi_label: True: classes are independent; sigmoid and binary cross-entropy. False: one applies; softmax and
            cross-entropy, of whose target several classes have equal shares.
        label_smoothing: how far targets are moved: to half of it and its complement, or as in `Classification`.
        positive_weight: factor of the loss of what applies, for all classes or one a class; or `balanced`: training
            samples without the class / those with it. Multi-label only.
        class_weights: single-label only; see `ClassTask`, also for num_classes, focal_gamma and output.
        mixup: see `Mixing`. Where the encoder makes the spectrogram, it is waves that are mixed.
        monitor: the metric of validation that says which checkpoint is best.
    """

    score: ClassVar[str] = "score"
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
        output: str = "logits",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            min_classes=1 if multi_label else 2,
            label_smoothing=label_smoothing,
            mixup=mixup,
            cutmix=0.0,
            class_weights=class_weights,
            focal_gamma=focal_gamma,
            output=output,
        )
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
        self.multi_label = multi_label
        self.needs_class_counts |= positive_weight == "balanced"
        self.register_buffer("positive_weight", positive, persistent=positive_weight == "balanced")
        self.build_metrics(self._metrics)
        self.set_monitor(monitor)

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        if self.multi_label:
            self.positive_weight.copy_((num_samples - counts).clamp_min(1) / counts.clamp_min(1))
        else:
            super().set_class_counts(counts, num_samples)

    def _metrics(self, stage: Stage) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy=math.nan)}
        if not self.multi_label:
            metrics["accuracy"] = MeanMetric()
        if stage != "train":  # it keeps all scores, which of a large training set are too many
            metrics["ranking"] = Ranking(self.num_classes)
        return MetricCollection(metrics, compute_groups=False)

    def mean_logits(self, logits: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        if not self.multi_label:
            return batch.log_mean_over_windows(logits.float().log_softmax(dim=-1))
        applies, does_not = (batch.log_mean_over_windows(F.logsigmoid(sign * logits.float())) for sign in (1, -1))
        return applies - does_not

    def class_probabilities(self, logits: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    def true_classes(self, batch: Batch) -> list[list[int]]:
        return [tags.nonzero()[:, 0].tolist() for tags in self._tags(batch).cpu() > 0.5]

    def _tags(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        if "tags" in batch.targets:
            return batch.targets["tags"].float()
        label = batch.targets["label"]  # mixed, it is a distribution
        return label.float() if label.ndim == 2 else F.one_hot(label, self.num_classes).float()

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        logits = self.get_output(outputs)
        if not self.multi_label:
            return softmax_cross_entropy(
                logits,
                self._shares(batch),
                label_smoothing=self.label_smoothing,
                class_weights=self.class_weights,
                focal_gamma=self.focal_gamma,
            )
        smooth = self._tags(batch) * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        return sigmoid_cross_entropy(logits, smooth, positive_weight=self.positive_weight, focal_gamma=self.focal_gamma)

    def num_terms(self, batch: Batch) -> float | Tensor:
        return len(batch) if self.multi_label else total_weight(self._shares(batch), self.class_weights)

    def _shares(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        tags = self._tags(batch)
        total = tags.sum(dim=1, keepdim=True)
        return tags / total.where(total > 0.0, 1.0)  # of a sample without any class there are none

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        tags, logits = self._tags(batch), self.get_output(outputs).detach().float()
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "accuracy":
                of_best = tags.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
                metric.update(((of_best > 0.0) & (of_best == tags.amax(dim=1))).float())
            else:
                # Not by probabilities, which in float32 all are 1 above a logit of 17.
                metric.update(logits if self.multi_label else log_odds(logits), tags > 0.5)

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        rankings = [metric for metric in self.metrics(stage).values() if isinstance(metric, Ranking)]
        return {name: values for ranking in rankings for name, values in ranking.by_class.items()}


def log_odds(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Logits of a softmax -> log p / (1 - p) of each class, which tells apart what rounds to p = 1."""
    logs = logits.log_softmax(dim=1)
    best = logs.argmax(dim=1, keepdim=True)
    others = logs.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    # Of all but the best, p is at most 1/2, and 1 - p well known.
    return (logs - torch.log1p(-logs.exp().clamp_max(0.5))).scatter(1, best, logs.gather(1, best) - others)
