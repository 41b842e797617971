"""How the maps of one modality are drawn: on which axes, how large, and over which picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, UInt8

from perceiver.inspection.axes import UNBROKEN, Tick, cells_along, extent, plane, runs_upwards, ticks
from perceiver.inspection.pictures import Outline, image_picture, level_picture, overlay
from perceiver.inspection.sheets import Tile, tile_size
from perceiver.types import Axis, Box, Grid, Picture

STRETCHED = (384, 128)
"""Width and height of a tile whose axes measure different things, so that no shape of its cells is the right one."""
STRIP_HEIGHT = 40
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
        grid: of the tokens, with one or two axes.
        picture: the inputs; None where there is nothing to see.
    """

    grid: Grid
    picture: Picture | None

    @property
    def max_columns(self) -> int:
        """How many tiles stand side by side."""
        if len(self.grid.shape) == 1:
            return 2
        return 8 if self._keeps_its_shape else 3

    @property
    def _keeps_its_shape(self) -> bool:
        return len(self.grid.shape) == 2 and self.grid.axes[0].unit == self.grid.axes[1].unit

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """What rows and columns of the picture's tiles measure; a strip leaves its rows to the picture."""
        rows, columns = plane(self.grid).axes
        return self.picture.grid.axes[0] if self.picture and rows == UNBROKEN else rows, columns

    def map_tile(self, title: str, values: Float[np.ndarray, "*grid"], boxes: Sequence[Box] = ()) -> Tile:
        """A map in the shape of the grid, and boxes over it."""
        rows, columns = plane(self.grid).axes
        size = (STRETCHED[0], STRIP_HEIGHT) if rows == UNBROKEN else self.size
        return self._with_axes(Tile(title, self._plane_of(values), size), (rows, columns), boxes)

    def picture_tiles(self, row: int, values: Float[np.ndarray, "*grid"] | None, boxes: Sequence[Box]) -> list[Tile]:
        """The input of one row of the batch, with its boxes, and under a map, if there is one."""
        shown = self.input_of(row)
        if shown is None:
            return []
        title = f"input, {shown.low:.0f} to {shown.high:.0f} {shown.unit}" if shown.unit else "input"
        tiles = [self._with_axes(Tile(title, shown.pixels, self.size, is_map=False), self.axes, boxes)]
        if values is not None:
            over = overlay(shown.pixels, self._plane_of(values), self.size)
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

    def outline(self, box: Box) -> Outline | None:
        """A box on the input; None where it lies beyond."""
        return outline_on(box, self.axes)

    @property
    def ticks(self) -> tuple[list[Tick], list[Tick]]:
        """Round values along rows, from the top, and columns of the input."""
        tile = self._with_axes(Tile("", np.zeros((1, 1)), self.size), self.axes, ())
        return list(tile.row_ticks), list(tile.column_ticks)

    @property
    def size(self) -> tuple[int, int]:
        if not self._keeps_its_shape:
            return STRETCHED
        height, width = (axis.stop - axis.start for axis in self.grid.axes)
        return tile_size(self.grid.shape[1], aspect=height / width)

    def _plane_of(self, values: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "rows columns"]:
        grid = plane(self.grid)
        on_plane = values.reshape(grid.shape)
        return on_plane[::-1] if runs_upwards(grid.axes[0]) else on_plane

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
        if column_ticks:
            column_ticks[-1] = Tick(column_ticks[-1].place, f"{column_ticks[-1].label} {columns.unit}")
        return replace(
            tile,
            outlines=[outline for outline in (outline_on(box, axes) for box in boxes) if outline is not None],
            row_ticks=row_ticks,
            column_ticks=column_ticks,
            row_unit=rows.unit,
        )


def outline_on(box: Box, axes: tuple[Axis, Axis]) -> Outline | None:
    """A box on the plane of the axes; None where it lies beyond them."""
    (top, bottom), (left, right) = (extent(box, axis) for axis in axes)
    if max(top, left) >= 1 or min(bottom, right) <= 0:
        return None
    return Outline(left, 1 - bottom, right, 1 - top) if runs_upwards(axes[0]) else Outline(left, top, right, bottom)
