"""Cost of attention mechanisms: `uv run scripts/benchmark_mechanisms.py [repeats=20] [device=cuda]`.

Forward and backward pass of each mechanism in training, without projections: median time, and its ratio to that of the
fused kernel. Mechanisms take turns, so that a change of the machine's load affects all of them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors

if TYPE_CHECKING:
    import torch

    from perceiver.mechanisms.base import Mechanism

REFERENCE = "scaled_dot_product"


@dataclass(frozen=True)
class Size:
    """The numbers of samples, heads, queries and keys, and the width of queries, keys and values of a head."""

    batch: int
    heads: int
    queries: int
    keys: int
    dim: int


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_mechanisms")
@report_user_errors
def main(cfg: DictConfig) -> None:
    import torch
    from rich.table import Table

    from perceiver.runtime.summary import console

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    torch.set_num_threads(config["num_threads"])
    device = torch.device(config["device"])
    sizes = {name: Size(**size) for name, size in config["sizes"].items()}
    seconds = {
        name: {key: statistics.median(times) for key, times in measure(config, size, device).items()}
        for name, size in sizes.items()
    }
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table("mechanism", title=f"forward and backward pass: ms, and ratio to {REFERENCE} ({title})")
    for name, size in sizes.items():
        shape = f"{size.batch} × {size.heads} heads, {size.queries} × {size.keys}, width {size.dim}"
        table.add_column(f"{name}: {shape}", justify="right")
    for key in config["mechanisms"]:
        cells = [f"{1e3 * found[key]:,.1f}  ({found[key] / found[REFERENCE]:.2f})" for found in seconds.values()]
        table.add_row(key, *cells)
    console.print(table)


def measure(config: Mapping[str, Any], size: Size, device: "torch.device") -> dict[str, list[float]]:
    """Return the times of the passes of each mechanism at a size."""
    from hydra.utils import instantiate

    from perceiver.training.timing import synchronize

    steps = {}
    for name, node in config["mechanisms"].items():
        mechanism = instantiate(node, _convert_="all")(num_heads=size.heads, dim=size.dim, dropout=0.0, role=None)
        steps[name] = step_of(mechanism.to(device).train(), size, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(config["warmup"] + config["repeats"]):
        for name, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if repeat >= config["warmup"]:
                times[name].append(time.perf_counter() - start)
    return times


def step_of(mechanism: "Mechanism", size: Size, device: "torch.device") -> Callable[[], None]:
    """Return a forward and backward pass on random inputs."""
    import torch

    from perceiver.training.module import auxiliary_parts

    lengths = (size.queries, size.keys, size.keys)
    inputs = [torch.randn(size.batch, size.heads, length, size.dim, device=device) for length in lengths]
    leaves = [x.requires_grad_() for x in inputs]
    auxiliary = auxiliary_parts(mechanism)
    losses = torch.ones(size.batch, device=device)

    def step() -> None:
        loss = mechanism(*leaves).sum() + sum(part.auxiliary_loss(losses, losses) for part in auxiliary)
        loss.backward()
        for x in (*leaves, *mechanism.parameters()):
            x.grad = None

    return step


if __name__ == "__main__":
    main()
