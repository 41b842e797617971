"""Communication between the processes of a run, of which there may be only one."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


def all_gather(value: Value) -> list[Value]:
    """Return the values of all processes by rank, of any type that can be pickled. All processes must call it."""
    if not is_distributed():
        return [value]
    values: list[Value | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def all_reduce_max(*numbers: int) -> list[int]:
    """Return the maximum of each number over all processes, on the CPU without a wait for GPUs. All must call it."""
    if not is_distributed():
        return list(numbers)
    maximum = torch.tensor(numbers)
    distributed.all_reduce(maximum, distributed.ReduceOp.MAX, group=_cpu_group())
    return maximum.tolist()


def is_distributed() -> bool:
    """Whether the run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def backward_group() -> distributed.ProcessGroup:
    """A group of all processes for communication during the backward pass.

    In the default group it would have to keep the same order relative to the reduction of gradients on all processes.
    """
    return _group("backward", None)


def _cpu_group() -> distributed.ProcessGroup:
    """A group of all processes with a CPU backend."""
    world = distributed.group.WORLD
    assert isinstance(world, distributed.ProcessGroup)
    return world if distributed.get_backend(world) == "gloo" else _group("cpu", "gloo")


_groups: dict[tuple[object, str], distributed.ProcessGroup] = {}


def _group(purpose: str, backend: str | None) -> distributed.ProcessGroup:
    """A further group of all processes, created at its first use, which must be on all of them."""
    key = distributed.group.WORLD, purpose
    if key not in _groups:
        group = distributed.new_group(backend=backend)
        assert isinstance(group, distributed.ProcessGroup)
        _groups[key] = group
    return _groups[key]


@contextmanager
def once_per_machine(node: dict[str, Any]) -> Iterator[None]:
    """Run the block in one process of the machine at a time, so that the others find what the first has prepared.

    Args:
        node: identifies what is prepared.
    """
    name = hashlib.sha256(json.dumps(node, sort_keys=True, default=str).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"perceiver-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
