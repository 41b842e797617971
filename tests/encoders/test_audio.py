"""Sounds -> tokens: spectrograms and waves, where and when a token is, SpecAugment, precision."""

from math import ceil, pi

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchaudio.transforms import SpecAugment

from perceiver.data.collate import collate
from perceiver.encoders.stems import ConvStack, ConvStem, PatchStem, PixelStem
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Batch, Sample, hertz, mel
from tests.models import STEMS, audio_encoder, log_mel, logits, small_perceiver, waveform_encoder

RATE, HOP, BANDS = 4001, 37, 13
LENGTHS = [11, 397, 1061, 1123]
"""In samples; no hop and no patch divides them, nor any stride their 1, 11, 29 and 31 frames."""
LOG_MEL = {
    name: lambda make=make: audio_encoder(make(1)) for name, make in STEMS.items() if name != "symmetric convolution"
}
WAVEFORM = {"bare waveform": waveform_encoder, "projected waveform": lambda: waveform_encoder(dim=7)}
FEW = {name: LOG_MEL[name] for name in ("oblong patches", "convolution", "stack")} | WAVEFORM
every_encoder = pytest.mark.parametrize("make_encoder", [*LOG_MEL.values(), *WAVEFORM.values()], ids=LOG_MEL | WAVEFORM)
some_encoders = pytest.mark.parametrize("make_encoder", FEW.values(), ids=FEW)


def sound(length: int) -> torch.Tensor:
    return 0.3 * torch.randn(1, length)


def together(*inputs: torch.Tensor) -> Batch:
    return collate([Sample({"audio": raw}, {}, "x") for raw in inputs])


def model_of(encoder):
    return small_perceiver(encoders={"audio": encoder})


@every_encoder
def test_tokens_of_a_sound_are_the_first_columns_of_a_padded_batch_and_the_only_real_ones(make_encoder):
    encoder = make_encoder().eval()
    for length in LENGTHS:
        wave = sound(length)
        batch = together(wave, sound(1999))
        alone, padded = encoder(wave[None]), encoder(batch.inputs["audio"], batch.masks["audio"])
        columns = alone.grid.shape[-1]
        values = padded.values[0].unflatten(0, padded.grid.shape)[..., :columns, :].flatten(0, -2)
        assert_close(values, alone.values[0], atol=1e-5, rtol=0)
        real = torch.arange(padded.grid.shape[-1]) < columns
        assert torch.equal(padded.mask[0], real.expand(padded.grid.shape).flatten())
        assert padded.mask[1].all()


@every_encoder
def test_a_spectrogram_gives_the_tokens_of_its_wave(make_encoder):
    encoder, mels, waves = make_encoder().eval(), log_mel(), [sound(length) for length in LENGTHS]
    if not hasattr(encoder, "stem"):
        return
    of_waves, of_spectrograms = together(*waves), together(*(mels(wave) for wave in waves))
    expected = encoder(of_waves.inputs["audio"], of_waves.masks["audio"])
    tokens = encoder(of_spectrograms.inputs["audio"], of_spectrograms.masks["audio"])
    assert torch.equal(tokens.mask, expected.mask)
    assert tokens.grid == expected.grid
    assert_close(tokens.values[tokens.mask], expected.values[tokens.mask], atol=1e-5, rtol=0)
    wave = waves[2][None]
    given, made = encoder.picture(mels(wave)), encoder.picture(wave)
    assert given.grid == made.grid
    assert_close(given.values, made.values)
    assert encoder.sound(mels(wave)) is None


def test_values_are_normalized_decibels_or_samples_with_positions():
    positions, wave = FourierPositions(num_bands=2, max_resolution=(3, 7)), sound(1061)[None]
    encoder = audio_encoder(PixelStem(channels=1), positions, mean=-43.0, std=17.0)
    tokens = encoder(wave)
    assert_close(tokens.values[..., 0].unflatten(1, tokens.grid.shape), (log_mel()(wave)[:, 0] + 43.0) / 17.0)
    assert_close(tokens.values[0, :, 1:], positions((BANDS, 29)))
    encoder = waveform_encoder(std=0.3)
    values = encoder(wave).values
    assert_close(values[0, :, :43], (F.pad(wave[0, 0], (0, 25 * 43 - 1061)) / 0.3).unflatten(0, (25, 43)))
    assert_close(values[0, :, 43:], encoder.positions((25,)))


class TestGrid:
    """A change of the sound at a place of the grid changes the tokens there."""

    @pytest.mark.parametrize("place", [0.23, 0.5, 0.79])
    def test_an_impulse_changes_most_the_tokens_of_its_time_and_a_sine_those_of_its_frequency(self, place):
        noise = 1e-3 * torch.randn(1, 1, 6007)
        for patch_size in ((5, 7), (1, 11)):
            encoder = audio_encoder(PatchStem(channels=1, patch_size=patch_size))
            before = encoder(noise)
            (frequency, time), (_, columns) = before.grid.axes, before.grid.shape
            for column in (0, 2, columns // 2, columns - 2):
                wave = noise.clone()
                wave[..., round((time.start + (column + place) * (time.stop - time.start) / columns) * RATE)] += 1.0
                assert changed(encoder, before, wave).sum(dim=0).argmax() == column
        for patch_size in ((2, 3), (1, 11)):
            encoder = audio_encoder(PatchStem(channels=1, patch_size=patch_size))
            before = encoder(noise)
            frequency, rows = before.grid.axes[0], before.grid.shape[0]
            low, high = mel(frequency.start), mel(frequency.stop)
            for row in range(BANDS // patch_size[0]):  # the last row may extend beyond the bands
                tone = hertz(low + (row + place) * (high - low) / rows)
                wave = noise + 0.5 * torch.sin(2 * pi * tone * torch.arange(6007) / RATE)
                assert changed(encoder, before, wave).sum(dim=1).argmax() == row

    @pytest.mark.parametrize("place", [0.23, 0.79])
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
    def test_axes_measure_seconds_and_hertz_and_agree_with_the_picture(self, make_encoder):
        encoder = make_encoder().eval()
        for length in LENGTHS:
            wave = sound(length)[None]
            grid, picture = encoder(wave).grid, encoder.picture(wave)
            assert picture.unit == "dB"
            assert_close(picture.values, log_mel()(wave))
            assert picture.grid.shape == picture.values.shape[2:]
            shown = {axis.name: (axis, size) for axis, size in zip(picture.grid.axes, picture.grid.shape, strict=True)}
            assert {name: axis.unit for name, (axis, _) in shown.items()} == {"frequency": "Hz", "time": "s"}
            for axis, cells in zip(grid.axes, grid.shape, strict=True):
                whole, pixels = shown[axis.name]
                assert (axis.unit, axis.scale, axis.start) == (whole.unit, whole.scale, whole.start)
                if len(grid.shape) == 2:  # a cell is as many pixels long as the stride
                    stride = encoder.stem.stride[axis.name == "time"]
                    assert cells == ceil(pixels / stride)
                    assert axis.fraction(whole.stop) == pytest.approx(pixels / (cells * stride))
            time = grid.axes[-1]
            assert time.stop - time.stop / grid.shape[-1] < length / RATE <= time.stop
            found = encoder.sound(wave)
            assert torch.equal(found.values, wave[:, 0])
            assert found.sample_rate == RATE


def changed(encoder, before, wave) -> torch.Tensor:
    """How much each cell of the grid differs from before."""
    after = encoder(wave)
    return (after.values - before.values)[0].square().sum(dim=1).unflatten(0, after.grid.shape)


class TestSpecAugment:
    AUGMENT = SpecAugment(n_time_masks=2, time_mask_param=11, n_freq_masks=1, freq_mask_param=5, zero_masking=True)

    def raster(self, wave, mask=None, augment=AUGMENT, training=True):
        """The input of the stem."""
        encoder = audio_encoder(PixelStem(channels=1), spec_augment=augment).train(training)
        tokens = encoder(wave, mask)
        return tokens.values[..., 0].unflatten(1, tokens.grid.shape)

    def test_in_training_only_it_replaces_bands_and_times_by_the_mean(self):
        wave = sound(1061).expand(31, 1, -1)
        plain, hidden = self.raster(wave, augment=None), self.raster(wave)
        assert_close(self.raster(wave, training=False), plain, atol=0, rtol=0)
        bands, times = (hidden == 0.0).all(dim=2), (hidden == 0.0).all(dim=1)
        expected = plain.masked_fill(bands[:, :, None] | times[:, None, :], 0.0)
        assert_close(hidden, expected, atol=0, rtol=0)
        assert bands.sum(dim=1).max() <= 5
        assert times.sum(dim=1).max() <= 2 * 11
        assert len({tuple(row.tolist()) for row in torch.cat([bands, times], dim=1)}) > 23, "each sample by itself"
        assert not torch.equal(self.raster(wave), hidden)

    def test_without_zero_masking_it_is_the_mean_of_what_is_real_of_the_sample(self):
        augment = SpecAugment(n_time_masks=5, time_mask_param=11, n_freq_masks=0, freq_mask_param=1)
        batch = together(*(log_mel()(sound(length)) for length in (331, 1061)))
        raw, mask = batch.inputs["audio"], batch.masks["audio"]
        spoilt = raw.masked_fill(~mask[:, None], float("nan"))
        plain, hidden = self.raster(raw, mask, augment=None), self.raster(spoilt, mask, augment=augment)
        for number, frames in enumerate((9, 29)):
            own, found = plain[number, :, :frames], hidden[number, :, :frames]
            replaced = found[:, ((found - own).abs() > 1e-3).any(dim=0)]
            assert replaced.numel() > 0
            assert_close(replaced, own.mean().expand_as(replaced))
        assert (hidden[0, :, 9:] == 0.0).all(), "what is masked stays masked"

    def test_half_precision_hides_the_same_times(self):
        augment = SpecAugment(n_time_masks=1, time_mask_param=97, n_freq_masks=0, freq_mask_param=1, zero_masking=True)
        spectrogram, found = torch.randn(1, 1, BANDS, 1009), []
        for raw in (spectrogram, spectrogram.bfloat16()):
            torch.manual_seed(5)
            found.append(self.raster(raw, augment=augment) == 0.0)
        assert found[0].any()
        assert torch.equal(*found)


class TestPrecision:
    @some_encoders
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_a_model_of_another_precision_takes_sounds_of_that_precision(self, make_encoder, dtype):
        encoder, wave = make_encoder(), sound(1061)[None].to(dtype)
        model = model_of(encoder)
        exact = logits(model, {"audio": wave.float()})
        tolerance = {"atol": 0.1 if dtype == torch.bfloat16 else 1e-4, "rtol": 0}
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            assert_close(logits(model, {"audio": wave.float()}).float(), exact, **tolerance)
        out = logits(model.to(dtype), {"audio": wave})
        assert out.dtype == encoder(wave).values.dtype == dtype
        assert_close(out.float(), exact, **tolerance)

    @some_encoders
    def test_it_runs_on_the_device_without_memory(self, make_encoder):
        with torch.device("meta"):
            model = model_of(make_encoder())
        batch = together(sound(331), sound(1061)).to("meta")
        assert logits(model, batch.inputs, batch.masks).shape == (2, 19)
        assert logits(model, {"audio": batch.inputs["audio"]}).is_meta

    def test_half_precision_rounds_neither_the_filters_nor_what_they_measure(self):
        encoder, wave = audio_encoder(PixelStem(channels=1)), sound(1061)[None].bfloat16()
        exact = encoder(wave.float()).values[..., 0]
        assert_close(encoder.bfloat16()(wave).values[..., 0], exact.bfloat16(), atol=0, rtol=0)


@every_encoder
def test_nothing_but_weights_is_saved(make_encoder):
    assert all(name.startswith(("stem.", "projection.")) for name in make_encoder().state_dict())


def test_anchored_learned_positions_take_any_length_up_to_the_trained_one():
    model = model_of(audio_encoder(positions=LearnedPositions(shape=(3, 11), dim=5, anchored=True)))
    batch = together(sound(331), sound(1123))
    alone = logits(model, {"audio": batch.inputs["audio"][:1, :, :331]})
    assert_close(logits(model, batch.inputs, batch.masks)[:1], alone, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"shape=\[3, 11\].*\[3, 12\]"):
        logits(model, {"audio": sound(34 * HOP)[None]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: audio_encoder(PatchStem(channels=3, patch_size=2)), r"stem\.channels=3"),
        (lambda: audio_encoder(ConvStem(channels=2)), r"stem\.channels=2"),
        (lambda: audio_encoder(ConvStack(channels=1, dims=[5]), std=0.0), r"std=0\.0"),
        (lambda: audio_encoder(combine="add"), "combine=add"),
        (lambda: waveform_encoder(patch_size=0), "patch_size=0"),
        (lambda: waveform_encoder(dim=0), "dim=0"),
        (lambda: waveform_encoder(std=-1.0), r"std=-1\.0"),
        (lambda: waveform_encoder(sample_rate=8009), r"sample_rate=8009 .*log_mel\.sample_rate=4001"),
        (lambda: waveform_encoder(combine="add"), "combine=add"),
        (lambda: audio_encoder(spec_augment=SpecAugment(-1, 1, 1, 1)), "n_time_masks=-1"),
        (lambda: audio_encoder(spec_augment=SpecAugment(1, 1, 1, -3)), "freq_mask_param=-3"),
        (lambda: audio_encoder(spec_augment=SpecAugment(1, 1, 1, 1, p=2)), "p=2"),
    ],
)
def test_settings_that_make_no_encoder_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("make", [audio_encoder, waveform_encoder])
@pytest.mark.parametrize("shape", [(2, 1061), (2, 3, 1061), (2, 1, 0), (2, 1, 11, 29), (2, 3, BANDS, 29)], ids=str)
def test_inputs_of_another_shape_or_type_are_refused_with_what_they_are(make, shape):
    for mask in (None, torch.ones(shape[0], *shape[2:], dtype=torch.bool)):
        with pytest.raises(ValueError, match=rf"audio inputs must be .*not \[{', '.join(map(str, shape))}\]"):
            make()(torch.zeros(shape), mask)
    with pytest.raises(ValueError, match=r"audio inputs must be .*int16"):
        make()(torch.zeros(2, 1, 1061, dtype=torch.int16))
