"""How a grid of tokens is drawn: on a plane of rows and columns, with ticks and boxes in physical units."""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from perceiver.types import Axis, Box, Grid

UNBROKEN = Axis("", "", 0.0, 1.0)
"""The axis of the single row on which a one-dimensional grid is drawn: one cell, which covers everything."""
OCTAVES = tuple(125.0 * 2**octave for octave in range(8))
"""Centers of the octave bands of acoustics, in Hz."""
ROUNDING = 1e-6
"""Part of a cell by which a box may extend over a common edge without reaching into the next frame."""
ROWS_APART, COLUMNS_APART = 0.13, 0.15
"""Least distance between ticks as a fraction of a plane, for their labels."""


@dataclass(frozen=True)
class Tick:
    """A round value along an axis; `place` is 0 at its start and 1 at its stop."""

    place: float
    label: str


@dataclass(frozen=True)
class Outline:
    """A rectangle on a plane, as fractions of its width and height from the upper left."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Plane:
    """The rows and columns on which a grid of any number of axes is drawn, frequencies upwards.

    A single axis becomes the columns of one row. Of three and more axes the last two form a frame; several frames lie
    side by side, those of the second axis within those of the first, so that a video becomes a film strip.

    Attributes:
        grid: of the tokens.
        row_axis: the axis along the height of the single row of a one-dimensional grid.
    """

    grid: Grid
    row_axis: Axis = UNBROKEN

    @property
    def is_row(self) -> bool:
        """Whether the grid has a single axis."""
        return len(self.grid.shape) == 1

    @property
    def num_frames(self) -> int:
        """Number of frames side by side."""
        return math.prod(self.grid.shape[:-2])

    @property
    def frame_axes(self) -> tuple[Axis, Axis]:
        """The axes of the rows and columns of a frame."""
        return self.row_axis if self.is_row else self.grid.axes[-2], self.grid.axes[-1]

    @property
    def strip(self) -> list[tuple[Axis, int]]:
        """The axes along the columns, the outermost first, with their numbers of cells."""
        axes = list(zip(self.grid.axes, self.grid.shape, strict=True))
        return axes if self.is_row else [*axes[:-2], axes[-1]]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The axes of rows and columns; that of the columns of several frames counts cells."""
        rows, columns = self.frame_axes
        if self.num_frames == 1:
            return rows, columns
        return rows, Axis(" × ".join(axis.name for axis, _ in self.strip), "", 0.0, float(self.shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        rows, columns = (1, *self.grid.shape)[-2:]
        return rows, self.num_frames * columns

    @property
    def runs_upwards(self) -> bool:
        """Whether the axis of the rows starts at the bottom, as frequencies do."""
        return self.frame_axes[0].unit == "Hz"

    def arrange(self, values: Float[np.ndarray, "*rest tokens"]) -> Float[np.ndarray, "*rest rows columns"]:
        """Arrange the values of the grid's tokens in rows and columns."""
        rows, columns = self.shape
        frames = values.reshape(*values.shape[:-1], self.num_frames, rows, columns // self.num_frames)
        values = np.moveaxis(frames, -3, -2).reshape(*values.shape[:-1], rows, columns)
        return values[..., ::-1, :] if self.runs_upwards else values

    def outlines(self, box: Box) -> list[Outline]:
        """Return the outline of a box, once for each frame that it reaches; nothing outside the grid."""
        (top, bottom), (left, right) = (box.extent(axis) for axis in self.frame_axes)
        if max(top, left) >= 1 or min(bottom, right) <= 0:
            return []
        if self.runs_upwards:
            top, bottom = 1 - bottom, 1 - top
        reached = []
        for axis, count in self.strip[:-1]:
            start, stop = (place * count for place in box.extent(axis))
            reached.append([start < cell + 1 - ROUNDING and stop > cell + ROUNDING for cell in range(count)])
        frames = [number for number, cells in enumerate(product(*reached)) if all(cells)]
        count = self.num_frames
        return [Outline((frame + left) / count, top, (frame + right) / count, bottom) for frame in frames]

    @property
    def ticks(self) -> tuple[list[Tick], list[Tick]]:
        """Ticks along the rows, from the top, and along the columns, the last with the unit; of frames, each start."""
        rows, columns = self.frame_axes
        row_ticks = ticks(rows, apart=ROWS_APART)
        if self.runs_upwards:
            row_ticks = [replace(tick, place=1 - tick.place) for tick in row_ticks]
        if self.num_frames > 1:
            return row_ticks, self._frame_ticks
        column_ticks = ticks(columns, apart=COLUMNS_APART)
        if column_ticks:
            column_ticks[-1] = replace(column_ticks[-1], label=f"{column_ticks[-1].label} {columns.unit}")
        return row_ticks, column_ticks

    @property
    def _frame_ticks(self) -> list[Tick]:
        """The starts of frames along the innermost leading axis."""
        axis, count = self.strip[-2]
        step = max(math.ceil(COLUMNS_APART * self.num_frames), 1)
        return [
            Tick(
                number / self.num_frames,
                f"{_label(axis.value(number % count / count), axis.unit)} {axis.unit}".rstrip(),
            )
            for number in range(0, self.num_frames, step)
        ]


def cells_along(axis: Axis, *, divided: Axis, num_cells: int) -> Int[np.ndarray, " places"]:
    """Return the cells of the axis `divided` along another axis, in steps of their width.

    Args:
        axis: in the unit of `divided`; it may end earlier or later.
        divided: the axis that is divided into cells of equal width on its scale.
        num_cells: number of these cells.

    Returns:
        Numbers of cells, -1 outside `divided`.
    """
    count = max(round(num_cells * (divided.fraction(axis.stop) - divided.fraction(axis.start))), 1)
    place = np.array([divided.fraction(axis.value((step + 0.5) / count)) for step in range(count)])
    return np.where((place >= 0) & (place < 1), np.floor(place * num_cells), -1).astype(int)


def cells_at(axis: Axis, count: int, *, divided: Axis, num_cells: int) -> Int[np.ndarray, " count"]:
    """Return the cell of the axis `divided` at the center of each of `count` cells along another axis, or the nearest.

    Args:
        axis: in the unit of `divided`.
        count: number of its cells.
        divided, num_cells: see `cells_along`.
    """
    places = np.array([divided.fraction(axis.value((cell + 0.5) / count)) for cell in range(count)])
    return np.floor(places * num_cells).clip(0, num_cells - 1).astype(int)


def ticks(axis: Axis, *, apart: float) -> list[Tick]:
    """Return round values along an axis, no two closer than the fraction `apart`; none for pixels or without a unit."""
    if axis.unit in ("", "px"):
        return []
    values = [octave for octave in OCTAVES if axis.start <= octave <= axis.stop]
    if axis.scale == "linear" or len(values) < 2:
        values = _round_values(axis.start, axis.stop, most=math.floor(1 / apart))
    chosen: list[Tick] = []
    for value in values:
        place = axis.fraction(value)
        if not chosen or place - chosen[-1].place >= apart:
            chosen.append(Tick(place, _label(value, axis.unit)))
    return chosen


def axis_label(axis: Axis, fraction: float) -> str:
    """Return the name of an axis with the value at a position along it, of three figures, and its unit."""
    return f"{axis.name} {_label(float(f'{axis.value(fraction):.3g}'), axis.unit)} {axis.unit}".strip()


def _round_values(start: float, stop: float, *, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, in about `most` steps from start to stop."""
    power = 10.0 ** math.floor(math.log10((stop - start) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * most >= (stop - start) * (1 - 1e-9))
    first, last = math.ceil(start / step - 1e-9), math.floor(stop / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _label(value: float, unit: str) -> str:
    return f"{value / 1000:g}k" if unit == "Hz" and value >= 1000 else f"{value:g}"
