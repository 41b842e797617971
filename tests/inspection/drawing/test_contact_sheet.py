import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection.drawing.axes import Tick
from perceiver.inspection.drawing.contact_sheet import (
    BAR_WIDTH,
    COLUMN_TICKS_HEIGHT,
    DYNAMIC_RANGE,
    GAP,
    MIN_BAR_HEIGHT,
    ROW_TICKS_WIDTH,
    TILE,
    TITLE_HEIGHT,
    Outline,
    Tile,
    colorize,
    contact_sheet,
    draw_outlines,
    input_image,
    overlay,
    resize,
    tile_size,
)
from tests.inspection.drawn import BRIGHTEST, LUMINANCE, planted, square_tile, tile_at


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1 / 35])
def test_constant_maps_give_one_color(value):
    values, picture = np.full((5, 7), value), np.zeros((10, 14, 3), dtype=np.uint8)
    over = overlay(picture, values, tile_size(7, aspect=5 / 7))
    sheet = np.asarray(contact_sheet([square_tile("map", values), square_tile("over", over, is_map=False)])).astype(
        float
    )
    for number in range(2):
        assert len(np.unique(tile_at(sheet, number, round(TILE * 5 / 7)).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("sizes", "max_columns", "columns", "heights"),
    [
        ([(TILE, 86)], 8, 1, [86]),
        ([(TILE, 7)] * 8, 8, 8, [MIN_BAR_HEIGHT]),
        ([(199, 53)] * 19, 8, 7, [53, 53, 53]),
        ([(211, 97), (211, 53), (101, 41), (211, 61)], 2, 2, [97, 61]),
    ],
)
def test_columns_are_as_wide_as_the_widest_tile_and_rows_as_high_as_their_highest(sizes, max_columns, columns, heights):
    sheet = contact_sheet([Tile("map", np.random.rand(3, 5), size) for size in sizes], max_columns=max_columns)
    assert sheet.mode == "RGB"
    width = max(width for width, _ in sizes)
    assert sheet.size == (columns * (width + GAP) + BAR_WIDTH, sum(heights) + len(heights) * (TITLE_HEIGHT + GAP))


def test_equal_weights_have_equal_colors_in_all_maps_of_a_sheet():
    first, second = planted(5, 7, 1, 2, 0.4), planted(5, 7, 4, 6, 0.9)
    second[0, 0] = 0.4
    tiles = [square_tile("first", first), square_tile("second", second)]
    sheet = np.asarray(contact_sheet(tiles)).astype(float)
    pictures = [tile_at(sheet, number, round(TILE * 5 / 7)) for number in range(2)]
    cell = TILE / 7
    weak = pictures[0][int(1.5 * cell), int(2.5 * cell)]
    assert (weak == pictures[1][int(0.5 * cell), int(0.5 * cell)]).all()
    assert (weak != pictures[1][int(4.5 * cell), int(6.5 * cell)]).any()


def test_a_single_spike_on_nothing_is_bright_and_shades_below_it_differ():
    values = np.zeros((29, 31))
    values[3, 5], values[7, 11] = 0.8, 0.2
    sheet = np.asarray(contact_sheet([square_tile("map", values)])).astype(float)
    cell = TILE / 31
    strong, weak, nothing = (
        sheet[TITLE_HEIGHT + int((row + 0.5) * cell), int((column + 0.5) * cell)]
        for row, column in ((3, 5), (7, 11), (0, 0))
    )
    assert tuple(strong) == BRIGHTEST
    assert strong @ LUMINANCE > weak @ LUMINANCE + 20 > nothing @ LUMINANCE + 40


def test_ticks_stand_at_their_places_outside_of_the_tiles():
    values = np.random.rand(3, 5)
    ticks = {"row_ticks": [Tick(0.25, "5k")], "column_ticks": [Tick(0.0, "0"), Tick(0.7, "7 s")], "row_unit": "Hz"}
    plain = contact_sheet([Tile("map", values, (211, 101)) for _ in range(4)], max_columns=2)
    sheet = contact_sheet([Tile("map", values, (211, 101), **ticks) for _ in range(4)], max_columns=2)
    assert sheet.size == (plain.width + ROW_TICKS_WIDTH, plain.height + 2 * COLUMN_TICKS_HEIGHT)
    pixels = np.asarray(sheet).min(axis=-1)
    for number in range(4):
        left = ROW_TICKS_WIDTH + number % 2 * (211 + GAP)
        top = TITLE_HEIGHT + number // 2 * (101 + TITLE_HEIGHT + GAP + COLUMN_TICKS_HEIGHT)
        plain_top = TITLE_HEIGHT + number // 2 * (101 + TITLE_HEIGHT + GAP)
        plain_left = number % 2 * (211 + GAP)
        tile = np.asarray(sheet)[top : top + 101, left : left + 211]
        assert (tile == np.asarray(plain)[plain_top : plain_top + 101, plain_left : plain_left + 211]).all()
        assert np.flatnonzero(pixels[top : top + 101, left - 1] == 0).tolist() == [25]
        assert np.flatnonzero(pixels[top + 101, left : left + 211] == 0).tolist() == [0, 147]
        labelled = (pixels[top : top + 101, left - ROW_TICKS_WIDTH : left - GAP] < 128).any()
        assert labelled or number % 2 == 1


def test_titles_end_with_their_tiles_however_long():
    values = np.random.rand(5, 7)
    short, long = (contact_sheet([square_tile(title, values)] * 2) for title in ("a" * 11, "a" * 311))
    above = np.asarray(long)[:TITLE_HEIGHT].min(axis=-1)
    assert above[:, TILE + 1 : TILE + GAP].min() == 255
    assert np.argwhere(above[:, :TILE] < 128).max() > TILE - 23
    assert np.argwhere(np.asarray(short)[:TITLE_HEIGHT, :TILE].min(axis=-1) < 128).max() < TILE / 2 + 23


def test_colors_grow_brighter_with_the_weight_and_are_clipped_at_both_ends():
    luminance = colorize(np.linspace(0, 1, 257)[None], 0.0, 1.0)[0] @ LUMINANCE
    assert (np.diff(luminance) > -1).all(), "not darker, but for rounding"
    assert (np.diff(luminance[::16]) > 3).all()
    low, high, below, above = colorize(np.array([[2.0, 3.0, -9.0, 9.0]]), 2.0, 3.0)[0]
    assert (below == low).all()
    assert tuple(above) == tuple(high) == BRIGHTEST


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_number_of_channels_become_rgb(channels):
    image = torch.rand(channels, 5, 7) * 1.5 - 0.25
    pixels = input_image(image).pixels
    assert (pixels.shape, pixels.dtype) == ((5, 7, 3), np.uint8)
    rgb = image[:3] if channels > 1 else image.expand(3, -1, -1)
    np.testing.assert_allclose(pixels, (rgb.clamp(0, 1) * 255).permute(1, 2, 0).numpy(), atol=0.51)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("quietest", "unit"), [(-200.0, "dB"), (-200.0, "Pa"), (-23.0, "dB"), (3.0, "dB")])
def test_levels_are_gray_from_the_quietest_to_the_loudest_and_decibels_within_a_limit(quietest, unit):
    lowest = max(quietest, 3.0 - DYNAMIC_RANGE) if unit == "dB" else quietest
    levels = torch.full((1, 17, 19), quietest)
    levels[0, 2, 5], levels[0, 2, 7] = 3.0, (lowest + 3.0) / 2
    found = input_image(levels, unit)
    assert (found.low, found.high) == pytest.approx((lowest, 3.0))
    assert found.unit == unit
    expected = np.zeros((17, 19))
    if quietest < 3.0:  # else it is silent, and black
        expected[2, 5], expected[2, 7] = 255, 127
    np.testing.assert_allclose(found.pixels, np.stack([expected] * 3, axis=-1), atol=1)


@pytest.mark.parametrize("size", [(23, 29), (5, 29), (23, 3), (5, 3)])
def test_cells_grow_without_smoothing_and_shrink_without_loss_on_each_axis_by_itself(size):
    picture = np.zeros((7, 11, 3), dtype=np.uint8)
    picture[::2, ::2] = 255
    width, height = size
    found = np.asarray(resize(picture, size))
    assert found.shape == (height, width, 3)
    along_columns, along_rows = found.max(axis=0)[:, 0], found.max(axis=1)[:, 0]
    assert set(along_columns) <= {0, found.max()} if width > 11 else along_columns.min() > 0
    assert set(along_rows) <= {0, found.max()} if height > 7 else along_rows.min() > 0


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (2, 13)])
def test_an_overlay_is_bright_at_the_maximum_of_the_map_and_contains_the_picture(rows, columns):
    picture = np.zeros((rows * 3, columns * 3, 3), dtype=np.uint8)
    picture[:, : 3 * (columns // 2)] = (255, 0, 0)
    size = tile_size(columns, aspect=rows / columns)
    found = overlay(picture, planted(rows, columns, rows - 1, columns - 1), size).astype(float)
    assert found.shape == (round(TILE * rows / columns), TILE, 3)
    row, column = np.unravel_index((found @ LUMINANCE).argmax(), found.shape[:2])
    assert (int((row + 0.5) * rows / found.shape[0]), int((column + 0.5) * columns / TILE)) == (rows - 1, columns - 1)
    assert found[0, 0, 0] > found[0, -1, 0] + 60, "red on the left"


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), BRIGHTEST, (68, 1, 84)])
def test_outlines_contrast_with_any_color_and_leave_the_inside_unchanged(color):
    picture = Image.new("RGB", (61, 43), color)
    found = np.asarray(draw_outlines(picture, [Outline(1 / 6, 1 / 3, 1 / 2, 2 / 3)])).astype(float)
    line = found[14, 10:31]
    assert (np.abs(line - color).max(axis=-1) > 60).all()
    assert abs(line[0] @ LUMINANCE - found[13, 10] @ LUMINANCE) > 60, "two shades, so that one of them differs"
    assert (found[15:28, 11:30] == color).all()
    assert (np.concatenate([found[:12].reshape(-1, 3), found[31:].reshape(-1, 3)]) == color).all()


def test_outlines_of_everything_and_of_zero_width_stay_on_the_picture():
    picture = Image.new("RGB", (61, 43), "white")
    found = np.asarray(draw_outlines(picture, [Outline(0, 0, 1, 1)]))
    assert all((edge != 255).any(axis=-1).all() for edge in (found[0], found[-1], found[:, 0], found[:, -1]))
    instant = np.asarray(draw_outlines(picture, [Outline(0.5, 0, 0.5, 1)]))
    assert (instant[:, 30] != 255).any(axis=-1).all()
    assert np.asarray(picture).min() == 255, "the picture itself is unchanged"
