"""The gallery of a finished run: the most extreme samples of a whole split, as a page."""

from pathlib import Path

from omegaconf import DictConfig

from perceiver.commands.finished_run import FinishedRun
from perceiver.commands.whole_split import split_of
from perceiver.inspection.explorer.gallery import Gallery, collect, finish
from perceiver.inspection.explorer.gallery_page import write_gallery
from perceiver.inspection.maps.explainer import Explainer
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console


def make_gallery(cfg: DictConfig, name: str, finished: FinishedRun, explainer: Explainer, page: Path) -> Path:
    """Write the gallery of a run, whose arrays lie beside the page.

    Args:
        cfg: settings `gallery_…`.
        name: title of the run.
        finished: the run.
        explainer: of its model, on the accelerator.
        page: the file, whose folder exists.

    Raises:
        ConfigError: a setting is not valid, the split does not exist, or the task cannot evaluate its samples.
        UnreadableError: a sample cannot be read, and the data set does not skip those.
    """
    stage, batches = split_of(cfg, "gallery", finished)
    data = finished.parts.data
    try:
        gallery = collect(explainer, batches, data.dataset.pieces, Gallery(cfg.gallery_top, explainer.class_names))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"gallery: {one_line(error)}") from error
    if not gallery.num_samples:
        raise ConfigError(f"gallery_split={stage}: none of its samples can be read")
    finish(explainer, gallery)
    indices = stage == data.probe_stage and cfg.gallery_samples is None and not data.unreadable
    write_gallery(page, f"{name} · {stage}", gallery, indices=indices)
    console.print(f"gallery of {gallery.num_samples} samples: {page.with_suffix('.npz')}", soft_wrap=True)
    console.print(f"open {page} in a browser", soft_wrap=True)
    return page
