"""What every task is: how to call the model, what it loses, how it is measured, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torchmetrics import MetricCollection

from perceiver.types import Answer, Batch, Stage

SHOWN_CLASSES = 3
"""How many of a sample's classes are looked at for themselves."""
LOWER_IS_BETTER = ("loss", "perplexity", "calibration_error")


@dataclass(frozen=True)
class TableRow:
    """What a table of the tested samples shows of one of them.

    Attributes:
        values: column -> plain value.
        rank: rows are sorted by it, the lowest first; those with the same rank are in the order of the data set.
    """

    values: dict[str, Any]
    rank: float = 0.0


class Task(nn.Module, ABC):
    """Knows the meaning of outputs and targets; knows neither modalities nor the training loop.

    Attributes:
        monitor, monitor_mode: the validation metric that says which checkpoint is best, and its better direction.
        num_answers: answers about a user's own file, unless more or fewer are asked for.
        asks: whether it hands queries to the decoder, which then must be one that is asked.
        table: the name of the table that `rows` fills; empty if the task has none.
        needs_class_counts: whether `set_class_counts` must be called before training. What
            follows from them is saved with the weights.
    """

    monitor: str
    monitor_mode: Literal["min", "max"]
    num_answers: ClassVar[int] = 5
    asks: ClassVar[bool] = False
    table: ClassVar[str] = ""
    needs_class_counts: bool = False

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        """Take over how many of the training samples each class applies to."""
        raise NotImplementedError

    def set_monitor(self, monitor: str) -> None:
        """Choose the checkpoints' metric; the metrics must have been made.

        Raises:
            ValueError: validation has no such metric.
        """
        metrics = self.metrics("val").items(keep_base=True)
        known = [name for key, metric in metrics for name in getattr(metric, "names", (key,))]
        if monitor not in known:
            raise ValueError(f"monitor={monitor!r} must be one of the metrics of validation: {', '.join(known)}")
        self.monitor = monitor
        self.monitor_mode = "min" if monitor in LOWER_IS_BETTER else "max"

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
    def probabilities(self, outputs: Float[Tensor, "*rest answers"]) -> Float[Tensor, "*rest answers"]:
        """Outputs -> how probable each answer is, a class or the word at a place."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Float[Tensor, ""]: ...

    def num_terms(self, batch: Batch) -> float | Tensor:
        """Of how many terms, or of what total weight, the loss is the mean: what it weighs beside other batches'."""
        return len(batch)

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

    def examine(self, stage: Stage, model: nn.Module, batch: Batch) -> list[str]:
        """Count into the metrics of an evaluation what follows not from the outputs, but from asking the model more.

        Returns:
            The text that the model wrote about each sample, for a task in which it writes.
        """
        return []

    def rows(self, outputs: Tensor, batch: Batch, texts: Sequence[str], class_names: Sequence[str]) -> list[TableRow]:
        """A row of the task's table for each sample of a batch.

        Args:
            outputs: of samples (`merged`).
            batch: the samples.
            texts: what `examine` returned for them.
            class_names: by label.
        """
        return []

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        """Metrics of each class, from when the stage's metrics were last computed; NaN where one is not defined."""
        return {}

    @abstractmethod
    def predictions(
        self, model: nn.Module, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """For each sample at most `top` answers, best first, as plain values with the same keys throughout."""

    def answers(
        self,
        model: nn.Module,
        batch: Batch,
        class_names: Sequence[str],
        said: Sequence[dict[str, Any]] | None = None,
    ) -> list[list[Answer]]:
        """For each row what the model says, with the queries that said it in the last forward pass in here.

        Args:
            model, batch, class_names: as in `predictions`.
            said: the best of each row's `predictions`, where they are known: a text might be another one the next time.
        """
        labels = {name: label for label, name in enumerate(class_names)}
        rows = self.predictions(model, replace(batch, views=[]), class_names, SHOWN_CLASSES)
        return [
            [Answer(one["class"], (labels[one["class"]],), label=labels[one["class"]]) for one in row] for row in rows
        ]


def prediction_rows(
    ids: Sequence[str],
    true: Sequence[Sequence[str]],
    probabilities: Float[Tensor, "batch classes"],
    predicted: Int[Tensor, " batch"],
    class_names: Sequence[str],
) -> list[TableRow]:
    """A row for each sample that compares its class, or classes, with the one that the model prefers.

    Wrong predictions come first, the most confident at the top; right ones follow, the least confident at the top.
    """
    chosen = probabilities.gather(1, predicted[:, None])[:, 0].tolist()
    rows = []
    for id, names, label, probability in zip(ids, true, predicted.tolist(), chosen, strict=True):
        name = class_names[label]
        values = {"id": id, "true": "; ".join(names), "predicted": name, "probability": probability}
        rows.append(TableRow(values, probability if name in names else -probability))
    return rows
