"""Measure a finished run again: `uv run experiments/evaluate.py run=outputs/…`."""

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@report_user_errors
def main(cfg: DictConfig) -> dict[str, float]:
    from perceiver.commands.evaluate import evaluate

    return evaluate(cfg)


if __name__ == "__main__":
    main()
