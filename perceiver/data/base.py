"""What every data set is: named splits of samples, and a reader for a user's own files."""

import logging
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from perceiver.types import Sample, Stage, writable

OnError: TypeAlias = Literal["raise", "skip"]


log = logging.getLogger(__name__)
_told: set[str] = set()


def warn_once(kind: str, message: str) -> None:
    """Warn of a file, once in this process for each kind of fault: many files of a data set may have the same."""
    if kind not in _told:
        _told.add(kind)
        log.warning("%s (said once; others may be of its kind)", message)


class UnreadableError(Exception):
    """A sample cannot be read; the message names the file and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(writable(message))


class Source(Protocol):
    """What a sample is read from: a file, or a part of one; errors name it by its `str`."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


def refuse_special(source: Source) -> None:
    """Refuse pipes and devices, on which reading might wait or go on for ever; whatever else is wrong, opening tells.

    Raises:
        UnreadableError: it is one.
    """
    if not isinstance(source, Path):
        return
    try:
        mode = source.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableError(f"{source}: a pipe or a device, and no file")


class Split(Protocol):
    """One part of a data set, by index. What is random in `__getitem__` draws from torch's global generator only."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def classes_of(self, index: int) -> Sequence[int]:
        """The classes of a sample, told without reading it; for sampling that evens them out."""
        ...


class Dataset(ABC):
    """A data set. Building one touches no disk; `split` does.

    Args:
        num_classes: how many classes it must turn out to have, 0 for none; model and task are sized by it.
        on_error: what happens to a sample that cannot be read: `raise` ends the run, `skip` names it, counts it and
            leaves it out.

    Attributes:
        file_endings: of the files of a folder that `read` takes, in lower case; empty for all.
    """

    file_endings: Collection[str] = frozenset()

    def __init__(self, *, num_classes: int, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be raise or skip")
        self.num_classes = num_classes
        self.on_error = on_error

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""

    @abstractmethod
    def split(self, stage: Stage) -> Split | None:
        """The samples of a stage, or None if the data set has none for it."""

    @abstractmethod
    def read(self, path: Path) -> Sample:
        """A user's file as a sample without targets, prepared as for evaluation.

        Raises:
            UnreadableError: the file is missing or is not what this data set holds.
        """

    def texts(self) -> Iterable[str]:
        """The texts of the training samples, from which a tokenizer learns its vocabulary.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"{type(self).__name__} has no texts from which a tokenizer could learn its vocabulary")

    def pieces(self, modality: str, raw: Tensor) -> list[str] | None:
        """What the places of a sample's input stand for, where that is text."""
        return None

    def prepare(self) -> None:  # noqa: B027  (most data sets have nothing to prepare)
        """Download what is missing. Called once per machine, before any split is asked for."""


class FileDataset(Dataset):
    """A data set each of whose samples is, or could be, made of a file."""

    @abstractmethod
    def file_sample(self, source: Source, targets: dict[str, Any], id: str, *, train: bool) -> Sample:
        """What is in a file, with what is random if `train`.

        Raises:
            UnreadableError: it is missing or is not what this data set holds.
        """

    def read(self, path: Path) -> Sample:
        return self.file_sample(path, {}, str(path), train=False)


class FileSplit(ABC):
    """A split of samples that are made of a file each."""

    @abstractmethod
    def file(self, index: int) -> tuple[Source, dict[str, Any]]:
        """What a sample is made of: its file, and `label`, `tags` or `references`.

        Raises:
            UnreadableError: it lacks one of them.
        """


def stratified_split(
    labels: Int[Tensor, " samples"], fraction: float, seed: int
) -> tuple[Int[Tensor, " rest"], Int[Tensor, " part"]]:
    """Indices of a random part that holds `fraction` of every class, rounded, and of the rest; both in ascending order.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"a fraction of {fraction} of the data cannot be split off; it must be in [0, 1)")
    generator = torch.Generator().manual_seed(seed)
    in_part = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        in_part[members[: round(fraction * len(members))]] = True
    return (~in_part).nonzero().flatten(), in_part.nonzero().flatten()
