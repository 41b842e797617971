"""Sounds as an input: crops and augmentation in training, windows in evaluation."""

from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.files import SOUNDS, File, UnreadableError
from perceiver.data.readers.base import Reader, Reading
from perceiver.data.readers.sound_file import SoundFile
from perceiver.spectrogram import LogMel

SILENCE = 1e-5
"""A sound that never gets further from its mean than this (-100 dB of full scale) has nothing in it."""


def is_silent(wave: Float[Tensor, "1 length"]) -> bool:
    """Whether there is nothing to hear, which a constant offset is not."""
    # Its mean in single precision would be off by more than that where whole numbers stand in a float wav.
    return bool((wave - wave.mean(dtype=torch.float64)).abs().max() < SILENCE)


class AudioAugment:
    """Random changes to a training sound.

    Args:
        gain: largest change of level, in dB, up or down.
        time_shift: largest shift, in seconds; what is moved out at one end comes in at the other.
        polarity: probability that the wave is turned upside down.
    """

    def __init__(self, *, gain: float, time_shift: float, polarity: float) -> None:
        for name, value in (("gain", gain), ("time_shift", time_shift)):
            if value < 0.0:
                raise ValueError(f"{name}={value} must be at least 0")
        if not 0.0 <= polarity <= 1.0:
            raise ValueError(f"polarity={polarity} must be in [0, 1]")
        self.gain = gain
        self.time_shift = time_shift
        self.polarity = polarity

    def __call__(self, wave: Float[Tensor, "1 length"], sample_rate: int) -> Float[Tensor, "1 length"]:
        gain, shift, flip = torch.rand(3).tolist()
        wave = wave * 10.0 ** (self.gain * (2.0 * gain - 1.0) / 20.0)
        wave = wave.roll(round(self.time_shift * sample_rate * (2.0 * shift - 1.0)), dims=-1)
        return -wave if flip < self.polarity else wave


class AudioReader(Reader[Float[Tensor, "1 length"]]):
    """Sounds of any length: files of any rate and number of channels, or waves in memory at `sample_rate`.

    In training a random part of `seconds` is cut out of one. In evaluation it is read in windows of that length, whose
    scores the task averages. A sound that is shorter stays as it is.

    Args:
        sample_rate: of what is handed out, in Hz.
        seconds: length of training crops and of windows.
        hop_seconds: from the start of one window to that of the next.
        augment: random changes to training sounds, if any.
        log_mel: where spectrograms are to be made here, in the processes that read, instead of on the device: the
            encoder's own. Samples then are [1, mels, frames] instead of [1, length].
    """

    kind = SOUNDS

    def __init__(
        self,
        *,
        sample_rate: int,
        seconds: float,
        hop_seconds: float,
        augment: AudioAugment | None,
        log_mel: LogMel | None,
    ) -> None:
        for name, value in (("sample_rate", sample_rate), ("seconds", seconds), ("hop_seconds", hop_seconds)):
            if value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        self.sample_rate = sample_rate
        self.length, self.hop = round(seconds * sample_rate), round(hop_seconds * sample_rate)
        for name, value, length in (("seconds", seconds, self.length), ("hop_seconds", hop_seconds, self.hop)):
            if length < 1:
                raise ValueError(f"{name}={value} is shorter than one sample at {sample_rate} Hz")
        if hop_seconds > seconds:
            raise ValueError(f"hop_seconds={hop_seconds} is more than seconds={seconds}: windows would leave gaps")
        if log_mel is not None and log_mel.sample_rate != sample_rate:
            raise ValueError(f"sample_rate={sample_rate}, but that of log_mel is {log_mel.sample_rate}")
        self.augment = augment
        self.log_mel = log_mel

    def read(self, part: File | Float[Tensor, "1 length"], *, train: bool) -> Reading:
        """A random crop of a sound, or the whole of it in windows.

        Raises:
            UnreadableError: it cannot be read, or is silent from end to end (a constant is).
        """
        if not train:
            return self._windowed(part if isinstance(part, Tensor) else self._whole(part))
        wave = self._crop(part)
        return Reading(self._input(wave if self.augment is None else self.augment(wave, self.sample_rate)))

    def _windowed(self, wave: Float[Tensor, "1 length"]) -> Reading:
        """A sound of any length in windows, of which the last ends with the sound."""
        last = max(wave.shape[-1] - self.length, 0)
        # Clips that should be as long as a window often are a few samples longer, which are not worth one more.
        starts = [*range(0, last - self.hop // 100, self.hop), last]
        windows = [self._input(wave[:, start : start + self.length]) for start in starts]
        if len(windows) == 1:
            return Reading(windows[0])
        seconds = [(start / self.sample_rate, (start + self.length) / self.sample_rate) for start in starts]
        return Reading(torch.stack(windows), tuple(f"{start:.2f}-{stop:.2f} s" for start, stop in seconds))

    def _input(self, wave: Float[Tensor, "1 length"]) -> Tensor:
        return wave if self.log_mel is None else self.log_mel(wave)

    def _whole(self, path: File) -> Float[Tensor, "1 length"]:
        wave = SoundFile(path, self.sample_rate).read()
        if is_silent(wave):
            offset = float(wave.mean())
            but = f", but for a constant offset of {offset:.2g}" if abs(offset) > SILENCE else ""
            raise UnreadableError(f"{path}: silent from end to end{but}")
        return wave

    def _crop(self, part: File | Float[Tensor, "1 length"]) -> Float[Tensor, "1 length"]:
        """A random part, or the one in which most happens where that one is silent."""
        place = float(torch.rand(()))
        if not isinstance(part, Tensor):
            file, seconds = SoundFile(part, self.sample_rate), self.length / self.sample_rate
            if file.seconds > seconds:
                with suppress(UnreadableError):  # a part that the file only claims to have: the whole of it will tell
                    wave = file.read(place * (file.seconds - seconds), seconds)
                    if wave.shape[-1] == self.length and not is_silent(wave):
                        return wave
        wave = part if isinstance(part, Tensor) else self._whole(part)
        spare = max(wave.shape[-1] - self.length, 0)
        first = round(place * spare)
        if is_silent(wave[:, first : first + self.length]):
            # Where it changes most: with an offset, the loudest place may be in a part that stays the same.
            first = min(max(int(wave.diff().abs().argmax()) - self.length // 2, 0), spare)
        return wave[:, first : first + self.length]
