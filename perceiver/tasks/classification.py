"""One class per sample: softmax cross-entropy, with class weights and focal modulation as options."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.tasks.classes import ClassTask
from perceiver.tasks.losses import LossSpec
from perceiver.types import Batch, Stage

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

CALIBRATION_BINS = 15


class Classification(ClassTask):
    """Cross-entropy with label smoothing, MixUp and CutMix, from the target `label`.

    Metrics: `loss`, `accuracy` (top-1 over all samples), `top5` (with more than 5 classes), and in evaluation
    `calibration_error` (expected, over 15 bins) and `<group>_accuracy` of each `group` of samples.

    Args:
        num_classes, loss, mixup, cutmix, output: see `ClassTask`.
        monitor: the metric of validation that determines the best checkpoint.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        loss: LossSpec,
        mixup: float,
        cutmix: float,
        monitor: str = "accuracy",
        output: str = "logits",
    ) -> None:
        super().__init__(
            num_classes=num_classes, multi_label=False, loss=loss, mixup=mixup, cutmix=cutmix, output=output
        )
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

        from perceiver.tasks.gathered import GroupMeans

        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),  # which by default is left out of the mean
            "accuracy": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
        }
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro", validate_args=False)
        if stage != "train":
            metrics["calibration_error"] = MulticlassCalibrationError(self.num_classes, CALIBRATION_BINS)
            metrics["groups"] = GroupMeans("accuracy")
        return MetricCollection(metrics, compute_groups=False)

    def class_targets(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        label = batch.targets["label"]  # mixed, it is a distribution
        return (label if label.ndim == 2 else F.one_hot(label, self.num_classes)).float()

    def true_classes(self, batch: Batch) -> list[list[int]]:
        return [[label] for label in batch.targets["label"].tolist()]

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        labels = batch.targets["label"]
        if labels.ndim == 2:  # mixed: the larger part counts
            labels = labels.argmax(dim=1)
        # Probabilities are for calibration alone: rounded, they are equal where logits still differ.
        logits = self.get_output(outputs).detach().float()
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            elif name == "groups":
                metric.update((logits.argmax(dim=1) == labels).float(), batch.groups)
            else:
                metric.update(self.class_probabilities(logits) if name == "calibration_error" else logits, labels)
