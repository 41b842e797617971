"""Sounds as waveforms or spectrograms: random crops and augmentation in training, windows in evaluation."""

from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.files import SOUNDS, File, UnreadableError
from perceiver.data.readers.base import Reader, Reading
from perceiver.data.readers.sound_file import SoundFile
from perceiver.spectrogram import LogMel

SILENCE = 1e-5
"""Largest deviation from the mean of a silent sound: -100 dB of full scale."""


def is_silent(wave: Float[Tensor, "1 length"]) -> bool:
    """Return whether a wave is constant, apart from deviations below `SILENCE`."""
    # In double precision: a floating-point wav may hold large integers.
    return bool((wave - wave.mean(dtype=torch.float64)).abs().max() < SILENCE)


class AudioAugment:
    """Random changes to a training sound.

    Args:
        gain: largest change of level, in dB, up or down.
        time_shift: largest circular shift, in seconds.
        polarity: probability that the wave is inverted.
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
    """Sounds of any length: files of any sample rate and number of channels, or waves in memory at `sample_rate`.

    Training reads a random crop of `seconds`. Evaluation reads windows of that length, whose predictions the task
    averages. A shorter sound is kept as it is.

    Args:
        sample_rate: of the output, in Hz.
        seconds: length of crops and windows.
        hop_seconds: from the start of one window to that of the next.
        augment: random changes to training sounds, if any.
        log_mel: computes spectrograms in the loader's workers instead of on the device, if given: the encoder's own.
            The output is then [1, mels, frames] instead of [1, length].
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
            if name != "sample_rate" and round(value * sample_rate) < 1:
                raise ValueError(f"{name}={value} is shorter than one sample at {sample_rate} Hz")
        if hop_seconds > seconds:
            raise ValueError(f"hop_seconds={hop_seconds} is more than seconds={seconds}: windows would leave gaps")
        if log_mel is not None and log_mel.sample_rate != sample_rate:
            raise ValueError(f"sample_rate={sample_rate} must be that of log_mel, {log_mel.sample_rate}")
        self.sample_rate = sample_rate
        self.length, self.hop = round(seconds * sample_rate), round(hop_seconds * sample_rate)
        self.augment = augment
        self.log_mel = log_mel

    def read(self, part: File | Float[Tensor, "1 length"], *, train: bool) -> Reading:
        """Read a random crop of a sound, or all of it in windows.

        Raises:
            UnreadableError: the file cannot be read, or the sound is silent (constant) from beginning to end.
        """
        if not train:
            return self._windows(part if isinstance(part, Tensor) else self._read_all(part))
        wave = self._crop(part)
        return Reading(self._features(wave if self.augment is None else self.augment(wave, self.sample_rate)))

    def _windows(self, wave: Float[Tensor, "1 length"]) -> Reading:
        """Divide a sound into windows, of which the last ends with the sound."""
        last = max(wave.shape[-1] - self.length, 0)
        # A remainder of less than 1 % of the hop gets no window of its own: clips are often a few samples too long.
        starts = [*range(0, last - self.hop // 100, self.hop), last]
        windows = [self._features(wave[:, start : start + self.length]) for start in starts]
        if len(windows) == 1:
            return Reading(windows[0])
        seconds = [(start / self.sample_rate, (start + self.length) / self.sample_rate) for start in starts]
        return Reading(torch.stack(windows), tuple(f"{start:.2f}-{stop:.2f} s" for start, stop in seconds))

    def _features(self, wave: Float[Tensor, "1 length"]) -> Tensor:
        return wave if self.log_mel is None else self.log_mel(wave)

    def _read_all(self, path: File) -> Float[Tensor, "1 length"]:
        wave = SoundFile(path, self.sample_rate).read()
        if is_silent(wave):
            offset = float(wave.mean())
            suffix = f", with a constant offset of {offset:.2g}" if abs(offset) > SILENCE else ""
            raise UnreadableError(f"{path}: silent from end to end{suffix}")
        return wave

    def _crop(self, part: File | Float[Tensor, "1 length"]) -> Float[Tensor, "1 length"]:
        """Return a random crop, or the one around the largest change if that is silent."""
        position = float(torch.rand(()))
        if not isinstance(part, Tensor):
            file, seconds = SoundFile(part, self.sample_rate), self.length / self.sample_rate
            if file.seconds > seconds:
                with suppress(UnreadableError):  # the header may declare more than there is; then all of it is read
                    wave = file.read(position * (file.seconds - seconds), seconds)
                    if wave.shape[-1] == self.length and not is_silent(wave):
                        return wave
        wave = part if isinstance(part, Tensor) else self._read_all(part)
        spare = max(wave.shape[-1] - self.length, 0)
        first = round(position * spare)
        if is_silent(wave[:, first : first + self.length]):
            # The largest change, not the largest value: with an offset, the loudest part may be constant.
            first = min(max(int(wave.diff().abs().argmax()) - self.length // 2, 0), spare)
        return wave[:, first : first + self.length]
