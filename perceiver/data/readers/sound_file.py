"""Files of sound: any part of any of them as one kind of tensor."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import ceil, gcd
from typing import IO

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from scipy.signal import resample_poly
from torch import Tensor

from perceiver.data.files import File, UnreadableError, refuse_special, warn_once
from perceiver.data.readers.sound_length import is_cut_off

MIN_RATE, MAX_RATE = 1_000, 768_000
"""Files that claim fewer or more samples a second are refused: no device records them."""
MAX_VALUES = 2**29
"""What is longer than this, all channels together, is not read at once: 1.7 hours of stereo at 44.1 kHz, 2 GiB."""
LOUDEST = 1000.0
"""60 dB above full scale: no mix is louder than this, but whole numbers that were kept as they are in a float wav."""
BLOCK = 2**19
"""Values that are decoded at a time, all channels together: only their mean over channels is kept."""
CANCELLED = 1e-3
"""Where the mix has less than this share of its channels' power (-30 dB), they cancel each other, as they do where one
of two is turned upside down; channels that have nothing to do with each other keep more, 1/31 of 31 of them."""
MP3_LEAD = 20 * 1152
"""Samples of an MP3 that are decoded before a part and dropped: its frames use bits of those before them."""
UNKNOWN_LENGTH = 2**62
"""What libsndfile takes a flac to have that was written to a pipe, and which it cannot read to its end."""


class SoundFile:
    """A file of sound, of which any part can be read at a wanted sample rate, mixed down to one channel.

    Of a part in which the channels cancel each other the loudest channel is read, and this is warned of. Constant
    offsets do not count. What it is, wav, flac, ogg or mp3, is told by its content, whatever its name.

    Args:
        path: the file.
        sample_rate: of what is read, in Hz.

    Raises:
        UnreadableError: missing, not a sound, or without any sample.
    """

    def __init__(self, path: File, sample_rate: int) -> None:
        self.path = path
        self.sample_rate = sample_rate
        with self._opened() as file:
            self.file_rate, self.channels = file.samplerate, file.channels
            if not MIN_RATE <= self.file_rate <= MAX_RATE:
                raise UnreadableError(f"{path}: a sample rate of {self.file_rate} Hz is not believable")
            if file.frames == 0:
                raise UnreadableError(f"{path}: there is no sound in it")
            if file.frames >= UNKNOWN_LENGTH:
                raise UnreadableError(f"{path}: does not say how long it is")
            self.file_length = file.frames

    @property
    def seconds(self) -> float:
        """How long the file claims to be; one that was cut off may be shorter."""
        return self.file_length / self.file_rate

    def read(self, start: float = 0.0, seconds: float | None = None) -> Float[Tensor, "1 length"]:
        """A part of the sound, which ends earlier where the file does.

        Args:
            start: where it begins, in seconds.
            seconds: how long it is; None for all that follows.

        Raises:
            UnreadableError: the file is damaged there or ends before, holds values that are no numbers, or is too long.
        """
        first = min(round(start * self.file_rate), self.file_length)
        count = self.file_length - first if seconds is None else ceil(seconds * self.file_rate)
        length = count / self.file_rate
        if length * max(self.channels * self.file_rate, self.sample_rate) > MAX_VALUES:
            size = f"{length / 3600:.1f} hours in {self.channels} channels at {self.file_rate} Hz"
            raise UnreadableError(f"{self.path}: {size} are too much to be read at once")
        wave, powers = self._decoded(first, count)
        if len(wave) == 0:
            raise UnreadableError(f"{self.path}: ends before {start:.2f} s, though it claims {self.seconds:.2f} s")
        if not np.isfinite(wave).all():
            raise UnreadableError(f"{self.path}: holds values that are not finite")
        if np.var(wave, dtype=np.float64) < CANCELLED * powers.mean():
            loudest_channel = int(powers.argmax())
            problem = f"its {self.channels} channels cancel each other when they are mixed; only the loudest is read"
            warn_once("cancelled", f"{self.path}: {problem}, number {loudest_channel + 1}")
            wave, _ = self._decoded(first, count, loudest_channel)
        if (loudest := float(np.abs(wave).max())) > LOUDEST:
            raise UnreadableError(f"{self.path}: holds {loudest:g} where full scale is 1")
        wave = resampled(wave, self.file_rate, self.sample_rate)
        if seconds is not None:
            wave = wave[: round(seconds * self.sample_rate)]
        return torch.from_numpy(wave)[None]

    def _decoded(
        self, first: int, count: int, channel: int | None = None
    ) -> tuple[Float[np.ndarray, " length"], Float[np.ndarray, " channels"]]:
        """Samples from `first` on, of one channel or the mean of all, and the power of each channel about its mean."""
        length, sums, squares = 0, np.zeros(self.channels), np.zeros(self.channels)
        waves = [np.zeros(0, np.float32)]
        with self._opened() as file, np.errstate(all="ignore"):  # what is not finite is told by the caller
            lead = min(first, MP3_LEAD) if file.format == "MP3" else 0
            file.seek(first - lead)
            file.read(lead)
            for block in _blocks(file, count):
                waves.append(block.mean(axis=1) if channel is None else block[:, channel])
                if self.channels > 1:
                    length += len(block)
                    sums += block.sum(axis=0, dtype=np.float64)
                    squares += np.square(block, dtype=np.float64).sum(axis=0)
            powers = (squares - sums**2 / max(length, 1)) / max(length, 1)
            powers[powers < 1e-12 * squares / max(length, 1)] = 0.0  # no power, but rounding
        return np.concatenate(waves), powers

    @contextmanager
    def _opened(self) -> Iterator[soundfile.SoundFile]:
        """The file, whose errors name it while it is open."""
        refuse_special(self.path)
        try:
            with self.path.open("rb") as raw:
                if raw.seek(0, os.SEEK_END) == 0:
                    raise UnreadableError(f"{self.path}: the file is empty")
                if is_cut_off(raw):
                    raise UnreadableError(f"{self.path}: was cut off: it is shorter than it claims")
                # By name, libsndfile would take any text called x.au for a sound.
                with _Onward(_handle(raw), closefd=False) as file:
                    yield file
        except FileNotFoundError as error:
            raise UnreadableError(f"{self.path}: no such file") from error
        except OSError as error:
            raise UnreadableError(f"{self.path}: {error.strerror}") from error
        except soundfile.LibsndfileError as error:
            raise UnreadableError(f"{self.path}: {_reason(error)}") from error


class _Onward(soundfile.SoundFile):  # type: ignore[misc]
    """Goes on reading where it stopped; soundfile seeks that place again, after which an MP3 is decoded wrongly."""

    def seekable(self) -> bool:
        return False


def _handle(raw: IO[bytes]) -> int | IO[bytes]:
    """What libsndfile reads by itself; what lies in memory it asks python for."""
    if isinstance(raw, BytesIO):
        return raw
    os.lseek(raw.fileno(), 0, os.SEEK_SET)  # python's own place may be one in its buffer
    return raw.fileno()


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[Float[np.ndarray, "length channels"]]:
    """The next `count` samples, or as many as there are."""
    size = -(-BLOCK // file.channels)
    while count > 0 and len(block := file.read(min(count, size), dtype="float32", always_2d=True)):
        count -= len(block)
        yield block


def _reason(error: soundfile.LibsndfileError) -> str:
    """What libsndfile says."""
    if error.code == 7:  # "File does not exist": said of an MP3 without a single whole frame
        return "Format not recognised"
    return error.error_string.removeprefix("Error : ").removesuffix(".")


def resampled(wave: Float[np.ndarray, " length"], rate: int, wanted: int) -> Float[np.ndarray, " resampled"]:
    """A wave at another sample rate; also between rates without a common factor."""
    common = gcd(rate, wanted)
    # Beyond both ends stands the mean: with zeros, a constant offset would click there.
    return wave if rate == wanted else resample_poly(wave, wanted // common, rate // common, padtype="mean")
