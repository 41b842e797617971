"""Sounds as waveforms or spectrograms: random crops and augmentation in training, windows in evaluation."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.data.files import SOUNDS, File, Joined, UnreadableError
from perceiver.data.readers.base import Clips, Reader, Reading, window_starts
from perceiver.data.readers.sound_file import SoundFile
from perceiver.spectrogram import LogMel

SILENCE = 1e-5
"""Largest deviation from the mean of a silent sound: -100 dB of full scale."""
MAX_EXCESS = 1.1
"""Length of a sound that is decoded as a whole, in lengths of a crop: clips are often a little too long."""


def is_silent(wave: Float[Tensor, "1 length"]) -> bool:
    """Return whether a wave is constant, apart from deviations below `SILENCE`."""
    low, high = wave.aminmax()
    if high - low >= 2.0 * SILENCE:  # one of the two deviates by half of that; nearly all sounds end here
        return False
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
    averages. A shorter sound is kept as it is. The sound of a video is read at the times of its frames, silence
    included.

    Args:
        sample_rate: of the output, in Hz.
        seconds: length of crops and windows.
        hop_seconds: from the start of one window to that of the next.
        augment: random changes to training sounds, if any.
        whole: whether a sound longer than `seconds` is refused, as where the target is a transcript of all of it.
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
        whole: bool = False,
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
        self.whole = whole

    def read(
        self, part: File | Joined | Float[Tensor, "1 length"], *, train: bool, clips: Clips | None = None
    ) -> Reading:
        """Read a random crop of a sound, all of it in windows, or the times of `clips`.

        Raises:
            UnreadableError: the file cannot be read, the sound is silent (constant) from beginning to end, or longer
                than `seconds` although it must be read as a whole.
            AbsentError: the file has no sound.
        """
        if self.whole and clips is None:
            part = self._read_whole(part)
        elif isinstance(part, Joined):
            part = self._join(part)
        if clips is not None:
            return self._read_at(part, clips, train=train)
        if train:
            wave, first = self._crop(part)
            return Reading(self._augmented(wave), self._clips([first], wave.shape[-1]))
        wave = part if isinstance(part, Tensor) else self._read_all(SoundFile(part, self.sample_rate))
        starts = window_starts(wave.shape[-1], self.length, self.hop)
        windows = [self._features(wave[:, start : start + self.length]) for start in starts]
        return Reading.of_clips(windows, self._clips(starts, min(self.length, wave.shape[-1])))

    def decoded(self, part: File | Joined) -> Float[Tensor, "1 length"] | None:
        """Return a short sound; of a longer one, only the part that is read is decoded and resampled."""
        if isinstance(part, Joined):
            wave = self._join(part)
            return None if self.whole and self._is_too_long(wave.shape[-1] / self.sample_rate) else wave
        file = SoundFile(part, self.sample_rate)
        is_kept = not self._is_too_long(file.seconds) if self.whole else self._is_short(file)
        return self._read_all(file) if is_kept else None

    def _is_short(self, file: SoundFile) -> bool:
        """Return whether a sound is decoded as a whole, also for a crop."""
        return file.seconds <= MAX_EXCESS * self.length / self.sample_rate

    def _is_too_long(self, seconds: float) -> bool:
        """Return whether a sound is refused if it must be read as a whole: by more than a hundredth of a second."""
        return seconds > self.length / self.sample_rate + 0.01

    def _clips(self, starts: Sequence[int], length: int) -> Clips:
        return Clips(tuple(start / self.sample_rate for start in starts), length / self.sample_rate)

    def _read_at(self, part: File | Float[Tensor, "1 length"], clips: Clips, *, train: bool) -> Reading:
        """Read the times of clips, with zeros after the end of the sound."""
        length = min(round(clips.seconds * self.sample_rate), self.length)
        begin = clips.starts[0]
        if isinstance(part, Tensor):
            wave = part[:, round(begin * self.sample_rate) :]
        else:
            file = SoundFile(part, self.sample_rate)
            seconds = min(clips.starts[-1] - begin + length / self.sample_rate, file.seconds - begin)
            wave = file.read(begin, seconds) if seconds * file.file_rate >= 1 else torch.zeros(1, 0)
        waves = []
        for start in clips.starts:
            first = round((start - begin) * self.sample_rate)
            clip = wave[:, first : first + length]
            waves.append(F.pad(clip, (0, length - clip.shape[-1])) if clip.shape[-1] < length else clip)
        if train:
            return Reading(self._augmented(waves[0]), clips)
        return Reading.of_clips([self._features(wave) for wave in waves], clips)

    def _augmented(self, wave: Float[Tensor, "1 length"]) -> Tensor:
        return self._features(wave if self.augment is None else self.augment(wave, self.sample_rate))

    def _features(self, wave: Float[Tensor, "1 length"]) -> Tensor:
        return wave if self.log_mel is None else self.log_mel(wave)

    def _read_all(self, file: SoundFile) -> Float[Tensor, "1 length"]:
        wave = file.read()
        if is_silent(wave):
            offset = float(wave.mean())
            suffix = f", with a constant offset of {offset:.2g}" if abs(offset) > SILENCE else ""
            raise UnreadableError(f"{file.path}: silent from end to end{suffix}")
        return wave

    def _join(self, part: Joined) -> Float[Tensor, "1 length"]:
        waves = [self._read_all(SoundFile(file, self.sample_rate)) for file in part.files]
        first, *pauses = [torch.zeros(1, round(seconds * self.sample_rate)) for seconds in part.pauses]
        return torch.cat([first, *(one for pair in zip(waves, pauses, strict=True) for one in pair)], dim=1)

    def _read_whole(self, part: File | Joined | Float[Tensor, "1 length"]) -> Float[Tensor, "1 length"]:
        """Read a sound that must not be longer than `seconds`."""
        name = "the sound" if isinstance(part, Tensor) else str(part)
        if isinstance(part, Joined):
            part = self._join(part)
        if isinstance(part, Tensor):
            seconds = part.shape[-1] / self.sample_rate
        else:
            file = SoundFile(part, self.sample_rate)
            seconds = file.seconds
        if self._is_too_long(seconds):
            raise UnreadableError(
                f"{name}: {seconds:.2f} s are longer than seconds={self.length / self.sample_rate:g} of its reader, "
                "but it must be read as a whole"
            )
        return (part if isinstance(part, Tensor) else self._read_all(file))[:, : self.length]

    def _crop(self, part: File | Float[Tensor, "1 length"]) -> tuple[Float[Tensor, "1 length"], int]:
        """Return a random crop and its first sample, or the one around the largest change if that is silent."""
        position = float(torch.rand(()))
        if not isinstance(part, Tensor):
            file, seconds = SoundFile(part, self.sample_rate), self.length / self.sample_rate
            if not self._is_short(file):
                with suppress(UnreadableError):  # the header may declare more than there is; then all of it is read
                    start = position * (file.seconds - seconds)
                    wave = file.read(start, seconds)
                    if wave.shape[-1] == self.length and not is_silent(wave):
                        return wave, round(start * self.sample_rate)
        wave = part if isinstance(part, Tensor) else self._read_all(file)
        spare = max(wave.shape[-1] - self.length, 0)
        first = round(position * spare)
        if spare and is_silent(wave[:, first : first + self.length]):
            # The largest change, not the largest value: with an offset, the loudest part may be constant.
            first = min(max(int(wave.diff().abs().argmax()) - self.length // 2, 0), spare)
        return wave[:, first : first + self.length], first
