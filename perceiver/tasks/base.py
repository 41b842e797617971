"""What every task is: how to call the model, what it loses, how it is measured, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import Answer, Batch, Model, Stage

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
    """Knows the meaning of one output of the model and of targets; knows neither modalities nor the training loop.

    Outputs are the model's, by name; a task reads and changes its own and leaves the others as they are.

    Attributes:
        output: the name of its output.
        answer_key: the key under which `predictions` have the answer itself.
        mixes_samples: whether `prepare` changes inputs.
        monitor, monitor_mode: the validation metric that says which checkpoint is best, and its better direction.
        num_answers: answers about a user's own file, unless more or fewer are asked for.
        needs_target_tokens: outputs for which it hands token ids to the decoder, see `Decoder.needs_target_tokens`.
        needs_class_counts: whether `set_class_counts` must be called before training. What
            follows from them is saved with the weights.
    """

    output: str
    monitor: str
    monitor_mode: Literal["min", "max"]
    num_answers: int = 5
    needs_target_tokens: tuple[str, ...] = ()
    answer_key: str = "class"
    mixes_samples: bool = False
    needs_class_counts: bool = False

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        """Take over how many of the training samples each class applies to."""
        raise NotImplementedError

    def set_monitor(self, monitor: str) -> None:
        """Choose the checkpoints' metric; the metrics must have been made.

        Raises:
            ValueError: validation has no such metric.
        """
        known = self.metric_names("val")
        if monitor not in known:
            raise ValueError(f"monitor={monitor!r} must be one of the metrics of validation: {', '.join(known)}")
        self.monitor = monitor
        self.monitor_mode = "min" if monitor.rpartition("/")[2] in LOWER_IS_BETTER else "max"

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        """Return the batch with what several of the methods below need, so that it is computed once.

        In training, this is also the place for changes that mix samples.
        """
        return batch

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        """Token ids of the targets, for outputs in `needs_target_tokens`."""
        return {}

    def outputs(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The model's outputs for each window; a window a sample, unless `batch.windows` says otherwise."""
        return model(batch.inputs, batch.masks, self.queries(batch))

    def get_output(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The task's output.

        Raises:
            ValueError: the model has no such output.
        """
        if self.output not in outputs:
            raise ValueError(f"no output={self.output!r}, which the task reads; there are {', '.join(outputs)}")
        return outputs[self.output]

    @abstractmethod
    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Outputs of windows -> outputs of samples, as if the model had given their mean answers."""

    @abstractmethod
    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest answers"]]:
        """Outputs -> how probable each answer is, a class or the token at a place, by name of the output."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]: ...

    def num_terms(self, batch: Batch) -> float | Tensor:
        """Of how many terms, or of what total weight, the loss is the mean: what it weighs beside other batches'."""
        return len(batch)

    def build_metrics(self, make: Callable[[Stage], MetricCollection]) -> None:
        """Make the metrics of each stage, as parts of the task, so that they move to its device."""
        stages: tuple[Stage, ...] = ("train", "val", "test")
        self.stage_metrics = nn.ModuleDict({f"{stage}_metrics": make(stage) for stage in stages})

    def metrics(self, stage: Stage) -> MetricCollection:
        """The metrics of a stage, always the same object; its keys are the names that are logged after `stage/`."""
        metrics = self.stage_metrics[f"{stage}_metrics"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def metric_parts(self, stage: Stage) -> dict[str, Metric]:
        """Every metric of a stage, by a name that no other has."""
        return dict(self.metrics(stage).items(keep_base=True))

    def metric_names(self, stage: Stage) -> list[str]:
        """The keys of `compute`, as far as they are known before anything is counted."""
        return [name for key, part in self.metric_parts(stage).items() for name in getattr(part, "names", (key,))]

    def compute(self, stage: Stage) -> dict[str, Tensor]:
        """What was counted since `reset`, by the names that are logged after `stage/`."""
        return self.metrics(stage).compute()

    def reset(self, stage: Stage) -> None:
        self.metrics(stage).reset()

    @abstractmethod
    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        """Count a batch into the stage's metrics."""

    def update_generated(self, stage: Stage, model: Model, batch: Batch) -> dict[str, list[ScoredText]]:
        """Count into the metrics of an evaluation what takes further calls of the model, such as generation.

        Returns:
            Output -> the text generated for each sample, for outputs that are texts.
        """
        return {}

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        """Name of a table -> a row for each sample of a batch.

        Args:
            outputs: of samples (`average_windows`).
            batch: the samples.
            texts: what `update_generated` returned for them.
            class_names: by label.
        """
        return {}

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        """Metrics of each class, from when the stage's metrics were last computed; NaN where one is not defined."""
        return {}

    @abstractmethod
    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """For each sample at most `top` answers, best first, as plain values with the same keys throughout."""

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Int[Tensor, "batch length"]]:
        """The token ids with which the model is asked again to explain an answer, see `answers`.

        Args:
            model, batch: as in `predictions`; without windows.
            predicted: each row's `predictions`, where they are known: a sampled text might be another one the next
                time.
        """
        return {}

    @abstractmethod
    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """For each row what the model says, with the decoder's queries that say it.

        Args:
            outputs: of the model, when asked with `queries`.
            queries: see `answer_queries`.
            batch: without windows.
            class_names: by label.
        """
