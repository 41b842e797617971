"""Synthetic sounds: events and scenes are reproducible, as varied as configured, and where their boxes are."""

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfreqz, welch

from perceiver.data.synthetic.sound_scenes import (
    BAND_ENERGY,
    EVENTS,
    MAX_PAUSE,
    MIN_SAMPLE_RATE,
    PEAK_LEVEL,
    SoundScenes,
    background,
    band,
    fade,
    noise,
    repeated,
)
from perceiver.spectrogram import LogMel
from tests.data.datasets import dataset

RATE = 16_000


def scenes(**options):
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
    return dataset(SoundScenes, "audio", **settings | options)


def wave(sample):
    return sample.inputs["audio"]


def rng(seed):
    return np.random.default_rng(seed)


class TestEvents:
    @pytest.mark.parametrize("name", EVENTS)
    def test_events_are_audible_at_any_length_and_rate(self, name):
        for rate, seconds in ((MIN_SAMPLE_RATE, 1.01 * MAX_PAUSE), (16_000, 1.3), (44_100, 1.01 * MAX_PAUSE)):
            for seed in range(7):
                event = EVENTS[name](rng(seed), round(seconds * rate), rate)
                assert event.shape == (round(seconds * rate),)
                assert np.isfinite(event).all()
                assert np.mean(event**2) > 1e-6
                low, high = band(event, rate)
                assert 0 < low < high <= rate / 2

    @pytest.mark.parametrize("name", EVENTS)
    def test_events_depend_on_the_generator_and_bands_have_their_energy(self, name):
        first, again, other = (EVENTS[name](rng(seed), 9001, RATE) for seed in (5, 5, 7))
        assert np.array_equal(first, again)
        assert not np.allclose(first, other)
        for seed in range(5):
            event = EVENTS[name](rng(seed), 13_007, RATE)
            low, high = band(event, RATE)
            energy, frequencies = np.abs(np.fft.rfft(event)) ** 2, np.fft.rfftfreq(len(event), 1 / RATE)
            inside = (frequencies >= low - 2) & (frequencies <= high + 2)
            assert energy[inside].sum() >= BAND_ENERGY * energy.sum() * 0.999

    def test_sums_of_sines_equal_their_formulas_in_double_precision(self):
        """Bells, hums and glides: phases of many turns do not lose precision."""
        time = np.arange(1, 66_004) / 44_100
        for seed in range(3):
            random = rng(seed)
            base = np.exp(random.uniform(np.log(70), np.log(200)))
            expected = sum(np.sin(2 * np.pi * base * k * time) / k**0.7 for k in range(1, 13))
            np.testing.assert_allclose(EVENTS["hum"](rng(seed), len(time), 44_100), expected, atol=3e-6)
            random = rng(seed)
            start = np.exp(random.uniform(np.log(200), np.log(1500)))
            frequencies = np.geomspace(start, start * random.uniform(1.8, 4.0), len(time))
            expected = np.sin(2 * np.pi * np.cumsum(frequencies) / 44_100)
            np.testing.assert_allclose(EVENTS["chirp_up"](rng(seed), len(time), 44_100), expected, atol=1e-6)
            random = rng(seed)
            base = np.exp(random.uniform(np.log(300), np.log(1000)))
            decays = [np.exp(-np.arange(len(time)) / 44_100 / last) for last in (0.5, 0.35, 0.3, 0.2, 0.15)]
            partials = zip((1.0, 2.0, 2.76, 4.07, 5.4), (1.0, 0.6, 0.5, 0.3, 0.3), decays, strict=True)
            expected = sum(level * decay * np.sin(2 * np.pi * base * k * time) for k, level, decay in partials)
            np.testing.assert_allclose(EVENTS["bell"](rng(seed), len(time), 44_100), expected, atol=1e-6)

    @pytest.mark.parametrize("starts", [range(0), range(0, 97, 31), range(5, 97, 7)])
    def test_repeated_waves_are_a_convolution_with_impulses(self, starts):
        wave, impulses = rng(3).standard_normal(13).astype(np.float32), np.zeros(97)
        impulses[list(starts)] = 1.0
        np.testing.assert_allclose(repeated(wave, starts, 97), np.convolve(impulses, wave)[:97], atol=1e-6)

    @pytest.mark.parametrize("length", [4099, 16_000])  # a prime, and a size of a fast transform
    def test_noise_has_the_variance_and_the_spectrum_of_its_gain(self, length):
        white = np.stack([noise(rng(seed), length, RATE, np.ones_like) for seed in range(29)])
        assert white.shape == (29, length)
        assert np.mean(white**2, dtype=float) == pytest.approx(1.0, abs=0.02)
        assert np.abs(np.mean(white[:, 1:] * white[:, :-1], dtype=float)) < 0.02
        octave = [noise(rng(seed), length, RATE, lambda f: 3.0 * ((f >= 1000) & (f < 2000))) for seed in range(29)]
        assert np.mean(np.square(octave), dtype=float) == pytest.approx(9.0 / 8, rel=0.05)  # 1 of 8 kHz
        frequencies, power = welch(np.stack(octave), RATE, nperseg=1024)
        inside = (frequencies > 950) & (frequencies < 2050)
        assert power[:, inside].sum() > 0.99 * power.sum()

    def test_a_burst_of_noise_has_the_spectrum_of_the_filter(self):
        """That of white noise through scipy's Butterworth filter, also near the upper limit of its center."""
        for seed, rate in ((0, RATE), (1, RATE), (2, MIN_SAMPLE_RATE), (3, 44_100)):
            random = rng(seed)
            low = np.exp(random.uniform(np.log(300), np.log(3000)))
            limits = [low, min(low * random.uniform(1.5, 2.5), 0.49 * rate)]
            frequencies, power = welch(EVENTS["noise_burst"](rng(seed), 200_003, rate), rate, nperseg=2000)
            _, response = sosfreqz(butter(2, limits, btype="bandpass", fs=rate, output="sos"), frequencies, fs=rate)
            expected = np.abs(response) ** 2 / (rate / 2)
            clear = expected > 0.05 * expected.max()
            assert clear.sum() > 10
            np.testing.assert_allclose(power[clear], expected[clear], rtol=0.4)
            assert power.sum() == pytest.approx(expected.sum(), rel=0.05)

    @pytest.mark.parametrize("frequency", [211.0, 1009.0, 3001.0])
    def test_the_band_of_a_sine_is_a_third_of_an_octave_around_it(self, frequency):
        low, high = band(np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE), RATE)
        assert low < frequency < high
        assert np.log2(high / low) == pytest.approx(1 / 3, abs=0.02)

    @pytest.mark.parametrize(("name", "sign"), [("chirp_up", 1), ("chirp_down", -1)])
    def test_the_direction_of_chirps(self, name, sign):
        for seed in range(13):
            event = EVENTS[name](rng(seed), RATE, RATE)
            begin, end = (np.mean(band(part, RATE)) for part in (event[: RATE // 4], event[-RATE // 4 :]))
            assert sign * (end - begin) > 0

    def test_the_background_has_rms_1_and_no_pitch(self):
        for seed in range(5):
            wave = background(rng(seed), 2 * RATE, RATE)
            energy = np.abs(np.fft.rfft(wave)) ** 2
            assert np.mean(wave**2) == pytest.approx(1.0)
            assert energy.max() < 0.05 * energy.sum()

    @pytest.mark.parametrize("exponent", [0.0, 1.5])
    def test_the_power_of_the_background_falls_with_frequency_as_drawn(self, exponent):
        class Constant:
            """The first number that is drawn is the exponent, and the level does not vary."""

            def __init__(self, seed):
                self.drawn, self.random = iter([exponent, 0.0, 0.1]), rng(seed).random

            def uniform(self, low, high):
                return next(self.drawn)

        waves = np.stack([background(Constant(seed), 3 * RATE + 1, RATE) for seed in range(7)])
        frequencies, power = welch(waves, RATE, nperseg=800)
        steps = slice(5, 395)  # 100 to 7900 Hz
        slope, _ = np.polyfit(np.log(frequencies[steps]), np.log(power.mean(axis=0)[steps]), 1)
        assert slope == pytest.approx(-exponent, abs=0.05)

    def test_fading_changes_only_the_ends(self):
        faded = fade(np.ones(997), RATE)
        assert faded[0] == faded[-1] == 0
        assert (faded[200:-200] == 1).all()


class TestScenes:
    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_evaluation_scenes_depend_on_seed_stage_and_index_only(self, stage):
        first, again = (scenes().split(stage) for _ in range(2))
        for index in (0, 7, 22):
            torch.manual_seed(index)
            assert torch.equal(wave(first[index]), wave(again[index]))
            assert first[index].targets["boxes"] == again[index].targets["boxes"]
        for other in (scenes(seed=4).split(stage)[0], scenes().split("train")[0], first[1]):
            assert not torch.allclose(wave(first[0]), wave(other))

    def test_training_scenes_are_drawn_anew_with_the_same_classes(self):
        split = scenes().split("train")
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(split[17])
        first, again, other = drawn
        assert torch.equal(wave(first), wave(again))
        assert not torch.allclose(wave(first), wave(other))
        assert torch.equal(first.targets["tags"], other.targets["tags"])

    @pytest.mark.parametrize("stage", ["train", "val"])
    def test_tags_boxes_and_classes_agree(self, stage):
        split = scenes().split(stage)
        for index in range(len(split)):
            targets = split[index].targets
            labels = targets["tags"].nonzero().flatten().tolist()
            assert labels == list(split.sample_classes(index))
            assert ("boxes" in targets) == (stage == "val")
            assert [box.label for box in targets.get("boxes", [])] in ([], labels)
        assert scenes(num_classes=7).class_names == sorted(EVENTS)[:7]

    def test_scenes_have_up_to_max_events_of_all_classes(self):
        split = scenes(num_samples={"train": 401, "val": 0, "test": 0}).split("train")
        classes = [split.sample_classes(index) for index in range(len(split))]
        assert set(map(len, classes)) == {1, 2, 3, 4, 5}
        counts = np.bincount(np.concatenate(classes), minlength=12)
        assert counts.min() > 0.7 * counts.mean()
        assert scenes(num_samples={"train": 1, "val": 0, "test": 1}).split("val") is None

    def test_an_event_is_in_its_box(self):
        """Far above the background, nearly all energy is in the box."""
        split = scenes(max_events=1, snr=(60.0, 60.0)).split("test")
        log_mel = LogMel(sample_rate=RATE, n_fft=1024, win_length=1024, hop_length=160, n_mels=61, f_min=0, f_max=8000)
        for index in range(len(split)):
            (box,) = split[index].targets["boxes"]
            power = 10 ** (log_mel(wave(split[index]))[0] / 10)
            rows, columns = log_mel.frequencies(61), log_mel.times(power.shape[1])
            frequencies = [rows.value((row + 0.5) / 61) for row in range(61)]
            times = [columns.value((column + 0.5) / power.shape[1]) for column in range(power.shape[1])]
            (low, high), (onset, offset) = box.ranges["frequency"], box.ranges["time"]
            # One more band at each side: filters overlap.
            in_rows = torch.tensor([low / 1.1 - 40 <= f <= high * 1.1 + 40 for f in frequencies])
            in_columns = torch.tensor([onset - 0.04 <= t <= offset + 0.04 for t in times])
            assert power[in_rows][:, in_columns].sum() > 0.85 * power.sum()
            assert 0.4 <= offset - onset <= 1.1

    def test_peaks_cover_their_range(self):
        split = scenes().split("test")
        peaks = [20 * float(wave(split[index]).abs().max().log10()) for index in range(len(split))]
        assert PEAK_LEVEL[0] - 0.01 <= min(peaks) < PEAK_LEVEL[0] + 9
        assert PEAK_LEVEL[1] - 9 < max(peaks) <= PEAK_LEVEL[1] + 0.01

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            *(({"num_classes": value}, f"num_classes={value}") for value in (1, 13)),
            *(({"max_events": value}, f"max_events={value}") for value in (0, 13)),
            *(({"event_seconds": value}, r"event_seconds=\[") for value in ((0.2, 1.0), (1.0, 0.9))),
            ({"event_seconds": (1.0, 3.1)}, "event_seconds=.*scene_seconds=3.0"),
            ({"snr": (3.0, -3.0)}, r"snr=\[3.0, -3.0\]"),
            ({"num_samples": {"train": -1, "val": 0, "test": 0}}, "num_samples=.*-1"),
            ({"sample_rate": 8000}, "sample_rate=8000"),
            ({"seed": -1}, "seed=-1"),
        ],
    )
    def test_invalid_settings_are_refused(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}"):
            scenes(**options)
