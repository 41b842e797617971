"""Synthetic scenes of overlapping sound events over background noise, with known onset, offset and frequency band.

Which of the twelve kinds of event a scene has is a function of (seed, stage, index), and so is all else in validation
and testing; in training it is drawn anew each time. Precedents: scaper (Salamon et al. 2017), DESED.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter
from torch import Tensor

from perceiver.data.sources.base import Item, multi_hot
from perceiver.data.sources.generated import GeneratedSource, Random
from perceiver.data.synthetic.noise import normal
from perceiver.types import Box, Stage

Wave: TypeAlias = Float32[np.ndarray, " length"]

PEAK_LEVEL = (-30.0, -3.0)
"""Range of the peaks of scenes, in dB of full scale."""
FADE_SECONDS = 0.01
BAND_ENERGY = 0.95
"""Fraction of an event's energy within its band."""
MIN_BAND_FACTOR = 2.0 ** (1 / 6)
"""Least ratio of a band's limits to its center: a band has at least a third of an octave."""
MAX_PAUSE = 0.34
"""Longest time between two knocks, in seconds: any longer event is audible."""
MIN_SAMPLE_RATE = 12_500
"""In Hz, for the highest of the events."""


def log_uniform(random: Random, low: float, high: float) -> float:
    """Draw a frequency in Hz, uniform in octaves."""
    return math.exp(random.uniform(math.log(low), math.log(high)))


def oscillator(frequency: Float[np.ndarray, " length"] | float, length: int, rate: int) -> Wave:
    """Return a sine of a constant or varying frequency."""
    varies = isinstance(frequency, np.ndarray)
    turns = np.cumsum(frequency, dtype=np.float64) if varies else np.arange(1, length + 1) * frequency
    turns /= rate
    turns -= np.rint(turns)
    angles = turns.astype(np.float32)
    angles *= 2 * np.pi
    return np.sin(angles, out=angles)


def decay(length: int, rate: int, seconds: float) -> Wave:
    """Return an exponential envelope, 1/e after `seconds`."""
    exponents = np.arange(length, dtype=np.float32)
    exponents *= -1 / (seconds * rate)
    return np.exp(exponents, out=exponents)


def decibels(levels: Wave) -> Wave:
    """Turn levels in dB into factors, in place."""
    levels *= math.log(10.0) / 20.0
    return np.exp(levels, out=levels)


def noise(random: Random, length: int, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    """Return stationary noise with a spectrum.

    Args:
        random: the generator.
        length: in samples.
        rate: in Hz.
        gain: amplitude as a function of frequency in Hz; where it is 1 everywhere, noise is white, of variance 1.
    """
    size = next_fast_len(length, real=True)
    gains = gain(np.arange(size // 2 + 1, dtype=np.float32) * (rate / size))
    spectrum = normal(random, 2 * len(gains)).view(np.complex64)
    spectrum *= gains * math.sqrt(size / 2)
    return irfft(spectrum, size, overwrite_x=True)[:length]


def repeated(wave: Wave, starts: range, length: int) -> Wave:
    """Return a sum of copies of a wave, cut off after `length` samples."""
    total = np.zeros(length, np.float32)
    for start in starts:
        part = total[start : start + len(wave)]
        part += wave[: len(part)]
    return total


def tone(random: Random, length: int, rate: int) -> Wave:
    """A sine of one frequency."""
    return oscillator(log_uniform(random, 200, 3000), length, rate)


def hum(random: Random, length: int, rate: int) -> Wave:
    """A low tone with many harmonics."""
    base = log_uniform(random, 70, 200)
    wave = np.zeros(length, np.float32)
    for harmonic in range(1, 13):
        wave += harmonic**-0.7 * oscillator(base * harmonic, length, rate)
    return wave


def chirp_up(random: Random, length: int, rate: int) -> Wave:
    """A sine that rises by one to two octaves."""
    start = log_uniform(random, 200, 1500)
    return glide(start, start * random.uniform(1.8, 4.0), length, rate)


def chirp_down(random: Random, length: int, rate: int) -> Wave:
    """A sine that falls by one to two octaves."""
    stop = log_uniform(random, 200, 1500)
    return glide(stop * random.uniform(1.8, 4.0), stop, length, rate)


def glide(start: float, stop: float, length: int, rate: int) -> Wave:
    """Return a sine whose pitch changes evenly from one frequency to another."""
    return oscillator(np.exp(np.linspace(math.log(start), math.log(stop), length)), length, rate)


def tremolo(random: Random, length: int, rate: int) -> Wave:
    """A tone with amplitude modulation."""
    envelope = oscillator(random.uniform(5, 12), length, rate)
    envelope *= 0.5
    envelope += 0.5
    return tone(random, length, rate) * envelope


def siren(random: Random, length: int, rate: int) -> Wave:
    """A sine with wide frequency modulation."""
    octaves = oscillator(random.uniform(2, 5), length, rate) * math.log2(1.5)
    return oscillator(log_uniform(random, 400, 2000) * np.exp2(octaves, dtype=np.float64), length, rate)


def noise_burst(random: Random, length: int, rate: int) -> Wave:
    """Stationary noise, about an octave wide: that of a Butterworth filter of second order."""
    low = log_uniform(random, 300, 3000)
    limits = [low, min(low * random.uniform(1.5, 2.5), 0.49 * rate)]
    lower, upper = (math.tan(math.pi * limit / rate) for limit in limits)

    def gain(frequencies: Wave) -> Wave:
        """1 / sqrt(1 + ((tan² - lower · upper) / (tan · (upper - lower)))⁴), by functions of twice the angle."""
        angles = frequencies * (2 * math.pi / rate)
        passed = ((upper - lower) * np.sin(angles)) ** 2
        stopped = ((1 - lower * upper) - (1 + lower * upper) * np.cos(angles)) ** 2
        return passed / np.sqrt(passed**2 + stopped**2)

    return noise(random, length, rate, gain)


def whoosh(random: Random, length: int, rate: int) -> Wave:
    """Noise whose level and band rise and fall."""
    center = log_uniform(random, 500, 1500)
    envelope = np.sin(np.linspace(0, np.pi, length, dtype=np.float32)) ** 2
    carrier = oscillator(center * (0.5 + 1.5 * envelope), length, rate)
    smoothing = math.exp(-2 * math.pi * center * 0.15 / rate)
    coefficients = np.array([1.0 - smoothing], np.float32), np.array([1.0, -smoothing], np.float32)
    return carrier * lfilter(*coefficients, normal(random, length)) * envelope


def clicks(random: Random, length: int, rate: int) -> Wave:
    """Evenly spaced broadband impulses."""
    starts = range(int(random.uniform(0, 0.02) * rate), length, int(rate / random.uniform(6, 14)))
    size = int(0.01 * rate)
    return repeated(decay(size, rate, 0.001) * normal(random, size), starts, length)


def pluck(random: Random, length: int, rate: int) -> Wave:
    """A plucked string (Karplus & Strong 1983), every half second."""
    period = int(rate / log_uniform(random, 100, 500))
    excitation = np.zeros(length)
    for start in range(0, length, rate // 2):
        part = excitation[start : start + period]
        burst = random.uniform(-1, 1, period)
        part += (burst - burst.mean())[: len(part)]  # the loop would sustain a mean
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period : period + 2] = 1.0, -0.4975
    return lfilter([1.0], feedback, excitation).astype(np.float32)


def bell(random: Random, length: int, rate: int) -> Wave:
    """Decaying inharmonic partials."""
    base = log_uniform(random, 300, 1000)
    wave = np.zeros(length, np.float32)
    for ratio, level, last in ((1.0, 1.0, 0.5), (2.0, 0.6, 0.35), (2.76, 0.5, 0.3), (4.07, 0.3, 0.2), (5.4, 0.3, 0.15)):
        wave += level * decay(length, rate, last) * oscillator(base * ratio, length, rate)
    return wave


def knocks(random: Random, length: int, rate: int) -> Wave:
    """Low decaying thuds, a few per second."""
    starts = range(0, length, int(rate / random.uniform(3, 6)))
    size = int(0.12 * rate)
    return repeated(decay(size, rate, 0.025) * oscillator(log_uniform(random, 80, 250), size, rate), starts, length)


EVENTS: dict[str, Callable[[Random, int, int], Wave]] = {
    event.__name__: event
    for event in (
        *(bell, chirp_down, chirp_up, clicks, hum, knocks),
        *(noise_burst, pluck, siren, tone, tremolo, whoosh),
    )
}
"""Class -> a function of generator, length in samples and sample rate, in alphabetical order."""


def band(wave: Wave, rate: int) -> tuple[float, float]:
    """Return the frequency band in Hz that has `BAND_ENERGY` of a wave's energy, at least a third of an octave."""
    energy = np.cumsum(np.abs(rfft(wave)) ** 2)
    excluded = (1 - BAND_ENERGY) / 2
    bins = np.searchsorted(energy / energy[-1], [excluded, 1 - excluded])
    low, high = (float(limit) for limit in bins * rate / len(wave))
    center = max(np.sqrt(max(low, 1.0) * max(high, 1.0)), 1.0)
    return float(min(low, center / MIN_BAND_FACTOR)), float(min(max(high, center * MIN_BAND_FACTOR), rate / 2))


def background(random: Random, length: int, rate: int) -> Wave:
    """Return noise of power 1/f^α, α from 0 (white) to 1.5, with a slowly varying level, of RMS 1."""
    exponent = -random.uniform(0, 1.5) / 2
    wave = noise(random, length, rate, lambda frequencies: np.maximum(frequencies, 20.0) ** exponent)
    wave *= decibels(random.uniform(0, 3) * oscillator(random.uniform(0.1, 0.5), length, rate))
    wave /= rms(wave)
    return wave


def rms(wave: Wave) -> float:
    """Return the root of the mean square."""
    return math.sqrt(float(np.dot(wave, wave)) / len(wave))


def fade(wave: Wave, rate: int) -> Wave:
    """Fade a wave in and out, in place."""
    ramp = np.linspace(0, 1, round(FADE_SECONDS * rate), dtype=np.float32)
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave


def synthesize(random: Random, label: int, length: int, rate: int, snr: tuple[float, float]) -> Wave:
    """Return an event of a class, faded in and out, at a level that is drawn from `snr`, in dB of an RMS of 1."""
    wave = fade(list(EVENTS.values())[label](random, length, rate), rate)
    wave *= 10 ** (random.uniform(*snr) / 20) / rms(wave)
    return wave


def with_peak(random: Random, scene: Wave) -> Float[Tensor, "1 length"]:
    """Return a scene with a peak that is drawn from `PEAK_LEVEL`."""
    peak = 10 ** (random.uniform(*PEAK_LEVEL) / 20)
    return torch.from_numpy(scene * (peak / float(max(scene.max(), -scene.min()))))[None]


@dataclass(frozen=True)
class _Event:
    """An event of a class, and its first sample in the scene."""

    label: int
    onset: int
    wave: Wave


class SoundScenes(GeneratedSource):
    """Synthetic scenes with the target `tags` and, except in training, `boxes`.

    Args:
        num_classes: number of kinds of event, the first in alphabetical order.
        sample_rate: in Hz.
        num_samples: scenes of each stage; 0 for none.
        scene_seconds: length of a scene.
        max_events: most events of a scene, each of another kind.
        event_seconds: shortest and longest event.
        snr: least and greatest level of an event relative to the background, in dB.
        seed: of the scenes.
    """

    name = "sound_scenes"
    roles = ("audio",)
    stream = (1,)

    def __init__(
        self,
        *,
        num_classes: int,
        sample_rate: int,
        num_samples: Mapping[Stage, int],
        scene_seconds: float,
        max_events: int,
        event_seconds: tuple[float, float],
        snr: tuple[float, float],
        seed: int,
    ) -> None:
        if not 2 <= num_classes <= len(EVENTS):
            raise ValueError(f"num_classes={num_classes} must be 2 to {len(EVENTS)}")
        if not 1 <= max_events <= num_classes:
            raise ValueError(f"max_events={max_events} must be 1 to num_classes={num_classes}")
        if not MAX_PAUSE < event_seconds[0] <= event_seconds[1] <= scene_seconds:
            raise ValueError(
                f"event_seconds={list(event_seconds)} must ascend from more than {MAX_PAUSE} "
                f"to at most scene_seconds={scene_seconds}"
            )
        if snr[0] > snr[1]:
            raise ValueError(f"snr={list(snr)} must ascend")
        if sample_rate < MIN_SAMPLE_RATE:
            raise ValueError(f"sample_rate={sample_rate} must be at least {MIN_SAMPLE_RATE} Hz for all events")
        super().__init__(num_samples=num_samples, seed=seed, num_classes=num_classes)
        self.sample_rate = sample_rate
        self.scene_seconds = scene_seconds
        self.max_events = max_events
        self.event_seconds = event_seconds
        self.snr = snr

    @property
    def class_names(self) -> list[str]:
        return list(EVENTS)[: self.num_classes]

    def sample_classes(self, stage: Stage, index: int) -> Sequence[int]:
        random = self.random(stage, index, 0)
        count = int(random.integers(1, self.max_events + 1))
        return sorted(random.choice(self.num_classes, count, replace=False).tolist())

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        labels = self.sample_classes(stage, index)
        wave, events = self._scene(random, labels)
        boxes = {} if stage == "train" else {"boxes": [self._box(event) for event in events]}
        targets = {"tags": multi_hot(labels, self.num_classes)} | boxes
        return Item({"audio": wave}, targets, self.sample_name(stage, index))

    def _scene(self, random: Random, labels: Sequence[int]) -> tuple[Float[Tensor, "1 length"], list[_Event]]:
        rate = self.sample_rate
        length = round(self.scene_seconds * rate)
        scene, events = background(random, length, rate), []
        for label in labels:
            size = min(round(random.uniform(*self.event_seconds) * rate), length)
            wave = synthesize(random, label, size, rate, self.snr)
            onset = int(random.integers(length - size + 1))
            scene[onset : onset + size] += wave
            events.append(_Event(label, onset, wave))
        return with_peak(random, scene), events

    def _box(self, event: _Event) -> Box:
        times = (event.onset / self.sample_rate, (event.onset + len(event.wave)) / self.sample_rate)
        return Box(event.label, "audio", {"time": times, "frequency": band(event.wave, self.sample_rate)})
