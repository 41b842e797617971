"""A data set: a source of items, and one reader for each modality."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver.data.files import AbsentError, UnreadableError, first_few
from perceiver.data.memory_cache import MemoryCache
from perceiver.data.readers.base import Reader, Reading
from perceiver.data.sources.base import Item, Items, ItemTable, OnError, Source, classes_in
from perceiver.types import Sample, Stage


class Dataset:
    """Splits of samples, and a user's own files as samples. The constructor does not access the disk; `split` does.

    Args:
        source: lists the samples and their targets.
        readers: modality -> the reader of an item's part with this role. A sample lacks the modalities for which its
            item has no part.
        on_error: what happens to an unreadable sample: `raise` ends the run, `skip` logs, counts and leaves it out.
        modalities: those that samples have, to test a model without the others; None for all that have a reader.
        cache_megabytes: MiB of decoded images and short sounds, and of generated samples that are the same each time,
            that stay in memory, in each process and in the workers of each loader, see `MemoryCache`; 0 for none.
    """

    def __init__(
        self,
        *,
        source: Source,
        readers: Mapping[str, Reader[Any]],
        on_error: OnError,
        modalities: Sequence[str] | None = None,
        cache_megabytes: float = 0,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be raise or skip")
        if not readers:
            raise ValueError("readers must not be empty: they produce the inputs of a sample")
        for name, reader in readers.items():
            if not isinstance(reader, Reader):
                raise ValueError(f"readers.{name}={reader} is not a reader; '~data.readers.{name}' removes one")
        if unknown := [name for name in modalities or () if name not in readers]:
            raise ValueError(f"modalities: {unknown[0]!r} has no reader; there are {', '.join(readers)}")
        self.source = source
        self.readers = readers
        self.modalities = list(readers) if modalities is None else list(modalities)
        self.on_error = on_error
        self.cache = MemoryCache(cache_megabytes)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return self.source.class_names

    @property
    def file_endings(self) -> frozenset[str]:
        """Endings, in lower case, of the files in a folder that `read` accepts."""
        return frozenset().union(*(reader.kind.endings for reader in self.readers.values()))

    def prepare(self) -> None:
        """Download missing files. Called once per machine, before `split`."""
        self.source.prepare()

    def split(self, stage: Stage) -> "Split | None":
        """Return the samples of a stage, or None if there are none; raises as `Source.items`."""
        roles = {name: reader.kind for name, reader in self.readers.items() if reader.target is None}
        items = self.source.items(stage, roles)
        return None if items is None else Split(self, items, train=stage == "train")

    def texts(self) -> Iterable[str]:
        """Return the texts of the training samples; raises as `Source.texts`."""
        return self.source.texts(on_error=self.on_error)

    def pieces(self, modality: str, raw: Tensor) -> list[str] | None:
        """Return the text that each position of an input represents, or None if it is not text."""
        return self.readers[modality].pieces(raw)

    def read(self, path: Path, *more: Path) -> Sample:
        """Read a user's file as a sample without targets, prepared as for evaluation; with more files, as one sample.

        A single reader reads it whatever its name; with several, its ending selects the readers, one of each kind: from
        a video may be read its frames and its sound.

        Raises:
            UnreadableError: the file is missing or not of the kind that the reader reads.
        """
        parts: dict[str, Path] = {}
        for file in (path, *more):
            matching = {
                reader.kind: name for name, reader in reversed([*self.readers.items()]) if reader.kind.has(file.name)
            }
            if len(self.readers) > 1 and not matching:
                kinds = " nor ".join(reader.kind.name for reader in self.readers.values())
                raise UnreadableError(f"{file}: its ending is that of neither {kinds}")
            parts |= dict.fromkeys(matching.values() or self.readers, file)
        return self.sample(Item(parts, {}, str(path)), train=False)

    def sample(self, item: Item, *, train: bool) -> Sample:
        """Read an item, with augmentation if `train`.

        Raises:
            UnreadableError: a part is missing or damaged, or no part has a reader.
        """
        targets = choose_caption(item.targets, train=train)  # draws random numbers before the readers do
        readings = self._readings(item, train=train)
        if not readings:
            found = first_few(list(item.parts)) or "no parts"
            raise UnreadableError(f"{item.id}: has {found}, but the readers are for {first_few(list(self.readers))}")
        windows = next((reading.windows for reading in readings.values() if reading.windows), ())
        inputs = {
            name: reading.values.expand(len(windows), *reading.values.shape)
            if windows and not reading.windows
            else reading.values
            for name, reading in readings.items()
        }
        for reading in readings.values():
            targets |= reading.targets
        return Sample(inputs=inputs, targets=targets, id=item.id, windows=windows)

    def _readings(self, item: Item, *, train: bool) -> dict[str, Reading]:
        """Read the parts of an item, at the same times as the first recording among them.

        A modality that a file lacks is left out if another one is read from the same file.
        """
        readings: dict[str, Reading] = {}
        absent: dict[str, AbsentError] = {}
        for name, reader in self.readers.items():
            part = item.parts.get(name) if reader.target is None else item.targets.get(reader.target)
            if part is not None and name in self.modalities:
                clips = next((reading.clips for reading in readings.values() if reading.clips), None)
                try:
                    part = self.cache.decoded(name, reader, part) if clips is None else part
                    readings[name] = reader.read(part, train=train, clips=clips)
                except AbsentError as error:
                    absent[name] = error
        for name, problem in absent.items():
            if str(item.parts[name]) not in [str(item.parts[other]) for other in readings if other in item.parts]:
                raise problem
        return readings


class Split:
    """The samples of one stage, by index. Randomness in a sample comes from torch's global generator only."""

    def __init__(self, dataset: Dataset, items: Items, *, train: bool) -> None:
        self.dataset = dataset
        self.items = items
        self.train = train

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.sample(self.dataset.cache.item(self.items, index), train=self.train)

    @cached_property
    def modalities(self) -> list[str]:
        """The modalities that any sample has; no sample is read."""
        labeled = {name: reader.target for name, reader in self.dataset.readers.items() if reader.target is not None}
        roles = set(getattr(self.items, "roles", ()))
        all_roles = set(self.dataset.readers) - labeled.keys()
        for index in range(0 if roles else len(self.items)):
            roles |= self.items[index].parts.keys()
            if roles >= all_roles:
                break
        if labeled and len(self.items):
            first = self.items[0].targets
            roles |= {name for name, target in labeled.items() if target in first}
        return [name for name in self.dataset.readers if name in roles and name in self.dataset.modalities]

    def sample_classes(self, index: int) -> Sequence[int]:
        """Return the classes of a sample without reading it, for class-balanced sampling."""
        if hasattr(self.items, "sample_classes"):
            return self.items.sample_classes(index)
        return classes_in(self.items[index].targets)

    def sample_length(self, index: int) -> int | None:
        """Return the length of a sample without reading it, by default that of its first text; None: unknown."""
        if hasattr(self.items, "sample_length"):
            return self.items.sample_length(index)
        in_memory = isinstance(self.items, list | ItemTable)
        texts = self.items[index].targets.get("references") if in_memory else None
        return len(texts[0]) if texts else None

    def sample_name(self, index: int) -> str:
        """Return a name that identifies a sample wherever the data is stored, without reading it."""
        return self.items.sample_name(index) if hasattr(self.items, "sample_name") else self.items[index].id


def choose_caption(targets: Mapping[str, Any], *, train: bool) -> dict[str, Any]:
    """Return targets whose `caption` is the first of the references, which are shuffled if `train`.

    Targets that have a caption, or no references, stay as they are.
    """
    if "references" not in targets or "caption" in targets:
        return dict(targets)
    texts = list(targets["references"])
    if train:
        texts = [texts[place] for place in torch.randperm(len(texts)).tolist()]
    return {**targets, "caption": texts[0], "references": texts}
