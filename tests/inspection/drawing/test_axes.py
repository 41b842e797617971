"""Planes on which grids are drawn: cells, boxes and ticks in physical units."""

from itertools import pairwise

import numpy as np
import pytest

from perceiver.inspection.drawing.axes import COLUMNS_APART, Plane, cells_along, ticks
from perceiver.types import Axis, Box, Grid

MELS = Axis("frequency", "Hz", 50.0, 8000.0, scale="mel")
HERTZ = Axis("frequency", "Hz", 0.0, 8000.0)
SECONDS = Axis("time", "s", 0.0, 11.0)
TIME, Y, X = (Axis("time", "s", 0.5, 2.0), Axis("y", "px", 0.0, 55.0), Axis("x", "px", 0.0, 91.0))
TAKES = Axis("take", "", 0.0, 11.0)
VIDEO = Grid((3, 5, 7), (TIME, Y, X))


@pytest.mark.parametrize("axis", [MELS, SECONDS], ids=lambda axis: axis.name)
def test_extents_are_fractions_of_the_axis_clipped_to_it(axis):
    cases = {
        (axis.value(0.2), axis.value(0.7)): (0.2, 0.7),
        (axis.start - 1, axis.value(0.3)): (0.0, 0.3),
        (axis.value(0.3), axis.stop + 999): (0.3, 1.0),
        (axis.stop + 1, axis.stop + 2): (1.0, 1.0),
    }
    for ends, expected in cases.items():
        assert Box(0, "audio", {axis.name: ends}).extent(axis) == pytest.approx(expected)
    assert Box(0, "audio", {}).extent(axis) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("axis", "divided"),
    [
        *((axis, axis) for axis in (MELS, SECONDS, Y)),
        *((Axis("frequency", "Hz", 50.0, one.value(20 / 17), one.scale), one) for one in (MELS, HERTZ)),
        *((Axis("frequency", "Hz", one.value(2 / 17), one.value(15 / 17), one.scale), one) for one in (MELS, HERTZ)),
        (HERTZ, MELS),
        (MELS, HERTZ),
    ],
)
def test_cells_along_another_axis_contain_the_values_of_its_steps(axis, divided):
    found = cells_along(axis, divided=divided, num_cells=17)
    assert len(found) == round(17 * (divided.fraction(axis.stop) - divided.fraction(axis.start)))
    for step, cell in enumerate(found):
        value = axis.value((step + 0.5) / len(found))
        if cell == -1:
            assert not divided.start <= value < divided.stop
        else:
            assert divided.value(cell / 17) <= value < divided.value((cell + 1) / 17)
    if axis == divided:
        assert found.tolist() == list(range(17))


@pytest.mark.parametrize("apart", [0.1, 0.45])
@pytest.mark.parametrize(
    "axis",
    [
        MELS,
        SECONDS,
        HERTZ,
        Axis("frequency", "Hz", 0.0, 22050.0, scale="mel"),
        Axis("frequency", "Hz", 1000.0, 1700.0, scale="mel"),
        Axis("time", "s", 0.0, 0.03),
        Axis("time", "s", 2.5, 997.0),
    ],
    ids=str,
)
def test_ticks_are_round_values_at_their_places_and_not_too_close(axis, apart):
    found = ticks(axis, apart=apart)
    assert len(found) >= max(min(2, 0.3 / apart), 1)
    for tick in found:
        thousands = tick.label.endswith("k")
        value = float(tick.label.removesuffix("k")) * (1000 if thousands else 1)
        assert axis.fraction(value) == pytest.approx(tick.place, abs=1e-5)
        assert 0 <= tick.place <= 1
        assert len(tick.label) <= 5
    assert all(later.place - earlier.place >= apart - 1e-9 for earlier, later in pairwise(found))


def test_a_single_axis_runs_along_the_columns_of_one_row_and_pixels_have_no_ticks():
    plane = Plane(Grid((13,), (SECONDS,)))
    assert (plane.shape, plane.axes[1]) == ((1, 13), SECONDS)
    (outline,) = plane.outlines(Box(0, "audio", {"time": (0.0, 1.0), "frequency": (50.0, 99.0)}))
    assert (outline.left, outline.top, outline.right, outline.bottom) == pytest.approx((0, 0, 1 / 11, 1))
    assert plane.ticks[0] == []
    assert Plane(Grid((5, 7), (Y, X))).ticks == ([], [])


def test_frequencies_run_upwards_with_ticks_at_the_left_and_seconds_below():
    plane = Plane(Grid((5, 53), (MELS, Axis("time", "s", 0.0, 4.0))))
    row_ticks, column_ticks = plane.ticks
    places = {tick.label: tick.place for tick in row_ticks}
    assert places["4k"] == pytest.approx(1 - MELS.fraction(4000.0))
    assert places["4k"] < places["1k"]
    assert {tick.label: tick.place for tick in column_ticks} == {"0": 0, "1": 0.25, "2": 0.5, "3": 0.75, "4 s": 1}
    values = np.arange(5 * 53.0)
    assert (plane.arrange(values) == values.reshape(5, 53)[::-1]).all()
    for beyond in ({"time": (4.0, 5.0)}, {"time": (-1.0, 0.0)}, {"frequency": (9000.0, 9500.0)}):
        assert plane.outlines(Box(0, "audio", beyond)) == []


@pytest.mark.parametrize("num_axes", [3, 4])
def test_frames_of_more_axes_are_nested_and_their_ticks_keep_a_distance(num_axes):
    grid = VIDEO if num_axes == 3 else Grid((11, *VIDEO.shape), (TAKES, *VIDEO.axes))
    plane, values = Plane(grid), np.zeros(grid.shape)
    values[(*[2] * (num_axes - 3), 1, 3, 4)] = 1.0
    frames, count = [2 * 3 + 1, 3 * 3 + 1] if num_axes == 4 else [1], grid.num_tokens // 35
    assert np.argwhere(plane.arrange(values.reshape(-1))).tolist() == [[3, frames[0] * 7 + 4]]
    assert plane.shape == (5, 7 * count)
    outlines = plane.outlines(Box(0, "video", {"take": (2.0, 4.0), "time": (1.0, 1.5), "x": (13.0, 26.0)}))
    edges = [pytest.approx(((at + 1 / 7) / count, (at + 2 / 7) / count)) for at in frames]
    assert [(outline.left, outline.right) for outline in outlines] == edges
    _, column_ticks = plane.ticks
    assert np.diff([tick.place for tick in column_ticks]).min() >= COLUMNS_APART
    for tick in column_ticks:
        assert float(tick.label.removesuffix(" s")) == pytest.approx(0.5 + round(tick.place * count) % 3 * 0.5)


@pytest.mark.parametrize("count", [3, 7, 11, 13])
def test_a_box_does_not_extend_across_the_common_edge_of_frames(count):
    time = Axis("time", "s", 0.1, 0.1 + 0.3 * count)
    plane = Plane(Grid((count, 5, 7), (time, Y, X)))
    for first in range(count):
        (outline,) = plane.outlines(
            Box(0, "video", {"time": (time.value(first / count), time.value((first + 1) / count))})
        )
        assert (outline.left, outline.right) == pytest.approx((first / count, (first + 1) / count))


def test_a_single_frame_has_the_boxes_and_axes_of_an_image():
    still, image = Plane(Grid((1, 5, 7), VIDEO.axes)), Plane(Grid((5, 7), (Y, X)))
    box = Box(0, "video", {"time": (1.0, 1.2), "y": (11.0, 22.0), "x": (13.0, 39.0)})
    assert still.outlines(box) == image.outlines(box) != []
    assert (still.axes, still.shape, still.ticks) == (image.axes, image.shape, image.ticks)
    assert still.outlines(Box(0, "video", {"time": (2.0, 3.0)})) == []
