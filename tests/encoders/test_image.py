from math import ceil

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.encoders.image import ConvStem, PatchStem, PixelStem, pad_same
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Axis
from tests.models import image_encoder

STEMS = {
    "pixels": lambda channels: PixelStem(channels=channels),
    "projected pixels": lambda channels: PixelStem(channels=channels, dim=7),
    "patches": lambda channels: PatchStem(channels=channels, patch_size=3),
    "projected patches": lambda channels: PatchStem(channels=channels, patch_size=3, dim=7),
    "convolution": lambda channels: ConvStem(channels=channels, dim=7),
    "symmetric convolution": lambda channels: ConvStem(channels=channels, dim=7, padding="symmetric"),
}
every_stem = pytest.mark.parametrize("make_stem", STEMS.values(), ids=STEMS)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_bare_patches_are_the_image_unfolded_in_row_column_channel_order(channels):
    image = torch.randn(2, channels, 3 * 5, 3 * 7)
    unfolded = rearrange(
        F.unfold(image, kernel_size=3, stride=3),
        "batch (channels dy dx) (rows columns) -> batch (dy dx channels) rows columns",
        channels=channels,
        dy=3,
        rows=5,
    )
    assert_close(PatchStem(channels=channels, patch_size=3)(image), unfolded, atol=0, rtol=0)


@pytest.mark.parametrize("dim", [None, 7])
def test_an_image_that_patches_do_not_divide_is_padded_with_zeros_below_and_on_the_right(dim):
    stem, image = PatchStem(channels=2, patch_size=5, dim=dim), torch.randn(3, 2, 11, 13)
    padded = torch.zeros(3, 2, 15, 15)
    padded[..., :11, :13] = image
    assert stem(image).shape == (3, stem.dim, 3, 3)
    assert_close(stem(image), stem(padded), atol=0, rtol=0)


def test_bare_pixels_are_the_image():
    image = torch.randn(3, 2, 5, 7)
    assert_close(PixelStem(channels=2)(image), image, atol=0, rtol=0)


def test_a_pixel_projection_is_one_linear_map_for_every_pixel():
    stem, image = PixelStem(channels=2, dim=11), torch.randn(3, 2, 5, 7)
    linear = F.linear(image.movedim(1, -1), stem.projection.weight[..., 0, 0], stem.projection.bias)
    assert_close(stem(image), linear.movedim(-1, 1))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (7, 13), (16, 11), (29, 18), (31, 33)])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_the_convolutional_stem_quarters_the_resolution(height, width, padding):
    def quarter(size):
        half = ceil(size / 2)
        return ceil(half / 2) if padding == "same" else (half - 3) // 2 + 1

    features = ConvStem(channels=2, dim=3, padding=padding)(torch.randn(1, 2, height, width))
    assert features.shape == (1, 3, quarter(height), quarter(width))
    if height == 224:
        assert features.shape[2:] == ((56, 56) if padding == "same" else (55, 55))


def test_same_padding_puts_the_odd_zero_below_and_on_the_right():
    padded = pad_same(torch.ones(1, 1, 7, 6), kernel_size=7, stride=2)[0, 0]
    expected = torch.zeros(3 + 7 + 3, 2 + 6 + 3)
    expected[3:10, 2:8] = 1
    assert_close(padded, expected)


@every_stem
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_tokens_fit_their_grid_and_the_grid_measures_pixels(make_stem, channels):
    encoder = image_encoder(make_stem(channels)).eval()
    tokens = encoder(torch.randn(2, channels, 29, 31))
    rows, columns = tokens.grid.shape
    assert tokens.values.shape == (2, tokens.grid.num_tokens, encoder.dim)
    assert tokens.mask is None
    stride = float(encoder.stem.stride)
    assert tokens.grid.axes == (Axis("y", "px", 0.0, rows * stride), Axis("x", "px", 0.0, columns * stride))
    assert abs(rows * stride - 29) <= stride + 1
    assert abs(columns * stride - 31) <= stride + 1
    assert columns >= rows


@every_stem
def test_a_cell_is_real_if_any_of_its_pixels_is(make_stem):
    encoder = image_encoder(make_stem(3)).eval()
    stride = encoder.stem.stride
    pixel_mask = torch.rand(2, 29, 31) < 0.5 / stride**2
    tokens = encoder(torch.randn(2, 3, 29, 31), pixel_mask)
    rows, columns = tokens.grid.shape
    cells = tokens.mask.reshape(2, rows, columns)
    for row in range(rows):
        for column in range(columns):
            pixels = pixel_mask[:, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            assert (cells[:, row, column] == pixels.flatten(1).any(dim=1)).all()
    assert cells.any()
    assert not cells.all()


@every_stem
def test_masked_pixels_do_not_reach_real_tokens(make_stem):
    encoder = image_encoder(make_stem(3), mean=0.5, std=0.25).eval()
    image, pixel_mask = torch.randn(2, 3, 29, 31), torch.zeros(2, 29, 31, dtype=torch.bool)
    pixel_mask[0, :17, :19] = pixel_mask[1, :, :13] = True
    clean = encoder(image, pixel_mask)
    junk = encoder(image.masked_fill(~pixel_mask[:, None], 1e3), pixel_mask)
    assert_close(junk.values[clean.mask], clean.values[clean.mask], atol=1e-5, rtol=0)


@every_stem
@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.25), ((0.2, 0.3, 0.5), (0.7, 0.11, 0.13))], ids=["one", "per channel"]
)
def test_the_stem_sees_values_less_their_mean_over_their_deviation(make_stem, mean, std):
    encoder = image_encoder(make_stem(3), mean=mean, std=std).eval()
    plain = image_encoder(encoder.stem)
    image = torch.rand(2, 3, 29, 31)
    mean, std = (torch.tensor(value).expand(3)[:, None, None] for value in (mean, std))
    assert_close(encoder(image).values, plain((image - mean) / std).values)
    assert encoder.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", ["mean", "std"])
def test_one_value_too_few_for_the_channels_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=rf"{name}=\(0\.5, 0\.25\).* 3 channels"):
        image_encoder(**{name: (0.5, 0.25)})


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_positions_join_the_features_the_same_way_in_every_sample(combine):
    positions = FourierPositions(num_bands=2, max_resolution=(5, 7))
    encoder = image_encoder(PixelStem(channels=3, dim=positions.dim), positions, combine=combine)
    image = torch.randn(2, 3, 11, 13)
    features = encoder.stem(image).flatten(2).mT
    values = encoder(image).values
    for sample in range(2):
        at_cells = positions((11, 13))
        expected = features[sample] + at_cells if combine == "add" else torch.cat([features[sample], at_cells], dim=1)
        assert_close(values[sample], expected)


def test_adding_positions_of_another_width_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"combine=add.* 27.* 11"):
        image_encoder(positions=LearnedPositions(shape=(5, 7), dim=11), combine="add")


@pytest.mark.parametrize("shape", [(2, 5, 7, 7), (3, 7, 7)], ids=["wrong channels", "no batch"])
def test_an_input_of_another_shape_is_an_error_that_names_what_is_wanted(shape):
    with pytest.raises(ValueError, match=r"channels=3, height, width.*not \[" + ", ".join(map(str, shape))):
        image_encoder()(torch.zeros(shape))


def test_patches_without_pixels_are_an_error():
    with pytest.raises(ValueError, match="patch_size=0"):
        PatchStem(channels=3, patch_size=0)


@every_stem
def test_the_example_input_can_be_encoded(make_stem):
    encoder = image_encoder(make_stem(2)).eval()
    assert encoder(encoder.example_input()).values.shape[::2] == (1, encoder.dim)
