"""Time and memory of a step, beside other packages: `uv run scripts/benchmark_peers.py [sizes='[small]'] [rounds=3]`.

The model is the same everywhere: pixels with Fourier features, one cross-attend, blocks that share weights, a learned
query. Each package runs in an environment of its own, made by uv from the package index, and each measurement in a new
process; in each round all of them take turns. Prints CPU seconds of one step (the range over the rounds), peak memory
on top of the model, and both as ratios to the best of the others. The floor of a step is the time of its matrix
products alone, as it executes them, at the highest rate that products of the model's largest shapes reach in any of the
processes; the second table shows it.
"""

import json
import subprocess
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors
from perceiver.runtime.summary import console

OURS = "perceiver"
STEP = Path(__file__).with_name("benchmark_peers_step.py")


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_peers")
@report_user_errors
def main(cfg: DictConfig) -> None:
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for name in config["sizes"]:
        if name not in config["size"]:
            raise ConfigError(f"sizes={config['sizes']}: the sizes are {', '.join(config['size'])}")
    for size, precision, mode in product(config["sizes"], config["precisions"], config["modes"]):
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(config["rounds"]):
            for package, requirements in {OURS: None, **config["packages"]}.items():
                setting = {"package": package, "precision": precision, "mode": mode, "threads": config["threads"]}
                if result := measure(requirements, setting | config["size"][size]):
                    found[package].append(result)
        console.print(table(f"{size}, {precision}, {mode}, {config['threads']} threads", found))
        console.print(floors(found))


def measure(requirements: list[str] | None, setting: dict[str, Any]) -> dict[str, float] | None:
    """Measure a step in a new process; None, with a message, if the package does not run here."""
    python = [sys.executable]
    if requirements is not None:
        torch = subprocess.check_output([sys.executable, "-c", "import torch; print(torch.__version__.split('+')[0])"])
        options = [part for one in (f"torch=={torch.decode().strip()}", *requirements) for part in ("--with", one)]
        python = ["uv", "run", "--quiet", "--no-project", "--isolated", *options, "python"]
    ended = subprocess.run([*python, str(STEP), json.dumps(setting)], capture_output=True, text=True)
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        console.print(f"{setting['package']}: does not run here: {last}", soft_wrap=True)
        return None
    result: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return result


def table(title: str, found: dict[str, list[dict[str, float]]]) -> Table:
    """Return time and memory by package, and their ratios to the best of the other packages."""
    shown = Table(title=title, title_justify="left")
    for column in ("package", "parameters", "CPU seconds", "ratio", "MiB", "ratio"):
        shown.add_column(column, justify="left" if column == "package" else "right")
    best = {
        key: min((min(one[key] for one in results) for name, results in found.items() if name != OURS), default=0.0)
        for key in ("seconds", "mebibytes")
    }
    for package, results in found.items():
        row = [package, f"{results[0]['parameters']:,.0f}"]
        for key, digits in (("seconds", 3), ("mebibytes", 0)):
            values = [one[key] for one in results]
            ratio = f"{min(values) / best[key]:.2f}" if best[key] else ""
            row += [f"{min(values):.{digits}f}-{max(values):.{digits}f}", ratio]
        shown.add_row(*row)
    return shown


def floors(found: dict[str, list[dict[str, float]]]) -> Table:
    """Return the floor of the time by package."""
    rate = max((one["rate"] for results in found.values() for one in results), default=0.0)
    shown = Table(title=f"matrix products at {rate / 1e9:,.0f} GFLOP/s", title_justify="left")
    for column in ("package", "GFLOPs", "floor, seconds", "step / floor"):
        shown.add_column(column, justify="left" if column == "package" else "right")
    for package, results in found.items():
        flops, seconds = results[0]["flops"], min(one["seconds"] for one in results)
        shown.add_row(package, f"{flops / 1e9:,.0f}", f"{flops / rate:.3f}", f"{seconds * rate / flops:.2f}")
    return shown


if __name__ == "__main__":
    main()
