"""Any number of classes per sample: binary cross-entropy; or one class per sample with the same metrics: softmax."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.tasks.classes import ClassTask
from perceiver.tasks.losses import LossSpec
from perceiver.types import Batch, Stage

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


class Tagging(ClassTask):
    """Scores for classes, from the target `tags` (1 where a class applies), or `label` with one class per sample.

    Metrics: `loss`, and in evaluation those of `Ranking`; with `multi_label=false` also `accuracy`: how often the class
    with the highest score is one that applies, or for mixed samples one of the larger part; in evaluation also
    `<group>_accuracy` of each `group` of samples.

    Args:
        multi_label: False: one class applies; if several do, they have equal shares of the target.
        mixup: see `Mixing`. Where the encoder computes the spectrogram, waves are mixed.
        monitor: the metric of validation that determines the best checkpoint.
        num_classes, loss, output: see `ClassTask`.
    """

    score: ClassVar[str] = "score"

    def __init__(
        self,
        *,
        num_classes: int,
        multi_label: bool,
        loss: LossSpec,
        mixup: float,
        monitor: str = "mAP",
        output: str = "logits",
    ) -> None:
        super().__init__(
            num_classes=num_classes, multi_label=multi_label, loss=loss, mixup=mixup, cutmix=0.0, output=output
        )
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        from perceiver.tasks.gathered import GroupMeans
        from perceiver.tasks.ranking import Ranking

        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy=math.nan)}
        if not self.multi_label:
            metrics["accuracy"] = MeanMetric()
            if stage != "train":
                metrics["groups"] = GroupMeans("accuracy")
        if stage != "train":  # it keeps all scores: too many for a large training set
            metrics["ranking"] = Ranking(self.num_classes)
        return MetricCollection(metrics, compute_groups=False)

    def true_classes(self, batch: Batch) -> list[list[int]]:
        return [tags.nonzero()[:, 0].tolist() for tags in self._tags(batch).cpu() > 0.5]

    def _tags(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        if "tags" in batch.targets:
            return batch.targets["tags"].float()
        label = batch.targets["label"]  # mixed, it is a distribution
        return label.float() if label.ndim == 2 else F.one_hot(label, self.num_classes).float()

    def class_targets(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        tags = self._tags(batch)
        if self.multi_label:
            return tags
        total = tags.sum(dim=1, keepdim=True)
        return tags / total.where(total > 0.0, 1.0)  # zeros for a sample without any class

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        tags, logits = self._tags(batch), self.get_output(outputs).detach().float()
        target_of_best = tags.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
        correct = ((target_of_best > 0.0) & (target_of_best == tags.amax(dim=1))).float()
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "accuracy":
                metric.update(correct)
            elif name == "groups":
                metric.update(correct, batch.groups)
            else:
                # Not by probabilities, which in float32 all are 1 above a logit of 17.
                metric.update(logits if self.multi_label else log_odds(logits), tags > 0.5)


def log_odds(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Return log p / (1 - p) of each class of a softmax, which differs also where p is rounded to 1."""
    logs = logits.log_softmax(dim=1)
    best = logs.argmax(dim=1, keepdim=True)
    others = logs.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    # For all but the best class, p is at most 1/2, so that 1 - p is accurate.
    return (logs - torch.log1p(-logs.exp().clamp_max(0.5))).scatter(1, best, logs.gather(1, best) - others)
