"""A class for each place of an input: cross-entropy at some places in training, at all of them in evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from perceiver.tasks.base import TableRow
from perceiver.tasks.places import PlacesTask
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import UNLABELED, Answer, Batch, Model, Picture, Stage

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

SHOWN_CLASSES = 4
"""The number of classes of a sample that are explained."""
OVERLAY = 0.5
"""Opacity of a mask over its input."""


class Segmentation(PlacesTask):
    """A class for each cell of an input, from the target `mask`; the output must be dense (`DenseDecoder`).

    Metrics: `loss`; `mIoU`, the mean over classes of intersection over union of all places; and `pixel_accuracy`. In
    training they are those of the drawn places.

    Args:
        num_classes: classes, the background included.
        modality: the input whose cells have classes.
        num_places: see `PlacesTask`.
        monitor: the metric of validation that determines the best checkpoint.
        output: the model's output that holds the logits, [batch, places, classes].

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, *, num_classes: int, modality: str, num_places: int, monitor: str = "mIoU", output: str = "logits"
    ) -> None:
        super().__init__(modality=modality, num_places=num_places, output=output)
        if not 2 <= num_classes <= UNLABELED:
            raise ValueError(f"num_classes={num_classes} must be 2 to {UNLABELED}")
        self.num_classes = self.num_answers = self.max_answers = num_classes
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        from perceiver.tasks.overlap import Overlap

        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy=math.nan),
            "overlap": Overlap(self.num_classes),
        }
        return MetricCollection(metrics, compute_groups=False)

    def _labels(self, batch: Batch) -> Int[Tensor, "batch places"]:
        """Return the classes of the places.

        Raises:
            ValueError: the samples have no masks, or not one value for each cell of the input.
        """
        if "mask" not in batch.targets:
            raise ValueError("the samples have no masks; choose data that has them, or another task")
        mask, shape = batch.targets["mask"], self.grid(batch)
        if not isinstance(mask, Tensor) or tuple(mask.shape[1:]) != shape:
            sizes = sorted({tuple(one.shape) for one in mask})
            raise ValueError(f"masks have the sizes {sizes}, which must be that of {self.modality!r}, {shape}")
        return self.at_places(mask.flatten(1), batch)

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        logits, labels = self.get_output(outputs), self._labels(batch)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=UNLABELED, reduction="sum"
        )
        return losses / self.num_terms(batch).clamp_min(1)

    def num_terms(self, batch: Batch) -> Tensor:
        return (self._labels(batch) != UNLABELED).sum()

    def probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*rest classes"]]:
        return {self.output: self.get_output(outputs).float().softmax(dim=-1)}

    def alternatives(self, class_names: Sequence[str]) -> dict[str, Sequence[str]]:
        return {self.output: class_names}

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        metrics = self.metrics(stage)
        metrics["loss"].update(loss.detach(), weight=self.num_terms(batch))
        metrics["overlap"].update(self.get_output(outputs).detach().argmax(dim=-1), self._labels(batch))

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        """Return the `mIoU` and `pixel_accuracy` of each sample, the worst first."""
        rows = []
        predicted, labels = self.get_output(outputs).argmax(dim=-1), self._labels(batch)
        for id, of_sample, true in zip(batch.ids, predicted, labels, strict=True):
            counts = confusion_matrix(of_sample, true, self.num_classes)
            found = [class_names[label] for label in (counts.sum(dim=0) > 0).nonzero()[:, 0].tolist()]
            scores = {name: float(value) for name, value in overlap_scores(counts).items()}
            rows.append(TableRow({"id": id, "predicted": "; ".join(found), **scores}, scores["mIoU"]))
        return {"predictions": rows}

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return the predicted classes of each sample with the share of the places that they have."""
        labels = self._predicted(model, batch).flatten(1)
        counts = F.one_hot(labels, self.num_classes).sum(dim=1)
        shares, best = (counts / labels.shape[1]).topk(min(top, self.num_classes), dim=1)
        return [
            [{"class": class_names[label], "share": share} for share, label in zip(*row, strict=True) if share > 0.0]
            for row in zip(shares.tolist(), best.tolist(), strict=True)
        ]

    def _predicted(self, model: Model, batch: Batch) -> Int[Tensor, "batch *shape"]:
        """Return the predicted class of each cell of the input."""
        outputs = self.average_windows(self.outputs(model, batch), batch)
        return self.get_output(outputs).argmax(dim=-1).reshape(len(batch), *self.grid(batch))

    def pictures(self, model: Model, batch: Batch, inputs: Mapping[str, Picture]) -> list[dict[str, Image.Image]]:
        """Return for each sample the predicted `mask`, with a palette, and an `overlay` over the input."""
        labels = self._predicted(model, batch)
        if labels.ndim != 3:
            return super().pictures(model, batch, inputs)
        found = []
        for row, of_sample in enumerate(labels.cpu().numpy().astype(np.uint8)):
            mask = Image.fromarray(of_sample)
            mask.putpalette(PALETTE)
            found.append({"mask": mask})
            picture = inputs.get(self.modality)
            if picture is not None and not picture.unit:
                raw = (picture.values[row].clamp(0.0, 1.0) * 255).round().byte().cpu()
                shown = rearrange(raw.expand(3, -1, -1), "channels rows columns -> rows columns channels").numpy()
                found[-1]["overlay"] = Image.blend(Image.fromarray(shown), mask.convert("RGB"), OVERLAY)
        return found

    def answers(
        self,
        outputs: Mapping[str, Tensor],
        queries: Mapping[str, Tensor],
        batch: Batch,
        class_names: Sequence[str],
    ) -> list[list[Answer]]:
        """Return the classes of each row that most places have, each with its places."""
        rows = []
        for labels in self.get_output(outputs).argmax(dim=-1):
            counts = labels.bincount(minlength=self.num_classes)
            order = counts.argsort(descending=True, stable=True)[:SHOWN_CLASSES].tolist()
            rows.append(
                [
                    Answer(class_names[one], tuple((labels == one).nonzero()[:, 0].tolist()), self.output, label=one)
                    for one in order
                    if counts[one] > 0
                ]
            )
        return rows


def _palette() -> list[int]:
    """Return the colors of PASCAL VOC: the bits of a number, from the lowest, are the highest bits of R, G and B."""
    colors = []
    for label in range(256):
        bits = [[label >> (3 * place + channel) & 1 for place in range(3)] for channel in range(3)]
        colors += [sum(bit << (7 - place) for place, bit in enumerate(of_channel)) for of_channel in bits]
    return colors


PALETTE = _palette()


def confusion_matrix(
    predicted: Int[Tensor, "*places"], labels: Int[Tensor, "*places"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Return the number of places by true class (rows) and predicted class (columns), without those `UNLABELED`."""
    known = labels != UNLABELED
    pairs = labels[known] * num_classes + predicted[known]
    return pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(counts: Int[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Return the intersection over union of each class; NaN for one that is neither predicted nor true."""
    both = counts.diagonal()
    return both / (counts.sum(dim=0) + counts.sum(dim=1) - both)


def overlap_scores(counts: Int[Tensor, "classes classes"]) -> dict[str, Float[Tensor, ""]]:
    """Return `mIoU` and `pixel_accuracy`; NaN without any place."""
    return {
        "mIoU": intersection_over_union(counts).nanmean(),
        "pixel_accuracy": counts.diagonal().sum() / counts.sum(),
    }
