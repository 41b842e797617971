"""Any number of classes per sample: binary cross-entropy; or one class per sample on the same terms: softmax."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection

from perceiver.tasks.base import Task, finite_log
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
        positive_weight: factor of the loss of what applies, for all classes or one a class. Multi-label only.
        mixup: see `Mixing`. Where the encoder makes the spectrogram, it is waves that are mixed.
    """

    monitor = "mAP"
    monitor_mode = "max"

    def __init__(
        self,
        *,
        num_classes: int,
        multi_label: bool,
        label_smoothing: float,
        positive_weight: float | Sequence[float],
        mixup: float,
    ) -> None:
        super().__init__()
        if num_classes < 1 + (not multi_label):
            raise ValueError(f"num_classes={num_classes} is too few with multi_label={str(multi_label).lower()}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        weights = torch.as_tensor(positive_weight, dtype=torch.float32).reshape(-1)
        if len(weights) not in (1, num_classes) or not ((weights > 0.0) & weights.isfinite()).all():
            raise ValueError(f"positive_weight={positive_weight} must be one positive number, or one for each class")
        if not multi_label and (weights != 1.0).any():
            raise ValueError(f"positive_weight={positive_weight} goes with multi_label=true only")
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.positive_weight: Tensor
        self.register_buffer("positive_weight", weights, persistent=False)
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=0.0)
        self.keep_metrics(self._metrics)

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
        scores = batch.mean_over_views(self.probabilities(outputs))
        if not self.multi_label:
            return finite_log(scores)
        # A mean for itself, since float32 knows what is next to 0 better than what is next to 1.
        complements = batch.mean_over_views(self.probabilities(-outputs))
        return finite_log(scores) - finite_log(complements)

    def probabilities(self, outputs: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return outputs.float().sigmoid() if self.multi_label else outputs.float().softmax(dim=-1)

    def _tags(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        if "tags" in batch.targets:
            return batch.targets["tags"].float()
        label = batch.targets["label"]  # mixed, it is a distribution
        return label.float() if label.ndim == 2 else F.one_hot(label, self.num_classes).float()

    def loss(self, outputs: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        tags = self._tags(batch)
        if not self.multi_label:
            total = tags.sum(dim=1, keepdim=True)
            shares = tags / total.where(total > 0.0, 1.0)  # of a sample without any class there are none
            return F.cross_entropy(outputs.float(), shares, label_smoothing=self.label_smoothing)
        smooth = tags * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        return F.binary_cross_entropy_with_logits(outputs.float(), smooth, pos_weight=self.positive_weight)

    def update(
        self, stage: Stage, outputs: Float[Tensor, "batch classes"], loss: Float[Tensor, ""], batch: Batch
    ) -> None:
        tags, scores = self._tags(batch), self.probabilities(outputs.detach())
        for name, metric in self.metrics(stage).items(keep_base=True):
            if name == "loss":
                metric.update(loss.detach(), weight=len(batch))
            elif name == "accuracy":
                of_best = tags.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
                metric.update(((of_best > 0.0) & (of_best == tags.amax(dim=1))).float())
            else:
                metric.update(scores, tags > 0.5)

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        rankings = [metric for metric in self.metrics(stage).values() if isinstance(metric, Ranking)]
        return {name: values for ranking in rankings for name, values in ranking.by_class.items()}

    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        outputs = self.merged(self.outputs(model, batch), batch)
        scores, labels = self.probabilities(outputs).topk(min(top, self.num_classes), dim=1)
        return [
            [{"class": class_names[label], "score": score} for score, label in zip(row, row_labels, strict=True)]
            for row, row_labels in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
