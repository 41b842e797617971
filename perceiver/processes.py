"""What the processes of one run tell each other; of a single process, what it tells itself."""

from typing import TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """The values of all processes, by rank. All of them must ask; a value may be anything that can be pickled."""
    if not _several():
        return [value]
    values: list[Value | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def greatest(*numbers: int) -> list[int]:
    """Each number's greatest value over all processes, on the CPU: nobody waits for a GPU. All of them must ask."""
    if not _several():
        return list(numbers)
    agreed = torch.tensor(numbers)
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=_on_cpu())
    return agreed.tolist()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


_groups: dict[int, distributed.ProcessGroup] = {}


def _on_cpu() -> distributed.ProcessGroup:
    """A group of all processes that speaks on the CPU, made when it is first wanted."""
    world = distributed.group.WORLD
    assert isinstance(world, distributed.ProcessGroup)
    if distributed.get_backend(world) == "gloo":
        return world
    if id(world) not in _groups:
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)
        _groups[id(world)] = group
    return _groups[id(world)]
