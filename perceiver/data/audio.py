"""Sounds as samples: crops, windows, augmentation, and the base of all sound data sets."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.base import FileDataset, FileSplit, OnError, Source, UnreadableError
from perceiver.data.sound_file import SOUND_EXTENSIONS, SoundFile
from perceiver.spectrogram import LogMel
from perceiver.types import Sample

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


class Clips:
    """How a file of sound, of any length, rate and number of channels, becomes a sample with one input, `audio`.

    In training a random part of `seconds` is cut out of it. In evaluation it is looked at in windows of that length,
    whose scores the task averages. A clip that is shorter stays as it is.

    Args:
        sample_rate: of what is handed out, in Hz.
        seconds: length of training crops and of windows.
        hop_seconds: from the start of one window to that of the next.
        augment: random changes to training sounds, if any.
        log_mel: where spectrograms are to be made here, in the processes that read, instead of on the device: the
            encoder's own. Samples then are [1, mels, frames] instead of [1, length].
    """

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

    def training(self, path: Source, targets: dict[str, Any], id: str) -> Sample:
        """A random crop of a file.

        Raises:
            UnreadableError: it cannot be read, or is silent from end to end (a constant is).
        """
        return self.augmented(self._crop(path), targets, id)

    def evaluation(self, path: Source, targets: dict[str, Any], id: str) -> Sample:
        """A whole file, in windows; errors as in `training`."""
        return self.windowed(self._whole(path), targets, id)

    def augmented(self, wave: Float[Tensor, "1 length"], targets: dict[str, Any], id: str) -> Sample:
        """A training sound as it is, with what is random."""
        if self.augment is not None:
            wave = self.augment(wave, self.sample_rate)
        return Sample(inputs={"audio": self._input(wave)}, targets=targets, id=id)

    def windowed(self, wave: Float[Tensor, "1 length"], targets: dict[str, Any], id: str) -> Sample:
        """A sound of any length in windows, of which the last ends with the sound."""
        last = max(wave.shape[-1] - self.length, 0)
        # Clips that should be as long as a window often are a few samples longer, which are not worth one more.
        starts = [*range(0, last - self.hop // 100, self.hop), last]
        windows = [self._input(wave[:, start : start + self.length]) for start in starts]
        if len(windows) == 1:
            return Sample(inputs={"audio": windows[0]}, targets=targets, id=id)
        seconds = [(start / self.sample_rate, (start + self.length) / self.sample_rate) for start in starts]
        names = tuple(f"{start:.2f}-{stop:.2f} s" for start, stop in seconds)
        return Sample(inputs={"audio": torch.stack(windows)}, targets=targets, id=id, views=names)

    def _input(self, wave: Float[Tensor, "1 length"]) -> Tensor:
        return wave if self.log_mel is None else self.log_mel(wave)

    def _whole(self, path: Source) -> Float[Tensor, "1 length"]:
        wave = SoundFile(path, self.sample_rate).read()
        if is_silent(wave):
            offset = float(wave.mean())
            but = f", but for a constant offset of {offset:.2g}" if abs(offset) > SILENCE else ""
            raise UnreadableError(f"{path}: silent from end to end{but}")
        return wave

    def _crop(self, path: Source) -> Float[Tensor, "1 length"]:
        """A random part, or the one in which most happens where that one is silent."""
        file = SoundFile(path, self.sample_rate)
        seconds = self.length / self.sample_rate
        place = float(torch.rand(()))
        if file.seconds > seconds:
            with suppress(UnreadableError):  # a part that the file only claims to have: the whole of it will tell
                wave = file.read(place * (file.seconds - seconds), seconds)
                if wave.shape[-1] == self.length and not is_silent(wave):
                    return wave
        wave = self._whole(path)
        spare = max(wave.shape[-1] - self.length, 0)
        first = round(place * spare)
        if is_silent(wave[:, first : first + self.length]):
            # Where it changes most: with an offset, the loudest place may be in a part that stays the same.
            first = min(max(int(wave.diff().abs().argmax()) - self.length // 2, 0), spare)
        return wave[:, first : first + self.length]


class AudioDataset(FileDataset):
    """A data set whose samples have one modality, `audio`.

    Args:
        num_classes, on_error: see `Dataset`.
        clips: how files become samples.
    """

    file_endings = SOUND_EXTENSIONS

    def __init__(self, *, num_classes: int, on_error: OnError, clips: Clips) -> None:
        super().__init__(num_classes=num_classes, on_error=on_error)
        self.clips = clips

    @property
    @abstractmethod
    def class_names(self) -> list[str]: ...

    def file_sample(self, source: Source, targets: dict[str, Any], id: str, *, train: bool) -> Sample:
        return (self.clips.training if train else self.clips.evaluation)(source, targets, id)


class ClipFiles(FileSplit):
    """A split of files on disk.

    Args:
        clips: how they become samples.
        root: ids are paths below it.
        paths: the files; plain strings, because a million paths fill the memory of every worker.
        labels: the classes of each; one each, or any number where `num_classes` is given.
        num_classes: None where each file has one class: samples then have the target `label`, otherwise `tags`.
        train: whether samples are made for training.
    """

    def __init__(
        self,
        *,
        clips: Clips,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[Sequence[int]],
        num_classes: int | None,
        train: bool,
    ) -> None:
        self.clips = clips
        self.root = root
        self.paths = paths
        self.labels = labels
        self.num_classes = num_classes
        self.make = clips.training if train else clips.evaluation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path, targets = self.file(index)
        return self.make(path, targets, self.name_of(index))

    def file(self, index: int) -> tuple[Path, dict[str, Any]]:
        path, labels = Path(self.paths[index]), self.labels[index]
        if self.num_classes is None:
            return path, {"label": labels[0]}
        return path, {"tags": multi_hot(labels, self.num_classes)}

    def classes_of(self, index: int) -> Sequence[int]:
        return self.labels[index]

    def name_of(self, index: int) -> str:
        return str(Path(self.paths[index]).relative_to(self.root))


def multi_hot(labels: Sequence[int], num_classes: int) -> Float[Tensor, " classes"]:
    """Which classes apply, as the target `tags`."""
    tags = torch.zeros(num_classes)
    tags[list(labels)] = 1.0
    return tags
