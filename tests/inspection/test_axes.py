from itertools import pairwise

import numpy as np
import pytest

from perceiver.inspection.axes import cells_along, extent, plane, ticks
from perceiver.types import Axis, Box, Grid, hertz

MELS = Axis("frequency", "Hz", 50.0, 8000.0, scale="mel")
SECONDS = Axis("time", "s", 0.0, 11.0)


def test_a_single_axis_runs_along_the_columns_of_one_row():
    found = plane(Grid((13,), (SECONDS,)))
    assert found.shape == (1, 13)
    assert found.axes[1] == SECONDS
    assert extent(Box(0, "audio", {"time": (0.0, 1.0), "frequency": (50.0, 99.0)}), found.axes[0]) == (0.0, 1.0)
    flat = Grid((5, 7), (MELS, SECONDS))
    assert plane(flat) is flat


@pytest.mark.parametrize("axis", [MELS, SECONDS], ids=lambda axis: axis.name)
def test_extents_are_fractions_of_the_axis_and_end_with_it(axis):
    def reach(start: float, stop: float) -> tuple[float, float]:
        return extent(Box(0, "audio", {axis.name: (start, stop)}), axis)

    assert reach(axis.value(0.2), axis.value(0.7)) == pytest.approx((0.2, 0.7))
    assert reach(axis.start - 1, axis.value(0.3)) == pytest.approx((0.0, 0.3))
    assert reach(axis.value(0.3), axis.stop + 999) == pytest.approx((0.3, 1.0))
    assert reach(axis.stop + 1, axis.stop + 2) == (1.0, 1.0)
    assert extent(Box(0, "audio", {}), axis) == (0.0, 1.0)


@pytest.mark.parametrize("axis", [MELS, SECONDS, Axis("y", "px", 0.0, 17.0)], ids=lambda axis: axis.name)
def test_an_axis_followed_along_itself_meets_every_cell_once(axis):
    assert cells_along(axis, divided=axis, num_cells=17).tolist() == list(range(17))


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_an_axis_that_ends_later_or_earlier_meets_nothing_more_or_not_all(scale):
    shown = Axis("frequency", "Hz", 50.0, 8000.0, scale)
    longer = Axis("frequency", "Hz", 50.0, shown.value(20 / 17), scale)
    shorter = Axis("frequency", "Hz", shown.value(2 / 17), shown.value(15 / 17), scale)
    assert cells_along(longer, divided=shown, num_cells=17).tolist() == [*range(17), -1, -1, -1]
    assert cells_along(shorter, divided=shown, num_cells=17).tolist() == list(range(2, 15))


def test_an_axis_of_another_scale_meets_each_frequency_where_it_is():
    linear = Axis("frequency", "Hz", 0.0, 8000.0)
    shown = Axis("frequency", "Hz", 0.0, 8000.0, scale="mel")
    found = cells_along(linear, divided=shown, num_cells=101)
    at = [shown.value((cell + 0.5) / 101) for cell in found]
    width = hertz(2840) - hertz(2840 * 100 / 101)
    np.testing.assert_allclose(at, [linear.value((step + 0.5) / 101) for step in range(101)], atol=width)


@pytest.mark.parametrize("apart", [0.1, 0.2, 0.45])
@pytest.mark.parametrize(
    "axis",
    [
        MELS,
        SECONDS,
        Axis("frequency", "Hz", 0.0, 8000.0),
        Axis("frequency", "Hz", 0.0, 22050.0, scale="mel"),
        Axis("frequency", "Hz", 1000.0, 1700.0, scale="mel"),
        Axis("time", "s", 0.0, 0.03),
        Axis("time", "s", 2.5, 997.0),
        Axis("time", "s", 0.0, 10.0),
    ],
    ids=str,
)
def test_ticks_are_round_values_at_their_places_and_not_too_close(axis, apart):
    found = ticks(axis, apart=apart)
    assert found
    for tick in found:
        thousands = tick.label.endswith("k")
        value = float(tick.label.removesuffix("k")) * (1000 if thousands else 1)
        assert axis.fraction(value) == pytest.approx(tick.place, abs=1e-5)
        assert 0 <= tick.place <= 1
        assert len(tick.label) <= 5
    assert all(later.place - earlier.place >= apart - 1e-9 for earlier, later in pairwise(found))
    assert len(found) >= min(2, 0.3 / apart)


def test_pixels_and_nothing_have_no_ticks():
    assert ticks(Axis("y", "px", 0.0, 224.0), apart=0.1) == []
    assert ticks(plane(Grid((13,), (SECONDS,))).axes[0], apart=0.1) == []
