"""Made-up scenes: repeatable, as varied as they say, and truly where their boxes are."""

import numpy as np
import pytest
import torch

from perceiver.data.readers.audio import AudioAugment
from perceiver.data.synthetic.sound_events import (
    BAND_ENERGY,
    EVENTS,
    LEAST_RATE,
    LONGEST_PAUSE,
    background,
    band,
    faded,
)
from perceiver.data.synthetic.sound_scenes import PEAK_LEVEL, SoundScenes
from perceiver.spectrogram import LogMel
from tests.data.datasets import dataset

RATE = 16_000


def scenes(**changes):
    settings = {
        "num_classes": 12,
        "sample_rate": RATE,
        "seconds": 3.0,
        "hop_seconds": 1.0,
        "num_samples": {"train": 29, "val": 23, "test": 31},
        "scene_seconds": 3.0,
        "max_events": 5,
        "event_seconds": (0.4, 1.1),
        "snr": (-7.0, 11.0),
        "seed": 3,
    }
    return dataset(SoundScenes, "audio", **settings | changes)


def wave(sample):
    return sample.inputs["audio"]


class TestEvents:
    @pytest.mark.parametrize("rate", [LEAST_RATE, 16_000, 44_100])
    @pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
    def test_every_kind_of_event_is_heard_at_every_length_and_rate(self, event, rate):
        for seconds in (1.01 * LONGEST_PAUSE, 1.3):
            for seed in range(7):
                size = round(seconds * rate)
                made = event(np.random.default_rng(seed), size, rate)
                assert made.shape == (size,)
                assert np.isfinite(made).all()
                assert np.mean(made**2) > 1e-6
                low, high = band(made, rate)
                assert 0 < low < high <= rate / 2

    @pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
    def test_a_kind_of_event_is_another_each_time_and_the_same_from_the_same_seed(self, event):
        first, again, other = (event(np.random.default_rng(seed), 9001, RATE) for seed in (5, 5, 7))
        assert np.array_equal(first, again)
        assert not np.allclose(first, other)

    @pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
    def test_a_band_holds_its_share_of_the_energy(self, event):
        for seed in range(11):
            made = event(np.random.default_rng(seed), 13_007, RATE)
            low, high = band(made, RATE)
            energy, frequencies = np.abs(np.fft.rfft(made)) ** 2, np.fft.rfftfreq(len(made), 1 / RATE)
            inside = (frequencies >= low - 2) & (frequencies <= high + 2)
            assert energy[inside].sum() >= BAND_ENERGY * energy.sum() * 0.999

    @pytest.mark.parametrize("frequency", [211.0, 1009.0, 3001.0])
    def test_the_band_of_a_sine_is_a_third_of_an_octave_around_it(self, frequency):
        low, high = band(np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE), RATE)
        assert low < frequency < high
        assert np.log2(high / low) == pytest.approx(1 / 3, abs=0.02)

    def test_what_rises_rises_and_what_falls_falls(self):
        by_name = {event.__name__: event for event in EVENTS}
        for seed in range(13):
            for name, sign in (("chirp_up", 1), ("chirp_down", -1)):
                made = by_name[name](np.random.default_rng(seed), RATE, RATE)
                begin, end = (np.mean(band(part, RATE)) for part in (made[: RATE // 4], made[-RATE // 4 :]))
                assert sign * (end - begin) > 0

    def test_a_background_has_one_level_and_no_pitch(self):
        for seed in range(5):
            made = background(np.random.default_rng(seed), 2 * RATE, RATE)
            assert np.mean(made**2) == pytest.approx(1.0)
            assert np.abs(np.fft.rfft(made)).max() ** 2 < 0.05 * (np.abs(np.fft.rfft(made)) ** 2).sum()

    def test_fading_takes_the_clicks_from_both_ends_and_nothing_else(self):
        made = faded(np.ones(997), RATE)
        assert made[0] == made[-1] == 0
        assert (made[200:-200] == 1).all()


class TestScenes:
    def test_evaluation_scenes_are_the_same_each_time_and_in_each_run(self):
        for stage in ("val", "test"):
            first, again = (scenes().split(stage) for _ in range(2))
            for index in (0, 7, 22):
                torch.manual_seed(index)
                assert torch.equal(wave(first[index]), wave(again[index]))
                assert first[index].targets["boxes"] == again[index].targets["boxes"]

    def test_scenes_differ_by_seed_stage_and_index(self):
        one = wave(scenes().split("val")[0])
        for other in (scenes(seed=4).split("val")[0], scenes().split("test")[0], scenes().split("val")[1]):
            assert not torch.allclose(one, wave(other))

    def test_training_scenes_are_drawn_anew_of_the_same_kinds_of_event(self):
        split = scenes().split("train")
        waves = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            waves.append(split[17])
        first, again, other = waves
        assert torch.equal(wave(first), wave(again))
        assert not torch.allclose(wave(first), wave(other))
        assert torch.equal(first.targets["tags"], other.targets["tags"])

    @pytest.mark.parametrize("stage", ["train", "val"])
    def test_tags_boxes_and_classes_agree(self, stage):
        split = scenes().split(stage)
        for index in range(len(split)):
            sample = split[index]
            labels = sample.targets["tags"].nonzero().flatten().tolist()
            assert labels == list(split.classes_of(index))
            if stage == "val":
                assert sorted(box.label for box in sample.targets["boxes"]) == labels
        assert len(scenes().class_names) == 12

    def test_scenes_have_one_to_the_most_events_and_all_kinds_come(self):
        split = scenes(num_samples={"train": 401, "val": 0, "test": 0}).split("train")
        classes = [split.classes_of(index) for index in range(len(split))]
        assert {len(of) for of in classes} == {1, 2, 3, 4, 5}
        counts = np.bincount([label for of in classes for label in of], minlength=12)
        assert counts.min() > 0.7 * counts.mean()

    def test_an_event_is_where_its_box_says(self):
        """Far above the background, nearly all energy lies in the box, and little of the scene does."""
        split = scenes(max_events=1, snr=(60.0, 60.0)).split("test")
        log_mel = LogMel(sample_rate=RATE, n_fft=1024, win_length=1024, hop_length=160, n_mels=61, f_min=0, f_max=8000)
        for index in range(len(split)):
            (box,) = split[index].targets["boxes"]
            power = 10 ** (log_mel(wave(split[index]))[0] / 10)
            rows, columns = log_mel.frequencies(61), log_mel.times(power.shape[1])
            centres = [rows.value((row + 0.5) / 61) for row in range(61)]
            times = [columns.value((column + 0.5) / power.shape[1]) for column in range(power.shape[1])]
            (low, high), (onset, offset) = box.ranges["frequency"], box.ranges["time"]
            # A band more at each side: filters overlap.
            in_rows = torch.tensor([low / 1.1 - 40 <= f <= high * 1.1 + 40 for f in centres])
            in_columns = torch.tensor([onset - 0.04 <= t <= offset + 0.04 for t in times])
            assert power[in_rows][:, in_columns].sum() > 0.85 * power.sum()
            assert 0.4 <= offset - onset <= 1.1

    def test_levels_are_as_wanted(self):
        split = scenes().split("test")
        peaks = [20 * float(wave(split[index]).abs().max().log10()) for index in range(len(split))]
        assert PEAK_LEVEL[0] - 0.01 <= min(peaks) < PEAK_LEVEL[0] + 9
        assert PEAK_LEVEL[1] - 9 < max(peaks) <= PEAK_LEVEL[1] + 0.01

    def test_clips_cut_shift_and_window_scenes_like_files(self):
        split = scenes(scene_seconds=5.0).split("val")
        assert split[0].windows == ("0.00-3.00 s", "1.00-4.00 s", "2.00-5.00 s")
        assert wave(split[0]).shape == (3, 1, 3 * RATE)
        loud = scenes(augment=AudioAugment(gain=17.0, time_shift=0.0, polarity=0.0)).split("train")
        plain = scenes().split("train")
        torch.manual_seed(1)
        one = wave(plain[5])
        torch.manual_seed(1)
        other = wave(loud[5])
        ratio = other.norm() / one.norm()
        torch.testing.assert_close(other, ratio * one)
        assert ratio != 1

    def test_a_stage_without_scenes_is_none(self):
        assert scenes(num_samples={"train": 1, "val": 0, "test": 1}).split("val") is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_classes": 13}, "num_classes=13"),
            ({"num_classes": 1}, "num_classes=1"),
            ({"max_events": 0}, "max_events=0"),
            ({"max_events": 13}, "max_events=13"),
            ({"event_seconds": (0.2, 1.0)}, r"event_seconds=\[0.2, 1.0\]"),
            ({"event_seconds": (1.0, 0.9)}, r"event_seconds=\[1.0, 0.9\]"),
            ({"event_seconds": (1.0, 3.1)}, "scene_seconds=3.0"),
            ({"snr": (3.0, -3.0)}, r"snr=\[3.0, -3.0\]"),
            ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples"),
            ({"sample_rate": 8000}, "sample_rate=8000"),
        ],
    )
    def test_what_cannot_be_is_refused_by_name(self, change, message):
        with pytest.raises(ValueError, match=message):
            scenes(**change)
