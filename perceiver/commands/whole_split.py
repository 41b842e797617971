"""The samples of a whole split of a finished run, for pages about all of them."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from perceiver.commands.finished_run import FinishedRun
from perceiver.runtime.errors import ConfigError
from perceiver.training.build import config_errors
from perceiver.types import STAGES, Batch, Stage


def split_of(cfg: DictConfig, page: str, finished: FinishedRun) -> tuple[Stage, Iterator[Batch]]:
    """Return the split that a page shows, and its batches on the accelerator.

    Args:
        cfg: settings `<page>_top`, `<page>_split` and `<page>_samples`.
        page: the name of the page in the settings.
        finished: the run.

    Raises:
        ConfigError: a setting is not valid, or the split does not exist.
    """
    data, device = finished.parts.data, finished.parts.device
    for key in (f"{page}_top", f"{page}_samples"):
        value: Any = cfg[key]
        if not (type(value) is int and value >= 1) and (value is not None or key == f"{page}_top"):
            raise ConfigError(f"{key}={value}: must be a whole number, at least 1")
    split = cfg[f"{page}_split"]
    if split is not None and split not in STAGES:
        raise ConfigError(f"{page}_split={split}: must be one of {', '.join(STAGES)}")
    with config_errors(finished.config, "data"):
        data.prepare_data()
        stage: Stage = data.probe_stage if split is None else split
    if data.splits[stage] is None:
        raise ConfigError(f"{page}_split={stage}: the data set has no such samples")
    finished.check_data(stage, allow_trained=True)
    return stage, (batch.to(device) for batch in data.in_order(stage, cfg[f"{page}_samples"]))
