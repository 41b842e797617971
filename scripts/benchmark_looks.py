"""What looking at attention costs: `uv run scripts/benchmark_looks.py [any override of experiments/train.py]`.

First one look at a probe set, part by part, beside a forward pass of the same samples: time, and how much more memory
was held at most (as far as the process's or the device's peak tells, so each part is one on top of those before it).
Then, unless `train=false`, a whole run: how much of its time went into looks, measured inside of that same run.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from rich.table import Table

from perceiver.commands.predict import to_accelerator
from perceiver.commands.train import discard_if_unused, prepare_torch, train
from perceiver.inspection.arrays import event_arrays, scored, write_arrays
from perceiver.inspection.capture import capture, pictures_of
from perceiver.inspection.explorer.page import event_of
from perceiver.inspection.faithfulness import faithfulness
from perceiver.inspection.figures import contact_sheets
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import explained
from perceiver.runtime.launch import command_line
from perceiver.runtime.summary import console
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.build import build, construct
from perceiver.training.timing import peak_bytes, synchronize


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_looks")
@explained
def main(cfg: DictConfig) -> None:
    with open_dict(cfg):
        whole_run = cfg.pop("train")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        console.print(one_look(resolved(cfg)))
        if whole_run:
            console.print(one_run(cfg))
    finally:
        if run_dir.is_dir():
            discard_if_unused(run_dir)


def one_look(config: dict[str, Any]) -> Table:
    """Time and memory of the parts of a look."""
    prepare_torch(config)
    construct(config, "attention")  # which refuses settings that make no sense
    parts = build(config)
    to_accelerator(parts)
    settings = config["attention"]
    explainer = parts.explainer(settings["rollout_alpha"])
    batch = parts.data.probe(settings["num_samples"]).to(parts.module.device)
    clock = Clock(parts.module.device)

    def forward() -> None:
        explainer.task.predictions(explainer.model, batch, explainer.class_names, 1)

    with torch.no_grad():
        clock.measure("forward pass", forward)
        with capture(explainer.module):
            clock.measure("forward pass, captured", forward)
    explanation = clock.measure("look: capture, rollout, relevance", lambda: explainer.explain(batch))
    statistics = clock.measure("statistics", lambda: explanation.record.statistics(alpha=explainer.alpha))
    arrays = clock.measure("exact maps", lambda: event_arrays(explanation, max_megabytes=settings["max_megabytes"]))
    event = scored(arrays, statistics) | {"step": np.array(0), "epoch": np.array(0)}
    with tempfile.TemporaryDirectory() as folder:
        clock.measure("exact maps to disk", lambda: write_arrays(Path(folder) / "event.npz", arrays))
    clock.measure("maps for the explorer", lambda: event_of(event))
    pictures = pictures_of(explainer.model, batch.inputs)
    clock.measure("contact sheets", lambda: contact_sheets(explanation, pictures, num_latents=settings["num_latents"]))
    clock.measure("deletion test", lambda: faithfulness(explainer, explanation, seed=0))
    reader = explanation.record.layers[explanation.record.readers[0]]
    clock.table.title = f"{len(batch)} samples, {reader.num_keys:,} tokens × {reader.num_queries} queries"
    return clock.table


class Clock:
    """Measures one thing after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.table = Table("what", "seconds", "more memory at most", title_justify="left")

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """Run once and write down."""
        held, start = peak_bytes(self.device), time.perf_counter()
        result = function()
        synchronize(self.device)
        seconds, more = time.perf_counter() - start, peak_bytes(self.device) - held
        self.table.add_row(name, f"{seconds:,.3f}", f"{more / 2**20:,.0f} MiB")
        return result


def one_run(cfg: DictConfig) -> Table:
    """How much of a run goes into looks."""
    seconds: list[float] = []
    start = time.perf_counter()
    with ExitStack() as stack:
        for name in ("on_train_epoch_end", "on_train_end"):
            method = timed(getattr(AttentionCallback, name), seconds)
            stack.enter_context(mock.patch.object(AttentionCallback, name, method))
        train(cfg)
    total = time.perf_counter() - start
    table = Table("run", "seconds")
    table.add_row("all of it", f"{total:,.1f}")
    table.add_row("looks at attention", f"{sum(seconds):,.2f}")
    table.add_row("looks, of the rest", f"{sum(seconds) / (total - sum(seconds)):.2%}")
    return table


def timed(method: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    """The same method, which adds what it takes to `seconds`."""

    def wrapper(*args: Any) -> None:
        start = time.perf_counter()
        method(*args)
        seconds.append(time.perf_counter() - start)

    return wrapper


if __name__ == "__main__":
    main()
