"""Maps and inputs drawn on the grid of their tokens, and contact sheets of an explanation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from perceiver.inspection.axes import (
    UNBROKEN,
    Tick,
    cells_along,
    extent,
    frame_ticks,
    num_frames,
    on_plane,
    plane,
    runs_upwards,
    ticks,
)
from perceiver.inspection.contact_sheet import (
    InputImage,
    Outline,
    Pixels,
    Tile,
    contact_sheet,
    input_image,
    overlay,
    tile_size,
)
from perceiver.inspection.explanation import Explanation, normalized
from perceiver.inspection.rollout import mean_of_all_queries, rollout
from perceiver.mechanisms.base import LATENTS
from perceiver.types import Axis, Box, Grid, Picture, Span

STRETCHED = (384, 128)
"""Width and height of a tile whose axes have different units, so that its cells have no natural shape."""
STRIP_HEIGHT = 40
WIDEST_STRIP = 960
"""Width in pixels of all frames of a film strip."""
ROUNDING = 1e-6
"""Part of a cell by which a box may extend over a common edge without reaching into the next frame."""
ROWS_APART, COLUMNS_APART = 0.13, 0.15
"""Least distance between ticks as a fraction of a tile, for their labels."""


@dataclass(frozen=True)
class Frame:
    """Draws the tiles of one modality in the extent of its grid, with an axis in Hz upwards.

    Attributes:
        grid: of the tokens.
        picture: the inputs, on a grid of one or two axes; None where they cannot be drawn.
    """

    grid: Grid
    picture: Picture | None

    @property
    def max_columns(self) -> int:
        """Number of tiles side by side."""
        if len(self.grid.shape) == 1:
            return 2
        if num_frames(self.grid) > 1:
            return 1
        return 8 if self._has_aspect else 3

    @property
    def _has_aspect(self) -> bool:
        return len(self.grid.shape) > 1 and self.grid.axes[-2].unit == self.grid.axes[-1].unit

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Axes of the rows and columns of input tiles; on a grid of one axis the rows are those of the picture."""
        rows, columns = plane(self.grid).axes
        return self.picture.grid.axes[0] if self.picture and rows == UNBROKEN else rows, columns

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a tile in pixels."""
        if not self._has_aspect:
            return STRETCHED
        height, width = (axis.stop - axis.start for axis in self.grid.axes[-2:])
        across, down = tile_size(self.grid.shape[-1], aspect=height / width)
        frames = num_frames(self.grid)
        scale = min(1.0, WIDEST_STRIP / (frames * across))
        return round(frames * across * scale), max(round(down * scale), 1)

    def map_tile(self, title: str, values: Float[np.ndarray, "*grid"], boxes: Sequence[Box] = ()) -> Tile:
        """Return the tile of a map in the shape of the grid, with boxes."""
        rows, columns = plane(self.grid).axes
        size = (STRETCHED[0], STRIP_HEIGHT) if rows == UNBROKEN else self.size
        return self._with_axes(Tile(title, on_plane(values.reshape(-1), self.grid), size), (rows, columns), boxes)

    def picture_tiles(self, row: int, values: Float[np.ndarray, "*grid"] | None, boxes: Sequence[Box]) -> list[Tile]:
        """Return tiles of the input of one row of the batch: with its boxes, and below a map if there is one."""
        image = self.input_of(row)
        if image is None:
            return []
        title = f"input, {image.low:.0f} to {image.high:.0f} {image.unit}" if image.unit else "input"
        tiles = [self._with_axes(Tile(title, image.pixels, self.size, is_map=False), self.axes, boxes)]
        if values is not None:
            over = overlay(image.pixels, on_plane(values.reshape(-1), self.grid), self.size)
            tiles.append(self._with_axes(Tile("mean over input", over, self.size, is_map=False), self.axes, ()))
        return tiles

    def input_of(self, row: int) -> InputImage | None:
        """Draw the input of one row of the batch in the extent of the grid, if it can be drawn."""
        if self.picture is None:
            return None
        image = input_image(self.picture.values[row], self.picture.unit)
        return replace(image, pixels=self._in_grid_extent(image.pixels))

    def outlines(self, box: Box) -> list[Outline]:
        """Return a box on the input, once for each frame that it reaches; nothing outside the grid."""
        return outlines_on(box, self.grid, self.axes)

    @property
    def ticks(self) -> tuple[list[Tick], list[Tick]]:
        """Ticks along rows, from the top, and columns of the input."""
        return self._ticks(self.axes)

    def _ticks(self, axes: tuple[Axis, Axis]) -> tuple[list[Tick], list[Tick]]:
        rows, columns = axes
        row_ticks = ticks(rows, apart=ROWS_APART)
        if runs_upwards(rows):
            row_ticks = [replace(tick, place=1 - tick.place) for tick in row_ticks]
        if num_frames(self.grid) > 1:
            return row_ticks, frame_ticks(self.grid, apart=COLUMNS_APART)
        column_ticks = ticks(columns, apart=COLUMNS_APART)
        if column_ticks:
            column_ticks[-1] = Tick(column_ticks[-1].place, f"{column_ticks[-1].label} {columns.unit}")
        return row_ticks, column_ticks

    def _in_grid_extent(self, pixels: Pixels) -> Pixels:
        """Crop or pad a picture in black to the extent of the grid: stems pad, or ignore a border."""
        assert self.picture is not None
        rows, columns = (
            cells_along(axis, divided=own, num_cells=num_cells)
            for axis, own, num_cells in zip(
                self.axes, self.picture.grid.axes, self.picture.values.shape[-2:], strict=True
            )
        )
        canvas = pixels[rows][:, columns]
        canvas[rows < 0], canvas[:, columns < 0] = 0, 0
        return canvas[::-1] if runs_upwards(self.axes[0]) else canvas

    def _with_axes(self, tile: Tile, axes: tuple[Axis, Axis], boxes: Sequence[Box]) -> Tile:
        row_ticks, column_ticks = self._ticks(axes)
        return replace(
            tile,
            outlines=[outline for box in boxes for outline in outlines_on(box, self.grid, axes)],
            row_ticks=row_ticks,
            column_ticks=column_ticks,
            row_unit=axes[0].unit,
        )


def outlines_on(box: Box, grid: Grid, axes: tuple[Axis, Axis] | None = None) -> list[Outline]:
    """Return a box on the plane of a grid, once for each frame that it reaches; nothing outside the grid.

    Args:
        axes: rows and columns of a frame, where they are not the grid's own.
    """
    rows, columns = axes or plane(grid).axes
    if num_frames(grid) > 1:
        columns = grid.axes[-1]
    (top, bottom), (left, right) = (extent(box, axis) for axis in (rows, columns))
    if max(top, left) >= 1 or min(bottom, right) <= 0:
        return []
    if runs_upwards(rows):
        top, bottom = 1 - bottom, 1 - top
    leading = list(zip(grid.axes[:-2], grid.shape[:-2], strict=True))
    reached = [[_overlaps(extent(box, axis), cell, count) for cell in range(count)] for axis, count in leading]
    frames = [number for number, cell in enumerate(product(*reached)) if all(cell)]
    count = num_frames(grid)
    return [Outline((frame + left) / count, top, (frame + right) / count, bottom) for frame in frames]


def _overlaps(interval: tuple[float, float], cell: int, count: int) -> bool:
    start, stop = interval
    return start * count < cell + 1 - ROUNDING and stop * count > cell + ROUNDING


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """Return the weights on one modality in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def contact_sheets(
    explanation: Explanation, pictures: Mapping[str, Picture], *, num_latents: int
) -> dict[str, list[Image.Image]]:
    """Draw all contact sheets of a batch, one per row under each name.

    Args:
        explanation: of the batch.
        pictures: modality -> its inputs; a modality without has maps alone.
        num_latents: number of latents drawn.

    Returns:
        `<modality>/<layer>` for each layer that reads the tokens: the input, the mean over latents over it and alone,
        the rollout (of each class that has a query of its own; else of all outputs), the relevance of each class, and
        the `num_latents` latents that the outputs read most. `caption/words`, where answers are words: the input, and
        the relevance of each word. Boxes are drawn on the input and on maps of answers; on that of a class, its own.
    """
    spans, answers = explanation.record.spans, explanation.answers
    frames = {modality: Frame(span.grid, pictures.get(modality)) for modality, span in spans.items()}
    sheets = _layer_sheets(explanation, frames, num_latents)
    if frames and any(answer.is_word for row in answers for answer in row):
        sheets["caption/words"] = [_word_sheet(explanation, frames, row) for row in range(len(answers))]
    return sheets


def _layer_sheets(
    explanation: Explanation, frames: Mapping[str, Frame], num_latents: int
) -> dict[str, list[Image.Image]]:
    """Draw a sheet for each layer that reads the tokens, modality and row."""
    record = explanation.record
    of_answers = [
        [*_rollout_maps(explanation, row), *_relevance_maps(explanation, row)] for row in range(record.num_rows)
    ]
    sheets: dict[str, list[Image.Image]] = {}
    for name, ranking in explanation.query_rankings.items():
        layer, means = record.layers[name], explanation.mean_maps[name]
        one, several = ("latent", "latents") if layer.role.queries == LATENTS else ("query", "queries")
        for row, chosen in enumerate(ranking[:, :num_latents].tolist()):
            latents = {f"{one} {number}": layer.sample(row).weights([number]).mean(dim=1)[0, 0] for number in chosen}
            for modality, frame in frames.items():
                span, boxes = record.spans[modality], _boxes_in(explanation.boxes[row], modality)
                mean = on_grid(means[row], span)
                tiles = [*frame.picture_tiles(row, mean, boxes), frame.map_tile(f"mean over {several}", mean)]
                for title, label, weights in of_answers[row]:
                    own = [box for box in boxes if label in (None, box.label)]
                    tiles.append(frame.map_tile(title, on_grid(weights, span), own))
                tiles += [frame.map_tile(title, on_grid(weights, span)) for title, weights in latents.items()]
                sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                sheets.setdefault(f"{modality}/{name}", []).append(sheet)
    return sheets


def _word_sheet(explanation: Explanation, frames: Mapping[str, Frame], row: int) -> Image.Image:
    """Draw each modality's input, then the relevance of each word, with the boxes of its referent."""
    maps = zip(explanation.answers[row], explanation.relevance_shares[row], strict=False)
    words = [(answer, weights) for answer, weights in maps if answer.is_word]
    tiles: list[Tile] = []
    for modality, frame in frames.items():
        span = explanation.record.spans[modality]
        tiles += frame.picture_tiles(row, None, _boxes_in(explanation.boxes[row], modality))
        for answer, weights in words:
            tiles.append(frame.map_tile(answer.name, on_grid(weights, span), _boxes_in(answer.boxes, modality)))
    if not words:
        tiles += [frame.map_tile("no words", np.zeros(frame.grid.shape)) for frame in frames.values()]
    return contact_sheet(tiles, max_columns=max(frame.max_columns for frame in frames.values()), unit="relevance")


def _relevance_maps(explanation: Explanation, row: int) -> Iterator[tuple[str, int | None, Tensor]]:
    """Yield title, label and map of the relevance of each class."""
    for answer, weights in zip(explanation.answers[row], explanation.relevance_shares[row], strict=False):
        if not answer.is_word:
            yield f"relevance of {answer.name}", answer.label, weights


def _rollout_maps(explanation: Explanation, row: int) -> Iterator[tuple[str, int | None, Tensor]]:
    """Yield title, label and map of the rollout of each class with its own query, of all words, or of all outputs."""
    maps = list(zip(explanation.answers[row], explanation.rollout.inputs[row], strict=False))
    own = [(answer, inputs) for answer, inputs in maps if explanation.has_own_queries(answer)]
    words = [(answer, inputs) for answer, inputs in own if answer.is_word]
    for answer, inputs in own:
        if not answer.is_word:
            yield f"rollout from {answer.name}", answer.label, normalized(inputs)
    if words:  # rollout is linear in the query weights, so the mean over queries is that of their rollouts
        total = torch.stack([inputs * len(answer.queries) for answer, inputs in words]).sum(dim=0)
        yield "rollout from caption", None, normalized(total)
    if not own:
        inputs = maps[0][1] if maps else _rollout_of_all_queries(explanation)[row]
        yield "rollout from output", None, normalized(inputs)


def _rollout_of_all_queries(explanation: Explanation) -> Float[Tensor, "batch tokens"]:
    parts = explanation.record.parts
    found = [rollout(part, alpha=explanation.alpha, query_weights=mean_of_all_queries(part)) for part in parts]
    return torch.stack([one.inputs[:, 0] for one in found]).mean(dim=0)


def _boxes_in(boxes: Sequence[Box], modality: str) -> list[Box]:
    return [box for box in boxes if box.modality == modality]
