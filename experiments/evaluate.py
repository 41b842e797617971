"""Measure a finished run again: `uv run experiments/evaluate.py run=outputs/…`."""

import hydra
from omegaconf import DictConfig

from perceiver.commands.evaluate import evaluate
from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import explained


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@explained
def main(cfg: DictConfig) -> dict[str, float]:
    return evaluate(cfg)


if __name__ == "__main__":
    main()
