"""Predictions of a finished run for files: `uv run experiments/predict.py run=outputs/… inputs='[cat.jpg]'`."""

from typing import Any

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
@report_user_errors
def main(cfg: DictConfig) -> list[dict[str, Any]]:
    from perceiver.commands.predict import predict

    return predict(cfg)


if __name__ == "__main__":
    main()
