"""A data set: a source of items, and a reader for each modality of them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver.data.files import UnreadableError
from perceiver.data.readers.base import Reader
from perceiver.data.sources.base import Item, Items, OnError, Source, classes_in
from perceiver.data.text_checks import first_few
from perceiver.types import Sample, Stage


class Dataset:
    """Named splits of samples, and a user's own files as samples. Building one touches no disk; `split` does.

    Args:
        source: knows where samples are, and what is true of them.
        readers: modality -> what makes it of the part of an item that has this role. A sample lacks the modalities of
            which its item has no part.
        on_error: what happens to a sample that cannot be read: `raise` ends the run, `skip` names it, counts it and
            leaves it out.
    """

    def __init__(self, *, source: Source, readers: Mapping[str, Reader[Any]], on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be raise or skip")
        if not readers:
            raise ValueError("readers are empty: a sample is what they make of it")
        self.source = source
        self.readers = readers
        self.on_error = on_error

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return self.source.class_names

    @property
    def file_endings(self) -> frozenset[str]:
        """Endings of the files of a folder that `read` takes, in lower case."""
        return frozenset().union(*(reader.kind.endings for reader in self.readers.values()))

    def prepare(self) -> None:
        """Download what is missing. Called once per machine, before any split is asked for."""
        self.source.prepare()

    def split(self, stage: Stage) -> "Split | None":
        """The samples of a stage, or None if there are none; errors as in `Source.items`."""
        items = self.source.items(stage, {name: reader.kind for name, reader in self.readers.items()})
        return None if items is None else Split(self, items, train=stage == "train")

    def texts(self) -> Iterable[str]:
        """The texts of the training samples; errors as in `Source.texts`."""
        return self.source.texts(on_error=self.on_error)

    def pieces(self, modality: str, raw: Tensor) -> list[str] | None:
        """What the places of a sample's input stand for, where that is text."""
        return self.readers[modality].pieces(raw)

    def read(self, path: Path) -> Sample:
        """A user's file as a sample without targets, prepared as for evaluation.

        It is read as what the data set holds, whatever its name; where there are several readers, by its ending.

        Raises:
            UnreadableError: the file is missing or is not what the data set holds.
        """
        fitting = [
            name for name, reader in self.readers.items() if len(self.readers) == 1 or reader.kind.has(path.name)
        ]
        if not fitting:
            kinds = " nor ".join(reader.kind.name for reader in self.readers.values())
            raise UnreadableError(f"{path}: its ending is that of neither {kinds}")
        return self.sample(Item({fitting[0]: path}, {}, str(path)), train=False)

    def sample(self, item: Item, *, train: bool) -> Sample:
        """What is in an item, with what is random if `train`.

        Raises:
            UnreadableError: a part of it is missing or damaged, or it has none that is read.
        """
        targets = with_caption(item.targets, train=train)  # before anything else that is random
        read = {
            name: reader.read(item.parts[name], train=train)
            for name, reader in self.readers.items()
            if name in item.parts
        }
        if not read:
            problem = f"of it there is {first_few(list(item.parts)) or 'nothing'}, and what is read is"
            raise UnreadableError(f"{item.id}: {problem} {first_few(list(self.readers))}")
        windows = next((one.windows for one in read.values() if one.windows), ())
        inputs = {
            name: one.values.expand(len(windows), *one.values.shape) if windows and not one.windows else one.values
            for name, one in read.items()
        }
        return Sample(inputs=inputs, targets=targets, id=item.id, windows=windows)


class Split:
    """The samples of one stage, by index. What is random in one draws from torch's global generator only."""

    def __init__(self, dataset: Dataset, items: Items, *, train: bool) -> None:
        self.dataset = dataset
        self.items = items
        self.train = train

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.sample(self.items[index], train=self.train)

    @cached_property
    def modalities(self) -> list[str]:
        """Those that any sample has, told without reading one."""
        roles = getattr(self.items, "roles", None)
        if roles is None:
            roles, missing = set(), set(self.dataset.readers)
            for index in range(len(self.items)):
                roles |= self.items[index].parts.keys()
                if roles >= missing:
                    break
        return [name for name in self.dataset.readers if name in roles]

    def classes_of(self, index: int) -> Sequence[int]:
        """The classes of a sample, told without reading it; for sampling that evens them out."""
        if hasattr(self.items, "classes_of"):
            return self.items.classes_of(index)
        return classes_in(self.items[index].targets)

    def name_of(self, index: int) -> str:
        """What a sample is called wherever the data lies, told without reading it: samples are recognised by it."""
        return self.items.name_of(index) if hasattr(self.items, "name_of") else self.items[index].id


def with_caption(targets: Mapping[str, Any], *, train: bool) -> dict[str, Any]:
    """Targets in which one of the references is the caption: the first, after shuffling them in training.

    Targets that name their caption stay as they are.
    """
    if "references" not in targets or "caption" in targets:
        return dict(targets)
    texts = list(targets["references"])
    if train:
        texts = [texts[place] for place in torch.randperm(len(texts)).tolist()]
    return {**targets, "caption": texts[0], "references": texts}
