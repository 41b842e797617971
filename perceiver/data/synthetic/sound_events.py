"""Made-up sounds of twelve kinds, each of random pitch and make, and the noise behind them."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.fft import irfft, rfft, rfftfreq
from scipy.signal import butter, lfilter, oaconvolve, sosfilt

Wave: TypeAlias = Float[np.ndarray, " length"]
Random: TypeAlias = np.random.Generator

RAMP_SECONDS = 0.01
BAND_ENERGY = 0.95
"""Share of an event's energy that lies within its band."""
NARROWEST_BAND = 2.0 ** (1 / 6)
"""A band reaches at least this factor below and above its middle: a third of an octave."""
LONGEST_PAUSE = 0.34
"""Between two knocks, in seconds: an event must be longer, so that some of it is heard."""
LEAST_RATE = 12_500
"""Sample rate, in Hz, that holds the highest of them."""


def pitch(random: Random, low: float, high: float) -> float:
    """A frequency in Hz; octaves are equally likely."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def oscillator(frequency: Wave | float, length: int, rate: int) -> Wave:
    """A sine of a frequency that may change."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, length)) / rate
    return np.sin(phase)


def decay(length: int, rate: int, seconds: float) -> Wave:
    """An exponential fall to 1/e in `seconds`."""
    return np.exp(-np.arange(length) / (seconds * rate))


def band_noise(random: Random, length: int, rate: int, low: float, high: float) -> Wave:
    """Noise between two frequencies."""
    sections = butter(2, [low, min(high, 0.49 * rate)], btype="bandpass", fs=rate, output="sos")
    return sosfilt(sections, random.standard_normal(length))


def tone(random: Random, length: int, rate: int) -> Wave:
    """Steady, of one frequency."""
    return oscillator(pitch(random, 200, 3000), length, rate)


def hum(random: Random, length: int, rate: int) -> Wave:
    """Many harmonics of a low tone."""
    base = pitch(random, 70, 200)
    return sum((oscillator(base * k, length, rate) / k**0.7 for k in range(1, 13)), np.zeros(length))


def chirp_up(random: Random, length: int, rate: int) -> Wave:
    """A tone that rises by one to two octaves."""
    start = pitch(random, 200, 1500)
    return oscillator(np.geomspace(start, start * random.uniform(1.8, 4.0), length), length, rate)


def chirp_down(random: Random, length: int, rate: int) -> Wave:
    """A tone that falls by one to two octaves."""
    stop = pitch(random, 200, 1500)
    return oscillator(np.geomspace(stop * random.uniform(1.8, 4.0), stop, length), length, rate)


def tremolo(random: Random, length: int, rate: int) -> Wave:
    """A tone whose level swings."""
    swing = 0.5 + 0.5 * oscillator(random.uniform(5, 12), length, rate)
    return tone(random, length, rate) * swing


def siren(random: Random, length: int, rate: int) -> Wave:
    """A tone whose pitch swings widely, up and down."""
    swing = oscillator(random.uniform(2, 5), length, rate)
    return oscillator(pitch(random, 400, 2000) * 1.5**swing, length, rate)


def noise_burst(random: Random, length: int, rate: int) -> Wave:
    """Steady noise, about an octave wide."""
    low = pitch(random, 300, 3000)
    return band_noise(random, length, rate, low, low * random.uniform(1.5, 2.5))


def whoosh(random: Random, length: int, rate: int) -> Wave:
    """Noise that swells and dies away, its band rising and falling with it."""
    noise = random.standard_normal(length)
    centre = pitch(random, 500, 1500)
    arch = np.sin(np.pi * np.linspace(0, 1, length)) ** 2
    carrier = oscillator(centre * (0.5 + 1.5 * arch), length, rate)
    smooth = np.exp(-2 * np.pi * centre * 0.15 / rate)
    return carrier * lfilter([1 - smooth], [1, -smooth], noise) * arch


def clicks(random: Random, length: int, rate: int) -> Wave:
    """Single, evenly spaced, broad-band."""
    wave = np.zeros(length)
    wave[int(random.uniform(0, 0.02) * rate) :: int(rate / random.uniform(6, 14))] = 1.0
    return oaconvolve(wave, decay(int(0.01 * rate), rate, 0.001) * random.standard_normal(int(0.01 * rate)))[:length]


def pluck(random: Random, length: int, rate: int) -> Wave:
    """A plucked string (Karplus & Strong 1983), once every half second."""
    period = int(rate / pitch(random, 100, 500))
    excitation = np.zeros(length)
    for start in range(0, length, rate // 2):
        part = excitation[start : start + period]
        noise = random.uniform(-1, 1, period)
        part += (noise - noise.mean())[: len(part)]  # the loop would keep a mean for long
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period : period + 2] = 1.0, -0.4975
    return lfilter([1.0], feedback, excitation)


def bell(random: Random, length: int, rate: int) -> Wave:
    """Partials that are no harmonics of each other, dying away."""
    base = pitch(random, 300, 1000)
    partials = ((1.0, 1.0, 0.5), (2.0, 0.6, 0.35), (2.76, 0.5, 0.3), (4.07, 0.3, 0.2), (5.4, 0.3, 0.15))
    return sum(
        (level * decay(length, rate, last) * oscillator(base * ratio, length, rate) for ratio, level, last in partials),
        np.zeros(length),
    )


def knocks(random: Random, length: int, rate: int) -> Wave:
    """Low thuds, a few a second."""
    wave = np.zeros(length)
    wave[:: int(rate / random.uniform(3, 6))] = 1.0
    thud = decay(int(0.12 * rate), rate, 0.025) * oscillator(pitch(random, 80, 250), int(0.12 * rate), rate)
    return oaconvolve(wave, thud)[:length]


EVENTS: tuple[Callable[[Random, int, int], Wave], ...] = (
    bell,
    chirp_down,
    chirp_up,
    clicks,
    hum,
    knocks,
    noise_burst,
    pluck,
    siren,
    tone,
    tremolo,
    whoosh,
)


def band(wave: Wave, rate: int) -> tuple[float, float]:
    """The frequencies, in Hz, between which a wave has `BAND_ENERGY` of its energy; at least a third of an octave."""
    energy = np.cumsum(np.abs(rfft(wave)) ** 2)
    share = (1 - BAND_ENERGY) / 2
    bins = np.searchsorted(energy / energy[-1], [share, 1 - share])
    low, high = (float(place) for place in bins * rate / len(wave))
    middle = max(np.sqrt(max(low, 1.0) * max(high, 1.0)), 1.0)
    return float(min(low, middle / NARROWEST_BAND)), float(min(max(high, middle * NARROWEST_BAND), rate / 2))


def background(random: Random, length: int, rate: int) -> Wave:
    """Noise whose power falls by 1/f^α, α from 0 (white) to 1.5, and whose level swings slowly; of RMS 1."""
    frequencies = np.maximum(rfftfreq(length, 1 / rate), 20.0)
    parts = random.standard_normal((2, len(frequencies)))
    wave = irfft((parts[0] + 1j * parts[1]) * frequencies ** (-random.uniform(0, 1.5) / 2), length)
    wave *= 10 ** (random.uniform(0, 3) * oscillator(random.uniform(0.1, 0.5), length, rate) / 20)
    return wave / np.sqrt(np.mean(wave**2))


def faded(wave: Wave, rate: int) -> Wave:
    """Without clicks at the ends."""
    ramp = np.linspace(0, 1, round(RAMP_SECONDS * rate))
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave
