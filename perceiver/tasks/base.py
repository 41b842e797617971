"""The contract of a task: the call of the model, loss, metrics, predictions and answers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image
from torch import Tensor, nn

from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import STAGES, Answer, Batch, Model, Outcome, Picture, QueryKind, Stage

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

LOWER_IS_BETTER = (
    *("loss", "perplexity", "error", "WER", "CER", "substitutions", "insertions", "deletions"),
    *("EPE", "Fl"),
)
"""Endings of the names of metrics."""
EXPLAINED_PLACES = 256
"""Most places of a dense output that are explained: those of a coarser grid."""


def explained_grid(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a grid of at most `EXPLAINED_PLACES` cells over the same input."""
    factor = min((EXPLAINED_PLACES / math.prod(shape)) ** (1 / len(shape)), 1.0)
    return tuple(max(int(size * factor + 1e-6), 1) for size in shape)


@dataclass(frozen=True)
class TableRow:
    """One tested sample in a table.

    Attributes:
        values: column -> plain value.
        rank: sorts the rows, the lowest first; equal ranks keep the order of the data set.
    """

    values: dict[str, Any]
    rank: float = 0.0


def monitor_mode(metric: str) -> Literal["min", "max"]:
    """Return the better direction of a metric."""
    return "min" if metric.endswith(LOWER_IS_BETTER) else "max"


class Task(nn.Module, ABC):
    """Interprets one output of the model and the targets; independent of modalities and of the training loop.

    Outputs are those of the model, by name; a task reads and changes its own and leaves the others unchanged.

    Attributes:
        output: name of the output that it reads.
        answer_key: key of the answer itself in `predictions`.
        mixes_samples: whether `prepare` changes inputs.
        monitor, monitor_mode: the metric of validation that determines the best checkpoint, and its better direction.
        num_answers: default number of answers about a user's own file.
        max_answers: the largest number that there can be; None if any number is allowed.
        given_queries: the outputs for which `queries` gives something to the decoder, see `Decoder.needs_queries`.
        needs_class_counts: whether `set_class_counts` must be called before training. Weights derived from the counts
            are saved with those of the model.
    """

    output: str
    monitor: str
    monitor_mode: Literal["min", "max"]
    num_answers: int = 5
    max_answers: int | None = None
    answer_key: str = "class"
    mixes_samples: bool = False
    needs_class_counts: bool = False

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {}

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        """Set the number of training samples to which each class applies."""
        raise NotImplementedError

    def set_monitor(self, monitor: str) -> None:
        """Choose the metric that determines the best checkpoint, which `build_metrics` checks."""
        self.monitor = monitor
        self.monitor_mode = monitor_mode(monitor)

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        """Return the batch with what several of the methods below need, so that it is computed once.

        In training, this is also the place for changes that mix samples.
        """
        return batch

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        """Return the token ids of the targets, or the places of the output, for outputs in `given_queries`."""
        return {}

    def hidden(self, batch: Batch) -> dict[str, Bool[Tensor, "rows *shape"]]:
        """Return by modality which cells of the inputs the model must not read, see `Model`: by default none."""
        return {}

    def outputs(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Return the model's outputs for each window; without `batch.windows`, each sample is one window."""
        return model(batch.inputs, batch.masks, self.queries(batch), self.hidden(batch))

    def get_output(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the output of the model that the task reads.

        Raises:
            ValueError: the model has no such output.
        """
        if self.output not in outputs:
            raise ValueError(f"no output={self.output!r}, which the task reads; there are {', '.join(outputs)}")
        return outputs[self.output]

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the outputs of samples from those of their windows: by default their mean.

        Where outputs stand for probabilities, it is these that are averaged.
        """
        values = self.get_output(outputs)
        if batch.windows:
            parts = torch.split(values, [len(names) for names in batch.windows])
            values = torch.stack([rows.mean(dim=0) for rows in parts])
        return {**outputs, self.output: values}

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest answers"]]:
        """Return the probability of each answer, a class or the token at a place, by name of the output.

        By default that is NaN, for a task without `answers`.
        """
        return {self.output: torch.full_like(self.get_output(outputs), torch.nan)}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        """Return the names of the classes or tokens that an output chooses from, by its name: by default none.

        They are in the order of the last axis of `probabilities`.

        Args:
            class_names: by label.
        """
        return {}

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss over the terms of a batch."""

    def num_terms(self, batch: Batch) -> float | Tensor:
        """Return the number of terms that the loss is the mean of, or their total weight: by default the samples."""
        return len(batch)

    def sample_losses(
        self, outputs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return the loss of each sample, and its number of terms: the loss is their mean, weighted by these."""
        losses, terms = [], []
        by_sample = {name: values.reshape(len(batch), -1, *values.shape[1:]) for name, values in outputs.items()}
        for index in range(len(batch)):
            part = batch.part(slice(index, index + 1))
            losses.append(self.loss({name: rows[index] for name, rows in by_sample.items()}, part))
            terms.append(losses[-1].new_zeros(()) + self.num_terms(part))
        return torch.stack(losses), torch.stack(terms)

    @abstractmethod
    def make_metrics(self, stage: Stage) -> "MetricCollection":
        """Return new metrics of a stage; here is the place to import torchmetrics, which takes seconds."""

    def build_metrics(self) -> None:
        """Register the metrics of each stage as submodules, so that they move with the task to its device.

        Training and evaluation do so before the task is moved; a prediction needs none.

        Raises:
            ValueError: validation has no metric `monitor`, as far as its metrics are known before the first update.
        """
        self.stage_metrics = nn.ModuleDict({f"{stage}_metrics": self.make_metrics(stage) for stage in STAGES})
        known = self.metric_names("val")
        if self.monitor not in known and not self.may_have_metric(self.monitor):
            raise ValueError(f"monitor={self.monitor!r} must be one of the metrics of validation: {', '.join(known)}")

    def metrics(self, stage: Stage) -> "MetricCollection":
        """Return the metrics of a stage, always the same object; a metric is logged as `<stage>/<key>`."""
        if not hasattr(self, "stage_metrics"):
            self.build_metrics()
        metrics: MetricCollection = self.stage_metrics[f"{stage}_metrics"]  # type: ignore[assignment]
        return metrics

    def metric_parts(self, stage: Stage) -> "dict[str, Metric]":
        """Return every metric of a stage by a unique name."""
        return dict(self.metrics(stage).items(keep_base=True))

    def metric_names(self, stage: Stage) -> list[str]:
        """Return the keys of `compute`, as far as they are known before the first update."""
        return [name for key, part in self.metric_parts(stage).items() for name in getattr(part, "names", (key,))]

    def may_have_metric(self, name: str) -> bool:
        """Whether validation may have a metric that `metric_names` cannot know, such as one of texts or of a group."""
        endings = [getattr(part, "later_ending", None) for part in self.metric_parts("val").values()]
        return any(ending is not None and name != ending and name.endswith(ending) for ending in endings)

    def compute(self, stage: Stage) -> dict[str, Tensor]:
        """Return the metrics since the last `reset`; each is logged as `<stage>/<key>`."""
        return self.metrics(stage).compute()

    def reset(self, stage: Stage) -> None:
        self.metrics(stage).reset()

    @abstractmethod
    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        """Update the metrics of a stage with a batch."""

    def generated(self, model: Model, batch: Batch) -> dict[str, list[ScoredText]]:
        """Return the text generated for each sample, by name of the output, for outputs that are texts."""
        return {}

    def update_generated(self, stage: Stage, texts: Mapping[str, Sequence[ScoredText]]) -> None:
        """Update the metrics of an evaluation with texts that were `generated`."""

    def as_predictions(self, texts: Mapping[str, Sequence[ScoredText]]) -> list[list[dict[str, Any]]] | None:
        """Return the texts that were `generated` as the first of `predictions`; None if there are none."""
        return None

    def outcomes(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[Outcome]]:
        """Return the outcome of each sample, by name of the output: by default its loss alone.

        Args:
            outputs, batch, texts, class_names: as in `table_rows`.
        """
        losses, _ = self.sample_losses(outputs, batch)
        return {self.output: [Outcome(loss) for loss in losses.tolist()]}

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        """Return tables by name: a row for each sample of a batch.

        Args:
            outputs: of samples (`average_windows`).
            batch: the samples.
            texts: what `generated` returned for them.
            class_names: by label.
        """
        return {}

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        """Return metrics of each class as of the last `compute`; NaN where one is not defined."""
        parts = self.metric_parts(stage).values()
        return {name: values for part in parts for name, values in getattr(part, "by_class", {}).items()}

    @abstractmethod
    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return at most `top` answers for each sample, best first, as plain values with the same keys throughout.

        One key is `answer_key`; another one, if any, has the score of the answer.
        """

    def pictures(self, model: Model, batch: Batch, inputs: Mapping[str, Picture]) -> list[dict[str, Image.Image]]:
        """Return pictures of the predictions for each sample by name: by default none.

        Args:
            model, batch: as in `predictions`.
            inputs: modality -> the raw inputs in visible form.
        """
        return [{} for _ in batch.ids]

    def files(self, model: Model, batch: Batch) -> list[dict[str, bytes]]:
        """Return predictions for each sample as files of a format of the field: name -> content; by default none.

        Args:
            model, batch: as in `predictions`.
        """
        return [{} for _ in batch.ids]

    def reconstructions(self, model: Model, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Return inputs as the model sees and predicts them: modality -> name -> raw values; by default none.

        Args:
            model, batch: as in `predictions`.
        """
        return {}

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Int[Tensor, "batch length"]]:
        """Return the token ids or places for the forward pass that is explained, see `answers`.

        Args:
            model, batch: as in `predictions`; without windows.
            predicted: `predictions` of each row, if known: a text that is sampled again may differ.
        """
        return {}

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the answers of each row to be explained, with the decoder queries that give them: by default none.

        Args:
            outputs: of the model for `queries`.
            queries: see `answer_queries`.
            batch: without windows.
            class_names: by label.
        """
        return [[] for _ in batch.ids]
