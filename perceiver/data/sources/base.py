"""What every source of samples is: it knows a layout, and hands out items whose parts readers make inputs of."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from perceiver.data.files import File, FileKind
from perceiver.types import Stage

OnError: TypeAlias = Literal["raise", "skip"]
Part: TypeAlias = File | Tensor | str
"""What a reader makes one modality of: a file or a part of one, or what lies in memory as it is."""
Roles: TypeAlias = Mapping[str, FileKind]
"""The roles that have a reader, which are called as its modality, and the kind of file that is read for each."""


@dataclass(frozen=True)
class Item:
    """A sample as its source has it, before anything of it is read.

    Attributes:
        parts: role -> what is to be read; a role that the sample lacks is left out.
        targets: see `perceiver.types.Sample`. Of `references` alone a caption is chosen when the sample is made.
        id: where it comes from (a path, or `digits/17`).
    """

    parts: Mapping[str, Part]
    targets: Mapping[str, Any]
    id: str


class Items(Protocol):
    """The items of one stage, by index. What is random in one draws from torch's global generator only.

    A list of `Item` will do. Others may have two methods more, which tell without making an item: `classes_of(index)`,
    the classes of a sample, for sampling that evens them out, and `name_of(index)`, what a sample is called wherever
    the data lies, by which it is recognised; otherwise these are the classes in its targets and its `id`. They may also
    have an attribute `roles`, the roles of which any item has a part; otherwise these are searched for.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


class Source(ABC):
    """Where samples come from. Building one touches no disk; the methods do.

    Args:
        num_classes: how many classes there are, 0 for none; model and task are sized by it.
    """

    def __init__(self, *, num_classes: int = 0) -> None:
        self.num_classes = num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return []

    @abstractmethod
    def items(self, stage: Stage, roles: Roles) -> Items | None:
        """The items of a stage, or None if there are none.

        Raises:
            FileNotFoundError: what is needed is not there.
            UnreadableError: what lists them is damaged.
            ValueError: the settings do not fit what is there.
        """

    def texts(self, *, on_error: OnError) -> Iterable[str]:
        """The texts of the training samples, from which a tokenizer learns its vocabulary.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"{type(self).__name__} has no texts from which a tokenizer could learn its vocabulary")

    def prepare(self) -> None:  # noqa: B027  (most sources have nothing to prepare)
        """Download what is missing. Called once per machine, before any items are asked for."""


@dataclass(frozen=True, kw_only=True)
class FileItems:
    """Items that are files on disk, with one kind of target: classes, one or any number each, or captions.

    Attributes:
        root: ids are paths below it.
        files: role -> the file of each item, empty where it has none of the role. Plain strings, because a million
            paths fill the memory of every worker.
        labels: the class of each item, the target `label`.
        tags: the classes of each item, the target `tags`.
        num_classes: how many `tags` tell of.
        references: the captions of each item, the target `references`.
    """

    root: Path
    files: Mapping[str, Sequence[str]]
    labels: Sequence[int] | None = None
    tags: Sequence[Sequence[int]] | None = None
    num_classes: int = 0
    references: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.files.values())))

    def __getitem__(self, index: int) -> Item:
        parts = {role: Path(paths[index]) for role, paths in self.files.items() if paths[index]}
        return Item(parts, self._targets(index), self.name_of(index))

    @property
    def roles(self) -> list[str]:
        return [role for role, paths in self.files.items() if any(paths)]

    def _targets(self, index: int) -> dict[str, Any]:
        if self.labels is not None:
            return {"label": self.labels[index]}
        if self.tags is not None:
            return {"tags": multi_hot(self.tags[index], self.num_classes)}
        return {} if self.references is None else {"references": list(self.references[index])}

    def classes_of(self, index: int) -> Sequence[int]:
        if self.labels is not None:
            return [self.labels[index]]
        return self.tags[index] if self.tags is not None else ()

    def name_of(self, index: int) -> str:
        """The path below the root; of several files, which are called alike, without its ending."""
        path = Path(next(paths[index] for paths in self.files.values() if paths[index])).relative_to(self.root)
        return str(path if len(self.files) == 1 else path.with_suffix(""))


@dataclass(frozen=True, kw_only=True)
class ImageItems:
    """Items that are images in one array, each of one class.

    Attributes:
        images: all of them.
        labels: the class of each.
        ids: where each comes from.
    """

    images: UInt8[Tensor, "samples channels height width"]
    labels: Sequence[int]
    ids: Sequence[str]
    roles = ("image",)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        return Item({"image": self.images[index]}, {"label": self.labels[index]}, self.ids[index])

    def classes_of(self, index: int) -> Sequence[int]:
        return [self.labels[index]]

    def chosen(self, indices: Sequence[int]) -> "ImageItems | None":
        """Some of them, or None of none."""
        if not indices:
            return None
        labels, ids = [self.labels[i] for i in indices], [self.ids[i] for i in indices]
        return ImageItems(images=self.images[torch.tensor(indices)], labels=labels, ids=ids)


def multi_hot(labels: Sequence[int], num_classes: int) -> Float[Tensor, " classes"]:
    """Which classes apply, as the target `tags`."""
    tags = torch.zeros(num_classes)
    tags[list(labels)] = 1.0
    return tags


def classes_in(targets: Mapping[str, Any]) -> Sequence[int]:
    """The classes that targets tell of: those of `tags`, or else `label`, if any."""
    if "tags" in targets:
        return targets["tags"].nonzero().flatten().tolist()
    return [targets["label"]] if "label" in targets else ()
