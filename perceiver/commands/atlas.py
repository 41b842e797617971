"""The atlas of a finished run: the inputs of a whole split that each latent reads most, as a page."""

from pathlib import Path

from omegaconf import DictConfig

from perceiver.commands.finished_run import FinishedRun
from perceiver.commands.whole_split import split_of
from perceiver.inspection.explorer.atlas import Atlas, collect
from perceiver.inspection.explorer.atlas_page import write_atlas
from perceiver.inspection.maps.explainer import Explainer
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console


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
    stage, batches = split_of(cfg, "atlas", finished)
    layers = [str(layer) for layer in cfg.atlas_layers or ()]
    try:
        atlas = collect(explainer, batches, finished.parts.data.dataset.pieces, Atlas(cfg.atlas_top, layers))
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
