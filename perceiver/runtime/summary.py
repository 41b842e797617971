"""What a model costs, and the tables around a run."""

import copy
import io
import logging
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver.tasks.base import Task
from perceiver.types import Batch

MOST_ROWS = 50

console = Console(markup=False, emoji=False)  # names of files and classes are no markup


LOG_WIDTH = 120
"""Characters in a line of a table in the run's log file."""


@rank_zero_only
def note(message: str, level: int = logging.INFO) -> None:
    """Write to the run's log file (`train.log`) alone, what the terminal shows in its own way or not at all."""
    record = logging.LogRecord("perceiver", level, "", 0, message, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
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


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def flops_per_sample(model: nn.Module, task: Task, batch: Batch) -> int:
    """Floating-point operations of one forward pass of training, per sample; a multiplication and an addition are two.

    Counted on the meta device with the explicit attention kernel: the counter does not see into the CPU's fused one.
    """
    twin = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    example = batch.to("meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.average_windows(task.outputs(twin, example), example)  # which finds out whether they are the task's
    return counter.get_total_flops() // len(batch)


def cost_of(model: nn.Module, task: Task, batch: Batch) -> dict[str, float]:
    """What a model costs, as metrics of its run."""
    return {
        "parameters": float(count_parameters(model)),
        "flops_per_sample": float(flops_per_sample(model, task, batch)),
    }


def model_table(model: nn.Module, cost: Mapping[str, float], batch: Batch) -> Table:
    """Parameters of each part, and the cost of one sample."""
    table = Table(title="model", title_justify="left")
    for column in ("part", "what", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for name, part in model.named_children():
        children = part.named_children() if isinstance(part, nn.ModuleDict) else [("", part)]
        for child_name, child in children:
            table.add_row(f"{name}.{child_name}".rstrip("."), type(child).__name__, f"{count_parameters(child):,}")
    table.add_section()
    table.add_row("all", type(model).__name__, f"{count_parameters(model):,}")
    table.add_row("one sample", " + ".join(_shape(batch)), f"{cost['flops_per_sample'] / 1e9:,.4g} GFLOPs")
    return table


def _shape(batch: Batch) -> list[str]:
    return [f"{name} {'×'.join(map(str, value.shape[1:]))}" for name, value in batch.inputs.items()]


def of_whole_sets(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without those of single classes and kinds."""
    return {name: value for name, value in metrics.items() if not name.startswith("test/") or is_of_all(name, metrics)}


def is_of_all(name: str, names: Container[str]) -> bool:
    """Whether a metric is that of a whole set, of all or of one of several tasks, which each have a loss."""
    return name.count("/") < 2 or f"{name.rpartition('/')[0]}/loss" in names


def metrics_table(metrics: Mapping[str, float], written: Mapping[str, Path]) -> Table:
    """The final metrics, those of single classes left out, and where everything lies."""
    table = Table(title="result", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in of_whole_sets(metrics).items():
        table.add_row(name, _number(value))
    table.add_section()
    for name, path in written.items():
        table.add_row(name, os.path.relpath(path))
    return table


def class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a class, as long as they are few enough to be looked through."""
    table = Table(title="classes", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows[:MOST_ROWS]:
        table.add_row(*(_number(value) if isinstance(value, float) else str(value) for value in row.values()))
    if len(rows) > MOST_ROWS:
        table.add_row(f"… and {len(rows) - MOST_ROWS} more in metrics.json")
    return table


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e4 else f"{value:,.0f}"
