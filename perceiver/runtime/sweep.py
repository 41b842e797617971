"""Names of the runs of a sweep, and mean and deviation of their final metrics, for cross-validation and seeds."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from perceiver.runtime.summary import console, is_aggregate

MULTIRUN = "multirun.yaml"
"""Hydra's file with the command line of a sweep, in its directory."""
MAX_NAME_LENGTH = 100
"""Characters of a display name; W&B allows 128."""
STAGES = ("test/", "val/", "")
"""The table shows the metrics with the first of these prefixes that any metric has."""
Statistic = dict[str, Any]
"""`mean`, `deviation` (of a sample, n - 1; None for one run), and number of `runs`."""


def sweep_folder(run_dir: Path) -> Path | None:
    """The directory of the sweep that a run belongs to, if any."""
    folder = run_dir.absolute().parent
    return folder if (folder / MULTIRUN).is_file() else None


def group_name(run_dir: Path, experiment: str | None) -> str | None:
    """The name by which loggers group a run: its sweep, or its experiment."""
    sweep = sweep_folder(run_dir)
    return experiment if sweep is None else sweep.name


def display_name(run_dir: Path, experiment: str | None, overrides: Sequence[str]) -> str | None:
    """A name that distinguishes a run: its experiment and overrides; in a sweep, those that the sweep varies.

    A key is shortened to its last part, unless two keys have the same.
    """
    if (sweep := sweep_folder(run_dir)) is not None:
        common = [str(override) for override in OmegaConf.load(sweep / MULTIRUN).hydra.overrides.task]
        overrides = [override for override in overrides if override not in common] or overrides
    pairs = [_key_and_value(override) for override in overrides]
    hidden = ("experiment", "logger", "ckpt_path", "hydra", "run")
    pairs = [(key, value) for key, value in pairs if key.partition(".")[0] not in hidden]
    ends = [key.rpartition(".")[2] for key, _ in pairs]
    texts = [f"{end if ends.count(end) == 1 else key}={value}" for end, (key, value) in zip(ends, pairs, strict=True)]
    name = " ".join(filter(None, [experiment, *texts]))
    return (name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…") or None


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = str(override).partition("=")
    return key.lstrip("+~"), value


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: its directory, relative to that of the sweep.
        overrides: key -> value, of the keys in which the runs of the sweep differ.
        metrics: the final ones that are finite; None if the run has not finished.
    """

    name: str
    overrides: dict[str, str]
    metrics: dict[str, float] | None

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.overrides.items())])


class SweepSummary(Callback):
    """At the end of a sweep, prints the metrics of its runs and writes them to `summary.json` in its directory.

    All runs below that directory count, whatever has launched them. If some have not finished, the process exits with
    status 1 and their names.

    Args:
        average_over: keys over whose values metrics are averaged.
    """

    def __init__(self, *, average_over: Sequence[str]) -> None:
        self.average_over = list(average_over)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        if not runs:
            return
        groups = group_runs(runs, self.average_over)
        failed = [run for run in runs if run.metrics is None]
        path = folder / "summary.json"
        summary = {
            "average_over": self.average_over,
            "runs": len(runs),
            "failed": [run.name for run in failed],
            "groups": groups,
        }
        path.write_text(json.dumps(summary, indent=2) + "\n")
        console.print(summary_table(groups))
        finished = f"{len(runs) - len(failed)} of {len(runs)} runs"
        console.print(f"mean ± deviation of {finished}; all metrics are in {path}", soft_wrap=True)
        if failed:
            sys.exit(f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(map(str, failed))}")


def read_runs(folder: Path) -> list[SweepRun]:
    """Read all runs below a directory, 10 after 9."""
    paths = folder.rglob(".hydra/overrides.yaml")
    run_dirs = sorted((path.parents[1] for path in paths), key=lambda path: (len(str(path)), str(path)))
    overrides = [dict(map(_key_and_value, OmegaConf.load(one / ".hydra" / "overrides.yaml"))) for one in run_dirs]
    keys = dict.fromkeys(key for given in overrides for key in given)
    varied = [key for key in keys if len({given.get(key) for given in overrides}) > 1]
    return [
        SweepRun(str(run_dir.relative_to(folder)), {key: given[key] for key in varied if key in given}, _read(run_dir))
        for run_dir, given in zip(run_dirs, overrides, strict=True)
    ]


def _read(run_dir: Path) -> dict[str, float] | None:
    try:
        metrics = json.loads((run_dir / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def group_runs(runs: Sequence[SweepRun], average_over: Sequence[str]) -> list[dict[str, Any]]:
    """Group runs by their other overrides: each has these `overrides`, the number of finished `runs`, and `metrics`."""
    members: dict[tuple[tuple[str, str], ...], list[dict[str, float]]] = {}
    for run in runs:
        key = tuple((name, value) for name, value in run.overrides.items() if name not in average_over)
        members.setdefault(key, []).extend([] if run.metrics is None else [run.metrics])
    return [
        {"overrides": dict(key), "runs": len(finished), "metrics": _statistics(finished)}
        for key, finished in members.items()
    ]


def _statistics(runs: Sequence[dict[str, float]]) -> dict[str, Statistic]:
    found = {}
    for name in sorted({name for metrics in runs for name in metrics}):
        values = [metrics[name] for metrics in runs if name in metrics]
        deviation = stdev(values) if len(values) > 1 else None
        found[name] = {"mean": fmean(values), "deviation": deviation, "runs": len(values)}
    return found


def summary_table(groups: Sequence[dict[str, Any]]) -> Table:
    """A table with a row for each group of `group_runs`, without the metrics of single classes.

    Where not all runs of a group have a metric, its number of runs is shown.
    """
    keys = dict.fromkeys(key for group in groups for key in group["overrides"])
    names = sorted({name for group in groups for name in group["metrics"]})
    stage = next(stage for stage in STAGES if not stage or any(name.startswith(stage) for name in names))
    shown = [name for name in names if name.startswith(stage) and is_aggregate(name, names)]
    table = Table(title=f"sweep: {stage}…", title_justify="left")
    for column in (*keys, "runs", *(name.removeprefix(stage) for name in shown)):
        table.add_column(column, overflow="fold")
    for group in groups:
        cells = [_cell(group["metrics"].get(name), group["runs"]) for name in shown]
        table.add_row(*(group["overrides"].get(key, "") for key in keys), str(group["runs"]), *cells)
    return table


def _cell(statistic: Statistic | None, runs: int) -> str:
    if statistic is None:
        return ""
    deviation = "" if statistic["deviation"] is None else f" ± {statistic['deviation']:.4f}"
    number = "" if statistic["runs"] == runs else f" (of {statistic['runs']})"
    return f"{statistic['mean']:,.4f}{deviation}{number}"
