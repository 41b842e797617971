"""The motion of each pixel from one frame to the next (Perceiver IO, section 4.2)."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from perceiver.tasks.base import TableRow
from perceiver.tasks.places import PlacesTask
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import Batch, Model, Picture, Stage

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

SHOWN_WINDOWS = 16
"""Most windows of a sample of which pictures are drawn."""
OUTLIER = 3.0, 0.05
"""An endpoint error of more than so many pixels, and more than this share of the length, counts in `Fl` (KITTI)."""
UNKNOWN = (0, 0, 0)
"""Color of a pixel whose flow is not known."""
FLO_HEADER = struct.Struct("<4sii")
"""Of a `.flo` file: `PIEH`, width, height."""


class OpticalFlow(PlacesTask):
    """The mean endpoint error of the flow, in pixels, from the target `flow` [2, height, width] of each sample.

    Its components are those along the width and the height; NaN where they are not known. The error is the length of
    the difference of two vectors. Metrics: `loss` and, equal to it, `EPE`, in training of the drawn places; `zero_EPE`
    and `mean_EPE`, that of no motion and of the true mean flow of each sample, which a model that finds nothing cannot
    reach; `Fl`, the share of outliers (`OUTLIER`).

    Args:
        modality: the input, [channels, frames, height, width].
        scale: pixels for an output of 1; 20 in DeepMind's model.
        num_places: see `PlacesTask`.
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
        monitor: str = "EPE",
        output: str = "logits",
    ) -> None:
        super().__init__(modality=modality, num_places=num_places, output=output)
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale={scale} must be more than 0, and finite")
        self.scale = scale
        self.set_monitor(monitor)

    def make_metrics(self, stage: Stage) -> "MetricCollection":
        from torchmetrics import MeanMetric, MetricCollection

        names = ("loss", "EPE", "zero_EPE", "mean_EPE", "Fl")
        return MetricCollection({name: MeanMetric() for name in names}, compute_groups=False)

    def cells(self, raw: Tensor) -> tuple[int, ...]:
        return tuple(raw.shape[-2:])

    def _true_flow(self, batch: Batch) -> tuple[Float[Tensor, "batch places 2"], Bool[Tensor, "batch places"]]:
        """Return the true flow of the places, zero where it is not known, and where it is.

        Raises:
            ValueError: the samples have no flow of the size of the input.
        """
        flow, shape = batch.targets.get("flow"), self.grid(batch)
        if not isinstance(flow, Tensor) or tuple(flow.shape[1:]) != (2, *shape):
            found = "none" if flow is None else [list(one.shape) for one in flow]
            raise ValueError(f"the samples must have a flow of shape {[2, *shape]}; there is {found}")
        true = self.at_places(flow.flatten(2).mT, batch)
        return true.nan_to_num(), ~true.isnan().any(dim=-1)

    def _predicted(self, outputs: Mapping[str, Tensor]) -> Float[Tensor, "batch places 2"]:
        return self.get_output(outputs).float() * self.scale

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        true, known = self._true_flow(batch)
        errors = (self._predicted(outputs) - true).norm(dim=-1)
        return errors.masked_fill(~known, 0.0).sum() / known.sum().clamp_min(1)

    def num_terms(self, batch: Batch) -> Tensor:
        return self._true_flow(batch)[1].sum()

    def _scores(
        self, outputs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Float[Tensor, "batch places"]], Bool[Tensor, "batch places"]]:
        """Return what the metrics other than the loss are means of, and where the flow is known."""
        true, known = self._true_flow(batch)
        counts = known.sum(dim=1).clamp_min(1)[:, None, None]
        mean = true.sum(dim=1, keepdim=True) / counts  # it is zero where it is not known
        errors, lengths = (self._predicted(outputs).detach() - true).norm(dim=-1), true.norm(dim=-1)
        pixels, share = OUTLIER
        scores = {
            "EPE": errors,
            "zero_EPE": lengths,
            "mean_EPE": (mean - true).norm(dim=-1),
            "Fl": ((errors > pixels) & (errors > share * lengths)).float(),
        }
        return scores, known

    def update(self, stage: Stage, outputs: Mapping[str, Tensor], loss: Float[Tensor, ""], batch: Batch) -> None:
        metrics = self.metrics(stage)
        scores, known = self._scores(outputs, batch)
        metrics["loss"].update(loss.detach(), weight=known.sum())
        for name, values in scores.items():
            metrics[name].update(values, weight=known.float())

    def table_rows(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        texts: Mapping[str, Sequence[ScoredText]],
        class_names: Sequence[str],
    ) -> dict[str, list[TableRow]]:
        """Return the metrics of each sample, the largest endpoint error first; last those without any known flow."""
        scores, known = self._scores(outputs, batch)
        means = {name: (values * known).sum(dim=1) / known.sum(dim=1) for name, values in scores.items()}
        columns = {name: values.tolist() for name, values in means.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        found = zip(batch.ids, rows, strict=True)
        return {
            "predictions": [
                TableRow({"id": id, **row}, math.inf if math.isnan(row["EPE"]) else -row["EPE"]) for id, row in found
            ]
        }

    def _flow(self, model: Model, batch: Batch) -> Float[Tensor, "rows 2 height width"]:
        """Return the predicted flow of each window, in pixels."""
        values = self.get_output(self.outputs(model, batch)).float() * self.scale
        height, _ = self.grid(batch)
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
        """Return for each sample the flow of each window in colors, unless `reconstructions` do."""
        if self._is_drawn_as_input(batch):
            return [{} for _ in batch.ids]
        colors = [flow_colors(flow)[0].permute(1, 2, 0).cpu() for flow in self._flow(model, batch)[:, None]]
        images = [Image.fromarray(one.numpy()) for one in colors]
        return [dict([*found.items()][:SHOWN_WINDOWS]) for found in _by_window(batch, images, "flow")]

    def files(self, model: Model, batch: Batch) -> list[dict[str, bytes]]:
        """Return for each sample the flow of each window as a `.flo` file."""
        contents = [flo_content(flow) for flow in self._flow(model, batch)]
        return [{f"{name}.flo": one for name, one in found.items()} for found in _by_window(batch, contents, "flow")]

    def _is_drawn_as_input(self, batch: Batch) -> bool:
        """Whether the flow is one picture for each sample, whose input is RGB."""
        return batch.inputs[self.modality].shape[1] == 3 and not batch.windows

    def reconstructions(self, model: Model, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Return the predicted flow and, where there is one, the true one in the colors of an input of RGB."""
        raw = batch.inputs[self.modality]
        if not self._is_drawn_as_input(batch):
            return {}
        fields = {"flow": self._flow(model, batch)}
        if isinstance(true := batch.targets.get("flow"), Tensor) and len(true) == len(raw):
            fields["true flow"] = true
        pairs = zip(*fields.values(), strict=True)
        colors = torch.stack([flow_colors(torch.stack(pair)) for pair in pairs], dim=1).to(raw.dtype) / 255.0
        shown = (one[:, :, None].expand_as(raw) for one in colors)
        return {self.modality: dict(zip(fields, shown, strict=True))}


Value = TypeVar("Value")


def _by_window(batch: Batch, values: Sequence[Value], name: str) -> list[dict[str, Value]]:
    """Return the values of each sample by name: of one window `name`, of several `name` and that of the window."""
    if not batch.windows:
        return [{name: value} for value in values]
    rows, start = [], 0
    for windows in batch.windows:
        shown = zip(windows, values[start : start + len(windows)], strict=True)
        rows.append({f"{name}_{window.replace(' ', '_')}": value for window, value in shown})
        start += len(windows)
    return rows


def flow_colors(flow: Float[Tensor, "fields 2 height width"]) -> UInt8[Tensor, "fields 3 height width"]:
    """Return fields of vectors in the colors of Baker et al. (2007), on one scale: the longest one is saturated.

    The hue is the direction, the saturation the length. Vectors that are not known, NaN, are black.
    """
    from torchvision.utils import flow_to_image  # takes seconds to import

    unknown = flow.isnan().any(dim=1, keepdim=True)
    colors = flow_to_image(flow.float().masked_fill(unknown, 0.0))
    return colors.where(~unknown, torch.tensor(UNKNOWN, dtype=torch.uint8, device=flow.device)[:, None, None])


def flo_content(flow: Float[Tensor, "2 height width"]) -> bytes:
    """Return the content of a `.flo` file (Baker et al. 2007): a header, and both components of each pixel by row."""
    height, width = flow.shape[1:]
    values = rearrange(flow.float().cpu(), "axes y x -> y x axes").contiguous().numpy().astype("<f4")
    return FLO_HEADER.pack(b"PIEH", width, height) + values.tobytes()
