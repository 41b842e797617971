"""Cost of explanations: `uv run scripts/benchmark_explanations.py [any override of experiments/train.py]`.

First the parts of one event, compared with a forward pass of the same samples: time, and additional peak memory (of the
process or the device, so that each part counts only what exceeds those before it). Then, unless `train=false`, a
complete run: the share of its time in events, measured within that run.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.table import Table

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors

if TYPE_CHECKING:
    import torch


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_explanations")
@report_user_errors
def main(cfg: DictConfig) -> None:
    from perceiver.commands.train import discard_if_unused
    from perceiver.runtime.config import resolved
    from perceiver.runtime.summary import console

    with open_dict(cfg):
        whole_run = cfg.pop("train")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        console.print(event_table(resolved(cfg)))
        if whole_run:
            console.print(run_table(cfg))
    finally:
        if run_dir.is_dir():
            discard_if_unused(run_dir)


def event_table(config: dict[str, Any]) -> Table:
    """Return time and memory of the parts of an event."""
    import torch

    from perceiver.commands.predict import to_accelerator
    from perceiver.inspection.explorer.events import write_arrays
    from perceiver.inspection.explorer.page import page_event
    from perceiver.inspection.maps.capture import capture
    from perceiver.inspection.writer import ExplanationWriter
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build, construct

    prepare_torch(config)
    evaluator = construct(config, "attention").evaluator
    parts = build(config)
    to_accelerator(parts)
    settings = config["attention"]
    explainer = parts.explainer(settings["rollout_alpha"])
    batch = parts.data.probe(settings["num_samples"]).to(parts.device)
    clock = Clock(parts.device)

    def forward() -> None:
        explainer.task.predictions(explainer.model, batch, explainer.class_names, 1)

    with torch.no_grad():
        clock.measure("forward pass", forward)
        with capture(explainer.module):
            clock.measure("forward pass, captured", forward)
    explanation = clock.measure("explanation: capture, rollout, relevance", lambda: explainer.explain(batch))
    clock.measure("statistics", lambda: explanation.statistics)
    writer = ExplanationWriter.of_model(explainer, explanation, lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> Any:
            event = writer.event(step=0, epoch=0, max_megabytes=settings["max_megabytes"])
            write_arrays(Path(folder) / "event.npz", event)
            return event

        arrays = clock.measure("event file", write)
    clock.measure("maps for the explorer", lambda: page_event(arrays))
    clock.measure("contact sheets", lambda: writer.contact_sheets(settings["num_latents"]))
    test = partial(evaluator.evaluate, with_localization=False, with_faithfulness=True)
    clock.measure("faithfulness test", lambda: test(explainer, [explanation]))
    reader = explanation.record.layers[explanation.record.input_layers[0]]
    clock.table.title = f"{len(batch)} samples, {reader.num_keys:,} tokens × {reader.num_queries} queries"
    return clock.table


class Clock:
    """Measures functions, one row of a table each."""

    def __init__(self, device: "torch.device") -> None:
        self.device = device
        self.table = Table("part", "seconds", "additional peak memory", title_justify="left")

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a function, and add its time and memory to the table."""
        from perceiver.training.timing import peak_bytes, synchronize

        held, start = peak_bytes(self.device), time.perf_counter()
        result = function()
        synchronize(self.device)
        seconds, more = time.perf_counter() - start, peak_bytes(self.device) - held
        self.table.add_row(name, f"{seconds:,.3f}", f"{more / 2**20:,.0f} MiB")
        return result


def run_table(cfg: DictConfig) -> Table:
    """Train, and return the time of events."""
    from perceiver.commands.train import train
    from perceiver.training.attention_callback import AttentionCallback

    seconds: list[float] = []
    start = time.perf_counter()
    with ExitStack() as stack:
        for name in ("on_train_epoch_end", "on_train_end"):
            method = timed(getattr(AttentionCallback, name), seconds)
            stack.enter_context(mock.patch.object(AttentionCallback, name, method))
        train(cfg)
    total = time.perf_counter() - start
    table = Table("run", "seconds")
    table.add_row("total", f"{total:,.1f}")
    table.add_row("explanations", f"{sum(seconds):,.2f}")
    table.add_row("explanations, relative to the rest", f"{sum(seconds) / (total - sum(seconds)):.2%}")
    return table


def timed(method: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    """Wrap a method so that it appends its time to `seconds`."""

    def wrapper(*args: Any) -> None:
        start = time.perf_counter()
        method(*args)
        seconds.append(time.perf_counter() - start)

    return wrapper


if __name__ == "__main__":
    main()
