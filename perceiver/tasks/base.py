"""What every task is: how to call the model, what it loses, how it is measured, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchmetrics import MetricCollection

from perceiver.types import Batch, Stage


class Task(nn.Module, ABC):
    """Knows the meaning of outputs and targets; knows neither modalities nor the training loop.

    Attributes:
        monitor, monitor_mode: the validation metric that says which checkpoint is best, and its better direction.
    """

    monitor: ClassVar[str]
    monitor_mode: ClassVar[Literal["min", "max"]]

    def training_batch(self, batch: Batch) -> Batch:
        """What the model is trained on: the place for changes that mix samples."""
        return batch

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says of each view; a view a sample, unless `batch.views` says otherwise."""
        return model(batch.inputs, batch.masks)

    @abstractmethod
    def merged(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Outputs of views -> outputs of samples, as if the model had given their mean answers."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Float[Tensor, ""]: ...

    def keep_metrics(self, make: Callable[[Stage], MetricCollection]) -> None:
        """Make the metrics of each stage, as parts of the task, so that they move to its device."""
        stages: tuple[Stage, ...] = ("train", "val", "test")
        self.stage_metrics = nn.ModuleDict({f"{stage}_metrics": make(stage) for stage in stages})

    def metrics(self, stage: Stage) -> MetricCollection:
        """The metrics of a stage, always the same object; its keys are the names that are logged behind `stage/`."""
        metrics = self.stage_metrics[f"{stage}_metrics"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    @abstractmethod
    def update(self, stage: Stage, outputs: Tensor, loss: Float[Tensor, ""], batch: Batch) -> None:
        """Count a batch into the stage's metrics."""

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        """Metrics of each class, from when the stage's metrics were last computed; NaN where one is not defined."""
        return {}

    @abstractmethod
    def predictions(self, outputs: Tensor, class_names: Sequence[str], top: int) -> list[list[dict[str, Any]]]:
        """Outputs -> for each sample its `top` answers, best first, as plain values with the same keys throughout."""


def finite_log(probabilities: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The logarithm of at least the smallest number there is, so that a target of 0 times it is 0."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
