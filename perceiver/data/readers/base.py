"""What every reader is: it makes one modality of one part of an item."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from perceiver.data.files import File, FileKind

InMemory = TypeVar("InMemory")


@dataclass(frozen=True)
class Reading:
    """What a reader made of a part.

    Attributes:
        values: a raw input as its encoder takes it, channels first; with `windows` these are one more dimension in
            front.
        windows: names of the windows, where it is read in several.
    """

    values: Tensor
    windows: tuple[str, ...] = ()


class Reader(ABC, Generic[InMemory]):
    """Reads files of one kind, and what sources that have no files hold in memory instead.

    Attributes:
        kind: of file.
    """

    kind: FileKind

    @abstractmethod
    def read(self, part: File | InMemory, *, train: bool) -> Reading:
        """What is in a part, prepared for evaluation, or with what is random if `train`.

        What is random draws from torch's global generator only.

        Raises:
            UnreadableError: it is missing or is not of the kind.
        """

    def pieces(self, raw: Tensor) -> list[str] | None:
        """What the places of a raw input stand for, where it is text."""
        return None
