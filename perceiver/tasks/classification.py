"""One class per sample: softmax cross-entropy."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from perceiver.tasks.base import Task, finite_log
from perceiver.tasks.mixing import Mixing
from perceiver.types import Batch, Stage

CALIBRATION_BINS = 15


class Classification(Task):
    """Cross-entropy with label smoothing, MixUp and CutMix.

    Metrics: `loss`, `accuracy` (top-1 over all samples), `top5` (with more than 5 classes), and in evaluation
    `calibration_error` (expected, over 15 bins).

    Args:
        num_classes: classes.
        label_smoothing: share of the target that is spread over all classes.
        mixup, cutmix: see `Mixing`.
    """

    monitor = "accuracy"
    monitor_mode = "max"

    def __init__(self, *, num_classes: int, label_smoothing: float, mixup: float, cutmix: float) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: there is nothing to tell apart with fewer than 2 classes")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=cutmix)
        self.keep_metrics(self._metrics)

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

    def training_batch(self, batch: Batch) -> Batch:
        return self.mixing(batch)

    def merged(self, outputs: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        if not batch.views:
            return outputs
        return finite_log(batch.mean_over_views(self.probabilities(outputs)))

    def probabilities(self, outputs: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return outputs.float().softmax(dim=-1)

    def loss(self, outputs: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(outputs.float(), batch.targets["label"], label_smoothing=self.label_smoothing)

    def update(
        self, stage: Stage, outputs: Float[Tensor, "batch classes"], loss: Float[Tensor, ""], batch: Batch
    ) -> None:
        labels = batch.targets["label"]
        if labels.ndim == 2:  # mixed: the larger part counts
            labels = labels.argmax(dim=1)
        probabilities = self.probabilities(outputs.detach())
        for name, metric in self.metrics(stage).items(keep_base=True):
            if name == "loss":
                metric.update(loss.detach(), weight=len(batch))
            else:
                metric.update(probabilities, labels)

    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        outputs = self.merged(self.outputs(model, batch), batch)
        probabilities, labels = self.probabilities(outputs).topk(min(top, self.num_classes), dim=1)
        return [
            [
                {"class": class_names[label], "probability": probability}
                for probability, label in zip(row_probabilities, row_labels, strict=True)
            ]
            for row_probabilities, row_labels in zip(probabilities.tolist(), labels.tolist(), strict=True)
        ]
