"""The interface of readers: each makes one modality of a sample from one part of its item."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from perceiver.data.files import File, FileKind

InMemory = TypeVar("InMemory")


@dataclass(frozen=True)
class Clips:
    """Parts of a recording, of equal length: one in training, or the windows of all of it.

    Attributes:
        starts: of each part, in seconds.
        seconds: length of each part.
    """

    starts: tuple[float, ...]
    seconds: float

    @property
    def windows(self) -> tuple[str, ...]:
        """Names of the parts, if there are several."""
        if len(self.starts) == 1:
            return ()
        return tuple(f"{start:.2f}-{start + self.seconds:.2f} s" for start in self.starts)


@dataclass(frozen=True)
class Reading:
    """The raw input that a reader made.

    Attributes:
        values: the input of the encoder, channels first; with several clips, these are an additional first dimension.
        clips: the times that were read, of a recording.
        targets: what the part also has of the truth, cropped and turned like the input; by name.
    """

    values: Tensor
    clips: Clips | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_clips(cls, values: Sequence[Tensor], clips: Clips) -> Self:
        """Return the values of each clip, with a dimension of clips if there are several."""
        return cls(torch.stack(list(values)) if len(values) > 1 else values[0], clips)

    @property
    def windows(self) -> tuple[str, ...]:
        """Names of the clips, if there are several."""
        return () if self.clips is None else self.clips.windows


class Reader(ABC, Generic[InMemory]):
    """Reads files of one kind, or the in-memory parts of sources without files.

    Attributes:
        kind: of file.
        target: name of the target that is read in place of a part, if it is one.
    """

    kind: FileKind
    target: str | None = None

    @abstractmethod
    def read(self, part: File | InMemory, *, train: bool, clips: Clips | None = None) -> Reading:
        """Read a part, with random crops and augmentation if `train`, drawn from torch's global generator only.

        Args:
            part: what is read.
            train: whether the sample is for training.
            clips: of a recording that belongs to the same sample and was read before. A reader of recordings reads the
                same times; others ignore them.

        Raises:
            UnreadableError: the file is missing or not of the kind.
            AbsentError: it is of the kind but lacks the modality.
        """

    def decoded(self, part: File) -> InMemory | None:
        """Return a file as a part in memory of which `read` makes the same without `clips`; None if no part does.

        Raises:
            UnreadableError: as `read`.
        """
        return None

    def pieces(self, raw: Tensor) -> list[str] | None:
        """Return the text of each position of a raw input, None if it is not text."""
        return None


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Return the starts of windows over a recording, of which the last ends with the recording.

    A remainder of less than 1 % of the hop gets no window of its own: clips are often a few samples too long.
    """
    last = max(length - window, 0)
    return [*range(0, last - hop // 100, hop), last]
