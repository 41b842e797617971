"""Frames of figures: where maps, pictures, boxes and ticks of a grid are drawn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceiver.inspection.drawing.contact_sheet import COLUMN_TICKS_HEIGHT, GAP, ROW_TICKS_WIDTH, TITLE_HEIGHT
from perceiver.inspection.drawing.figures import STRETCHED, STRIP_HEIGHT, Frame, contact_sheets
from perceiver.types import Axis, Box, Grid, Picture, Span
from tests.inspection.drawn import LUMINANCE, bright_place, explanation_of
from tests.inspection.models import captured_with, layer

BANDS, FRAMES = 61, 397
MELS = Axis("frequency", "Hz", 50.0, 8000.0, scale="mel")
SECONDS = Axis("time", "s", 0.0, 4.0)
WIDTH, HEIGHT = STRETCHED
IMAGE_AXES = (Axis("y", "px", 0.0, 110.0), Axis("x", "px", 0.0, 130.0))


def spectrogram(frequency: float, time: float) -> Picture:
    """Silence except for one sound."""
    values = torch.full((1, 1, BANDS, FRAMES), -70.0)
    row, column = int(MELS.fraction(frequency) * BANDS), int(SECONDS.fraction(time) * FRAMES)
    values[0, 0, row - 1 : row + 2, column - 2 : column + 3] = -10.0
    return Picture(values, Grid((BANDS, FRAMES), (MELS, SECONDS)), "dB")


def sound_grid(*shape: int) -> Grid:
    return Grid(shape, (MELS, SECONDS)[-len(shape) :])


def position(frequency: float, time: float, rows: Axis = MELS, columns: Axis = SECONDS) -> tuple[float, float]:
    """Down and across in a tile, as fractions."""
    return 1 - rows.fraction(frequency), columns.fraction(time)


def sheet_of(picture: Picture, grid: Grid) -> np.ndarray:
    """The contact sheet of three latents that read all tokens equally."""
    tokens = grid.num_tokens
    weights = layer("cross", torch.full((1, 1, 3, tokens), 1 / tokens))
    explanation = explanation_of(captured_with({"audio": Span(0, tokens, grid)}, cross0=weights))
    (sheet,) = contact_sheets(explanation, {"audio": picture}, num_latents=3)["audio/cross0"]
    return np.asarray(sheet).astype(float)


def input_tile(sheet: np.ndarray) -> np.ndarray:
    return sheet[TITLE_HEIGHT : TITLE_HEIGHT + HEIGHT, ROW_TICKS_WIDTH : ROW_TICKS_WIDTH + WIDTH]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (None, SECONDS),
        (MELS, SECONDS),
        (Axis("frequency", "Hz", 50.0, 11000.0, scale="mel"), Axis("time", "s", 0.0, 4.7)),
        (Axis("frequency", "Hz", 50.0, 5000.0, scale="mel"), Axis("time", "s", 0.0, 3.1)),
        (Axis("frequency", "Hz", 500.0, 8000.0, scale="mel"), Axis("time", "s", 1.0, 5.0)),
        (Axis("frequency", "Hz", 0.0, 8000.0), SECONDS),
    ],
    ids=["strip", "same", "longer", "shorter", "shifted", "linear"],
)
def test_a_picture_is_resampled_to_the_extent_and_scale_of_the_grid(rows, columns):
    grid = Grid((5, 53), (rows, columns)) if rows else Grid((53,), (columns,))
    rows, picture = rows or MELS, spectrogram(3000.0, 2.0)
    sheet = sheet_of(picture, grid)
    assert bright_place(input_tile(sheet)) == pytest.approx(position(3000.0, 2.0, rows, columns), abs=0.02)
    if len(grid.shape) == 2:
        assert sheet.shape[0] == 3 * (HEIGHT + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT)
    loud = Picture(torch.where(picture.values > -20, picture.values, -11.0), picture.grid, "dB")
    gray = input_tile(sheet_of(loud, grid)) @ LUMINANCE
    outside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for axis, shown, edge in ((rows, MELS, outside[::-1]), (columns, SECONDS, outside.T)):
        fractions = np.array([shown.fraction(axis.value((step + 0.5) / len(edge))) for step in range(len(edge))])
        edge[(fractions < -0.01) | (fractions > 1.01)] = True
    assert (gray[outside] < 20).all(), "nothing was recorded there"


@pytest.mark.parametrize("shape", [(5, 53), (53,)])
def test_a_map_is_drawn_over_the_picture_at_its_cells(shape):
    frame = Frame(sound_grid(*shape), spectrogram(3000.0, 2.0))
    row, column = int(MELS.fraction(3000.0) * 5), int(SECONDS.fraction(2.0) * 53)
    values = np.zeros(shape)
    values[(row, column)[-len(shape) :]] = 1.0
    tokens = values.reshape(-1)
    tile, (_, over) = frame.map_tile("map", tokens), frame.picture_tiles(0, tokens, ())
    if len(shape) == 2:
        assert np.unravel_index(tile.values.argmax(), shape) == (4 - row, column)
        assert bright_place(over.values.astype(float)) == pytest.approx(position(3000.0, 2.0), abs=0.05)
    else:  # one row, stretched over the height of the picture
        assert (tile.values.shape, tile.size, tile.row_ticks) == ((1, 53), (WIDTH, STRIP_HEIGHT), [])
        bright = np.flatnonzero((over.values.astype(float) @ LUMINANCE > 110).mean(axis=0) > 0.9)
        edges = (bright.min() / WIDTH, (bright.max() + 1) / WIDTH)
        assert edges == pytest.approx((column / 53, (column + 1) / 53), abs=0.01)


@pytest.mark.parametrize("shape", [(5, 53), (53,)])
def test_boxes_are_drawn_at_the_sound_in_the_picture_and_over_its_map(shape):
    frame = Frame(sound_grid(*shape), spectrogram(3000.0, 2.0))
    box = Box(0, "audio", {"frequency": (2000.0, 4000.0), "time": (1.0, 3.0)})
    picture, over = frame.picture_tiles(0, np.zeros(math.prod(shape)), [box])
    high, low = (1 - MELS.fraction(value) for value in (4000.0, 2000.0))
    assert not over.outlines
    tile = frame.map_tile("map", np.zeros(math.prod(shape)), [box])
    rows = (high, low) if len(shape) == 2 else (0.0, 1.0)
    for outlines, (top, bottom) in ((picture.outlines, (high, low)), (tile.outlines, rows)):
        (outline,) = outlines
        assert (outline.left, outline.top, outline.right, outline.bottom) == pytest.approx((0.25, top, 0.75, bottom))


def test_the_input_is_the_same_with_and_without_a_map_and_its_title_has_its_levels():
    frame = Frame(sound_grid(5, 53), spectrogram(3000.0, 2.0))
    box = Box(0, "audio", {"time": (1.0, 3.0)})
    (alone,) = frame.picture_tiles(0, None, [box])
    first, _ = frame.picture_tiles(0, np.zeros(5 * 53), [box])
    assert np.array_equal(alone.values, first.values)
    assert replace(alone, values=None) == replace(first, values=None)
    assert alone.title == "input, -70 to -10 dB"
    image = Picture(torch.zeros(1, 3, 11, 13), Grid((11, 13), IMAGE_AXES), "")
    assert Frame(Grid((11, 13), IMAGE_AXES), image).picture_tiles(0, None, ())[0].title == "input"


@pytest.mark.parametrize("shape", [(11, 13), (22, 13), (11, 26)])
def test_tiles_of_images_have_the_aspect_ratio_of_the_image_and_no_ticks(shape):
    tile = Frame(Grid(shape, IMAGE_AXES), None).map_tile("map", np.zeros(math.prod(shape)))
    assert tile.size[1] / tile.size[0] == pytest.approx(11 / 13, abs=0.005)
    assert not tile.row_ticks
    assert not tile.column_ticks
