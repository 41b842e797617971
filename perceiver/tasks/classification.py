"""One class per sample: softmax cross-entropy, of weighted classes and focal where that is asked for."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from perceiver.tasks.classes import ClassTask
from perceiver.tasks.losses import ClassWeights, softmax_cross_entropy, total_weight
from perceiver.types import Batch, Stage

CALIBRATION_BINS = 15


class Classification(ClassTask):
    """Cross-entropy with label smoothing, MixUp and CutMix.

    Metrics: `loss`, `accuracy` (top-1 over all samples), `top5` (with more than 5 classes), and in evaluation
    `calibration_error` (expected, over 15 bins).

    Args:
        label_smoothing: share of the target that is spread over all classes.
        monitor: the metric of validation that says which checkpoint is best.
        num_classes, mixup, cutmix, class_weights, focal_gamma, output: see `ClassTask`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        label_smoothing: float,
        mixup: float,
        cutmix: float,
        class_weights: ClassWeights = None,
        focal_gamma: float = 0.0,
        monitor: str = "accuracy",
        output: str = "logits",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            min_classes=2,
            label_smoothing=label_smoothing,
            mixup=mixup,
            cutmix=cutmix,
            class_weights=class_weights,
            focal_gamma=focal_gamma,
            output=output,
        )
        self.build_metrics(self._metrics)
        self.set_monitor(monitor)

    def _metrics(self, stage: Stage) -> MetricCollection:
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),  # which by default is left out of the mean
            "accuracy": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
        }
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro", validate_args=False)
        if stage != "train":
            metrics["calibration_error"] = MulticlassCalibrationError(self.num_classes, CALIBRATION_BINS)
        return MetricCollection(metrics, compute_groups=False)

    def mean_logits(self, logits: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        return batch.log_mean_over_windows(logits.float().log_softmax(dim=-1))

    def class_probabilities(self, logits: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return logits.softmax(dim=-1)

    def true_classes(self, batch: Batch) -> list[list[int]]:
        return [[label] for label in batch.targets["label"].tolist()]

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        return softmax_cross_entropy(
            self.get_output(outputs),
            self._targets(batch),
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
        )

    def num_terms(self, batch: Batch) -> float | Tensor:
        return total_weight(self._targets(batch), self.class_weights)

    def _targets(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        label = batch.targets["label"]  # mixed, it is a distribution
        return (label if label.ndim == 2 else F.one_hot(label, self.num_classes)).float()

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        labels = batch.targets["label"]
        if labels.ndim == 2:  # mixed: the larger part counts
            labels = labels.argmax(dim=1)
        # Probabilities are for calibration alone: rounded, they are equal where logits still differ.
        logits = self.get_output(outputs).detach().float()
        for name, metric in self.metric_parts(stage).items():
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            else:
                metric.update(self.class_probabilities(logits) if name == "calibration_error" else logits, labels)
