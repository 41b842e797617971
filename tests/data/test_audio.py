"""Crops, windows and augmentation of sounds."""

import pickle
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.audio import AudioAugment, AudioReader
from perceiver.data.readers.base import Reading
from perceiver.data.sources.base import Item, Source
from perceiver.spectrogram import LogMel
from tests.data.datasets import built

RATE = 1009
LOG_MEL = LogMel(sample_rate=RATE, n_fft=127, win_length=101, hop_length=53, n_mels=7, f_min=0.0, f_max=503.0)


def audio_reader(**options) -> AudioReader:
    return built(AudioReader, **{"sample_rate": RATE, "seconds": 1.0, "hop_seconds": 0.5} | options)


def augment(**options) -> AudioAugment:
    return AudioAugment(**{"gain": 0.0, "time_shift": 0.0, "polarity": 0.0} | options)


def crop(part, **options) -> torch.Tensor:
    return audio_reader(**options).read(part, train=True).values


def windows(part, **options) -> Reading:
    return audio_reader(**options).read(part, train=False)


def ramp(length: int) -> np.ndarray:
    """A wave whose values identify their positions."""
    return (np.arange(length) + 1) / (length + 1)


def write(path: Path, wave: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str = "FLOAT") -> Path:
    soundfile.write(path, wave, rate, format=format, subtype=subtype)
    return path


class TestCrops:
    @pytest.mark.parametrize("rate", [RATE, 1301])
    def test_crops_have_one_length_and_start_anywhere(self, tmp_path, rate):
        path = write(tmp_path / "x.wav", ramp(7 * rate), rate)
        centers = []
        for _ in range(101):
            reading = audio_reader().read(path, train=True)
            assert (reading.values.shape, reading.windows) == ((1, RATE), ())
            centers.append(7 * float(reading.values[0, RATE // 2]))
        assert 0.5 <= min(centers) < 1.0
        assert 6.0 < max(centers) <= 6.5
        assert np.mean(centers) == pytest.approx(3.5, abs=0.5)

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_a_crop_is_a_contiguous_part(self, tmp_path, in_memory):
        wave = torch.from_numpy(ramp(5 * RATE)).float()[None]
        part = wave if in_memory else write(tmp_path / "x.wav", wave[0].numpy())
        crops = [crop(part) for _ in range(23)]
        for one in crops:
            torch.testing.assert_close(one.diff(), torch.full((1, RATE - 1), 1 / (5 * RATE + 1)), atol=1e-6, rtol=0)
        assert len({float(one[0, 0]) for one in crops}) > 20

    @pytest.mark.parametrize("length", [2, 503, RATE - 1, RATE, RATE + 1])
    def test_only_longer_sounds_are_cropped(self, tmp_path, length):
        path = write(tmp_path / "x.wav", ramp(length))
        if length > RATE:
            assert {crop(path).shape[-1] for _ in range(23)} == {RATE}
        else:
            torch.testing.assert_close(crop(path)[0], torch.from_numpy(ramp(length)).float())

    @pytest.mark.parametrize("position", [0, 1, 5003, 7 * RATE - 1])
    @pytest.mark.parametrize(("offset", "event"), [(0.0, 0.5), (0.5, 0.25), (-0.5, -0.625)])
    def test_silent_crops_are_replaced_by_one_around_the_event(self, tmp_path, position, offset, event):
        wave = np.full(7 * RATE, offset)
        wave[position] = event
        path = write(tmp_path / "x.wav", wave)
        for _ in range(5):
            part = crop(path)
            assert part.shape == (1, RATE)
            assert event in part
        step = write(tmp_path / "step.wav", np.repeat([0.0, 0.5], [2 * RATE, 5 * RATE]))
        assert all(crop(step).std() > 0.1 for _ in range(5))

    @pytest.mark.parametrize("rate", [RATE, 1301])
    @pytest.mark.parametrize("offsets", [[0.9e-5], [0.3], [-0.3, 0.1], [600.1]])
    def test_a_constant_sound_is_unreadable(self, tmp_path, rate, offsets):
        path = write(tmp_path / "x.wav", np.tile(offsets, (3 * rate, 1)), rate)
        suffix = f", with a constant offset of {np.mean(offsets):.2g}" if offsets != [0.9e-5] else ""
        for read in (crop, windows):
            with pytest.raises(UnreadableError) as error:
                read(path)
            assert str(error.value) == f"{path}: silent from end to end{suffix}"

    @pytest.mark.parametrize("length", [RATE // 2, 7 * RATE])
    def test_a_sound_below_the_threshold_is_unreadable(self, tmp_path, length):
        quiet = 0.9e-5 * np.sin(np.arange(length))
        for wave in (quiet, np.stack([quiet, -quiet], axis=1)):
            path = write(tmp_path / "x.wav", wave)
            for read in (crop, windows):
                with pytest.raises(UnreadableError, match=f"^{path}: silent from end to end$"):
                    read(path)

    def test_crops_of_a_truncated_file_come_from_what_is_there(self, tmp_path):
        rate = 16000
        noise = 0.1 * np.random.default_rng(0).standard_normal(10 * rate)
        path = write(tmp_path / "x.mp3", noise, rate, "MP3", "MPEG_LAYER_III")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert soundfile.info(path).frames == 10 * rate
        (last,) = windows(path, sample_rate=rate).values[-1]
        crops = [crop(path, sample_rate=rate) for _ in range(23)]
        assert {one.shape for one in crops} == {(1, rate)}
        assert len({float(one[0, 0]) for one in crops}) > 20
        assert all((one[0, -100:].std() - last.std()).abs() < 0.05 for one in crops)

    def test_a_damaged_file_is_unreadable_only_where_it_is_damaged(self, tmp_path):
        noise = 0.1 * np.random.default_rng(0).standard_normal(50 * RATE)
        path = write(tmp_path / "x.flac", noise, RATE, "FLAC", "PCM_16")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        outcomes = set()
        for _ in range(31):
            try:
                outcomes.add(crop(path).shape)
            except UnreadableError as error:
                outcomes.add(str(error))
        assert outcomes == {(1, RATE), f"{path}: flac decoder lost sync"}

    def test_only_the_crop_is_decoded(self, tmp_path, decoded):
        crop(write(tmp_path / "x.wav", 0.1 * ramp(600 * RATE), subtype="PCM_16"))
        assert sum(decoded) == RATE


class TestWindows:
    @pytest.mark.parametrize("length", [1, 503, 1009, 1010, 1013, 1514, 2017, 5003])
    @pytest.mark.parametrize("hop_seconds", [0.25, 0.5, 1.0])
    def test_windows_cover_the_sound(self, length, hop_seconds):
        reading = windows(torch.arange(1, length + 1).float()[None], hop_seconds=hop_seconds)
        parts = [part[0] for part in (reading.values if reading.windows else [reading.values])]
        assert {len(part) for part in parts} == {min(length, RATE)}
        starts, hop = [int(part[0]) for part in parts], round(hop_seconds * RATE)
        assert starts[0] <= 1 + hop // 100
        assert parts[-1][-1] == length
        assert all(0 < later - earlier <= hop + hop // 100 for earlier, later in pairwise(starts))
        assert all(torch.equal(part.diff(), torch.ones(len(part) - 1)) for part in parts)

    def test_names_are_their_seconds(self, tmp_path):
        reading = windows(torch.ones(1, 2 * RATE + 101))
        assert reading.windows == ("0.00-1.00 s", "0.50-1.50 s", "1.00-2.00 s", "1.10-2.10 s")
        assert reading.values.shape == (4, 1, RATE)

    @pytest.mark.parametrize(("excess", "count"), [(0, 0), (5, 0), (6, 2), (509, 2), (510, 3)])
    def test_a_remainder_of_one_percent_has_no_window(self, excess, count):
        assert len(set(windows(torch.ones(1, RATE + excess)).windows)) == count

    def test_samples_of_all_lengths_form_a_batch(self):
        data = Dataset(source=NoItems(), readers={"audio": audio_reader(log_mel=LOG_MEL)}, on_error="raise")
        items = [Item({"audio": torch.rand(1, length)}, {"label": 0}, "x") for length in (1, 503, 1009, 2503)]
        batch = collate([data.sample(item, train=False) for item in items])
        assert batch.inputs["audio"].shape == (7, 1, 7, 20)
        assert [len(names) for names in batch.windows] == [1, 1, 1, 4]


@pytest.mark.parametrize("train", [True, False])
def test_spectrograms_equal_those_of_the_encoder_and_readers_are_picklable(tmp_path, train):
    path = write(tmp_path / "x.wav", ramp(2503))
    readers = audio_reader(), pickle.loads(pickle.dumps(audio_reader(log_mel=LOG_MEL, augment=augment())))
    readings = []
    for reader in readers:
        torch.manual_seed(5)
        readings.append(reader.read(path, train=train))
    wave, spectrogram = readings
    assert spectrogram.values.shape[-3:] == (1, 7, 20)
    torch.testing.assert_close(spectrogram.values, LOG_MEL(wave.values))
    assert spectrogram.windows == wave.windows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: audio_reader(sample_rate=0), "sample_rate=0 "),
        (lambda: audio_reader(seconds=0.0), "seconds=0.0 "),
        (lambda: audio_reader(hop_seconds=-0.5), "hop_seconds=-0.5 "),
        (lambda: audio_reader(seconds=4e-4, hop_seconds=4e-4), "seconds=0.0004 .* 1009 Hz"),
        (lambda: audio_reader(hop_seconds=4e-4), "hop_seconds=0.0004 .* 1009 Hz"),
        (lambda: audio_reader(hop_seconds=1.1), "hop_seconds=1.1 .* seconds=1.0"),
        (lambda: audio_reader(sample_rate=1013, log_mel=LOG_MEL), "sample_rate=1013 .* 1009"),
        (lambda: augment(gain=-1.0), "gain=-1.0 "),
        (lambda: augment(time_shift=-0.1), "time_shift=-0.1 "),
        (lambda: augment(polarity=1.1), "polarity=1.1 "),
        (lambda: augment(polarity=-0.1), "polarity=-0.1 "),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


class TestAugment:
    wave = torch.linspace(0.1, 0.5, 503)[None]

    def augmented(self, **options) -> list[torch.Tensor]:
        return [augment(**options)(self.wave, RATE) for _ in range(101)]

    def test_the_level_changes_by_at_most_the_gain(self):
        ratios = [wave / self.wave for wave in self.augmented(gain=6.0)]
        assert all((ratio - ratio[0, 0]).abs().max() < 1e-6 for ratio in ratios)
        levels = [float(20 * ratio[0, 0].log10()) for ratio in ratios]
        assert -6.0 <= min(levels) < -5.0
        assert 5.0 < max(levels) <= 6.0

    def test_shifts_are_circular_in_both_directions(self):
        waves = self.augmented(time_shift=101 / RATE)
        shifts = [int(wave.argmax() + 1) % 503 for wave in waves]
        assert all(torch.equal(wave, self.wave.roll(shift, -1)) for wave, shift in zip(waves, shifts, strict=True))
        signed = [(shift + 251) % 503 - 251 for shift in shifts]
        assert -101 <= min(signed) < -80
        assert 80 < max(signed) <= 101
        assert all(torch.equal(wave.sort().values, self.wave) for wave in self.augmented(time_shift=7.0))

    @pytest.mark.parametrize(("polarity", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 101, 101)])
    def test_a_share_of_the_waves_is_inverted_and_nothing_else_changes(self, polarity, least, most):
        waves = self.augmented(polarity=polarity)
        assert all(torch.equal(wave.abs(), self.wave) for wave in waves)
        assert least <= sum(bool((wave < 0).all()) for wave in waves) <= most

    def test_only_training_is_augmented_and_follows_torchs_generator(self, tmp_path):
        path = write(tmp_path / "x.wav", ramp(5003))
        reader = audio_reader(augment=augment(gain=6.0, time_shift=0.5, polarity=0.5))
        waves = []
        for seed, other_seed in ((1, 2), (1, 3), (2, 2)):
            torch.manual_seed(seed)
            np.random.seed(other_seed)
            random.seed(other_seed)
            waves.append(reader.read(path, train=True).values)
        first, again, other = waves
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(reader.read(path, train=False).values, windows(path).values)


class NoItems(Source):
    def items(self, stage, roles):
        return None


def test_a_users_file_is_read_in_windows_and_has_its_path_as_id(tmp_path):
    data = Dataset(source=NoItems(), readers={"audio": audio_reader()}, on_error="raise")
    path = write(tmp_path / "x.ogg", np.stack([ramp(2503 * 2)] * 2, axis=1), 2 * RATE)
    sample = data.read(path)
    assert (sample.id, sample.targets, len(sample.windows)) == (str(path), {}, 4)
    with pytest.raises(UnreadableError, match=f"^{tmp_path}/y.wav: no such file$"):
        data.read(tmp_path / "y.wav")
