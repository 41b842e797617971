"""A few frames as one raster: each pixel with its neighborhood in all frames."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.frames import FramesEncoder
from perceiver.encoders.stems import PixelStem
from perceiver.positions import FourierPositions


def frames_encoder(**options) -> FramesEncoder:
    positions = FourierPositions(num_bands=2, max_resolution=(5, 7))
    sizes = {"channels": 2, "num_frames": 3, "neighborhood": 3, "mean": 0.3, "std": 0.7}
    return FramesEncoder(**({"stem": PixelStem, "positions": positions} | sizes | options))


def test_a_token_has_the_neighborhood_of_its_pixel_in_each_frame_and_zeros_beyond_the_border():
    encoder, raw = frames_encoder(), torch.rand(2, 2, 3, 5, 7)
    tokens = encoder(raw)
    assert tokens.values.shape == (2, 35, 3 * 9 * 2 + 10)
    assert tokens.grid.shape == (5, 7)
    values = tokens.values[..., :54].unflatten(1, (5, 7)).unflatten(3, (3, 3, 3, 2))  # frame, row, column, channel
    normalized = (raw - 0.3) / 0.7
    for y, x, dy, dx in ((2, 3, 0, 1), (2, 3, 2, 2), (4, 6, 0, 0), (0, 0, 1, 1)):
        assert_close(values[:, y, x, :, dy, dx].mT, normalized[..., y + dy - 1, x + dx - 1])
    assert (values[:, 0, :, :, 0] == 0).all()
    assert (values[:, :, 6, :, :, 2] == 0).all()
    assert_close(tokens.values[0, :, 54:], encoder.positions((5, 7)))


def test_a_pixel_alone_is_a_neighborhood_of_one():
    raw = torch.rand(2, 2, 3, 5, 7)
    alone = frames_encoder(neighborhood=1)(raw).values[..., :6].unflatten(2, (3, 2))
    assert_close(alone, frames_encoder()(raw).values[..., :54].unflatten(2, (3, 3, 3, 2))[..., 1, 1, :])


def test_frames_have_the_same_tokens_alone_and_padded():
    encoder, raw = frames_encoder(stem=partial(PixelStem, dim=7)), torch.rand(1, 2, 3, 4, 6)
    padded, mask = torch.full((1, 2, 3, 7, 11), torch.nan), torch.zeros(1, 3, 7, 11, dtype=torch.bool)
    padded[..., :4, :6], mask[..., :4, :6] = raw, True
    together = encoder(padded, mask)
    assert_close(together.values[together.mask], encoder(raw).values[0])


@pytest.mark.parametrize(("options", "named"), [({"neighborhood": 2}, "neighborhood=2"), ({"std": 0.0}, "std=0.0")])
def test_settings_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        frames_encoder(**options)


@pytest.mark.parametrize("shape", [(1, 2, 4, 5, 7), (1, 3, 3, 5, 7), (1, 2, 5, 7)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="channels=2, frames=3"):
        frames_encoder()(torch.rand(shape))
