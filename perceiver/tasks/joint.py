"""Several tasks on one model, each on its own output: multi-task learning (Caruana 1997)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image
from torch import Tensor

from perceiver.tasks.base import TableRow, Task
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import (
    Answer,
    Batch,
    GenerativeModel,
    IncrementalDecoder,
    Memory,
    Model,
    Outcome,
    Picture,
    QueryKind,
    Stage,
)

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


class JointTask(Task):
    """The weighted sum of the losses of several tasks, and the metrics of all as `<task>/<metric>`.

    The loss of a task is a mean over its terms: samples, or tokens of captions. `loss` is the mean over samples of the
    weighted sum of all terms of a sample, so that it does not depend on how samples are divided among batches and
    processes.

    Args:
        tasks: name -> task, each with its own output.
        weights: name -> factor of the task's loss; 1 by default.
        monitor: the metric of validation that determines the best checkpoint.

    Raises:
        ValueError: there is no task, one is itself joint, a weight is negative or belongs to no task, two tasks read
            the same output, or a task mixes samples, which would change the inputs of the others but not their targets.
    """

    def __init__(self, *, tasks: Mapping[str, Task], weights: Mapping[str, float] | None = None, monitor: str) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("tasks={}: name at least one")
        for name, weight in (weights or {}).items():
            if name not in tasks:
                raise ValueError(f"weights.{name}={weight}: the tasks are {', '.join(tasks)}")
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"weights.{name}={weight} must be at least 0, and finite")
        for name, task in tasks.items():
            if isinstance(task, JointTask):
                raise ValueError(
                    f"tasks.{name}: is a joint task; name its tasks {', '.join(task.by_name)} here instead"
                )
            if task.mixes_samples:
                raise ValueError(f"tasks.{name}: mixup and cutmix mix the inputs of all tasks, but its targets only")
            if others := [other for other in tasks if other != name and tasks[other].output == task.output]:
                raise ValueError(f"tasks.{name}.output={task.output}: is that of tasks.{others[0]}, too")
        self.tasks = torch.nn.ModuleDict(tasks)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in tasks}
        self.output = ""
        self.num_answers = max(task.num_answers for task in tasks.values())
        self.needs_class_counts = any(task.needs_class_counts for task in tasks.values())
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        return MetricCollection({"loss": MeanMetric(nan_strategy=math.nan)})

    def build_metrics(self) -> None:
        for task in self.by_name.values():
            task.build_metrics()
        super().build_metrics()

    @property
    def by_name(self) -> dict[str, Task]:
        return {name: cast(Task, task) for name, task in self.tasks.items()}

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {output: kind for task in self.by_name.values() for output, kind in task.given_queries.items()}

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        for task in self.by_name.values():
            if task.needs_class_counts:
                task.set_class_counts(counts, num_samples)

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        for task in self.by_name.values():
            batch = task.prepare(batch, train=train)
        return batch

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        return {output: ids for task in self.by_name.values() for output, ids in task.queries(batch).items()}

    def hidden(self, batch: Batch) -> dict[str, Bool[Tensor, "rows *shape"]]:
        return {modality: cells for task in self.by_name.values() for modality, cells in task.hidden(batch).items()}

    def _hiding(self, model: Model, batch: Batch) -> Model:
        """Return a model that does not read what any of the tasks hides."""
        hidden = self.hidden(batch)
        return _Hiding(model, hidden) if hidden else model

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        averaged = dict(outputs)
        for task in self.by_name.values():
            averaged[task.output] = task.average_windows(outputs, batch)[task.output]
        return averaged

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest answers"]]:
        return {name: found for task in self.by_name.values() for name, found in task.probabilities(outputs).items()}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {name: found for task in self.by_name.values() for name, found in task.alternatives(class_names).items()}

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        terms = [
            self.weights[name] * task.loss(outputs, batch) * task.num_terms(batch)
            for name, task in self.by_name.items()
        ]
        return torch.stack(terms).sum() / max(len(batch), 1)

    def metric_parts(self, stage: Stage) -> "dict[str, Metric]":
        parts = super().metric_parts(stage)
        for name, task in self.by_name.items():
            parts |= {f"{name}/{key}": part for key, part in task.metric_parts(stage).items()}
        return parts

    def metric_names(self, stage: Stage) -> list[str]:
        names = [f"{name}/{key}" for name, task in self.by_name.items() for key in task.metric_names(stage)]
        return ["loss", *names]

    def may_have_metric(self, name: str) -> bool:
        key, _, of_task = name.partition("/")
        return key in self.by_name and self.by_name[key].may_have_metric(of_task)

    def compute(self, stage: Stage) -> dict[str, Tensor]:
        values = super().compute(stage)
        for name, task in self.by_name.items():
            values |= {f"{name}/{key}": value for key, value in task.compute(stage).items()}
        return values

    def reset(self, stage: Stage) -> None:
        super().reset(stage)
        for task in self.by_name.values():
            task.reset(stage)

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        self.metrics(stage)["loss"].update(loss.detach(), weight=len(batch))
        with torch.no_grad():
            for task in self.by_name.values():
                task.update(stage, outputs, task.loss(outputs, batch), batch)

    def generated(self, model: Model, batch: Batch) -> dict[str, list[ScoredText]]:
        texts: dict[str, list[ScoredText]] = {}
        model = self._hiding(model, batch)
        for task in self.by_name.values():
            texts |= task.generated(model, batch)
        return texts

    def update_generated(self, stage: Stage, texts: Mapping[str, Sequence[ScoredText]]) -> None:
        for task in self.by_name.values():
            task.update_generated(stage, texts)

    def as_predictions(self, texts: Mapping[str, Sequence[ScoredText]]) -> list[list[dict[str, Any]]] | None:
        if not texts:
            return None
        rows: list[list[dict[str, Any]]] = [[] for _ in next(iter(texts.values()))]
        for name, task in self.by_name.items():
            for row, found in zip(rows, task.as_predictions(texts) or [], strict=False):
                row += [{"task": name, "answer": one[task.answer_key], "score": None} for one in found]
        return rows

    def outcomes(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[Outcome]]:
        return {
            output: found
            for task in self.by_name.values()
            for output, found in task.outcomes(outputs, batch, texts, class_names).items()
        }

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        return {
            f"{name}_{table}": rows
            for name, task in self.by_name.items()
            for table, rows in task.table_rows(outputs, batch, texts, class_names).items()
        }

    def class_metrics(self, stage: Stage) -> dict[str, Shaped[Tensor, " classes"]]:
        return {
            f"{name}/{key}": values
            for name, task in self.by_name.items()
            for key, values in task.class_metrics(stage).items()
        }

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return at most `top` answers of each task: its name, the answer, and its score, if it has one."""
        rows: list[list[dict[str, Any]]] = [[] for _ in batch.ids]
        model = self._hiding(model, batch)
        for name, task in self.by_name.items():
            for row, found in zip(rows, task.predictions(model, batch, class_names, top), strict=True):
                for one in found:
                    scores = [value for key, value in one.items() if key != task.answer_key]
                    row.append({"task": name, "answer": one[task.answer_key], "score": scores[0] if scores else None})
        return rows

    def pictures(self, model: Model, batch: Batch, inputs: Mapping[str, Picture]) -> list[dict[str, Image.Image]]:
        rows: list[dict[str, Image.Image]] = [{} for _ in batch.ids]
        model = self._hiding(model, batch)
        for name, task in self.by_name.items():
            for row, found in zip(rows, task.pictures(model, batch, inputs), strict=True):
                row |= {f"{name}_{picture}": image for picture, image in found.items()}
        return rows

    def files(self, model: Model, batch: Batch) -> list[dict[str, bytes]]:
        rows: list[dict[str, bytes]] = [{} for _ in batch.ids]
        model = self._hiding(model, batch)
        for name, task in self.by_name.items():
            for row, found in zip(rows, task.files(model, batch), strict=True):
                row |= {f"{name}_{file}": content for file, content in found.items()}
        return rows

    def reconstructions(self, model: Model, batch: Batch) -> dict[str, dict[str, Tensor]]:
        rows: dict[str, dict[str, Tensor]] = {}
        model = self._hiding(model, batch)
        for task in self.by_name.values():
            rows |= task.reconstructions(model, batch)
        return rows

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Int[Tensor, "batch length"]]:
        queries: dict[str, Tensor] = {}
        model = self._hiding(model, batch)
        for name, task in self.by_name.items():
            of_task = None
            if predicted is not None:
                of_task = [
                    [{task.answer_key: one["answer"]} for one in row if one["task"] == name] for row in predicted
                ]
            queries |= task.answer_queries(model, batch, of_task)
        return queries

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        rows: list[list[Answer]] = [[] for _ in batch.ids]
        for task in self.by_name.values():
            for row, found in zip(rows, task.answers(outputs, queries, batch, class_names), strict=True):
                row += found
        return rows


class _Hiding:
    """A `GenerativeModel` that does not read some cells of its inputs; see `Perceiver.forward`."""

    def __init__(self, model: Model, hidden: Mapping[str, Tensor]) -> None:
        self.model = model
        self.always = hidden

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        queries: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return self.model(inputs, masks, queries, {**self.always, **(hidden or {})})

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
    ) -> Memory:
        return cast(GenerativeModel, self.model).encode(inputs, masks, {**self.always, **(hidden or {})})

    def incremental_decoder(self, memory: Memory, output: str) -> IncrementalDecoder:
        return cast(GenerativeModel, self.model).incremental_decoder(memory, output)
