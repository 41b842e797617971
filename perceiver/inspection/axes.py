"""Conversion between physical units, cells and ticks along the axes of grids and pictures."""

import math
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Float, Int

from perceiver.types import Axis, Box, Grid

UNBROKEN = Axis("", "", 0.0, 1.0)
"""The axis of the single row on which a one-dimensional grid is drawn: one cell, which covers everything."""
OCTAVES = tuple(125.0 * 2**octave for octave in range(8))
"""Centers of the octave bands of acoustics, in Hz."""


@dataclass(frozen=True)
class Tick:
    """A round value along an axis; `place` is 0 at its start and 1 at its stop."""

    place: float
    label: str


def plane(grid: Grid) -> Grid:
    """Return the rows and columns on which a grid of any number of axes is drawn.

    A single axis becomes the columns of one row. Of three and more axes the last two form a frame; several frames lie
    side by side, those of the second axis within those of the first, so that a video becomes a film strip.
    """
    if len(grid.shape) == 1:
        return Grid((1, *grid.shape), (UNBROKEN, *grid.axes))
    if num_frames(grid) == 1:
        return grid if len(grid.shape) == 2 else Grid(grid.shape[-2:], grid.axes[-2:])
    *leading, columns = (axis.name for axis in (*grid.axes[:-2], grid.axes[-1]))
    count = grid.num_tokens // grid.shape[-2]
    strip = Axis(" × ".join((*leading, columns)), "", 0.0, float(count))
    return Grid((grid.shape[-2], count), (grid.axes[-2], strip))


def strip(grid: Grid) -> list[tuple[Axis, int]]:
    """Return the axes along the columns of a plane, the outermost first, with their numbers of cells."""
    axes = list(zip(grid.axes, grid.shape, strict=True))
    return axes if len(axes) == 1 else [*axes[:-2], axes[-1]]


def num_frames(grid: Grid) -> int:
    """Return the number of frames side by side on the plane of a grid."""
    return prod(grid.shape[:-2])


def on_plane(values: Float[np.ndarray, "*rest tokens"], grid: Grid) -> Float[np.ndarray, "*rest rows columns"]:
    """Arrange the values of a grid's tokens on its plane, high frequencies on top."""
    cells = values.reshape(*values.shape[:-1], num_frames(grid), *(grid.shape[-2:] if len(grid.shape) > 1 else (1, -1)))
    values = np.moveaxis(cells, -3, -2).reshape(*values.shape[:-1], *plane(grid).shape)
    return values[..., ::-1, :] if runs_upwards(plane(grid).axes[0]) else values


def runs_upwards(axis: Axis) -> bool:
    """Return whether an axis of rows starts at the bottom, as frequencies do."""
    return axis.unit == "Hz"


def extent(box: Box, axis: Axis) -> tuple[float, float]:
    """Return start and stop of a box along an axis as fractions of the axis, clipped to it."""
    start, stop = box.ranges.get(axis.name, (axis.start, axis.stop))
    return min(max(axis.fraction(start), 0.0), 1.0), min(max(axis.fraction(stop), 0.0), 1.0)


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


def frame_ticks(grid: Grid, *, apart: float) -> list[Tick]:
    """Return the starts of a film strip's frames along the innermost leading axis, no two closer than `apart`."""
    axis, count = grid.axes[-3], grid.shape[-3]
    frames = num_frames(grid)
    step = max(math.ceil(apart * frames), 1)
    return [
        Tick(number / frames, f"{_label(axis.value(number % count / count), axis.unit)} {axis.unit}".rstrip())
        for number in range(0, frames, step)
    ]


def _round_values(start: float, stop: float, *, most: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, in about `most` steps from start to stop."""
    power = 10.0 ** math.floor(math.log10((stop - start) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * most >= (stop - start) * (1 - 1e-9))
    first, last = math.ceil(start / step - 1e-9), math.floor(stop / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _label(value: float, unit: str) -> str:
    return f"{value / 1000:g}k" if unit == "Hz" and value >= 1000 else f"{value:g}"
