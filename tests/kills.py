"""Runs in processes of their own that are really killed; forked, since a new one would import for ten seconds."""

import csv
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from perceiver.training.module import TrainingModule
from tests.runs import SMALL, Ended, checkpoint, metrics, script

OWN = (
    *("seconds", "train/seconds", "samples_per_second", "dirpath", "best_model_path", "kth_best_model_path"),
    *("best_k_models", "ckpt_path", "current_score"),  # the last is known only when it was the best
)
"""Names under which no two runs have the same: times and places."""
PATIENCE = 120
"""Seconds after which a process that hangs is killed."""


def in_fork(work: Callable[[], int | None]) -> int:
    """Do some work in a process of its own.

    Returns:
        Its exit status; that of a signal is negative.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        status: int | None = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_fork(
    run_dir: Path, *overrides: str, setup: Sequence[str] = SMALL, before: Callable[[], Any] = lambda: None
) -> int:
    """A run in a process of its own; `before` happens there first."""

    def work() -> int:
        before()
        return _said(script("experiments/train.py", f"hydra.run.dir={run_dir}", *setup, *overrides))

    return in_fork(work)


def continued(run_dir: Path, *overrides: str, before: Callable[[], Any] = lambda: None) -> int:
    """The same of a run that goes on."""

    def work() -> int:
        before()
        return _said(script("experiments/train.py", f"run={run_dir}", *overrides))

    return in_fork(work)


def _said(ended: Ended) -> int:
    sys.stderr.write(ended.err)
    sys.stdout.write(ended.out)
    sys.stdout.flush()
    return ended.code or 0


def before_call(count: int, method: str, act: Callable[[], Any], owner: Any = TrainingModule) -> Callable[[], None]:
    """Has this process do something before the call number `count`, from 0 on, of a method."""

    def prepare() -> None:
        original, calls = getattr(owner, method), iter(range(count + 1))

        def call(*args, **kwargs):
            if next(calls, None) == count:
                act()
            return original(*args, **kwargs)

        setattr(owner, method, call)

    return prepare


def killed_at(count: int, method: str = "training_step", sent: int = signal.SIGKILL) -> Callable[[], None]:
    """Makes this process send itself a signal at the call number `count`, from 0 on, of a method of the module."""
    return before_call(count, method, lambda: os.kill(os.getpid(), sent))


def rows(run_dir: Path) -> list[dict[str, str]]:
    """All logged scalars."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, all that is in it, times and places apart."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            if name not in OWN:
                assert_same(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{where}/{number}")
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} and {other}"


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, states, curves and results."""
    assert_same(rows(one), rows(other), "metrics.csv")
    for name in ("last", "best"):
        assert_same(checkpoint(one, name), checkpoint(other, name), name)
    assert_same(metrics(one), metrics(other), "metrics.json")
