import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection.contact_sheet import (
    DYNAMIC_RANGE,
    TILE,
    Outline,
    colorize,
    image_picture,
    level_picture,
    outlined,
    overlay,
    resized,
    tile_size,
)
from tests.inspection.drawn import BRIGHTEST, LUMINANCE, planted


def test_colours_grow_brighter_with_the_weight():
    luminance = colorize(np.linspace(0, 1, 257)[None], 0.0, 1.0)[0] @ LUMINANCE
    assert (np.diff(luminance) > -1).all(), "not darker, but for rounding"
    assert (np.diff(luminance[::16]) > 3).all()


def test_colours_are_clipped_at_both_ends_of_the_scale():
    darkest, brightest, *beyond = colorize(np.array([[2.0, 3.0, -9.0, 9.0]]), 2.0, 3.0)[0]
    assert (beyond[0] == darkest).all()
    assert (beyond[1] == brightest).all()
    assert tuple(brightest) == BRIGHTEST


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_number_of_channels_become_rgb(channels):
    image = torch.rand(channels, 5, 7) * 1.5 - 0.25
    picture = image_picture(image)
    assert (picture.shape, picture.dtype) == ((5, 7, 3), np.uint8)
    shown = image[:3] if channels > 1 else image.expand(3, -1, -1)
    expected = (shown.clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(picture, expected, atol=0.51)


def test_levels_are_grey_from_black_to_white_over_their_range():
    levels = torch.linspace(-59.0, 0.0, 11 * 13).reshape(1, 11, 13)
    picture, (low, high) = level_picture(levels, "Pa")
    assert (picture == picture[..., :1]).all()
    assert (np.diff(picture[..., 0].ravel().astype(int)) >= 0).all()
    assert (picture.min(), picture.max()) == (0, 255)
    assert low == pytest.approx(-59.0, abs=1.0)
    assert high == 0.0


@pytest.mark.parametrize(("quietest", "low"), [(-200.0, 3.0 - DYNAMIC_RANGE), (-23.0, -23.0)])
def test_decibels_are_shown_down_to_a_limit_below_the_loudest_but_not_below_the_quietest(quietest, low):
    levels = torch.full((1, 17, 19), quietest)
    levels[0, 2, 5] = 3.0
    picture, found = level_picture(levels, "dB")
    assert found == pytest.approx((low, 3.0))
    assert tuple(picture[2, 5]) == (255, 255, 255)
    assert (picture == 0).sum() == 3 * (17 * 19 - 1)


@pytest.mark.filterwarnings("error")
def test_silence_is_black():
    picture, (low, high) = level_picture(torch.full((1, 5, 7), -100.0), "dB")
    assert not picture.any()
    assert low == high == -100.0


@pytest.mark.parametrize("size", [(23, 29), (5, 29), (23, 3), (5, 3)])
def test_cells_grow_without_smoothing_and_shrink_without_loss_on_each_axis_by_itself(size):
    picture = np.zeros((7, 11, 3), dtype=np.uint8)
    picture[::2, ::2] = 255
    width, height = size
    found = np.asarray(resized(picture, size))
    assert found.shape == (height, width, 3)
    along_columns, along_rows = found.max(axis=0)[:, 0], found.max(axis=1)[:, 0]
    assert set(along_columns) <= {0, found.max()} if width > 11 else along_columns.min() > 0
    assert set(along_rows) <= {0, found.max()} if height > 7 else along_rows.min() > 0


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (2, 13)])
def test_an_overlay_is_bright_where_the_map_is_and_shows_the_picture_elsewhere(rows, columns):
    picture = np.zeros((rows * 3, columns * 3, 3), dtype=np.uint8)
    picture[:, : 3 * (columns // 2)] = (255, 0, 0)
    size = tile_size(columns, aspect=rows / columns)
    shown = overlay(picture, planted(rows, columns, rows - 1, columns - 1), size).astype(float)
    assert shown.shape == (round(TILE * rows / columns), TILE, 3)
    brightness = shown @ LUMINANCE
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (int((row + 0.5) * rows / shown.shape[0]), int((column + 0.5) * columns / TILE)) == (rows - 1, columns - 1)
    assert shown[0, 0, 0] > shown[0, -1, 0] + 60, "red on the left"


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), BRIGHTEST, (68, 1, 84), (33, 145, 140)]
)
def test_outlines_stand_out_from_any_colour_and_leave_the_inside_as_it_is(colour):
    picture = Image.new("RGB", (61, 43), colour)
    found = np.asarray(outlined(picture, [Outline(1 / 6, 1 / 3, 1 / 2, 2 / 3)])).astype(float)
    line = found[14, 10:31]
    assert (np.abs(line - colour).max(axis=-1) > 60).all()
    assert abs(line[0] @ LUMINANCE - found[13, 10] @ LUMINANCE) > 60, "two shades, so that one of them differs"
    inside = found[15:28, 11:30]
    outside = np.concatenate([found[:12].reshape(-1, 3), found[31:].reshape(-1, 3)])
    assert (inside == colour).all()
    assert (outside == colour).all()


def test_outlines_of_everything_and_of_an_instant_stay_on_the_picture():
    picture = Image.new("RGB", (61, 43), "white")
    whole = np.asarray(outlined(picture, [Outline(0, 0, 1, 1)]))
    assert all((edge != 255).any(axis=-1).all() for edge in (whole[0], whole[-1], whole[:, 0], whole[:, -1]))
    instant = np.asarray(outlined(picture, [Outline(0.5, 0, 0.5, 1)]))
    assert (instant[:, 30] != 255).any(axis=-1).all()
    assert np.asarray(picture).min() == 255, "the picture itself is left as it was"
