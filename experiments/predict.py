"""Ask a finished run about files: `uv run experiments/predict.py run=outputs/… inputs='[cat.jpg]'`."""

from typing import Any

import hydra
from omegaconf import DictConfig

from perceiver.training.errors import explained
from perceiver.training.launch import command_line
from perceiver.training.prediction import predict


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
@explained
def main(cfg: DictConfig) -> list[dict[str, Any]]:
    return predict(cfg)


if __name__ == "__main__":
    main()
