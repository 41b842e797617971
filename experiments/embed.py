"""Features of files or samples from a finished run: `uv run experiments/embed.py run=outputs/… inputs='[cat.jpg]'`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="embed")
@report_user_errors
def main(cfg: DictConfig) -> Path:
    from perceiver.commands.embed import embed

    return embed(cfg)


if __name__ == "__main__":
    main()
