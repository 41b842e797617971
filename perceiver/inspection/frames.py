"""How the maps of one modality are drawn: on which axes, how large, and over which picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float, Int, UInt8

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
from perceiver.inspection.pictures import Outline, image_picture, level_picture, overlay
from perceiver.inspection.sheets import Tile, tile_size
from perceiver.types import Axis, Box, Grid, Picture

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
