"""Runs in processes of their own that are really killed; forked, since a new one would import for ten seconds."""

import csv
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perceiver.training.module import TrainingModule
from tests.training.runs import checkpoint, train

OWN = ("seconds", "dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "ckpt_path", "current_score")
"""Keys in a checkpoint under which no two runs have the same: times and places."""


def in_fork(work: Callable[[], int]) -> int:
    """Do some work in a process of its own.

    Returns:
        Its exit status; that of a signal is negative.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_fork(run_dir: Path, *overrides: str, before: Callable[[], Any] = lambda: None) -> int:
    """A run in a process of its own; `before` happens there first."""

    def work() -> int:
        before()
        ended = train(run_dir, *overrides)
        if not ended.ok:
            sys.stderr.write(ended.err)
        return ended.code or 0

    return in_fork(work)


def killed_at(count: int, method: str = "training_step", sent: int = signal.SIGKILL) -> Callable[[], None]:
    """Makes this process send itself a signal at the call number `count`, from 0 on, of a method of the module."""

    def prepare() -> None:
        original, calls = getattr(TrainingModule, method), iter(range(count + 1))

        def step(self, *args, **kwargs):
            if next(calls, None) == count:
                os.kill(os.getpid(), sent)
            return original(self, *args, **kwargs)

        setattr(TrainingModule, method, step)

    return prepare


def rows(run_dir: Path) -> list[dict[str, str]]:
    """All logged scalars but times."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, all that is in it, times and places apart."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            if name not in (
                *TIMES,
                "dirpath",
                "best_model_path",
                "kth_best_model_path",
                "best_k_models",
                "ckpt_path",
                "current_score",
            ):
                assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{where}/{number}")
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} and {other}"


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, states, curves and last checkpoint."""
    assert_same(rows(one), rows(other), "metrics.csv")
    for name in ("last", "best"):
        assert_same(checkpoint(one, name), checkpoint(other, name), name)
