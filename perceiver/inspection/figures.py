"""Attention on the grid of its input, and contact sheets of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
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
    Outline,
    Tile,
    contact_sheet,
    image_picture,
    level_picture,
    overlay,
    tile_size,
)
from perceiver.inspection.explanation import Explanation, Weighed, shares_of
from perceiver.inspection.record import Record
from perceiver.inspection.rollout import even_share, mean_reader, rollout
from perceiver.mechanisms.base import LATENTS
from perceiver.types import Answer, Axis, Box, Grid, Picture, Span

STRETCHED = (384, 128)
"""Width and height of a tile whose axes measure different things, so that no shape of its cells is the right one."""
STRIP_HEIGHT = 40
WIDEST_STRIP = 960
"""Pixels of the frames of a film strip together."""
ROUNDING = 1e-6
"""By how much of a cell a box may reach across a common edge without reaching into the next frame."""
ROWS_APART, COLUMNS_APART = 0.13, 0.15
"""Least distance between ticks as fractions of a tile: what their labels need."""


@dataclass(frozen=True)
class Shown:
    """An input as it is drawn; `low` and `high` are what black and white stand for, in `unit`, if that is not empty."""

    pixels: UInt8[np.ndarray, "rows columns 3"]
    unit: str = ""
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Frame:
    """The tiles of one modality have its grid's extent; an axis in Hz runs upwards in them.

    Attributes:
        grid: of the tokens.
        picture: the inputs, on a grid of one or two axes; None where there is nothing to see.
    """

    grid: Grid
    picture: Picture | None

    @property
    def max_columns(self) -> int:
        """How many tiles stand side by side."""
        if len(self.grid.shape) == 1:
            return 2
        if num_frames(self.grid) > 1:
            return 1
        return 8 if self._keeps_its_shape else 3

    @property
    def _keeps_its_shape(self) -> bool:
        return len(self.grid.shape) > 1 and self.grid.axes[-2].unit == self.grid.axes[-1].unit

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """What rows and columns of the picture's tiles measure; a strip leaves its rows to the picture."""
        rows, columns = plane(self.grid).axes
        return self.picture.grid.axes[0] if self.picture and rows == UNBROKEN else rows, columns

    def map_tile(self, title: str, values: Float[np.ndarray, "*grid"], boxes: Sequence[Box] = ()) -> Tile:
        """A map in the shape of the grid, and boxes over it."""
        rows, columns = plane(self.grid).axes
        size = (STRETCHED[0], STRIP_HEIGHT) if rows == UNBROKEN else self.size
        return self._with_axes(Tile(title, on_plane(values.reshape(-1), self.grid), size), (rows, columns), boxes)

    def picture_tiles(self, row: int, values: Float[np.ndarray, "*grid"] | None, boxes: Sequence[Box]) -> list[Tile]:
        """The input of one row of the batch, with its boxes, and under a map, if there is one."""
        shown = self.input_of(row)
        if shown is None:
            return []
        title = f"input, {shown.low:.0f} to {shown.high:.0f} {shown.unit}" if shown.unit else "input"
        tiles = [self._with_axes(Tile(title, shown.pixels, self.size, is_map=False), self.axes, boxes)]
        if values is not None:
            over = overlay(shown.pixels, on_plane(values.reshape(-1), self.grid), self.size)
            tiles.append(self._with_axes(Tile("mean over input", over, self.size, is_map=False), self.axes, ()))
        return tiles

    def input_of(self, row: int) -> Shown | None:
        """The input of one row of the batch in the grid's extent, if there is something to see."""
        if self.picture is None:
            return None
        values, unit = self.picture.values[row], self.picture.unit
        if not unit:
            return Shown(self._as_far_as_the_grid(image_picture(values)))
        pixels, (low, high) = level_picture(values, unit)
        return Shown(self._as_far_as_the_grid(pixels), unit, low, high)

    def outlines(self, box: Box) -> list[Outline]:
        """A box on the input, once in each frame that it reaches into; nothing where it lies beyond."""
        return outlines_on(box, self.grid, self.axes)

    @property
    def ticks(self) -> tuple[list[Tick], list[Tick]]:
        """Round values along rows, from the top, and columns of the input."""
        tile = self._with_axes(Tile("", np.zeros((1, 1)), self.size), self.axes, ())
        return list(tile.row_ticks), list(tile.column_ticks)

    @property
    def size(self) -> tuple[int, int]:
        if not self._keeps_its_shape:
            return STRETCHED
        height, width = (axis.stop - axis.start for axis in self.grid.axes[-2:])
        across, down = tile_size(self.grid.shape[-1], aspect=height / width)
        frames = num_frames(self.grid)
        shrunk = min(1.0, WIDEST_STRIP / (frames * across))
        return round(frames * across * shrunk), max(round(down * shrunk), 1)

    def _as_far_as_the_grid(self, picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """A picture, cut or continued in black to end where the grid does: stems pad, or leave a border out."""
        rows, columns = self._cells
        canvas = picture[rows][:, columns]
        canvas[rows < 0], canvas[:, columns < 0] = 0, 0
        return canvas[::-1] if runs_upwards(self.axes[0]) else canvas

    @property
    def _cells(self) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " columns"]]:
        """Which rows and columns of the picture lie where in a tile, -1 for none."""
        assert self.picture is not None
        rows, columns = (
            cells_along(axis, shown=shown, num_cells=num_cells)
            for axis, shown, num_cells in zip(
                self.axes, self.picture.grid.axes, self.picture.values.shape[-2:], strict=True
            )
        )
        return rows, columns

    def _with_axes(self, tile: Tile, axes: tuple[Axis, Axis], boxes: Sequence[Box]) -> Tile:
        rows, columns = axes
        upwards = runs_upwards(rows)
        row_ticks = ticks(rows, apart=ROWS_APART)
        if upwards:
            row_ticks = [replace(tick, place=1 - tick.place) for tick in row_ticks]
        column_ticks = ticks(columns, apart=COLUMNS_APART)
        if num_frames(self.grid) > 1:
            column_ticks = frame_ticks(self.grid, apart=COLUMNS_APART)
        elif column_ticks:
            column_ticks[-1] = Tick(column_ticks[-1].place, f"{column_ticks[-1].label} {columns.unit}")
        return replace(
            tile,
            outlines=[outline for box in boxes for outline in outlines_on(box, self.grid, axes)],
            row_ticks=row_ticks,
            column_ticks=column_ticks,
            row_unit=rows.unit,
        )


def outlines_on(box: Box, grid: Grid, axes: tuple[Axis, Axis] | None = None) -> list[Outline]:
    """A box on the plane of a grid, once in each frame that it reaches into; nothing where it lies beyond.

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


def _overlaps(reach: tuple[float, float], cell: int, count: int) -> bool:
    start, stop = reach
    return start * count < cell + 1 - ROUNDING and stop * count > cell + ROUNDING


def on_grid(weights: Float[Tensor, "*rows keys"], span: Span) -> Float[np.ndarray, "..."]:
    """The part of the weights that falls on one modality, in the shape of its grid."""
    part = weights[..., span.start : span.stop]
    return part.reshape(*weights.shape[:-1], *span.grid.shape).float().cpu().numpy()


def query_ranking(record: Record, name: str) -> Int[Tensor, "batch queries"]:
    """The queries of a layer that reads the tokens: latents by how much the outputs read from them.

    Without decoder attention, and where the outputs read the tokens themselves, by how sharply they attend.
    """
    layer = record.layers[name]
    if layer.role.queries == LATENTS:
        if decoders := record.decoders:
            score = record.map(decoders[-1]).mean(dim=1)
            return score.argsort(dim=1, descending=True, stable=True)
        layer = record.layers[record.readers[-1]]
    score = torch.cat([-_entropy(layer.weights(chunk)) for chunk in layer.chunks(range(layer.num_queries))], dim=1)
    return score.argsort(dim=1, descending=True, stable=True)


def _entropy(weights: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch queries"]:
    return torch.special.entr(weights.mean(dim=1)).sum(dim=-1)


def contact_sheets(
    explanation: Explanation, pictures: Mapping[str, Picture], *, num_latents: int
) -> dict[str, list[Image.Image]]:
    """All sheets of a batch that was looked at, one a row under each name.

    Args:
        look: the batch.
        pictures: modality name -> its inputs, a row each; a modality without has maps alone.
        num_latents: how many latents to show.

    Returns:
        `<modality>/<layer>` for each layer that reads the tokens: the input, the mean over latents over it and alone,
        the rollout from the outputs to the input (from each class that has a query of its own; else from all together),
        the relevance of each class, and the `num_latents` latents that the outputs read most. `caption/words`, where
        answers are words: the input, and the relevance of each word. Boxes, where there are any, are drawn on the input
        and on maps of answers; on that of a class, its own.
    """
    spans = explanation.record.spans
    frames = {modality: Frame(span.grid, pictures.get(modality)) for modality, span in spans.items()}
    drawn = _Sheets(explanation, spans, frames)
    sheets = drawn.by_latents(num_latents)
    if frames and any(answer.is_word for row in explanation.answers for answer in row):
        sheets["caption/words"] = drawn.by_words()
    return sheets


@dataclass(frozen=True)
class _Sheets:
    """What the sheets of a batch are drawn from."""

    explanation: Explanation
    spans: Mapping[str, Span]
    frames: Mapping[str, Frame]

    def by_latents(self, num_latents: int) -> dict[str, list[Image.Image]]:
        """A sheet for each layer that reads the tokens, modality and row, all maps of a sheet on one colour scale."""
        record = self.explanation.record
        rolled_out = [self._rolled_out(row) for row in range(record.num_rows)]
        sheets: dict[str, list[Image.Image]] = {}
        for name in record.readers:
            layer = record.layers[name]
            kind = "latent" if layer.role.queries == LATENTS else "query"
            means = layer.through(even_share(layer))
            for row, chosen in enumerate(query_ranking(record, name)[:, :num_latents].tolist()):
                maps = {f"{kind} {one}": layer.sample(row).weights([one]).mean(dim=1)[0, 0] for one in chosen}
                for modality, span in self.spans.items():
                    frame, mean = self.frames[modality], on_grid(means[row, 0], span)
                    here = self._boxes_in(modality, row)
                    plural = "latents" if kind == "latent" else "queries"
                    tiles = [*frame.picture_tiles(row, mean, here), frame.map_tile(f"mean over {plural}", mean)]
                    for title, answer, weights in (
                        *(("rollout from", *weighed) for weighed in rolled_out[row]),
                        *(
                            ("relevance of", *weighed)
                            for weighed in self.explanation.relevant[row]
                            if not weighed[0].is_word
                        ),
                    ):
                        own = [box for box in here if answer.label in (None, box.label)]
                        tiles.append(frame.map_tile(f"{title} {answer.name}", on_grid(weights, span), own))
                    tiles += [frame.map_tile(title, on_grid(weights, span)) for title, weights in maps.items()]
                    sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                    sheets.setdefault(f"{modality}/{name}", []).append(sheet)
        return sheets

    def by_words(self) -> list[Image.Image]:
        """A strip for each row: each modality's input, then what each word depended on, with its true place."""
        strips = []
        for row, weighed in enumerate(self.explanation.relevant):
            of_words = [(answer, weights) for answer, weights in weighed if answer.is_word]
            tiles: list[Tile] = []
            for modality, span in self.spans.items():
                frame = self.frames[modality]
                tiles += frame.picture_tiles(row, None, self._boxes_in(modality, row))
                for answer, weights in of_words:
                    own = [box for box in answer.boxes if box.modality == modality]
                    tiles.append(frame.map_tile(answer.name, on_grid(weights, span), own))
            if not of_words:
                nothing = [(self.frames[name], np.zeros(span.grid.shape)) for name, span in self.spans.items()]
                tiles += [frame.map_tile("nothing was said", weights) for frame, weights in nothing]
            max_columns = max(frame.max_columns for frame in self.frames.values())
            strips.append(contact_sheet(tiles, max_columns=max_columns, unit="relevance"))
        return strips

    def _rolled_out(self, row: int) -> list[Weighed]:
        """The rollout from each class with a query of its own, from the words together, or from all outputs."""
        explanation = self.explanation
        maps = list(zip(explanation.answers[row], explanation.rollout.inputs[row], strict=False))
        classes = [(answer, inputs) for answer, inputs in maps if not answer.is_word and answer in explanation.own[row]]
        words = [(answer, inputs) for answer, inputs in maps if answer.is_word]
        found = [(answer, shares_of(inputs)) for answer, inputs in classes]
        if words:  # rollout is linear in its readers, and the mean over queries is that of their rollouts
            total = torch.stack([inputs * len(answer.queries) for answer, inputs in words]).sum(dim=0)
            found.append((replace(words[0][0], name="caption"), shares_of(total)))
        if not found:
            inputs = maps[0][1] if maps else self._from_all_outputs[row]
            found.append((Answer("output", (), maps[0][0].output if maps else ""), shares_of(inputs)))
        return found

    @cached_property
    def _from_all_outputs(self) -> Float[Tensor, "batch tokens"]:
        """The rollout from the mean of all that there is to say."""
        alpha, parts = self.explanation.alpha, self.explanation.record.parts
        found = [rollout(part, alpha=alpha, readers=mean_reader(part)).inputs[:, 0] for part in parts]
        return torch.stack(found).mean(dim=0)

    def _boxes_in(self, modality: str, row: int) -> list[Box]:
        boxes = self.explanation.batch.targets.get("boxes", [None] * self.explanation.record.num_rows)
        return [box for box in boxes[row] or () if box.modality == modality]
