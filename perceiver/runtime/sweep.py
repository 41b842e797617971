"""What the runs of a sweep come to: mean and deviation of every final metric, for cross-validation and seeds."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from perceiver.runtime.summary import console, is_aggregate

MULTIRUN = "multirun.yaml"
"""Hydra's file with a sweep's own command line, in the sweep's directory."""
MOST_CHARACTERS = 100
"""Of a display name; W&B takes 128."""
SHOWN = ("test/", "val/", "")
"""The metrics that a table shows: those that begin with the first of these that any begins with."""


def sweep_folder(run_dir: Path) -> Path | None:
    """The directory of the sweep that a run belongs to, if it does."""
    folder = run_dir.absolute().parent
    return folder if (folder / MULTIRUN).is_file() else None


def group_name(run_dir: Path, experiment: str | None) -> str | None:
    """What a run is grouped by: its sweep, or its experiment."""
    sweep = sweep_folder(run_dir)
    return experiment if sweep is None else sweep.name


def display_name(run_dir: Path, experiment: str | None, overrides: Sequence[str]) -> str | None:
    """A run's name by what sets it apart: the experiment and its overrides, in a sweep those that it varies.

    Keys are shortened to their last part, unless that is the same for two of them.
    """
    if (sweep := sweep_folder(run_dir)) is not None:
        common = [str(one) for one in OmegaConf.load(sweep / MULTIRUN).hydra.overrides.task]
        overrides = [one for one in overrides if one not in common] or overrides
    pairs = [(key.lstrip("+~"), value) for key, _, value in (one.partition("=") for one in overrides)]
    shown = [
        pair for pair in pairs if pair[0].partition(".")[0] not in ("experiment", "logger", "ckpt_path", "hydra", "run")
    ]
    ends = [key.rpartition(".")[2] for key, _ in shown]
    texts = [f"{end if ends.count(end) == 1 else key}={value}" for end, (key, value) in zip(ends, shown, strict=True)]
    name = " ".join(filter(None, [experiment, *texts]))
    return (name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…") or None


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        name: its directory below that of the sweep.
        overrides: key -> value, as on its command line; once all are read, of those keys only in which runs differ.
        metrics: the final ones that are defined; None if it did not come to its end.
    """

    name: str
    overrides: dict[str, str]
    metrics: dict[str, float] | None

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.overrides.items())])


@dataclass(frozen=True)
class Statistic:
    """A metric over `runs` runs; the deviation is that of a sample (n - 1), and None for a single run."""

    mean: float
    deviation: float | None
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:,.4f}" if self.deviation is None else f"{self.mean:,.4f} ± {self.deviation:.4f}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but what is averaged over.

    Attributes:
        overrides: those of the others that not all runs of the sweep have in common.
        runs: how many are complete.
        metrics: by name.
    """

    overrides: dict[str, str]
    runs: int
    metrics: dict[str, Statistic]


class SweepSummary(Callback):
    """At the end of a sweep, prints what its runs come to, and writes it to `summary.json` in the sweep's directory.

    All runs below that directory count, whatever launched them. If some did not come to their end, the process ends
    with status 1 and their names.

    Args:
        average_over: keys in which runs may differ and still be averaged.
    """

    def __init__(self, *, average_over: Sequence[str]) -> None:
        self.average_over = list(average_over)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        if not runs:
            return
        groups = grouped(runs, self.average_over)
        failed = [run for run in runs if run.metrics is None]
        path = folder / "summary.json"
        summary = {
            "average_over": self.average_over,
            "runs": len(runs),
            "failed": [run.name for run in failed],
            "groups": [asdict(group) for group in groups],
        }
        path.write_text(json.dumps(summary, indent=2) + "\n")
        console.print(summary_table(groups))
        complete = f"{len(runs) - len(failed)} of {len(runs)} runs"
        console.print(f"mean ± deviation of {complete}; all metrics are in {path}", soft_wrap=True)
        if failed:
            sys.exit(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(map(str, failed))}")


def read_runs(folder: Path) -> list[SweptRun]:
    """All runs below a directory, with the overrides in which they differ."""
    homes = sorted((path.parents[1] for path in folder.rglob(".hydra/overrides.yaml")), key=_order)
    overrides = [_overrides(home) for home in homes]
    keys = {key: None for found in overrides for key in found}
    swept = [key for key in keys if len({found.get(key) for found in overrides}) > 1]
    return [
        SweptRun(str(home.relative_to(folder)), {key: found[key] for key in swept if key in found}, _metrics(home))
        for home, found in zip(homes, overrides, strict=True)
    ]


def _order(path: Path) -> tuple[int, str]:
    """Sorts 10 after 9."""
    return len(str(path)), str(path)


def _overrides(home: Path) -> dict[str, str]:
    lines = (str(line).partition("=") for line in OmegaConf.load(home / ".hydra" / "overrides.yaml"))
    return {key.lstrip("+~"): value for key, _, value in lines}


def _metrics(home: Path) -> dict[str, float] | None:
    try:
        metrics = json.loads((home / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def grouped(runs: Sequence[SweptRun], average_over: Sequence[str]) -> list[Group]:
    """Runs by the overrides that are not averaged over."""
    members: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for run in runs:
        key = tuple((name, value) for name, value in run.overrides.items() if name not in average_over)
        members.setdefault(key, []).extend([] if run.metrics is None else [run.metrics])
    return [Group(dict(key), len(found), _statistics(found)) for key, found in members.items()]


def _statistics(runs: Sequence[dict[str, float]]) -> dict[str, Statistic]:
    names = sorted({name for metrics in runs for name in metrics})
    return {name: _statistic([metrics[name] for metrics in runs if name in metrics]) for name in names}


def _statistic(found: Sequence[float]) -> Statistic:
    values = torch.tensor(found, dtype=torch.float64)
    return Statistic(float(values.mean()), float(values.std()) if len(found) > 1 else None, len(found))


def summary_table(groups: Sequence[Group]) -> Table:
    """A row a group: its overrides, how many of its runs are complete, and the metrics that matter most.

    Those of single classes are left out. Where not all runs have a metric, it is said how many have.
    """
    keys = list({key: None for group in groups for key in group.overrides})
    names = sorted({name for group in groups for name in group.metrics})
    stage = next(stage for stage in SHOWN if not stage or any(name.startswith(stage) for name in names))
    shown = [name for name in names if name.startswith(stage) and is_aggregate(name, names)]
    table = Table(title=f"sweep: {stage}…", title_justify="left")
    for column in (*keys, "runs", *(name.removeprefix(stage) for name in shown)):
        table.add_column(column, overflow="fold")
    for group in groups:
        cells = [_cell(group.metrics[name], group.runs) if name in group.metrics else "" for name in shown]
        table.add_row(*(group.overrides.get(key, "") for key in keys), str(group.runs), *cells)
    return table


def _cell(statistic: Statistic, runs: int) -> str:
    return str(statistic) if statistic.runs == runs else f"{statistic} (of {statistic.runs})"
