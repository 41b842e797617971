from math import ceil, log10, pi

import pytest
import torch
from torch.testing import assert_close

from perceiver.encoders.stems import PatchStem
from tests.encoders.sounds import BANDS, LENGTHS, RATE, every_encoder, every_log_mel_encoder, sound
from tests.models import audio_encoder, log_mel, waveform_encoder


class TestGrid:
    """Where a token says that it is, there is what it tells of."""

    @pytest.mark.parametrize("patch_size", [(13, 3), (5, 7), (1, 11)], ids=str)
    @pytest.mark.parametrize("place", [0.23, 0.5, 0.79])
    def test_an_impulse_changes_most_the_tokens_of_its_time(self, patch_size, place):
        encoder = audio_encoder(PatchStem(channels=1, patch_size=patch_size))
        noise = 1e-3 * torch.randn(1, 1, 6007)
        before = encoder(noise)
        time = before.grid.axes[1]
        columns = before.grid.shape[1]
        for column in (0, 2, columns // 2, columns - 2):
            seconds = time.start + (column + place) * (time.stop - time.start) / columns
            wave = noise.clone()
            wave[..., round(seconds * RATE)] += 1.0
            assert changed(encoder, before, wave).sum(dim=0).argmax() == column

    @pytest.mark.parametrize("patch_size", [(2, 3), (3, 7), (1, 11)], ids=str)
    @pytest.mark.parametrize("place", [0.23, 0.5, 0.79])
    def test_a_sine_changes_most_the_tokens_of_its_frequency(self, patch_size, place):
        encoder = audio_encoder(PatchStem(channels=1, patch_size=patch_size))
        noise = 1e-3 * torch.randn(1, 1, 6007)
        before = encoder(noise)
        frequency = before.grid.axes[0]
        rows = before.grid.shape[0]
        low, high = mel(frequency.start), mel(frequency.stop)
        for row in range(BANDS // patch_size[0]):  # the last one may hang over what there is
            hertz = 700.0 * (10.0 ** ((low + (row + place) * (high - low) / rows) / 2595.0) - 1.0)
            wave = noise + 0.5 * torch.sin(2 * pi * hertz * torch.arange(6007) / RATE)
            assert changed(encoder, before, wave).sum(dim=1).argmax() == row

    @pytest.mark.parametrize("place", [0.23, 0.5, 0.79])
    def test_a_step_in_a_waveform_changes_the_token_of_its_time_alone(self, place):
        encoder, wave = waveform_encoder(), sound(1061)[None]
        before = encoder(wave)
        (time,) = before.grid.axes
        for number in (0, 5, 23):
            stepped = wave.clone()
            stepped[..., round((time.start + (number + place) * (time.stop - time.start) / 25) * RATE)] += 1.0
            change = (encoder(stepped).values - before.values).abs().sum(dim=2)
            assert change[0].nonzero().tolist() == [[number]]

    @every_encoder
    @pytest.mark.parametrize("length", LENGTHS)
    def test_axes_measure_seconds_and_hertz_and_agree_with_the_picture(self, make_encoder, length):
        encoder, wave = make_encoder().eval(), sound(length)[None]
        grid, picture = encoder(wave).grid, encoder.picture(wave)
        assert picture.unit == "dB"
        assert_close(picture.values, log_mel()(wave))
        assert picture.grid.shape == picture.values.shape[2:]
        shown = {axis.name: (axis, size) for axis, size in zip(picture.grid.axes, picture.grid.shape, strict=True)}
        assert {name: axis.unit for name, (axis, _) in shown.items()} == {"frequency": "Hz", "time": "s"}
        for axis, cells in zip(grid.axes, grid.shape, strict=True):
            whole, pixels = shown[axis.name]
            assert (axis.unit, axis.scale, axis.start) == (whole.unit, whole.scale, whole.start)
            if len(grid.shape) == 2:  # a cell is as many pixels long as the stride says
                stride = encoder.stem.stride[axis.name == "time"]
                assert cells == ceil(pixels / stride)
                assert axis.fraction(whole.stop) == pytest.approx(pixels / (cells * stride))
        time = grid.axes[-1]
        assert (time.name, time.start) == ("time", 0.0)
        cell = time.stop / grid.shape[-1]
        assert time.stop - cell < length / RATE <= time.stop

    @every_log_mel_encoder
    def test_the_picture_of_a_spectrogram_is_that_of_its_wave(self, make_encoder):
        encoder, wave = make_encoder(), sound(1061)[None]
        given, made = encoder.picture(log_mel()(wave)), encoder.picture(wave)
        assert (given.grid, given.unit) == (made.grid, made.unit)
        assert_close(given.values, made.values)

    @every_encoder
    def test_the_sound_of_a_wave_is_the_wave(self, make_encoder):
        waves = torch.stack([sound(1061), -sound(1061)])
        found = make_encoder().sound(waves)
        assert torch.equal(found.values, waves[:, 0])
        assert found.sample_rate == RATE

    @every_log_mel_encoder
    def test_a_spectrogram_cannot_be_heard(self, make_encoder):
        assert make_encoder().sound(log_mel()(sound(1061)[None])) is None


def mel(hertz: float) -> float:
    return 2595.0 * log10(1.0 + hertz / 700.0)


def changed(encoder, before, wave) -> torch.Tensor:
    """How much each cell of the grid differs from before."""
    after = encoder(wave)
    return (after.values - before.values)[0].square().sum(dim=1).unflatten(0, after.grid.shape)
