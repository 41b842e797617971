"""Runs in forked processes that are really killed; a new process would spend ten seconds on imports."""

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
    *("best_k_models", "ckpt_path", "current_score"),  # the last is set only for the best checkpoint
)
"""Names of times and paths, which differ between any two runs."""
PATIENCE = 120
"""Timeout in seconds after which a forked process is killed."""


def in_fork(work: Callable[[], int | None]) -> int:
    """Call a function in a forked process.

    Returns:
        Its exit status; negative if a signal ended it.
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
    """Start a run in a forked process, which first calls `before`, and return its exit status."""

    def work() -> int:
        before()
        return _print_output(script("experiments/train.py", f"hydra.run.dir={run_dir}", *setup, *overrides))

    return in_fork(work)


def continued(run_dir: Path, *overrides: str, before: Callable[[], Any] = lambda: None) -> int:
    """Resume a run in a forked process, as `run_in_fork`."""

    def work() -> int:
        before()
        return _print_output(script("experiments/train.py", f"run={run_dir}", *overrides))

    return in_fork(work)


def _print_output(ended: Ended) -> int:
    sys.stderr.write(ended.err)
    sys.stdout.write(ended.out)
    sys.stdout.flush()
    return ended.code or 0


def before_call(count: int, method: str, act: Callable[[], Any], owner: Any = TrainingModule) -> Callable[[], None]:
    """Return a function that patches a method: its call number `count`, from 0 on, is preceded by `act`."""

    def prepare() -> None:
        original, calls = getattr(owner, method), iter(range(count + 1))

        def call(*args, **kwargs):
            if next(calls, None) == count:
                act()
            return original(*args, **kwargs)

        setattr(owner, method, call)

    return prepare


def killed_at(count: int, method: str = "training_step", sent: int = signal.SIGKILL) -> Callable[[], None]:
    """As `before_call`: the process sends itself a signal at that call of a method of the module."""
    return before_call(count, method, lambda: os.kill(os.getpid(), sent))


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without empty cells."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Assert that two nested values are equal to the bit, except for times and paths."""
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
    """Assert that two runs have the same weights, states, curves and results."""
    assert_same(rows(one), rows(other), "metrics.csv")
    for name in ("last", "best"):
        assert_same(checkpoint(one, name), checkpoint(other, name), name)
    assert_same(metrics(one), metrics(other), "metrics.json")
