"""The motion of each pixel from one frame to the next (Perceiver IO, section 4.2)."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from perceiver.tasks.base import Task, explained_grid
from perceiver.types import Batch, Model, Picture, QueryKind, Stage, cell_centers

SHOWN_WINDOWS = 16
"""Most windows of a sample of which pictures are drawn."""
HUES = np.array([colorsys.hsv_to_rgb(hue / 360, 1.0, 1.0) for hue in range(360)])


class OpticalFlow(Task):
    """The mean endpoint error of the flow, in pixels, from the target `flow` [2, height, width] of each sample.

    Its components are those along the width and the height; NaN where they are not known. The error is the length of
    the difference of two vectors. Metrics: `loss` and, equal to it, `endpoint_error`; in training of the drawn places.

    Args:
        modality: the input, [channels, frames, height, width].
        scale: pixels for an output of 1; 20 in DeepMind's model.
        num_places: places of each sample that are drawn at random in a training step.
        monitor: the metric of validation that determines the best checkpoint.
        output: the model's output that holds the flow, [batch, places, 2].

    Raises:
        ValueError: a number is out of range.
    """

    answer_key = "component"

    def __init__(
        self,
        *,
        modality: str,
        scale: float,
        num_places: int,
        monitor: str = "endpoint_error",
        output: str = "logits",
    ) -> None:
        super().__init__()
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale={scale} must be more than 0, and finite")
        if num_places < 1:
            raise ValueError(f"num_places={num_places} must be at least 1")
        self.modality = modality
        self.scale = scale
        self.num_places = num_places
        self.output = output
        names = ("loss", "endpoint_error")
        self.build_metrics(lambda stage: MetricCollection({name: MeanMetric() for name in names}, compute_groups=False))
        self.set_monitor(monitor)

    @property
    def given_queries(self) -> dict[str, QueryKind]:
        return {self.output: "places"}

    def _shape(self, batch: Batch) -> tuple[int, int]:
        if self.modality not in batch.inputs:
            raise ValueError(f"modality={self.modality!r}: the samples have {', '.join(batch.inputs)}")
        height, width = batch.inputs[self.modality].shape[-2:]
        return height, width

    def prepare(self, batch: Batch, *, train: bool) -> Batch:
        """In training, draw the places, as the target `places`: numbers of pixels."""
        if not train:
            return batch
        height, width = self._shape(batch)
        device = batch.inputs[self.modality].device
        places = torch.randint(height * width, (len(batch), self.num_places), device=device)
        return replace(batch, targets={**batch.targets, "places": places})

    def queries(self, batch: Batch) -> dict[str, Tensor]:
        raw = batch.inputs[self.modality]
        centers = cell_centers(self._shape(batch), raw.device)
        chosen = batch.targets.get("places")
        return {self.output: centers.expand(len(raw), -1, -1) if chosen is None else centers[chosen]}

    def _errors(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " known"]:
        """Return the endpoint errors of all places where the flow is known.

        Raises:
            ValueError: the samples have no flow of the size of the input.
        """
        flow, shape = batch.targets.get("flow"), self._shape(batch)
        if not isinstance(flow, Tensor) or tuple(flow.shape[1:]) != (2, *shape):
            found = "none" if flow is None else [list(one.shape) for one in flow]
            raise ValueError(f"the samples must have a flow of shape {[2, *shape]}; there is {found}")
        true = flow.flatten(2).mT
        if "places" in batch.targets:
            true = true.gather(1, batch.targets["places"][..., None].expand(-1, -1, 2))
        errors = (self.get_output(outputs).float() * self.scale - true).norm(dim=-1)
        return errors[~true.isnan().any(dim=-1)]

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        errors = self._errors(outputs, batch)
        return errors.sum() / max(errors.numel(), 1)

    def num_terms(self, batch: Batch) -> float:
        flow = batch.targets["flow"]
        known = ~flow.isnan().any(dim=1).flatten(1)
        return float((known.gather(1, batch.targets["places"]) if "places" in batch.targets else known).sum())

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        for metric in self.metrics(stage).values():
            metric.update(loss.detach(), weight=self.num_terms(batch))

    def _flow(self, model: Model, batch: Batch) -> Float[Tensor, "rows 2 height width"]:
        """Return the predicted flow of each window, in pixels."""
        values = self.get_output(self.outputs(model, batch)).float() * self.scale
        height, _ = self._shape(batch)
        return rearrange(values, "rows (y x) axes -> rows axes y x", y=height)

    def predictions(
        self, model: Model, batch: Batch, class_names: Sequence[str], top: int
    ) -> list[list[dict[str, Any]]]:
        """Return the mean over a sample of the flow along the width and the height, and of its length, in pixels."""
        flow = self._flow(model, batch)
        values = torch.stack([flow[:, 0], flow[:, 1], flow.norm(dim=1)], dim=1).mean(dim=(2, 3))
        averaged = self.average_windows({self.output: values}, batch)[self.output]
        names = ("right", "down", "length")
        return [
            [{"component": name, "pixels": value} for name, value in zip(names, row, strict=True)][:top]
            for row in averaged.tolist()
        ]

    def pictures(self, model: Model, batch: Batch, inputs: Mapping[str, Picture]) -> list[dict[str, Image.Image]]:
        """Return for each sample the flow of each window in colors, see `flow_colors`."""
        colors = [Image.fromarray(flow_colors(flow)) for flow in self._flow(model, batch).cpu().numpy()]
        if not batch.windows:
            return [{"flow": image} for image in colors]
        rows, start = [], 0
        for names in batch.windows:
            shown = zip(names[:SHOWN_WINDOWS], colors[start:], strict=False)
            rows.append({f"flow_{name.replace(' ', '_')}": image for name, image in shown})
            start += len(names)
        return rows

    def answer_queries(
        self, model: Model, batch: Batch, predicted: Sequence[Sequence[dict[str, Any]]] | None = None
    ) -> dict[str, Float[Tensor, "batch places axes"]]:
        """Return the places of a grid of at most `EXPLAINED_PLACES` cells."""
        raw, coarse = batch.inputs[self.modality], explained_grid(self._shape(batch))
        return {self.output: cell_centers(coarse, raw.device).expand(len(raw), -1, -1)}


def flow_colors(
    flow: Float[np.ndarray, "2 height width"], largest: float | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a field of vectors in colors: the hue is the direction, right is red; the saturation the length.

    Args:
        flow: components along the width and the height, downwards.
        largest: length that is fully saturated; None for the largest in the field.
    """
    length = np.hypot(*flow)
    largest = max(float(length.max()), 1e-6) if largest is None else largest
    hues = HUES[np.round(np.degrees(np.arctan2(flow[1], flow[0]))).astype(int) % 360]
    saturation = np.clip(length / largest, 0.0, 1.0)[..., None]
    return np.round(255.0 * (1.0 - saturation * (1.0 - hues))).astype(np.uint8)
