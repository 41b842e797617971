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
from perceiver.data.sources.base import FileItems, Item, Source, multi_hot
from perceiver.spectrogram import LogMel

RATE = 1009
NOTHING = {"gain": 0.0, "time_shift": 0.0, "polarity": 0.0}


def reader(**options) -> AudioReader:
    defaults = {"sample_rate": RATE, "seconds": 1.0, "hop_seconds": 0.5, "augment": None, "log_mel": None}
    return AudioReader(**(defaults | options))


def crop_of(part, **options) -> torch.Tensor:
    return reader(**options).read(part, train=True).values


def windows_of(part, **options) -> Reading:
    return reader(**options).read(part, train=False)


def small_log_mel(sample_rate: int = RATE) -> LogMel:
    return LogMel(sample_rate=sample_rate, n_fft=127, win_length=101, hop_length=53, n_mels=7, f_min=0.0, f_max=503.0)


def ramp(length: int) -> np.ndarray:
    """A wave whose values tell their places."""
    return (np.arange(length) + 1) / (length + 1)


def write(path: Path, wave: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str = "FLOAT") -> Path:
    soundfile.write(path, wave, rate, format=format, subtype=subtype)
    return path


class TestTraining:
    @pytest.mark.parametrize("rate", [RATE, 2 * RATE, 1301])
    def test_crops_are_of_one_length_and_from_everywhere(self, tmp_path, rate):
        path = write(tmp_path / "x.wav", ramp(7 * rate), rate)
        middles = []
        for _ in range(101):
            read = reader().read(path, train=True)
            assert (read.values.shape, read.windows) == ((1, RATE), ())
            middles.append(7 * float(read.values[0, RATE // 2]))
        assert 0.5 <= min(middles) < 1.0
        assert 6.0 < max(middles) <= 6.5
        assert np.mean(middles) == pytest.approx(3.5, abs=0.5)

    def test_a_crop_is_a_part_of_the_file(self, tmp_path):
        path = write(tmp_path / "x.wav", ramp(5 * RATE))
        steps = crop_of(path).diff()
        torch.testing.assert_close(steps, torch.full_like(steps, 1 / (5 * RATE + 1)), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("length", [2, 503, RATE - 1, RATE])
    def test_a_sound_that_is_no_longer_than_a_crop_stays_as_it_is(self, tmp_path, length):
        wave = crop_of(write(tmp_path / "x.wav", ramp(length)))
        torch.testing.assert_close(wave[0], torch.from_numpy(ramp(length)).float())

    def test_a_sound_that_is_a_sample_longer_is_cut(self, tmp_path):
        path = write(tmp_path / "x.wav", ramp(RATE + 1))
        assert {crop_of(path).shape[-1] for _ in range(23)} == {RATE}

    @pytest.mark.parametrize("place", [0, 1, 5003, 7 * RATE - 1])
    @pytest.mark.parametrize(("offset", "event"), [(0.0, 0.5), (0.5, 0.25), (-0.5, -0.625)])
    def test_a_sound_that_is_silent_but_for_one_place_is_cropped_there(self, tmp_path, place, offset, event):
        wave = np.full(7 * RATE, offset)
        wave[place] = event
        path = write(tmp_path / "x.wav", wave)
        for _ in range(11):
            crop = crop_of(path)
            assert crop.shape == (1, RATE)
            assert event in crop

    def test_no_crop_is_a_constant_where_a_part_of_the_sound_is_one(self, tmp_path):
        wave = np.repeat([0.0, 0.5], [2 * RATE, 5 * RATE])
        path = write(tmp_path / "x.wav", wave)
        assert all(crop_of(path).std() > 0.1 for _ in range(11))

    def test_a_file_that_is_silent_from_end_to_end_is_refused(self, tmp_path):
        for length in (RATE // 2, 7 * RATE):
            quiet = 0.9e-5 * np.sin(np.arange(length))
            for wave in (quiet, np.full(length, 0.9e-5), np.stack([quiet, -quiet], axis=1)):
                path = write(tmp_path / "x.wav", wave)
                refused = pytest.raises(UnreadableError, match=f"^{path}: silent from end to end$")
                with refused:
                    crop_of(path)
                with refused:
                    windows_of(path)

    @pytest.mark.parametrize("rate", [RATE, 1301])
    @pytest.mark.parametrize("offsets", [[0.3], [-0.3, 0.1], [600.1]])
    def test_a_constant_offset_is_silent(self, tmp_path, rate, offsets):
        path = write(tmp_path / "x.wav", np.tile(offsets, (3 * rate, 1)), rate)
        for read in (crop_of, windows_of):
            with pytest.raises(
                UnreadableError, match=rf"^{path}: silent .* offset of {np.mean(offsets):.2g}".replace("+", r"\+")
            ):
                read(path)

    def test_crops_and_windows_hear_what_cancels_itself_in_two_channels(self, tmp_path):
        wave = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE)
        path = write(tmp_path / "x.wav", np.stack([wave, -wave], axis=1))
        crop = crop_of(path)
        windows = windows_of(path).values
        assert crop.std().item() == pytest.approx(wave.std(), rel=0.1)
        assert windows.std().item() == pytest.approx(wave.std(), rel=0.1)

    def test_of_a_file_that_is_shorter_than_it_claims_crops_come_from_what_is_there(self, tmp_path):
        rate = 16000
        noise = 0.1 * np.random.default_rng(0).standard_normal(10 * rate)
        path = write(tmp_path / "x.mp3", noise, rate, "MP3", "MPEG_LAYER_III")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with soundfile.SoundFile(path) as file:
            assert file.frames == 10 * rate
        (there,) = windows_of(path, sample_rate=rate).values[-1]
        crops = [crop_of(path, sample_rate=rate) for _ in range(23)]
        assert {crop.shape for crop in crops} == {(1, rate)}
        assert len({float(crop[0, 0]) for crop in crops}) > 20
        assert all((crop[0, -100:].std() - there.std()).abs() < 0.05 for crop in crops)

    def test_a_file_that_is_damaged_further_on_is_cropped_before_and_else_refused(self, tmp_path):
        noise = 0.1 * np.random.default_rng(0).standard_normal(50 * RATE)
        path = write(tmp_path / "x.flac", noise, RATE, "FLAC", "PCM_16")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        outcomes = []
        for _ in range(31):
            try:
                outcomes.append(crop_of(path).shape)
            except UnreadableError as error:
                outcomes.append(str(error))
        assert set(outcomes) == {(1, RATE), f"{path}: flac decoder lost sync"}

    def test_of_a_long_file_only_the_crop_is_decoded(self, tmp_path, monkeypatch):
        path = write(tmp_path / "x.wav", 0.1 * ramp(600 * RATE), subtype="PCM_16")
        counts = []
        read = soundfile.SoundFile.read

        def counting(self, *args, **kwargs):
            block = read(self, *args, **kwargs)
            counts.append(len(block))
            return block

        monkeypatch.setattr(soundfile.SoundFile, "read", counting)
        crop_of(path)
        assert sum(counts) == RATE


class TestWindows:
    @pytest.mark.parametrize("length", [1, 503, 1009, 1010, 1013, 1514, 2017, 5003])
    @pytest.mark.parametrize("hop_seconds", [0.25, 0.5, 1.0])
    def test_windows_cover_the_sound_from_end_to_end(self, length, hop_seconds):
        wave = torch.arange(1, length + 1).float()[None]
        read = windows_of(wave, hop_seconds=hop_seconds)
        windows = [window[0] for window in (read.values if read.windows else [read.values])]
        assert {len(window) for window in windows} == {min(length, RATE)}
        assert windows[-1][-1] == length
        starts = [int(window[0]) for window in windows]
        assert starts[0] <= 1 + round(hop_seconds * RATE) // 100
        hop = round(hop_seconds * RATE)
        assert all(0 < later - earlier <= hop + hop // 100 for earlier, later in pairwise(starts))
        assert all(torch.equal(window.diff(), torch.ones(len(window) - 1)) for window in windows)

    def test_their_names_tell_their_seconds(self):
        read = windows_of(torch.ones(1, 2 * RATE + 101))
        assert read.windows == ("0.00-1.00 s", "0.50-1.50 s", "1.00-2.00 s", "1.10-2.10 s")
        assert read.values.shape == (4, 1, RATE)

    @pytest.mark.parametrize(("more", "count"), [(0, 1), (5, 1), (6, 2), (509, 2), (510, 3)])
    def test_a_few_samples_more_are_not_worth_a_window(self, more, count):
        windows = windows_of(torch.ones(1, RATE + more)).windows
        assert len(set(windows)) == (count if count > 1 else 0)

    def test_a_file_is_read_whole(self, tmp_path):
        read = windows_of(write(tmp_path / "x.wav", ramp(2503)))
        assert len(read.windows) == 4
        assert read.values.amax() == pytest.approx(2503 / 2504)
        assert read.values.amin() == pytest.approx(1 / 2504)

    def test_samples_of_all_lengths_fit_into_a_batch(self):
        data = Dataset(source=Sounds(), readers={"audio": reader(log_mel=small_log_mel())}, on_error="raise")
        items = [Item({"audio": torch.rand(1, length)}, {"label": 0}, "x") for length in (1, 503, 1009, 2503)]
        batch = collate([data.sample(item, train=False) for item in items])
        assert batch.inputs["audio"].shape == (7, 1, 7, 20)
        assert [len(windows) for windows in batch.windows] == [1, 1, 1, 4]


class TestLogMel:
    def test_spectrograms_made_here_are_those_that_the_encoder_would_make(self, tmp_path):
        log_mel = small_log_mel()
        path = write(tmp_path / "x.wav", ramp(2503))
        for train in (True, False):
            torch.manual_seed(5)
            wave = reader().read(path, train=train)
            torch.manual_seed(5)
            read = reader(log_mel=log_mel).read(path, train=train)
            assert read.values.shape[-3:] == (1, 7, 20)
            torch.testing.assert_close(read.values, log_mel(wave.values))
            assert read.windows == wave.windows

    def test_that_of_another_sample_rate_is_refused(self):
        with pytest.raises(ValueError, match=r"^sample_rate=1009, but that of log_mel is 1013$"):
            reader(log_mel=small_log_mel(1013))

    def test_readers_travel_to_worker_processes(self):
        there = pickle.loads(pickle.dumps(reader(log_mel=small_log_mel(), augment=AudioAugment(**NOTHING))))
        assert there.read(torch.ones(1, RATE), train=False).values.shape == (1, 7, 20)


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sample_rate": 0}, "sample_rate=0 must be more than 0"),
            ({"seconds": 0.0}, "seconds=0.0 must be more than 0"),
            ({"hop_seconds": -0.5}, "hop_seconds=-0.5 must be more than 0"),
            ({"seconds": 4e-4, "hop_seconds": 4e-4}, "seconds=0.0004 is shorter than one sample at 1009 Hz"),
            ({"hop_seconds": 4e-4}, "hop_seconds=0.0004 is shorter than one sample at 1009 Hz"),
            ({"hop_seconds": 1.1}, "hop_seconds=1.1 is more than seconds=1.0: windows would leave gaps"),
        ],
    )
    def test_what_makes_no_reader_is_refused(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            reader(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gain": -1.0}, "gain=-1.0 must be at least 0"),
            ({"time_shift": -0.1}, "time_shift=-0.1 must be at least 0"),
            ({"polarity": 1.1}, r"polarity=1.1 must be in \[0, 1\]"),
            ({"polarity": -0.1}, r"polarity=-0.1 must be in \[0, 1\]"),
        ],
    )
    def test_what_is_no_augmentation_is_refused(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            AudioAugment(**(NOTHING | options))


class TestAugment:
    wave = torch.linspace(0.1, 0.5, 503)[None]

    def changed(self, **options) -> list[torch.Tensor]:
        augment = AudioAugment(**(NOTHING | options))
        return [augment(self.wave, RATE) for _ in range(101)]

    def test_nothing_is_changed_where_nothing_is_asked(self):
        assert all(torch.equal(wave, self.wave) for wave in self.changed())

    def test_the_level_changes_up_and_down_by_at_most_the_gain(self):
        ratios = [wave / self.wave for wave in self.changed(gain=6.0)]
        assert all((ratio - ratio[0, 0]).abs().max() < 1e-6 for ratio in ratios)
        levels = [float(20 * ratio[0, 0].log10()) for ratio in ratios]
        assert -6.0 <= min(levels) < -5.0
        assert 5.0 < max(levels) <= 6.0

    def test_a_shift_goes_both_ways_and_loses_nothing(self):
        waves = self.changed(time_shift=101 / RATE)
        shifts = [int(wave.argmax() + 1) % 503 for wave in waves]
        assert all(torch.equal(wave, self.wave.roll(shift, -1)) for wave, shift in zip(waves, shifts, strict=True))
        signed = [(shift + 251) % 503 - 251 for shift in shifts]
        assert -101 <= min(signed) < -80
        assert 80 < max(signed) <= 101

    def test_a_shift_that_is_longer_than_the_sound_goes_round_it(self):
        assert all(torch.equal(wave.sort().values, self.wave) for wave in self.changed(time_shift=7.0))

    @pytest.mark.parametrize(("polarity", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 101, 101)])
    def test_a_share_of_the_waves_is_turned_upside_down(self, polarity, least, most):
        waves = self.changed(polarity=polarity)
        assert all(torch.equal(wave.abs(), self.wave) for wave in waves)
        assert least <= sum(bool((wave < 0).all()) for wave in waves) <= most

    def test_all_that_is_random_is_drawn_from_torchs_generator(self, tmp_path):
        path = write(tmp_path / "x.wav", ramp(5003))
        augment = AudioAugment(gain=6.0, time_shift=0.5, polarity=0.5)

        def drawn(seed: int, other: int) -> torch.Tensor:
            torch.manual_seed(seed)
            np.random.seed(other)
            random.seed(other)
            return crop_of(path, augment=augment)

        assert torch.equal(drawn(1, 2), drawn(1, 3))
        assert not torch.equal(drawn(1, 2), drawn(2, 2))

    def test_evaluation_is_never_augmented(self, tmp_path):
        path = write(tmp_path / "x.wav", ramp(5003))
        augment = AudioAugment(gain=6.0, time_shift=0.5, polarity=0.5)
        plain, other = (windows_of(path, augment=choice).values for choice in (None, augment))
        assert torch.equal(plain, other)

    def test_a_wave_in_memory_is_cropped_too(self):
        wave = torch.from_numpy(ramp(5 * RATE)).float()[None]
        crops = [crop_of(wave) for _ in range(23)]
        assert {crop.shape for crop in crops} == {(1, RATE)}
        assert len({float(crop[0, 0]) for crop in crops}) > 20


class TestFileItems:
    paths = ("/x/0.wav", "/x/1.wav", "/x/2.wav")

    def items(self, **targets) -> FileItems:
        return FileItems(root=Path("/x"), files={"audio": self.paths}, **targets)

    def test_files_of_one_class_have_a_label(self):
        items = self.items(labels=[5, 0, 2])
        assert len(items) == 3
        assert [items[index].targets for index in range(3)] == [{"label": 5}, {"label": 0}, {"label": 2}]
        assert [items[index].id for index in range(3)] == ["0.wav", "1.wav", "2.wav"]
        assert [items.classes_of(index) for index in range(3)] == [[5], [0], [2]]

    def test_files_of_any_number_of_classes_have_tags(self):
        items = self.items(tags=[[5, 1], [], [2]], num_classes=7)
        assert [items[index].targets["tags"].nonzero().flatten().tolist() for index in range(3)] == [[1, 5], [], [2]]
        assert [items.classes_of(index) for index in range(3)] == [[5, 1], [], [2]]

    def test_which_classes_apply_is_told_by_ones(self):
        assert multi_hot([3, 0], 5).tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
        assert multi_hot([], 3).tolist() == [0.0, 0.0, 0.0]


class Sounds(Source):
    def items(self, stage, roles):
        return None


def test_a_users_file_is_read_in_windows_and_named_by_its_path(tmp_path):
    data = Dataset(source=Sounds(), readers={"audio": reader()}, on_error="raise")
    path = write(tmp_path / "x.ogg", np.stack([ramp(2503 * 2)] * 2, axis=1), 2 * RATE)
    sample = data.read(path)
    assert (sample.id, sample.targets, len(sample.windows)) == (str(path), {}, 4)
    with pytest.raises(UnreadableError, match=f"^{tmp_path}/y.wav: no such file$"):
        data.read(tmp_path / "y.wav")
