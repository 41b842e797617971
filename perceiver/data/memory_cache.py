"""Decoded files and generated samples that stay in memory, for data sets that fit into it and are read many times."""

import os
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from perceiver.data.files import Joined, Segmented
from perceiver.data.readers.base import Reader
from perceiver.data.sources.base import Item, Items
from perceiver.data.sources.generated import GeneratedItems


class MemoryCache:
    """Keeps the first decoded files and generated items that are read, up to a size. Samples do not change.

    Generated items are kept where they are the same each time, that is, not where training draws them anew.

    Each process keeps those that it reads itself: a process of a run, and each worker of each of its loaders. A worker
    that is forked also has what was kept before, in memory that it shares and does not count.

    Args:
        megabytes: largest size in MiB in a process of a run, and again in all workers of one loader together, of which
            each has an equal share; 0 keeps none. In training with workers, a process of a run and its loaders of
            training and validation may thus keep three times as much.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, megabytes: float) -> None:
        if not megabytes >= 0.0:
            raise ValueError(f"cache_megabytes={megabytes} must be at least 0")
        self.megabytes = megabytes
        self.kept: dict[tuple[str, Hashable], Any] = {}
        self.num_bytes = 0
        self.process = os.getpid()

    @property
    def max_bytes(self) -> float:
        """The largest size in this process."""
        worker = get_worker_info()
        return self.megabytes * 2**20 / (1 if worker is None else worker.num_workers)

    def decoded(self, modality: str, reader: Reader[Any], part: Any) -> Any:
        """Return a part of an item as it is in memory, if its reader can decode it apart from reading it.

        Raises:
            UnreadableError: see `Reader.decoded`.
        """
        file = part.image if isinstance(part, Segmented) else part
        is_file = isinstance(file, Joined) or hasattr(file, "open")
        if not self.megabytes or not is_file:
            return part
        if (modality, part) in self.kept:
            return self.kept[modality, part]
        found = reader.decoded(part)
        if found is None:
            return part
        self._keep((modality, part), found)
        return found

    def item(self, items: Items, index: int) -> Item:
        """Return an item as it is in memory, if it is generated and the same each time."""
        if not self.megabytes or not isinstance(items, GeneratedItems) or items.redrawn:
            return items[index]
        name = items.stage, index
        if name not in self.kept:
            item = items[index]
            self._keep(name, item)
            return item
        return self.kept[name]

    def _keep(self, name: tuple[str, Hashable], found: Any) -> None:
        if self.process != os.getpid():  # forked
            self.process, self.num_bytes = os.getpid(), 0
        size = num_bytes(found)
        if 0 < size <= self.max_bytes - self.num_bytes:  # texts are drawn as soon as found, and have no known size
            self.kept[name] = found
            self.num_bytes += size


def num_bytes(part: Any) -> int:
    """Return the size of the tensors of a part, or of an item."""
    if isinstance(part, Tensor):
        return part.nbytes
    if isinstance(part, Mapping):
        return sum(map(num_bytes, part.values()))
    return sum(num_bytes(getattr(part, field.name)) for field in fields(part)) if is_dataclass(part) else 0
