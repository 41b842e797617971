"""Speed of data loading: `uv run scripts/benchmark_loader.py [any override of experiments/train.py]`.

Prints the samples per second of the loader alone, of the training step alone (on one batch on the device), and of both
together, where each step waits for its batch.

`'experiments=[segmentation,"esc10 data.root=PATH"]'` prints a table instead, with a row for each experiment and its own
overrides: the samples that one worker reads per second and that the model is trained on, and their ratio. On a CPU
these are CPU seconds of one thread, which do not depend on what else the machine does.
"""

import shlex
from itertools import repeat
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors
from perceiver.runtime.overrides import expand_short_key

if TYPE_CHECKING:
    from rich.table import Table


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_loader")
@report_user_errors
def main(cfg: DictConfig) -> None:
    from perceiver.runtime.summary import console

    if cfg.experiments:
        given = HydraConfig.get().overrides.task
        console.print(comparison(cfg.experiments, [one for one in given if not one.startswith("experiments=")]))
    else:
        measure(cfg)


def measure(cfg: DictConfig) -> None:
    """Print the rates of one run."""
    from perceiver.runtime.config import resolved
    from perceiver.runtime.summary import console, show_values
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build
    from perceiver.training.timing import TrainingStep, example_batch, samples_per_second, training_batches

    with open_dict(cfg):
        _, warmup, repeats = cfg.pop("experiments"), cfg.pop("warmup"), cfg.pop("batches")
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    step = TrainingStep(parts, config)
    same = repeat(example_batch(parts.data).to(step.device))
    step_rate = samples_per_second(same, step, step.device, warmup=warmup, repeats=repeats)
    num_workers = parts.data.num_workers
    batches = training_batches(parts.data)
    warmup += 2 * num_workers  # batches that the workers have prefetched
    loader_rate = samples_per_second(batches, lambda _: None, step.device, warmup=warmup, repeats=repeats)
    train = lambda batch: step(batch.to(step.device, non_blocking=True))  # noqa: E731
    both_rate = samples_per_second(batches, train, step.device, warmup=warmup, repeats=repeats)
    ratio = loader_rate / step_rate
    show_values(
        {
            "device": step.description,
            "batch size": f"{parts.data.batch_size}",
            "workers": f"{num_workers}",
            "loader alone": f"{loader_rate:,.1f} samples per second",
            "step alone": f"{step_rate:,.1f} samples per second",
            "both together": f"{both_rate:,.1f} samples per second",
            "loader / step": f"{ratio:.2f}",
        }
    )
    console.print(verdict(ratio, num_workers), soft_wrap=True)


def comparison(experiments: list[str], overrides: list[str]) -> "Table":
    """Return a table with the rates of experiments, each a name with overrides of its own after it.

    Raises:
        ConfigError: there is no such experiment, or its settings are not valid.
    """
    import time

    import torch
    from hydra import compose
    from rich.table import Table

    from perceiver.runtime.config import resolved
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build
    from perceiver.training.timing import TrainingStep, example_batch, samples_per_second, training_batches

    cpu = torch.device("cpu")
    table = Table("experiment", "loader, samples/s", "step, samples/s", "loader / step")
    for line in experiments:
        name, *own = shlex.split(str(line))
        given = [*overrides, "num_threads=1", "loader.num_workers=0", *map(expand_short_key, own)]
        cfg = compose("benchmark_loader", overrides=[f"experiment={name}", *given])
        with open_dict(cfg):
            _, warmup, repeats = cfg.pop("experiments"), cfg.pop("warmup"), cfg.pop("batches")
        config = resolved(cfg)
        prepare_torch(config)
        parts = build(config)
        step = TrainingStep(parts, config)
        clock = time.process_time if step.device == cpu else time.perf_counter
        counts = {"warmup": warmup, "repeats": repeats}
        batches = training_batches(parts.data)
        loader_rate = samples_per_second(batches, lambda _: None, cpu, clock=time.process_time, **counts)
        same = repeat(example_batch(parts.data).to(step.device))
        step_rate = samples_per_second(same, step, step.device, clock=clock, **counts)
        table.add_row(name, f"{loader_rate:,.0f}", f"{step_rate:,.0f}", f"{loader_rate / step_rate:.1f}")
    return table


def verdict(ratio: float, num_workers: int) -> str:
    """A sentence about the rate of the loader, in units of that of the step."""
    if num_workers == 0:
        return "Without workers every step waits until its batch is read; loader.num_workers=1 would read ahead."
    if ratio >= 1.0:
        return f"The loader keeps ahead: it reads {ratio:.1f} times as fast as the step trains."
    return f"The step waits for the loader, which reads {ratio:.0%} of what it could take; try more loader.num_workers."


if __name__ == "__main__":
    main()
