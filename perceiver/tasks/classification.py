"""One class per sample: softmax cross-entropy, of weighted classes and focal where that is asked for."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from perceiver.tasks.base import TableRow, Task, prediction_rows
from perceiver.tasks.losses import (
    ClassWeights,
    check_focal_gamma,
    softmax_cross_entropy,
    total_weight,
    weights_by_class,
)
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
        class_weights: factor of the loss of each class, the loss being the weighted mean, as torch's is; or `balanced`:
            samples / (classes · samples of the class) in training. None for none.
        focal_gamma: γ of the focal loss; 0 for cross-entropy.
        monitor: the metric of validation that says which checkpoint is best.
    """

    table: ClassVar[str] = "predictions"
    class_weights: Float[Tensor, " classes"] | None

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
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: there is nothing to tell apart with fewer than 2 classes")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        check_focal_gamma(focal_gamma)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.needs_class_counts = class_weights == "balanced"
        weights = weights_by_class("class_weights", class_weights, num_classes)
        self.register_buffer("class_weights", weights, persistent=self.needs_class_counts)
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=cutmix)
        self.keep_metrics(self._metrics)
        self.set_monitor(monitor)

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        assert self.class_weights is not None
        self.class_weights.copy_(num_samples / (self.num_classes * counts.clamp_min(1)))

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
        return batch.log_mean_over_views(outputs.float().log_softmax(dim=-1))

    def probabilities(self, outputs: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
        return outputs.float().softmax(dim=-1)

    def loss(self, outputs: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        return softmax_cross_entropy(
            outputs,
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

    def update(
        self, stage: Stage, outputs: Float[Tensor, "batch classes"], loss: Float[Tensor, ""], batch: Batch
    ) -> None:
        labels = batch.targets["label"]
        if labels.ndim == 2:  # mixed: the larger part counts
            labels = labels.argmax(dim=1)
        # Probabilities are for calibration alone: rounded, they are equal where outputs still differ.
        outputs = outputs.detach().float()
        for name, metric in self.metrics(stage).items(keep_base=True):
            if name == "loss":
                metric.update(loss.detach(), weight=self.num_terms(batch))
            else:
                metric.update(self.probabilities(outputs) if name == "calibration_error" else outputs, labels)

    def rows(self, outputs: Tensor, batch: Batch, texts: Sequence[str], class_names: Sequence[str]) -> list[TableRow]:
        true = [[class_names[label]] for label in batch.targets["label"].tolist()]
        outputs = outputs.float()
        return prediction_rows(batch.ids, true, self.probabilities(outputs), outputs.argmax(dim=1), class_names)

    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        outputs = self.merged(self.outputs(model, batch), batch).float()
        labels = outputs.topk(min(top, self.num_classes), dim=1).indices
        probabilities = self.probabilities(outputs).gather(1, labels)
        return [
            [
                {"class": class_names[label], "probability": probability}
                for probability, label in zip(row_probabilities, row_labels, strict=True)
            ]
            for row_probabilities, row_labels in zip(probabilities.tolist(), labels.tolist(), strict=True)
        ]
