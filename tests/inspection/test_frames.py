import numpy as np
import pytest
import torch

from perceiver.inspection.contact_sheet import COLUMN_TICKS_HEIGHT, GAP, ROW_TICKS_WIDTH, TITLE_HEIGHT
from perceiver.inspection.figures import STRETCHED, STRIP_HEIGHT, Frame, contact_sheets
from perceiver.types import Axis, Box, Grid, Picture, Span
from tests.inspection.drawn import LUMINANCE, bright_place, look_of
from tests.inspection.models import captured_with, layer

BANDS, FRAMES = 61, 397
MELS = Axis("frequency", "Hz", 50.0, 8000.0, scale="mel")
SECONDS = Axis("time", "s", 0.0, 4.0)
WIDTH, HEIGHT = STRETCHED


def spectrogram(frequency: float, time: float, *axes: Axis) -> Picture:
    """Silence but for one sound."""
    axes = axes or (MELS, SECONDS)
    values = torch.full((1, 1, BANDS, FRAMES), -70.0)
    row, column = (
        int(axis.fraction(value) * size)
        for axis, value, size in zip(axes, (frequency, time), (BANDS, FRAMES), strict=True)
    )
    values[0, 0, row - 1 : row + 2, column - 2 : column + 3] = -10.0
    return Picture(values, Grid((BANDS, FRAMES), axes), "dB")


def place_of(frequency: float, time: float, rows: Axis = MELS, columns: Axis = SECONDS) -> tuple[float, float]:
    """Where something belongs in a tile: fractions from its top and its left."""
    return 1 - rows.fraction(frequency), columns.fraction(time)


def input_tile(picture: Picture, grid: Grid) -> np.ndarray:
    """The input as it stands in a contact sheet."""
    tokens = grid.num_tokens
    captured = captured_with(
        {"audio": Span(0, tokens, grid)}, cross0=layer("cross", torch.full((1, 1, 3, tokens), 1 / tokens))
    )
    (sheet,) = contact_sheets(look_of(captured), {"audio": picture}, num_latents=1)["audio/cross0"]
    tile = np.asarray(sheet)[TITLE_HEIGHT : TITLE_HEIGHT + HEIGHT, ROW_TICKS_WIDTH : ROW_TICKS_WIDTH + WIDTH]
    return tile.astype(float)


@pytest.mark.parametrize(("frequency", "time"), [(3000.0, 2.0), (7000.0, 3.7), (150.0, 0.2)])
@pytest.mark.parametrize("shape", [(5, 53), (11, 7), (53,)])
def test_a_sound_is_at_its_frequency_and_time_in_the_sheet_with_high_frequencies_at_the_top(frequency, time, shape):
    grid = Grid(shape, (MELS, SECONDS)[-len(shape) :])
    found = bright_place(input_tile(spectrogram(frequency, time), grid))
    assert found == pytest.approx(place_of(frequency, time), abs=0.02)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (Axis("frequency", "Hz", 50.0, 11000.0, scale="mel"), Axis("time", "s", 0.0, 4.7)),
        (Axis("frequency", "Hz", 50.0, 5000.0, scale="mel"), Axis("time", "s", 0.0, 3.1)),
        (Axis("frequency", "Hz", 500.0, 8000.0, scale="mel"), Axis("time", "s", 1.0, 5.0)),
        (Axis("frequency", "Hz", 0.0, 8000.0), SECONDS),
    ],
    ids=["later", "earlier", "elsewhere", "linear"],
)
def test_a_picture_is_brought_to_the_extent_and_scale_of_the_grid(rows, columns):
    grid = Grid((5, 53), (rows, columns))
    picture = spectrogram(3000.0, 2.0)
    assert bright_place(input_tile(picture, grid)) == pytest.approx(place_of(3000.0, 2.0, rows, columns), abs=0.02)
    loud = Picture(torch.where(picture.values > -20, picture.values, -11.0), picture.grid, "dB")
    grey = input_tile(loud, grid) @ LUMINANCE
    outside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for axis, shown, edge in ((rows, MELS, outside[::-1]), (columns, SECONDS, outside.T)):
        place = [shown.fraction(axis.value((step + 0.5) / len(edge))) for step in range(len(edge))]
        edge[(np.array(place) < -0.01) | (np.array(place) > 1.01)] = True
    assert (grey[outside] < 20).all(), "nothing was heard there"


def test_a_map_lies_over_the_picture_where_it_looks():
    grid = Grid((5, 53), (MELS, SECONDS))
    values = np.zeros((5, 53))
    row, column = int(MELS.fraction(3000.0) * 5), int(SECONDS.fraction(2.0) * 53)
    values[row, column] = 1.0
    frame = Frame(grid, spectrogram(3000.0, 2.0))
    tile, (_, over) = frame.map_tile("map", values), frame.picture_tiles(0, values, ())
    assert np.unravel_index(tile.values.argmax(), (5, 53)) == (4 - row, column)
    assert bright_place(over.values.astype(float)) == pytest.approx(place_of(3000.0, 2.0), abs=0.05)


def test_a_strip_is_stretched_over_the_whole_height_of_the_picture():
    frame = Frame(Grid((53,), (SECONDS,)), spectrogram(3000.0, 2.0))
    values = np.zeros(53)
    values[11] = 1.0
    tile, (_, over) = frame.map_tile("map", values), frame.picture_tiles(0, values, ())
    assert (tile.values.shape, tile.size) == ((1, 53), (WIDTH, STRIP_HEIGHT))
    assert not tile.row_ticks
    bright = over.values.astype(float) @ LUMINANCE > 110
    columns = np.flatnonzero(bright.mean(axis=0) > 0.9)
    assert (columns.min() / WIDTH, (columns.max() + 1) / WIDTH) == pytest.approx((11 / 53, 12 / 53), abs=0.01)


@pytest.mark.parametrize("shape", [(5, 53), (53,)])
def test_boxes_are_where_the_sound_is_in_the_picture_and_over_its_map(shape):
    frame = Frame(Grid(shape, (MELS, SECONDS)[-len(shape) :]), spectrogram(3000.0, 2.0))
    box = Box(0, "audio", {"frequency": (2000.0, 4000.0), "time": (1.0, 3.0)})
    picture, over = frame.picture_tiles(0, np.zeros(shape), [box])
    (outline,) = picture.outlines
    high, low = (1 - MELS.fraction(value) for value in (4000.0, 2000.0))
    assert (outline.left, outline.top, outline.right, outline.bottom) == pytest.approx((0.25, high, 0.75, low))
    assert not over.outlines
    (outline,) = frame.map_tile("map", np.zeros(shape), [box]).outlines
    top, bottom = (high, low) if len(shape) == 2 else (0.0, 1.0)
    assert (outline.left, outline.top, outline.right, outline.bottom) == pytest.approx((0.25, top, 0.75, bottom))


def test_boxes_beyond_the_grid_are_not_drawn():
    frame = Frame(Grid((5, 53), (MELS, SECONDS)), None)
    beyond = [{"time": (4.0, 5.0)}, {"time": (-1.0, 0.0)}, {"frequency": (9000.0, 9500.0)}]
    boxes = [Box(0, "audio", ranges) for ranges in beyond]
    assert not frame.map_tile("map", np.zeros((5, 53)), boxes).outlines


def test_ticks_say_hertz_upwards_at_the_left_and_seconds_below():
    tile = Frame(Grid((5, 53), (MELS, SECONDS)), None).map_tile("map", np.zeros((5, 53)))
    places = {tick.label: tick.place for tick in tile.row_ticks}
    assert places["4k"] == pytest.approx(1 - MELS.fraction(4000.0))
    assert places["4k"] < places["1k"]
    assert tile.row_unit == "Hz"
    assert [tick.label for tick in tile.column_ticks] == ["0", "1", "2", "3", "4 s"]
    assert tile.column_ticks[1].place == 0.25


def test_without_a_map_the_input_stands_alone():
    frame = Frame(Grid((5, 53), (MELS, SECONDS)), spectrogram(3000.0, 2.0))
    box = Box(0, "audio", {"time": (1.0, 3.0)})
    (alone,) = frame.picture_tiles(0, None, [box])
    bare, _ = frame.picture_tiles(0, np.zeros((5, 53)), [box])
    assert np.array_equal(alone.values, bare.values)
    assert (alone.title, alone.outlines, alone.row_ticks) == (bare.title, bare.outlines, bare.row_ticks)


def test_the_title_of_the_input_says_what_black_and_white_stand_for():
    picture, _ = Frame(Grid((53,), (SECONDS,)), spectrogram(3000.0, 2.0)).picture_tiles(0, np.zeros(53), ())
    assert picture.title == "input, -70 to -10 dB"
    axes = (Axis("y", "px", 0.0, 11.0), Axis("x", "px", 0.0, 13.0))
    image = Picture(torch.zeros(1, 3, 11, 13), Grid((11, 13), axes), "")
    picture, _ = Frame(Grid((11, 13), axes), image).picture_tiles(0, np.zeros((11, 13)), ())
    assert picture.title == "input"


def test_tiles_of_images_keep_the_shape_of_the_image_whatever_that_of_the_cells():
    axes = (Axis("y", "px", 0.0, 110.0), Axis("x", "px", 0.0, 130.0))
    for shape in ((11, 13), (22, 13), (11, 26)):
        tile = Frame(Grid(shape, axes), None).map_tile("map", np.zeros(shape))
        assert tile.size[1] / tile.size[0] == pytest.approx(11 / 13, abs=0.005)
        assert not tile.row_ticks
        assert not tile.column_ticks


@pytest.mark.parametrize("shape", [(5, 53), (61, 397), (3, 3)])
def test_sheets_of_sounds_have_tiles_of_one_size_and_ticks(shape):
    grid = Grid(shape, (MELS, SECONDS))
    tokens = grid.num_tokens
    captured = captured_with(
        {"audio": Span(0, tokens, grid)}, cross0=layer("cross", torch.full((1, 1, 3, tokens), 1 / tokens))
    )
    (sheet,) = contact_sheets(look_of(captured), {"audio": spectrogram(3000.0, 2.0)}, num_latents=3)["audio/cross0"]
    rows, columns = 3, 3
    assert sheet.height == rows * (HEIGHT + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT)
    assert sheet.width > columns * WIDTH + ROW_TICKS_WIDTH
