"""What tasks over classes share: a logit for each class of a sample."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from perceiver.tasks.base import TableRow, Task
from perceiver.tasks.losses import ClassWeights, check_focal_gamma, weights_by_class
from perceiver.tasks.mixing import Mixing
from perceiver.types import Answer, Batch, Model

SHOWN_CLASSES = 3
"""How many of a sample's classes are explained."""


class ClassTask(Task):
    """Loss and metrics are the subclasses'.

    Attributes:
        score: what `predictions` call the probability of a class.

    Args:
        num_classes: classes.
        min_classes: fewer are refused.
        label_smoothing: see the subclasses.
        mixup, cutmix: see `Mixing`.
        class_weights: factor of the loss of each class, the loss being the weighted mean, as torch's is; or `balanced`:
            samples / (classes · samples of the class) in training. None for none.
        focal_gamma: γ of the focal loss; 0 for cross-entropy.
        output: the model's output that holds the logits.

    Raises:
        ValueError: a value is out of range.
    """

    score: ClassVar[str] = "probability"
    class_weights: Float[Tensor, " classes"] | None

    def __init__(
        self,
        *,
        num_classes: int,
        min_classes: int,
        label_smoothing: float,
        mixup: float,
        cutmix: float,
        class_weights: ClassWeights,
        focal_gamma: float,
        output: str,
    ) -> None:
        super().__init__()
        if num_classes < min_classes:
            raise ValueError(f"num_classes={num_classes}: there is nothing to tell apart with fewer than {min_classes}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        check_focal_gamma(focal_gamma)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.output = output
        self.needs_class_counts = class_weights == "balanced"
        weights = weights_by_class("class_weights", class_weights, num_classes)
        self.register_buffer("class_weights", weights, persistent=self.needs_class_counts)
        self.mixing = Mixing(num_classes=num_classes, mixup=mixup, cutmix=cutmix)
        self.mixes_samples = bool(self.mixing.methods)

    def set_class_counts(self, counts: Int[Tensor, " classes"], num_samples: int) -> None:
        assert self.class_weights is not None
        self.class_weights.copy_(num_samples / (self.num_classes * counts.clamp_min(1)))

    def training_batch(self, batch: Batch) -> Batch:
        return self.mixing(batch)

    def average_windows(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        logits = self.get_output(outputs)
        return {**outputs, self.output: self.mean_logits(logits, batch) if batch.windows else logits}

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest classes"]]:
        return {self.output: self.class_probabilities(self.get_output(outputs).float())}

    @abstractmethod
    def mean_logits(self, logits: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, "batch classes"]:
        """The logits of the mean probabilities over the windows of each sample."""

    @abstractmethod
    def class_probabilities(self, logits: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]: ...

    @abstractmethod
    def true_classes(self, batch: Batch) -> list[list[int]]:
        """The classes that apply to each sample."""

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[str]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        true = [[class_names[label] for label in labels] for labels in self.true_classes(batch)]
        logits = self.get_output(outputs).float()
        probabilities = self.class_probabilities(logits)
        return {"predictions": prediction_rows(batch.ids, true, probabilities, logits.argmax(dim=1), class_names)}

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        logits = self.get_output(self.average_windows(self.outputs(model, batch), batch)).float()
        labels = logits.topk(min(top, self.num_classes), dim=1).indices
        scores = self.class_probabilities(logits).gather(1, labels)
        return [
            [{"class": class_names[label], self.score: score} for score, label in zip(row, row_labels, strict=True)]
            for row, row_labels in zip(scores.tolist(), labels.tolist(), strict=True)
        ]

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        best = self.get_output(outputs).float().topk(min(SHOWN_CLASSES, self.num_classes), dim=1).indices
        return [
            [Answer(class_names[label], (label,), self.output, label=label) for label in row] for row in best.tolist()
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
