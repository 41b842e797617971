"""The interface of readers: each makes one modality of a sample from one part of its item."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from perceiver.data.files import File, FileKind

InMemory = TypeVar("InMemory")


@dataclass(frozen=True)
class Reading:
    """The raw input that a reader made.

    Attributes:
        values: the input of the encoder, channels first; with `windows`, these are an additional first dimension.
        windows: names of the windows, if there are several.
    """

    values: Tensor
    windows: tuple[str, ...] = ()


class Reader(ABC, Generic[InMemory]):
    """Reads files of one kind, or the in-memory parts of sources without files.

    Attributes:
        kind: of file.
    """

    kind: FileKind

    @abstractmethod
    def read(self, part: File | InMemory, *, train: bool) -> Reading:
        """Read a part, with random crops and augmentation if `train`, drawn from torch's global generator only.

        Raises:
            UnreadableError: the file is missing or not of the kind.
        """

    def pieces(self, raw: Tensor) -> list[str] | None:
        """Return the text of each position of a raw input, None if it is not text."""
        return None
