"""The base class of all sources: a source knows a layout and lists items, whose parts readers turn into inputs."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.files import File, FileKind, FramePair, Joined, Segmented
from perceiver.types import Stage

OnError: TypeAlias = Literal["raise", "skip"]
Part: TypeAlias = File | FramePair | Joined | Segmented | Tensor | str
"""What a reader turns into one modality: a file, a part of one, or a value in memory."""
Roles: TypeAlias = Mapping[str, FileKind]
"""The roles that have a reader, named like its modality, and the kind of file that is read for each."""


@dataclass(frozen=True)
class Item:
    """A sample before any of it is read.

    Attributes:
        parts: role -> what is to be read; roles that the sample lacks are absent.
        targets: see `perceiver.types.Sample`. With `references` but no `caption`, one of them becomes the caption when
            the sample is read.
        id: where it comes from (a path, or `digits/17`).
    """

    parts: Mapping[str, Part]
    targets: Mapping[str, Any]
    id: str


class Items(Protocol):
    """The items of one stage, by index. Randomness in an item comes from torch's global generator only.

    A list of `Item` is sufficient. Items that are expensive to make may have more members, which need none:
    `sample_classes(index)`, the classes of a sample (default: those of its targets); `sample_name(index)`, a name that
    identifies the sample wherever the data is stored (default: its `id`); `sample_length(index)`, its length in any
    unit, for batches of similar lengths (default: that of its first reference, in a list or an `ItemTable`); and
    `roles`, those of which any item has a part (default: found by a search).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


class Source(ABC):
    """The samples of a data set. The constructor does not access the disk; the methods do.

    Args:
        num_classes: number of classes, 0 for none; determines the size of model and task.
    """

    def __init__(self, *, num_classes: int = 0) -> None:
        self.num_classes = num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return []

    @abstractmethod
    def items(self, stage: Stage, roles: Roles) -> Items | None:
        """Return the items of a stage, or None if there are none.

        Raises:
            FileNotFoundError: required files do not exist.
            UnreadableError: a file that lists them is damaged.
            ValueError: the settings do not match the files.
        """

    def texts(self, *, on_error: OnError) -> Iterable[str]:
        """Return the texts of the training samples, from which a tokenizer learns its vocabulary.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"{type(self).__name__} has no texts from which a tokenizer could learn its vocabulary")

    def text_pairs(self) -> Iterable[tuple[str, str]]:
        """Return an input and a target text of each training sample, for a tokenizer of each.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"{type(self).__name__} has no pairs of texts from which two tokenizers could learn")

    def prepare(self) -> None:  # noqa: B027  (most sources have nothing to prepare)
        """Download missing files. Called once per machine, before `items`."""


@dataclass(frozen=True)
class FilePaths:
    """The paths of files below a root, by index; None for an empty name.

    Stored as strings, since a million `Path` objects would fill the memory of every worker.
    """

    root: Path
    names: Sequence[str]

    def __getitem__(self, index: int) -> Path | None:
        return self.root / self.names[index] if self.names[index] else None


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Items stored by column, with one kind of target: one class each, any number of classes, or captions.

    Attributes:
        ids: the id of each item.
        parts: role -> the part of each item.
        labels: the class of each item, the target `label`.
        tags: the classes of each item, the target `tags` of `num_classes` values.
        references: the captions of each item, the target `references`.
    """

    ids: Sequence[str]
    parts: Mapping[str, FilePaths | Tensor]
    labels: Sequence[int] | None = None
    tags: Sequence[Sequence[int]] | None = None
    num_classes: int = 0
    references: Sequence[Sequence[str]] | None = None

    @classmethod
    def of_files(cls, root: Path, names: Mapping[str, Sequence[str]], **targets: Any) -> "ItemTable":
        """Make items of files, given by role as paths below `root`: the ids, without ending if there are several roles.

        An empty path stands for an item without a file of that role.
        """
        columns = list(names.values())
        ids = columns[0]
        if len(columns) > 1:
            ids = [os.path.splitext(next(filter(None, row)))[0] for row in zip(*columns, strict=True)]
        return cls(ids=ids, parts={role: FilePaths(root, column) for role, column in names.items()}, **targets)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        parts = {role: part for role, column in self.parts.items() if (part := column[index]) is not None}
        return Item(parts, self._targets(index), self.ids[index])

    @property
    def roles(self) -> list[str]:
        return [role for role, parts in self.parts.items() if isinstance(parts, Tensor) or any(parts.names)]

    def _targets(self, index: int) -> dict[str, Any]:
        if self.labels is not None:
            return {"label": self.labels[index]}
        if self.tags is not None:
            return {"tags": multi_hot(self.tags[index], self.num_classes)}
        return {} if self.references is None else {"references": list(self.references[index])}

    def sample_classes(self, index: int) -> Sequence[int]:
        if self.labels is not None:
            return [self.labels[index]]
        return self.tags[index] if self.tags is not None else ()

    def sample_name(self, index: int) -> str:
        return self.ids[index]

    def subset(self, indices: Sequence[int]) -> "ItemTable | None":
        """Return some of the items, or None if there are no indices."""
        if not indices:
            return None

        def rows(column: Any) -> Any:
            if isinstance(column, FilePaths):
                return FilePaths(column.root, rows(column.names))
            if isinstance(column, Tensor):
                return column[torch.tensor(indices)]
            return None if column is None else [column[index] for index in indices]

        return ItemTable(
            ids=rows(self.ids),
            parts={role: rows(parts) for role, parts in self.parts.items()},
            labels=rows(self.labels),
            tags=rows(self.tags),
            num_classes=self.num_classes,
            references=rows(self.references),
        )


def multi_hot(labels: Sequence[int], num_classes: int) -> Float[Tensor, " classes"]:
    """Return 1 for each of the labels and 0 for all other classes, as in the target `tags`."""
    tags = torch.zeros(num_classes)
    tags[list(labels)] = 1.0
    return tags


def classes_in(targets: Mapping[str, Any]) -> Sequence[int]:
    """Return the classes in the targets of a sample: those of `tags`, or else `label`, if any."""
    if "tags" in targets:
        return targets["tags"].nonzero().flatten().tolist()
    return [targets["label"]] if "label" in targets else ()
