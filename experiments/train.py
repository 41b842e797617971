"""Train: `uv run experiments/train.py [experiment=…] [key=value …]`."""

import hydra
from omegaconf import DictConfig

from perceiver.training.errors import explained
from perceiver.training.run import train


@explained
@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@explained
def main(cfg: DictConfig) -> float | None:
    return train(cfg)


if __name__ == "__main__":
    main()
