"""Decoded files that stay in memory, for data sets that fit into it and are read in many epochs."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from perceiver.data.files import Joined, Segmented
from perceiver.data.readers.base import Reader


class MemoryCache:
    """Keeps the first decoded files that are read, up to a size. What a reader makes of them does not change.

    Each process keeps those that it reads itself.

    Args:
        megabytes: MiB of all of them, divided equally among the workers of a loader; 0 keeps none.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, megabytes: float) -> None:
        if not megabytes >= 0.0:
            raise ValueError(f"cache_megabytes={megabytes} must be at least 0")
        self.megabytes = megabytes
        self.kept: dict[tuple[str, Any], Any] = {}
        self.num_bytes = 0

    @property
    def max_bytes(self) -> float:
        """The share of this process."""
        worker = get_worker_info()
        return self.megabytes * 2**20 / (1 if worker is None else worker.num_workers)

    def decoded(self, modality: str, reader: Reader[Any], part: Any) -> Any:
        """Return a part of an item as it is in memory, if its reader can decode it apart from reading it.

        Raises:
            UnreadableError: see `Reader.decoded`.
        """
        is_file = hasattr(part, "open") or isinstance(part, Joined | Segmented)
        if not self.megabytes or not is_file:
            return part
        if (modality, part) in self.kept:
            return self.kept[modality, part]
        found = reader.decoded(part)
        if found is None:
            return part
        size = num_bytes(found)
        if self.num_bytes + size <= self.max_bytes:
            self.kept[modality, part] = found
            self.num_bytes += size
        return found


def num_bytes(part: Any) -> int:
    """Return the size of the tensors of a part."""
    if isinstance(part, Tensor):
        return part.nbytes
    return sum(num_bytes(getattr(part, field.name)) for field in fields(part)) if is_dataclass(part) else 0
