"""Console output of a run, its log file, and the tables of its model and results."""

import io
import logging
import os
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import nn

    from perceiver.types import Batch

MAX_CLASSES = 50
"""Rows of the table of classes."""
LOG_WIDTH = 120
"""Characters in a line of a table in the run's log file."""

console = Console(markup=False, emoji=False)  # names of files and classes may look like markup


def note(message: str, level: int = logging.INFO) -> None:
    """Write a message to the run's log file (`train.log`) only, in the first process."""
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    if not files:
        return
    from lightning.pytorch.utilities import rank_zero_only

    record = logging.LogRecord("perceiver", level, "", 0, message, (), None)
    if not rank_zero_only.rank:  # type: ignore[attr-defined]
        for handler in files:
            handler.handle(record)


def show(table: Table) -> None:
    """Print a table, and write it to the run's log file."""
    console.print(table)
    text = io.StringIO()
    Console(file=text, width=LOG_WIDTH, markup=False, emoji=False).print(table)
    note("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def show_values(values: Mapping[str, str]) -> None:
    """Print named values as a table of two columns."""
    table = Table(show_header=False)
    for row in values.items():
        table.add_row(*row)
    console.print(table)


def model_table(
    model: "nn.Module", cost: Mapping[str, float], batch: "Batch", frozen: "Collection[nn.Parameter]" = ()
) -> Table:
    """The trainable and frozen parameters of each part of a model, and its cost for one sample of a batch.

    Args:
        model: with parts.
        cost: see `cost_metrics`.
        batch: of at least one sample.
        frozen: parameters that are not trained, or not from the start.
    """
    from torch import nn

    from perceiver.runtime.cost import count_parameters

    table = Table(title="model", title_justify="left")
    for column in ("part", "class", "trainable", "frozen"):
        table.add_column(column, justify="left" if column in ("part", "class") else "right")

    def add(name: str, part: nn.Module) -> None:
        total, kept = count_parameters(part), count_parameters(part, frozen)
        table.add_row(name, type(part).__name__, f"{total - kept:,}", f"{kept:,}")

    for name, part in model.named_children():
        children = part.named_children() if isinstance(part, nn.ModuleDict) else [("", part)]
        for child_name, child in children:
            add(f"{name}.{child_name}".rstrip("."), child)
    table.add_section()
    add("all", model)
    shapes = [f"{name} {'×'.join(map(str, value.shape[1:]))}" for name, value in batch.inputs.items()]
    table.add_row("one sample", " + ".join(shapes), f"{cost['flops_per_sample'] / 1e9:,.4g} GFLOPs")
    return table


def aggregate_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single classes and kinds of the test."""
    return {
        name: value for name, value in metrics.items() if not name.startswith("test/") or is_aggregate(name, metrics)
    }


def is_aggregate(name: str, names: Container[str]) -> bool:
    """Whether a metric is that of all samples, and not of one class: `stage/name`, or that of one of several tasks.

    Args:
        name: of the metric.
        names: of all metrics; each task has a loss.
    """
    return name.count("/") < 2 or f"{name.rpartition('/')[0]}/loss" in names


def show_files(files: Mapping[str, Path]) -> None:
    """Print named files, each in a line that is never broken, and write them to the run's log file."""
    width = max(map(len, files), default=0)
    for name, path in files.items():
        line = f"{name:<{width}}  {os.path.relpath(path)}"
        console.print(line, soft_wrap=True, highlight=False)
        note(line)


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """The final metrics without those of single classes."""
    table = Table(title="result", title_justify="left", show_header=False)
    for name, value in aggregate_metrics(metrics).items():
        table.add_row(name, _number(value))
    return table


def class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The metrics of the first classes, one row each."""
    table = Table(title="classes", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows[:MAX_CLASSES]:
        table.add_row(*(_number(value) if isinstance(value, float) else str(value) for value in row.values()))
    if len(rows) > MAX_CLASSES:
        table.add_row(f"… and {len(rows) - MAX_CLASSES} more in metrics.json")
    return table


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e4 else f"{value:,.0f}"
