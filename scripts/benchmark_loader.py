"""Whether data comes fast enough: `uv run scripts/benchmark_loader.py [any override of experiments/train.py]`.

Prints how many samples a second the loader reads with its workers, how many the training step takes from a batch that
stays on the device, and how many both do together, where each step waits for the batch it is to train on.
"""

from itertools import repeat

import hydra
from omegaconf import DictConfig, open_dict
from rich.table import Table

from perceiver.commands.train import prepare_torch
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import explained
from perceiver.runtime.launch import command_line
from perceiver.runtime.summary import console
from perceiver.training.build import build
from perceiver.training.timing import TrainingStep, example_batch, samples_per_second, training_batches


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_loader")
@explained
def main(cfg: DictConfig) -> None:
    with open_dict(cfg):
        warmup, repeats = cfg.pop("warmup"), cfg.pop("batches")
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    step = TrainingStep(parts, config)
    alone = repeat(example_batch(parts.data).to(step.device))
    step_rate = samples_per_second(alone, step, step.device, warmup=warmup, repeats=repeats)
    num_workers = parts.data.num_workers
    read = training_batches(parts.data)
    warmup += 2 * num_workers  # what waits already would be counted as read in no time
    loader_rate = samples_per_second(read, lambda _: None, step.device, warmup=warmup, repeats=repeats)
    both_rate = samples_per_second(
        read, lambda batch: step(batch.to(step.device, non_blocking=True)), step.device, warmup=warmup, repeats=repeats
    )
    ratio = loader_rate / step_rate
    table = Table(show_header=False)
    for name, value in {
        "device": step.description,
        "batch size": f"{parts.data.batch_size}",
        "workers": f"{num_workers}",
        "loader alone": f"{loader_rate:,.1f} samples per second",
        "step alone": f"{step_rate:,.1f} samples per second",
        "both together": f"{both_rate:,.1f} samples per second",
        "loader / step": f"{ratio:.2f}",
    }.items():
        table.add_row(name, value)
    console.print(table)
    console.print(verdict(ratio, num_workers), soft_wrap=True)


def verdict(ratio: float, num_workers: int) -> str:
    """What the rate of the loader, in units of that of the step, means for training."""
    if num_workers == 0:
        return "Without workers every step waits until its batch is read; loader.num_workers=1 would read ahead."
    if ratio >= 1.0:
        return f"The loader keeps ahead: it reads {ratio:.1f} times as fast as the step trains."
    return f"The step waits for the loader, which reads {ratio:.0%} of what it could take; try more loader.num_workers."


if __name__ == "__main__":
    main()
