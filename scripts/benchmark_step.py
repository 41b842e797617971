"""What one training step costs: `uv run scripts/benchmark_step.py [any override of experiments/train.py] [steps=20]`.

Prints parameters, FLOPs per sample (attention included), step time, samples per second and peak memory; and which share
of the machine's own matrix-product rate, measured in the same run and precision, the step reaches. A step is forward,
backward and optimizer, on one batch that stays on the device; its FLOPs are three times those of the forward pass.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, open_dict
from rich.table import Table

from perceiver.commands.train import prepare_torch
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import explained
from perceiver.runtime.launch import command_line
from perceiver.runtime.summary import console, count_parameters, flops_per_sample
from perceiver.training.build import build
from perceiver.training.timing import TrainingStep, example_batch, peak_bytes, synchronize

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
LOW_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_step")
@explained
def main(cfg: DictConfig) -> None:
    with open_dict(cfg):
        warmup, steps = cfg.pop("warmup"), cfg.pop("steps")
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    batch = example_batch(parts.data)
    flops = flops_per_sample(parts.model, parts.task, batch)
    parameters = count_parameters(parts.model)
    step = TrainingStep(parts, config)
    batch = batch.to(step.device)
    seconds = median_seconds(lambda: step(batch), step.device, warmup=warmup, repeats=steps)
    memory = peak_bytes(step.device)
    rate = 3 * flops * len(batch) / seconds
    ceiling = matrix_product_rate(step.device, LOW_PRECISION.get(config["trainer"]["precision"], torch.float32))
    table = Table(show_header=False)
    for name, value in {
        "device": step.description,
        "parameters": f"{parameters:,}",
        "FLOPs per sample, forward": f"{flops / 1e9:,.4g} G",
        "batch size": f"{len(batch)}",
        "step time": f"{seconds * 1e3:,.1f} ms (median of {steps})",
        "samples per second": f"{len(batch) / seconds:,.1f}",
        "peak memory": f"{memory / 2**30:,.2f} GiB",
        "rate of the step": f"{rate / 1e12:,.3f} TFLOP/s",
        "rate of a matrix product": f"{ceiling / 1e12:,.3f} TFLOP/s",
        "share": f"{rate / ceiling:.1%}",
    }.items():
        table.add_row(name, value)
    console.print(table)


def median_seconds(function: Callable[[], Any], device: torch.device, *, warmup: int, repeats: int) -> float:
    """Median wall time of a call, its device work included."""
    times = []
    for repeat in range(warmup + repeats):
        start = time.perf_counter()
        function()
        synchronize(device)
        if repeat >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product of random matrices."""
    size = MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, warmup=2, repeats=5)


if __name__ == "__main__":
    main()
