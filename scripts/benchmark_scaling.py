"""Time and memory of a training step by the number of inputs: `uv run scripts/benchmark_scaling.py [plot=FILE.png]`.

The model is that of benchmark_peers.py: pixels with Fourier features, one cross-attend, a learned query. Each size runs
in a new process, and in each round all take turns. Prints CPU seconds of one step (the range over the rounds), peak
memory on top of the model, and the memory that keys and values of the inputs would take in addition.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw
from rich.table import Table

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors
from perceiver.runtime.summary import console

STEP = Path(__file__).with_name("benchmark_peers_step.py")
WIDTH = 261
"""Channels of an input: three colors, and sines, cosines and coordinates of 64 frequencies along two axes."""
FLOAT_BYTES = 4


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_scaling")
@report_user_errors
def main(cfg: DictConfig) -> None:
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    found: dict[int, list[dict[str, float]]] = {side: [] for side in config["sides"]}
    for _ in range(config["rounds"]):
        for side, results in found.items():
            results.append(measure(config["setting"] | {"package": "perceiver", "side": side}))
    table = Table("inputs", "CPU seconds", "MiB", "keys and values, MiB", title=f"a training step, {config['setting']}")
    for side, results in found.items():
        seconds = [one["seconds"] for one in results]
        peak, kept = min(one["mebibytes"] for one in results), 2 * side**2 * WIDTH * FLOAT_BYTES / 2**20
        table.add_row(f"{side**2:,}", f"{min(seconds):.2f}-{max(seconds):.2f}", f"{peak:,.0f}", f"{kept:,.0f}")
    console.print(table)
    if config["plot"] is not None:
        inputs = [side**2 for side in found]
        curves = {
            key: [min(one[key] for one in results) for results in found.values()] for key in ("seconds", "mebibytes")
        }
        plot(inputs, curves).save(config["plot"])
        console.print(f"written to {config['plot']}", soft_wrap=True)


def measure(setting: dict[str, Any]) -> dict[str, float]:
    """Measure a step in a new process.

    Raises:
        ConfigError: it failed.
    """
    ended = subprocess.run([sys.executable, str(STEP), json.dumps(setting)], capture_output=True, text=True)
    if ended.returncode != 0:
        raise ConfigError(f"side={setting['side']}: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
    result: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return result


def plot(inputs: list[int], curves: dict[str, list[float]], size: int = 400, margin: int = 60) -> Image.Image:
    """Draw each curve over the number of inputs, side by side, both axes from 0."""
    image = Image.new("RGB", (len(curves) * size, size), "white")
    draw, length = ImageDraw.Draw(image), size - 2 * margin
    for number, (name, values) in enumerate(curves.items()):
        left, bottom = number * size + margin, size - margin
        draw.line([(left, margin), (left, bottom), (left + length, bottom)], fill="black")
        points = [
            (left + length * x / max(inputs), bottom - length * y / max(values))
            for x, y in zip(inputs, values, strict=True)
        ]
        draw.line(points, fill="royalblue", width=2)
        for (x, y), value in zip(points, values, strict=True):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="royalblue")
            draw.text((x - 6, y - 16), f"{value:.3g}", fill="black", anchor="rs")
        draw.text((left, margin - 30), name, fill="black")
        draw.text((left + length, bottom + 10), f"{max(inputs):,} inputs", fill="black", anchor="ra")
    return image


if __name__ == "__main__":
    main()
