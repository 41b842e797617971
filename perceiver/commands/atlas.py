"""The atlas of a finished run: the inputs of a whole split that each latent reads most, as a page."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from perceiver.commands.evaluate import STAGES
from perceiver.commands.finished_run import FinishedRun
from perceiver.inspection.atlas import Atlas, collect
from perceiver.inspection.explanation import Explainer
from perceiver.inspection.explorer.atlas_page import write_atlas
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.training.build import config_errors


def make_atlas(cfg: DictConfig, name: str, finished: FinishedRun, explainer: Explainer, page: Path) -> Path:
    """Write the atlas of a run, whose arrays lie beside the page.

    Args:
        cfg: settings `atlas_…`.
        name: title of the run.
        finished: the run.
        explainer: of its model, on the accelerator.
        page: the file, whose folder exists.

    Raises:
        ConfigError: a setting is not valid, the split does not exist, or no latents read the inputs.
        UnreadableError: a sample cannot be read, and the data set does not skip those.
    """
    data, device = finished.parts.data, finished.parts.module.device
    for key in ("atlas_top", "atlas_samples"):
        value: Any = cfg[key]
        if not (type(value) is int and value >= 1) and (value is not None or key == "atlas_top"):
            raise ConfigError(f"{key}={value}: must be a whole number, at least 1")
    if cfg.atlas_split is not None and cfg.atlas_split not in STAGES:
        raise ConfigError(f"atlas_split={cfg.atlas_split}: must be one of {', '.join(STAGES)}")
    layers = [str(layer) for layer in cfg.atlas_layers or ()]
    with config_errors(finished.config, "data"):
        data.prepare_data()
        stage = data.probe_stage if cfg.atlas_split is None else cfg.atlas_split
    if data.splits[stage] is None:
        raise ConfigError(f"atlas_split={stage}: the data set has no such samples")
    finished.check_data(stage, allow_trained=True)
    batches = (batch.to(device) for batch in data.in_order(stage, cfg.atlas_samples))
    try:
        atlas = collect(explainer, batches, data.dataset.pieces, Atlas(cfg.atlas_top, layers))
    except ValueError as error:
        raise ConfigError(f"atlas: {one_line(error)}") from error
    if not atlas.num_samples:
        raise ConfigError(f"atlas_split={stage}: none of its samples can be read")
    write_atlas(page, f"{name} · {stage}", atlas)
    console.print(
        f"atlas of {atlas.num_latents} latents over {atlas.num_samples} samples: {page.with_suffix('.npz')}",
        soft_wrap=True,
    )
    console.print(f"open {page} in a browser", soft_wrap=True)
    return page
