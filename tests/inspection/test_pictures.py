import io

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection.pictures import (
    BAR_WIDTH,
    GAP,
    MAX_TILE,
    MIN_BAR_HEIGHT,
    TILE,
    TITLE_HEIGHT,
    Tile,
    colourize,
    contact_sheet,
    image_picture,
    overlay,
)

LUMINANCE = np.array([0.299, 0.587, 0.114])
BRIGHTEST = (253, 231, 37)


def planted(rows: int, columns: int, row: int, column: int, weight: float = 0.7) -> np.ndarray:
    """A map whose weight lies in one cell."""
    values = np.full((rows, columns), 0.01)
    values[row, column] = weight
    return values


def decoded(sheet: Image.Image) -> np.ndarray:
    """What is left of a sheet after it was written and read."""
    written = io.BytesIO()
    sheet.save(written, format="png")
    return np.asarray(Image.open(written).convert("RGB")).astype(float)


def tile_at(sheet: np.ndarray, number: int, height: int, *, columns: int = 8, tile: int = TILE, row_height: int = 0):
    left, top = number % columns * (tile + GAP), number // columns * row_height + TITLE_HEIGHT
    return sheet[top : top + height, left : left + tile]


def bright_place(picture: np.ndarray) -> tuple[float, float]:
    """Where the brightest pixels lie, on average, as fractions of height and width."""
    brightness = picture @ LUMINANCE
    assert brightness.max() > 190 > 100 > np.median(brightness), "nothing stands out"
    rows, columns = np.nonzero(brightness == brightness.max())
    return (rows.mean() + 0.5) / picture.shape[0], (columns.mean() + 0.5) / picture.shape[1]


def test_colours_grow_brighter_with_the_weight():
    luminance = colourize(np.linspace(0, 1, 257)[None], 0.0, 1.0)[0] @ LUMINANCE
    assert (np.diff(luminance) > -1).all(), "not darker, but for rounding"
    assert (np.diff(luminance[::16]) > 3).all()


def test_colours_are_clipped_at_both_ends_of_the_scale():
    darkest, brightest, *beyond = colourize(np.array([[2.0, 3.0, -9.0, 9.0]]), 2.0, 3.0)[0]
    assert (beyond[0] == darkest).all()
    assert (beyond[1] == brightest).all()
    assert tuple(brightest) == BRIGHTEST


@pytest.mark.parametrize("number", [0, 2, 9, 12])
@pytest.mark.parametrize(("rows", "columns", "row", "column"), [(5, 7, 3, 1), (7, 5, 0, 4), (1, 13, 0, 11)])
def test_the_bright_place_is_at_the_right_pixels_of_the_right_tile(number, rows, columns, row, column):
    tiles = [Tile(f"map {index}", np.full((rows, columns), 0.01)) for index in range(13)]
    tiles[number] = Tile("planted", planted(rows, columns, row, column))
    height = round(TILE * rows / columns)
    sheet = decoded(contact_sheet(tiles))
    options = {"height": height, "columns": 7, "row_height": max(height, MIN_BAR_HEIGHT) + TITLE_HEIGHT + GAP}
    expected = ((row + 0.5) / rows, (column + 0.5) / columns)
    assert bright_place(tile_at(sheet, number, **options)) == pytest.approx(expected, abs=0.01)
    others = [tile_at(sheet, index, **options) for index in range(13) if index != number]
    assert not any((other == BRIGHTEST).all(axis=-1).any() for other in others)


@pytest.mark.parametrize(("tiles", "rows", "columns"), [(1, 1, 1), (8, 1, 8), (9, 2, 5), (19, 3, 7)])
@pytest.mark.parametrize(("shape", "tile"), [((5, 7), TILE), ((2, 29), TILE), ((1, 1), TILE), ((3, 199), 199)])
def test_sheets_are_as_large_as_their_tiles(tiles, rows, columns, shape, tile):
    sheet = contact_sheet([Tile("map", np.random.rand(*shape)) for _ in range(tiles)])
    height = max(round(tile * shape[0] / shape[1]), MIN_BAR_HEIGHT)
    assert sheet.mode == "RGB"
    assert sheet.size == (columns * (tile + GAP) + BAR_WIDTH, rows * (height + TITLE_HEIGHT + GAP))


def test_equal_weights_have_equal_colours_in_all_maps_of_a_sheet():
    first, second = planted(5, 7, 1, 2, 0.4), planted(5, 7, 4, 6, 0.9)
    second[0, 0] = 0.4
    tiles = [Tile("first", first), Tile("second", second)]
    sheet = decoded(contact_sheet(tiles))
    pictures = [tile_at(sheet, number, round(TILE * 5 / 7)) for number in range(2)]
    cell = TILE / 7
    weak = pictures[0][int(1.5 * cell), int(2.5 * cell)]
    assert (weak == pictures[1][int(0.5 * cell), int(0.5 * cell)]).all()
    assert (weak != pictures[1][int(4.5 * cell), int(6.5 * cell)]).any()


def test_sheets_have_contrast_although_the_weights_are_small():
    sheet = decoded(contact_sheet([Tile("map", planted(13, 17, 3, 4, 1e-5) * 1e-3)]))
    tile = tile_at(sheet, 0, round(TILE * 13 / 17))
    assert np.ptp(tile) > 60


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1 / 35, 1.0])
def test_constant_maps_give_one_even_colour(value):
    values = np.full((5, 7), value)
    picture = np.zeros((10, 14, 3), dtype=np.uint8)
    tiles = [Tile("map", values), Tile("over", overlay(picture, values), is_map=False)]
    sheet = decoded(contact_sheet(tiles))
    for number in range(2):
        assert len(np.unique(tile_at(sheet, number, round(TILE * 5 / 7)).reshape(-1, 3), axis=0)) == 1


def test_a_single_spike_on_nothing_is_bright_and_shades_below_it_differ():
    values = np.zeros((29, 31))
    values[3, 5], values[7, 11] = 0.8, 0.2
    sheet = decoded(contact_sheet([Tile("map", values)]))
    cell = TILE / 31
    strong, weak, nothing = (
        sheet[TITLE_HEIGHT + int((row + 0.5) * cell), int((column + 0.5) * cell)]
        for row, column in ((3, 5), (7, 11), (0, 0))
    )
    assert tuple(strong) == BRIGHTEST
    assert strong @ LUMINANCE > weak @ LUMINANCE + 20 > nothing @ LUMINANCE + 40


def test_no_cell_is_left_out_of_maps_of_more_columns_than_a_tile_has_pixels():
    values = np.zeros((3, 3 * MAX_TILE))
    values[1, ::2] = 1.0
    sheet = contact_sheet([Tile("map", values)])
    tile = tile_at(decoded(sheet), 0, 1, tile=MAX_TILE)
    assert (np.ptp(tile, axis=1) < 140).all(), "neighbours are averaged, not every third taken"


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_number_of_channels_become_rgb(channels):
    image = torch.rand(channels, 5, 7) * 1.5 - 0.25
    picture = image_picture(image)
    assert (picture.shape, picture.dtype) == ((5, 7, 3), np.uint8)
    shown = image[:3] if channels > 1 else image.expand(3, -1, -1)
    expected = (shown.clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(picture, expected, atol=0.51)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (2, 13)])
def test_an_overlay_is_bright_where_the_map_is_and_shows_the_picture_elsewhere(rows, columns):
    picture = np.zeros((rows * 3, columns * 3, 3), dtype=np.uint8)
    picture[:, : 3 * (columns // 2)] = (255, 0, 0)
    shown = overlay(picture, planted(rows, columns, rows - 1, columns - 1)).astype(float)
    assert shown.shape == (round(TILE * rows / columns), TILE, 3)
    brightness = shown @ LUMINANCE
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (int((row + 0.5) * rows / shown.shape[0]), int((column + 0.5) * columns / TILE)) == (rows - 1, columns - 1)
    assert shown[0, 0, 0] > shown[0, -1, 0] + 60, "red on the left"
