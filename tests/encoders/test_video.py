"""Videos -> tokens: space-time patches, their grid in seconds and pixels, and the images of which they consist."""

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from perceiver.encoders.image import ImageEncoder
from perceiver.encoders.stems import ConvStack, PixelStem
from perceiver.positions import FourierPositions, LearnedPositions
from tests.models import video_encoder


def test_tokens_are_space_time_patches_and_their_grid_is_in_seconds_and_pixels():
    encoder, raw = video_encoder(), torch.rand(2, 3, 6, 15, 14)
    tokens = encoder(raw)
    patches = rearrange((raw - 0.3) / 0.7, "b c (t f) (y p) (x q) -> b (t y x) (p q c f)", f=2, p=3, q=2)
    values = rearrange(tokens.values[..., : encoder.stem.dim], "b n (p q c f) -> b n (p q c f)", c=3, f=2, p=3, q=2)
    assert_close(values, patches)
    assert tokens.grid.shape == (3, 5, 7)
    assert [(axis.name, axis.unit, axis.stop) for axis in tokens.grid.axes] == [
        ("time", "s", 6 / 5),
        ("y", "px", 15.0),
        ("x", "px", 14.0),
    ]
    assert_close(tokens.values[0, :, encoder.stem.dim :], encoder.positions((3, 5, 7)))


def test_single_frames_have_the_features_of_images():
    stem = ConvStack(channels=3, dims=[5, 7])
    video = video_encoder(lambda channels: stem, frames_per_token=1).eval()
    image = ImageEncoder(stem=stem, positions=FourierPositions(num_bands=1, max_resolution=(3, 5)), mean=0.3, std=0.7)
    raw = torch.rand(2, 3, 4, 11, 17)
    features = video(raw).values[..., :7].unflatten(1, (4, -1))
    for frame in range(4):
        assert_close(features[:, frame], image.eval()(raw[:, :, frame]).values[..., :7])


@pytest.mark.parametrize("positions", [None, LearnedPositions(shape=(3, 5, 7), dim=11)], ids=["Fourier", "learned"])
@pytest.mark.parametrize("stem", [None, PixelStem], ids=["patches", "pixels"])
def test_a_video_has_the_same_tokens_alone_and_padded_and_may_end_within_a_token(stem, positions):
    encoder = video_encoder(stem, positions=positions).eval()
    raw = torch.rand(1, 3, 5, 6, 8)
    mask = torch.zeros(1, 11, 9, 14, dtype=torch.bool)
    mask[:, :5, :6, :8] = True
    padded = torch.full((1, 3, *mask.shape[1:]), torch.nan)
    padded[:, :, :5, :6, :8] = raw
    alone, together = encoder(raw), encoder(padded, mask)
    assert alone.grid.shape[0] == 3
    assert_close(together.values[together.mask], alone.values[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [({"frames_per_token": 0}, "frames_per_token=0"), ({"frames_per_second": 0.0}, "frames_per_second=0")],
)
def test_settings_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        video_encoder(**options)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 1, 6, 6, 8)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"channels=3, frames.*" + str(shape[-1])):
        video_encoder()(torch.zeros(shape))
