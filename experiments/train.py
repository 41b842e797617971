"""Train: `uv run experiments/train.py [experiment=…] [key=value …]`; `run=outputs/…` resumes a run."""

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line, resumable
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@resumable
@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@report_user_errors
def main(cfg: DictConfig) -> float | None:
    from perceiver.commands.train import train

    return train(cfg)


if __name__ == "__main__":
    main()
