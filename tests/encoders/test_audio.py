from math import ceil

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchaudio.transforms import SpecAugment

from perceiver.data.collate import collate
from perceiver.encoders.stems import ConvStack, ConvStem, PatchStem, PixelStem
from perceiver.latents import Schedule
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Sample
from tests.encoders.sounds import (
    BANDS,
    HOP,
    LENGTHS,
    every_encoder,
    every_log_mel_encoder,
    model_of,
    sound,
    together,
)
from tests.models import PERCEIVER_IO, audio_encoder, log_mel, logits, waveform_encoder


class TestPadding:
    @every_encoder
    @pytest.mark.parametrize("length", LENGTHS)
    def test_a_sound_alone_gives_what_it_gives_padded_beside_a_longer_one(self, make_encoder, length):
        model, waves = model_of(make_encoder()), [sound(length), sound(1999)]
        batch = together(*waves)
        alone = torch.cat([logits(model, {"audio": wave[None]}) for wave in waves])
        assert_close(logits(model, batch.inputs, batch.masks), alone, atol=1e-5, rtol=0)
        assert not torch.allclose(logits(model, batch.inputs)[0], alone[0], atol=1e-3)

    @every_encoder
    @pytest.mark.parametrize("length", LENGTHS)
    def test_its_tokens_are_the_first_columns_and_the_only_real_ones(self, make_encoder, length):
        encoder, wave = make_encoder().eval(), sound(length)
        batch = together(wave, sound(1999))
        alone, padded = encoder(wave[None]), encoder(batch.inputs["audio"], batch.masks["audio"])
        columns = alone.grid.shape[-1]
        assert padded.grid.shape[:-1] == alone.grid.shape[:-1]
        values = padded.values[0].unflatten(0, padded.grid.shape)[..., :columns, :].flatten(0, -2)
        assert_close(values, alone.values[0], atol=1e-5, rtol=0)
        real = torch.arange(padded.grid.shape[-1]) < columns
        assert torch.equal(padded.mask[0], real.expand(padded.grid.shape).flatten())
        assert padded.mask[1].all()

    @every_encoder
    @pytest.mark.parametrize("junk", [1e3, float("nan")])
    @pytest.mark.parametrize("training", [False, True])
    def test_what_stands_behind_the_mask_changes_nothing(self, make_encoder, junk, training):
        model, batch = model_of(make_encoder()).train(training), together(sound(331), sound(1061))
        spoilt = batch.inputs["audio"].masked_fill(~batch.masks["audio"][:, None], junk)
        clean = logits(model, batch.inputs, batch.masks)
        assert_close(logits(model, {"audio": spoilt}, batch.masks), clean, atol=1e-5, rtol=0)

    @every_log_mel_encoder
    @pytest.mark.parametrize("junk", [1e3, float("nan")])
    def test_nor_behind_that_of_a_spectrogram(self, make_encoder, junk):
        model, mels = model_of(make_encoder()), log_mel()
        batch = together(*(mels(sound(length)) for length in (331, 1061)))
        spoilt = batch.inputs["audio"].masked_fill(~batch.masks["audio"][:, None], junk)
        clean = logits(model, batch.inputs, batch.masks)
        assert_close(logits(model, {"audio": spoilt}, batch.masks), clean, atol=1e-5, rtol=0)

    @every_encoder
    def test_a_sample_without_sound_has_no_tokens(self, make_encoder):
        encoder, batch = make_encoder().eval(), collate([Sample({"audio": sound(331)}, {}, "x"), Sample({}, {}, "y")])
        assert batch.masks["audio"].shape == (2,)
        ragged = torch.zeros(2, 331, dtype=torch.bool)
        ragged[0] = True
        tokens = encoder(batch.inputs["audio"], ragged)
        assert tokens.mask[0].all()
        assert not tokens.mask[1].any()


@every_log_mel_encoder
def test_a_spectrogram_gives_what_the_wave_gives_that_it_was_made_of(make_encoder):
    encoder, mels = make_encoder().eval(), log_mel()
    wave = sound(1061)[None]
    assert_close(encoder(mels(wave)).values, encoder(wave).values, atol=1e-5, rtol=0)
    waves = [sound(length) for length in LENGTHS]
    of_waves, of_spectrograms = together(*waves), together(*(mels(wave) for wave in waves))
    assert of_spectrograms.masks["audio"].shape == (4, BANDS, 31)
    expected = encoder(of_waves.inputs["audio"], of_waves.masks["audio"])
    tokens = encoder(of_spectrograms.inputs["audio"], of_spectrograms.masks["audio"])
    assert torch.equal(tokens.mask, expected.mask)
    assert tokens.grid == expected.grid
    assert_close(tokens.values[tokens.mask], expected.values[tokens.mask], atol=1e-5, rtol=0)


def test_the_stem_sees_decibels_less_their_mean_over_their_deviation():
    positions = FourierPositions(num_bands=2, max_resolution=(3, 7))
    encoder, wave = audio_encoder(PixelStem(channels=1), positions, mean=-43.0, std=17.0), sound(1061)[None]
    levels = log_mel()(wave)
    tokens = encoder(wave)
    assert_close(tokens.values[..., 0].unflatten(1, tokens.grid.shape), (levels[:, 0] + 43.0) / 17.0)
    assert_close(tokens.values[0, :, 1:], positions((BANDS, 29)))


def test_a_waveform_is_cut_into_patches_of_samples_over_their_deviation():
    encoder, wave = waveform_encoder(std=0.3), sound(1061)[None]
    values = encoder(wave).values
    assert values.shape == (1, ceil(1061 / 43), encoder.dim)
    padded = F.pad(wave[0, 0], (0, 25 * 43 - 1061)) / 0.3
    assert_close(values[0, :, :43], padded.unflatten(0, (25, 43)))
    assert_close(values[0, :, 43:], encoder.positions((25,)))


class TestSpecAugment:
    AUGMENT = SpecAugment(n_time_masks=2, time_mask_param=11, n_freq_masks=1, freq_mask_param=5, zero_masking=True)

    def seen(self, wave, mask=None, augment=AUGMENT, training=True):
        """The raster that the stem sees."""
        encoder = audio_encoder(PixelStem(channels=1), spec_augment=augment).train(training)
        tokens = encoder(wave, mask)
        return tokens.values[..., 0].unflatten(1, tokens.grid.shape)

    def test_in_training_it_hides_bands_and_times_behind_the_mean_and_nothing_else(self):
        wave = sound(1061).expand(31, 1, -1)
        plain, hidden = self.seen(wave, augment=None), self.seen(wave)
        bands, times = (hidden == 0.0).all(dim=2), (hidden == 0.0).all(dim=1)
        expected = plain.masked_fill(bands[:, :, None] | times[:, None, :], 0.0)
        assert_close(hidden, expected, atol=0, rtol=0)
        assert bands.sum(dim=1).max() <= 5
        assert times.sum(dim=1).max() <= 2 * 11
        assert len({tuple(row.tolist()) for row in torch.cat([bands, times], dim=1)}) > 23, "each sample for itself"
        assert not torch.equal(self.seen(wave), hidden)

    def test_in_evaluation_it_changes_nothing(self):
        wave = sound(1061)[None]
        assert_close(self.seen(wave, training=False), self.seen(wave, augment=None), atol=0, rtol=0)

    def test_without_zero_masking_what_it_puts_is_the_mean_of_what_is_real_of_the_sample(self):
        augment = SpecAugment(n_time_masks=5, time_mask_param=11, n_freq_masks=0, freq_mask_param=1)
        batch = together(*(log_mel()(sound(length)) for length in (331, 1061)))
        raw, mask = batch.inputs["audio"], batch.masks["audio"]
        spoilt = raw.masked_fill(~mask[:, None], float("nan"))
        plain, hidden = self.seen(raw, mask, augment=None), self.seen(spoilt, mask, augment=augment)
        for number, frames in enumerate((9, 29)):
            own, seen = plain[number, :, :frames], hidden[number, :, :frames]
            put = seen[:, ((seen - own).abs() > 1e-3).any(dim=0)]
            assert put.numel() > 0
            assert_close(put, own.mean().expand_as(put))

    def test_what_is_masked_stays_masked(self):
        batch = together(sound(331), sound(1061))
        hidden = self.seen(batch.inputs["audio"], batch.masks["audio"])
        assert (hidden[0, :, 9:] == 0.0).all()
        assert hidden.isfinite().all()


class TestPrecision:
    @every_encoder
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_a_model_of_another_precision_takes_sounds_of_that_precision(self, make_encoder, dtype):
        encoder, wave = make_encoder(), sound(1061)[None].to(dtype)
        model = model_of(encoder)
        exact = logits(model, {"audio": wave.float()})
        out = logits(model.to(dtype), {"audio": wave})
        assert out.dtype == encoder(wave).values.dtype == dtype
        assert_close(out.float(), exact, atol=0.1 if dtype == torch.bfloat16 else 1e-4, rtol=0)

    @every_encoder
    def test_autocast_gives_about_the_same(self, make_encoder):
        model, batch = model_of(make_encoder()), together(sound(331), sound(1061))
        exact = logits(model, batch.inputs, batch.masks)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(logits(model, batch.inputs, batch.masks).float(), exact, atol=0.1, rtol=0)

    @every_encoder
    def test_it_runs_without_memory(self, make_encoder):
        with torch.device("meta"):
            model = model_of(make_encoder())
        batch = together(sound(331), sound(1061)).to("meta")
        assert logits(model, batch.inputs, batch.masks).shape == (2, 19)
        assert logits(model, {"audio": batch.inputs["audio"]}).is_meta

    def test_half_precision_hides_the_same_times_of_a_spectrogram(self):
        augment = SpecAugment(n_time_masks=1, time_mask_param=97, n_freq_masks=0, freq_mask_param=1, zero_masking=True)
        encoder, spectrogram = (
            audio_encoder(PixelStem(channels=1), spec_augment=augment),
            torch.randn(1, 1, BANDS, 1009),
        )
        seen = []
        for raw in (spectrogram, spectrogram.bfloat16()):
            torch.manual_seed(5)
            seen.append(encoder(raw).values[..., 0] == 0.0)
        assert seen[0].any()
        assert torch.equal(*seen)

    def test_half_precision_rounds_neither_the_filters_nor_what_they_measure(self):
        encoder, wave = audio_encoder(PixelStem(channels=1)), sound(1061)[None].bfloat16()
        exact = encoder(wave.float()).values[..., 0]
        assert_close(encoder.bfloat16()(wave).values[..., 0], exact.bfloat16(), atol=0, rtol=0)


@every_encoder
def test_every_parameter_gets_a_gradient(make_encoder):
    model = model_of(make_encoder(), schedule=Schedule(num_self_attends=1, **PERCEIVER_IO)).train()
    batch = together(sound(331), sound(1061), sound(1999))
    logits(model, batch.inputs, batch.masks).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A key bias shifts all logits of a query alike, which the softmax does not see.
        assert name.endswith("key.bias") or (parameter.grad != 0).any(), name
        assert parameter.grad.isfinite().all()


@every_encoder
def test_what_is_no_weight_is_not_saved_and_the_example_can_be_encoded(make_encoder):
    encoder = make_encoder().eval()
    assert all(name.startswith(("stem.", "projection.")) for name in encoder.state_dict())
    assert encoder(encoder.example_input()).values.shape[::2] == (1, encoder.dim)


def test_learned_positions_take_any_length_up_to_the_trained_one():
    positions = LearnedPositions(shape=(3, 11), dim=5, anchored=True)
    model = model_of(audio_encoder(positions=positions))
    batch = together(sound(331), sound(1123))
    alone = torch.cat(
        [logits(model, {"audio": batch.inputs["audio"][:1, :, :331]}), logits(model, {"audio": sound(1123)[None]})]
    )
    assert_close(logits(model, batch.inputs, batch.masks)[0], alone[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"shape=\[3, 11\].*\[3, 12\]"):
        logits(model, {"audio": sound(34 * HOP)[None]})


@pytest.mark.parametrize(
    ("make", "named"),
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
def test_settings_that_make_no_encoder_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        make()


@pytest.mark.parametrize("make", [audio_encoder, waveform_encoder])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        torch.zeros(2, 1061),
        torch.zeros(2, 3, 1061),
        torch.zeros(2, 1, 0),
        torch.zeros(2, 1, 11, 29),
        torch.zeros(2, 3, BANDS, 29),
        torch.zeros(2, 1, 1061, dtype=torch.int16),
    ],
    ids=["no channel", "three channels", "no sample", "other bands", "three spectrograms", "whole numbers"],
)
def test_inputs_of_another_kind_are_refused_with_what_they_are(make, raw, masked):
    mask = torch.ones(raw.shape[0], *raw.shape[2:], dtype=torch.bool) if masked else None
    what = "int16" if raw.dtype == torch.int16 else rf"\[batch, 1, length\].* not \[{', '.join(map(str, raw.shape))}\]"
    with pytest.raises(ValueError, match=f"audio inputs must be .*{what}"):
        make()(raw, mask)
