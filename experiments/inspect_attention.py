"""Make the attention explorer of a finished run: `uv run experiments/inspect_attention.py run=outputs/…`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceiver.commands.inspect import inspect_attention
from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import explained


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="inspect_attention")
@explained
def main(cfg: DictConfig) -> Path:
    return inspect_attention(cfg)


if __name__ == "__main__":
    main()
