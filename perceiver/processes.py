"""Communication between the processes of a run; a single process communicates with itself."""

import ctypes
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, by rank; anything that can be pickled. All processes must call it."""
    if not is_distributed():
        return [value]
    values: list[Value | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def all_reduce_max(*numbers: int) -> list[int]:
    """The maximum of each number over all processes, on the CPU, so that none waits for a GPU. All must call it."""
    if not is_distributed():
        return list(numbers)
    agreed = torch.tensor(numbers)
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=_on_cpu())
    return agreed.tolist()


def end_with_parent(number: int) -> None:
    """Have this process sent a signal when the one that started it is no more; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def is_distributed() -> bool:
    """Whether the run has several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def backward_group() -> distributed.ProcessGroup:
    """A group of all processes for what they tell each other while gradients are exchanged.

    In the group of these, both would have to come in the same order on all of them.
    """
    return _group("of its own", None)


def _on_cpu() -> distributed.ProcessGroup:
    """A group of all processes that speaks on the CPU."""
    world = distributed.group.WORLD
    assert isinstance(world, distributed.ProcessGroup)
    return world if distributed.get_backend(world) == "gloo" else _group("on the CPU", "gloo")


_groups: dict[tuple[object, str], distributed.ProcessGroup] = {}


def _group(purpose: str, backend: str | None) -> distributed.ProcessGroup:
    """A further group of all processes, made when it is first wanted; all of them must ask."""
    key = distributed.group.WORLD, purpose
    if key not in _groups:
        group = distributed.new_group(backend=backend)
        assert isinstance(group, distributed.ProcessGroup)
        _groups[key] = group
    return _groups[key]


@contextmanager
def once_per_machine(node: dict[str, Any]) -> Iterator[None]:
    """One process of the machine after the other, so that what the first has prepared is there for the others."""
    name = hashlib.sha256(json.dumps(node, sort_keys=True, default=str).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"perceiver-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
