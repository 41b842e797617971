"""Test of exact resume: `uv run scripts/kill_and_resume.py [kills=10] [kill_seed=1] [any override of train.py]`.

Trains a run once without interruption and once with SIGKILL to all its processes at random times, each followed by
`run=DIR`. The rows of `metrics.csv`, `metrics.json` except times, and the weights of `best.ckpt` and `last.ckpt` must
be equal to the last bit. Prints the kills and exits with status 1 if anything differs.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.table import Table

from perceiver.commands.results import METRICS
from perceiver.runtime.checkpoints import BEST, LAST
from perceiver.runtime.errors import ConfigError, report_user_errors
from perceiver.runtime.summary import console

TRAIN = Path(__file__).parents[1] / "experiments" / "train.py"
TIMES = ("train/seconds", "samples_per_second")
WEIGHTS = ("state_dict", "current_model_state")
"""Keys of a checkpoint with weights; the second exists with a moving average."""


@dataclass(frozen=True)
class Kill:
    """When a run was killed: the step of its last checkpoint, and seconds after its start."""

    step: int
    seconds: float


@report_user_errors
def main() -> None:
    options, overrides = options_of(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        began = time.monotonic()
        with launch(whole, [f"hydra.run.dir={whole}", *overrides]) as process:
            wait_for(process, whole)
        seconds = time.monotonic() - began
        # All of them come in the first half of the training, whatever it is that has to be done again.
        longest = json.loads((whole / METRICS).read_text())["train/seconds"] / (2 * options["kills"])
        random = Random(options["kill_seed"])
        times = [random.uniform(0.0, longest) for _ in range(options["kills"])]
        kills, again = kill_at(times, killed, overrides)
        console.print(table_of(kills, seconds, again))
        problems = differences(killed, whole)
    if problems:
        raise ConfigError(f"killed and continued, the run came to another end: {'; '.join(problems)}")
    console.print(f"{len(kills)} times killed and continued, it came to the same end, to the last bit", soft_wrap=True)


def options_of(arguments: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The script's own options, and the overrides for training.

    Raises:
        ConfigError: an option is no number from 1 on.
    """
    options, overrides = {"kills": 10, "kill_seed": 1}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options:
            overrides.append(argument)
        elif value.isdecimal() and int(value) > 0:
            options[name] = int(value)
        else:
            raise ConfigError(f"{argument}: must be a whole number, at least 1")
    return options, overrides


@contextmanager
def launch(run_dir: Path, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A run in its own process group, all of which is killed at the end."""
    with run_dir.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments], stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Wait for a run that must succeed.

    Raises:
        ConfigError: it did not.
    """
    if status := process.wait():
        lines = run_dir.with_suffix(".log").read_text(errors="replace").strip().splitlines()
        raise ConfigError(f"a run that was not killed exited with status {status}: {lines[-1] if lines else ''}")


def kill_at(times: Sequence[float], run_dir: Path, overrides: Sequence[str]) -> tuple[list[Kill], float]:
    """Start, kill and resume a run until it is complete.

    Args:
        times: seconds from the first output of each part of the run to its kill.

    Returns:
        The kills, and the total seconds.

    Raises:
        ConfigError: the run ended before the last kill, or failed.
    """
    kills, began = [], time.monotonic()
    for delay in (*times, None):
        started, before = time.monotonic(), trace(run_dir)
        exists = (run_dir / ".hydra" / "overrides.yaml").exists()
        with launch(run_dir, [f"run={run_dir}"] if exists else [f"hydra.run.dir={run_dir}", *overrides]) as process:
            if delay is None:
                wait_for(process, run_dir)
                break
            while trace(run_dir) == before and process.poll() is None:  # much of it is imports
                time.sleep(0.01)
            time.sleep(delay)
            if process.poll() is not None:
                wait_for(process, run_dir)
                raise ConfigError(f"the run ended before kill {len(kills) + 1}; fewer kills, or a longer run")
        kills.append(Kill(step_of(run_dir), time.monotonic() - started))
    return kills, time.monotonic() - began


def trace(run_dir: Path) -> list[int]:
    """Something that changes as soon as a run trains."""
    return [path.stat().st_mtime_ns for path in run_dir.glob(f"checkpoints/{LAST}")]


def step_of(run_dir: Path) -> int:
    """Steps that need not be done again; 0 where there is no checkpoint yet."""
    path = run_dir / "checkpoints" / LAST
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def differences(one: Path, other: Path) -> list[str]:
    """In what two runs differ."""
    found = [] if rows(one) == rows(other) else ["rows of metrics.csv"]
    metrics, expected = (json.loads((run / METRICS).read_text()) for run in (one, other))
    names = sorted(metrics.keys() | expected.keys())
    found += [name for name in names if name not in TIMES and metrics.get(name) != expected.get(name)]
    for name in (BEST, LAST):
        weights, expected = (weights_of(run / "checkpoints" / name) for run in (one, other))
        same = weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)
        found += [] if same else [f"weights of {name}"]
    return found


def rows(run_dir: Path) -> list[dict[str, str]]:
    """All logged scalars but times."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return {f"{part}/{name}": value for part in WEIGHTS for name, value in content.get(part, {}).items()}


def table_of(kills: Sequence[Kill], seconds: float, again: float) -> Table:
    """The kills, and what they have cost."""
    table = Table("kill", "kept steps", "seconds from the start")
    for number, kill in enumerate(kills, start=1):
        table.add_row(str(number), str(kill.step), f"{kill.seconds:.1f}")
    table.add_section()
    table.add_row("undisturbed", "", f"{seconds:.1f}")
    table.add_row("all together", "", f"{again:.1f}")
    return table


if __name__ == "__main__":
    main()
