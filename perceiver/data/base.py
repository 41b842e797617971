"""What every data set is: named splits of samples, and a reader for a user's own files."""

import hashlib
import logging
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

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

    def name_of(self, index: int) -> str:
        """What a sample is called wherever the data set lies, told without reading it: samples are recognised by it."""
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


def _hashed(name: str, purpose: str) -> int:
    """A number of 64 bits that depends on a name and on what it is for, and on nothing else."""
    digest = hashlib.blake2b(f"{purpose}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def position_of(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on a name and on what it is drawn for, and on nothing else."""
    return (_hashed(name, purpose) >> 11) / 2**53  # as many bits as a float has


def fingerprint_of(name: str) -> int:
    """A number of 63 bits by which a name is told from others."""
    return _hashed(name, "fingerprint") >> 1


def split_by_name(names: Sequence[str], fraction: float, purpose: str) -> tuple[list[int], list[int]]:
    """Indices of about `fraction` of the samples, and of the others before them, both in ascending order.

    Whether a sample belongs to the part depends on its own name alone, so that samples that are added or removed move
    no other. Of few samples there is at least one in the part, if it is wanted at all, and one that is left.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"a fraction of {fraction} of the data cannot be split off; it must be in [0, 1)")
    positions = [position_of(name, purpose) for name in names]
    part = [index for index, position in enumerate(positions) if position < fraction]
    if names and fraction and len(part) in (0, len(names)):
        by_position = sorted(range(len(names)), key=positions.__getitem__)
        part = sorted({*part, by_position[0]} - {by_position[-1]})
    inside = set(part)
    return [index for index in range(len(names)) if index not in inside], part


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Which samples of a set without splits of its own are held out, by their names (`split_by_name`).

    Args:
        val_fraction: share of the training samples that is kept for validation; 0 for none.
        test_fraction: share of all samples that is kept for testing; 0 for none.
        fold: the part, from 1 to `num_folds`, that is tested instead, for cross-validation; None for `test_fraction`.
        num_folds: how many such parts there are.

    Raises:
        ValueError: any of them is out of range.
    """

    val_fraction: float
    test_fraction: float
    fold: int | None
    num_folds: int

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.num_folds < 2:
            raise ValueError(f"num_folds={self.num_folds} must be at least 2")
        if self.fold is not None and not 1 <= self.fold <= self.num_folds:
            raise ValueError(f"fold={self.fold} must be 1 to num_folds={self.num_folds}")

    def parts(self, names: Sequence[str]) -> dict[Stage, list[int]]:
        """Indices of the samples of each stage, in ascending order."""
        if self.fold is None:
            rest, test = split_by_name(names, self.test_fraction, "test")
        else:
            folds = [int(position_of(name, "fold") * self.num_folds) + 1 for name in names]
            rest, test = ([i for i, fold in enumerate(folds) if (fold == self.fold) == held] for held in (False, True))
        train, val = self.without_test([names[index] for index in rest])
        return {"train": [rest[index] for index in train], "val": [rest[index] for index in val], "test": test}

    def without_test(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Indices of the samples for training and for validation where there is a test set already."""
        return split_by_name(names, self.val_fraction, "val")
