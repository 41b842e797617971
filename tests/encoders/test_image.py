import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.stems import PixelStem
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Axis
from tests.models import STEMS, image_encoder

every_stem = pytest.mark.parametrize("make_stem", STEMS.values(), ids=STEMS)


@every_stem
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_tokens_fit_their_grid_and_the_grid_measures_pixels(make_stem, channels):
    encoder = image_encoder(make_stem(channels)).eval()
    tokens = encoder(torch.randn(2, channels, 29, 31))
    rows, columns = tokens.grid.shape
    assert tokens.values.shape == (2, tokens.grid.num_tokens, encoder.dim)
    assert tokens.mask is None
    height, width = encoder.stem.stride
    assert tokens.grid.axes == (Axis("y", "px", 0.0, rows * height), Axis("x", "px", 0.0, columns * width))
    assert abs(rows * height - 29) <= height + 1
    assert abs(columns * width - 31) <= width + 1


@every_stem
def test_a_cell_is_real_if_any_of_its_pixels_is(make_stem):
    encoder = image_encoder(make_stem(3)).eval()
    height, width = encoder.stem.stride
    pixel_mask = torch.rand(2, 29, 31) < 0.5 / (height * width)
    pixel_mask[:, -1, -1] = True  # where the image ends
    tokens = encoder(torch.randn(2, 3, 29, 31), pixel_mask)
    rows, columns = tokens.grid.shape
    cells = tokens.mask.reshape(2, rows, columns)
    for row in range(rows):
        for column in range(columns):
            pixels = pixel_mask[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert (cells[:, row, column] == pixels.flatten(1).any(dim=1)).all()
    assert cells.any()
    assert not cells.all()


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


@every_stem
def test_the_example_input_can_be_encoded(make_stem):
    encoder = image_encoder(make_stem(2)).eval()
    assert encoder(encoder.example_input()).values.shape[::2] == (1, encoder.dim)
