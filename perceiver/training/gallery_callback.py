"""The gallery of the validation samples at the end of training, in the run directory and for the loggers."""

import base64
import io
import logging
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from perceiver.inspection.explorer.gallery import Gallery, OutputGallery, collect, finish
from perceiver.inspection.explorer.gallery_page import GALLERY, write_gallery
from perceiver.processes import all_gather
from perceiver.runtime.loggers.base import RunLogger, log_explanation
from perceiver.runtime.tables import CONFUSION_MATRIX, MAX_CLASSES_SHOWN, MAX_ROWS_SHOWN, PREDICTIONS
from perceiver.training.attention_callback import (
    events_folder,
    last_step,
    training_explainer,
    validated_weights,
)
from perceiver.training.data_module import DataModule
from perceiver.training.lightning_data import data_of
from perceiver.training.module import TrainingModule

log = logging.getLogger(__name__)


class GalleryCallback(Callback):
    """Writes at the end of training the gallery of the validation samples, which all processes share, and logs it.

    The loggers get its page, its most wrong samples as a table, and the confusion matrix, of the weights that were
    validated last. An error is a warning; the run ends as without it.

    Args:
        top: samples in each order.
        num_samples: number of samples, evenly spread; None for all.
    """

    def __init__(self, *, top: int, num_samples: int | None = None) -> None:
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        Gallery(top, [])  # raises if `top` is not valid
        self.top = top
        self.num_samples = num_samples

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            with validated_weights(trainer, pl_module):
                self._make(trainer, pl_module)
        except Exception as error:  # no error of inspection may end a training
            log.warning("the gallery failed (%s: %s)", type(error).__name__, error)

    def _make(self, trainer: Trainer, module: LightningModule) -> None:
        data, rank, count = data_of(trainer), trainer.global_rank, trainer.world_size
        assert isinstance(module, TrainingModule)
        explainer = training_explainer(trainer, module)
        own: Gallery | Exception
        try:
            given = data.in_order(data.probe_stage, self.num_samples, start=rank, step=count)
            batches = (batch.to(module.device) for batch in given)
            empty = Gallery(self.top, explainer.class_names, start=rank, step=count)
            own = collect(explainer, batches, data.dataset.pieces, empty)
        except Exception as error:  # the other processes wait for this one
            own = RuntimeError(f"{type(error).__name__}: {error}")
        parts = all_gather(own)
        if errors := [part for part in parts if isinstance(part, Exception)]:
            raise errors[0]
        gallery = finish(explainer, Gallery.merged([part for part in parts if isinstance(part, Gallery)]))
        if trainer.is_global_zero:
            self._write(trainer, gallery, data)

    def _write(self, trainer: Trainer, gallery: Gallery, data: DataModule) -> None:
        stage, step = data.probe_stage, last_step(trainer)
        name = "/".join(Path(trainer.default_root_dir).absolute().parts[-2:])
        indices = self.num_samples is None and not data.unreadable
        page = write_gallery(events_folder(trainer) / GALLERY, f"{name} · {stage}", gallery, indices=indices)

        def show(logger: RunLogger) -> None:
            logger.html("attention/gallery", page, step)
            for output, shown in gallery.outputs.items():
                prefix = f"{stage}/" if len(gallery.outputs) == 1 else f"{stage}/{output.replace('/', '_')}_"
                logger.table(f"{prefix}{PREDICTIONS}", *prediction_table(shown), step)
                if shown.confusion is not None and len(gallery.class_names) <= MAX_CLASSES_SHOWN:
                    counts = confusions(shown, gallery)
                    logger.confusion_matrix(f"{prefix}{CONFUSION_MATRIX}", gallery.class_names, counts, step)

        log_explanation(trainer.loggers, {}, step, show)


def confusions(shown: OutputGallery, gallery: Gallery) -> Counter[tuple[str, str]]:
    """Return the number of samples by the names of true and predicted class."""
    assert shown.confusion is not None
    pairs = product(gallery.class_names, gallery.class_names)
    return Counter(dict(zip(pairs, shown.confusion.flatten().tolist(), strict=True)))


def prediction_table(shown: OutputGallery) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of a table of the samples that are shown, the most wrong ones first, with pictures."""
    order = sorted(shown.items, key=lambda number: (-shown.items[number].outcome.wrongness, number))
    items = [shown.items[number] for number in order[:MAX_ROWS_SHOWN]]
    drawn = [{name: one.picture for name, one in item.thumbnails.items() if one.picture} for item in items]
    modalities = list(dict.fromkeys(name for pictures in drawn for name in pictures))
    rows = [
        [
            *(_picture(pictures[name]) if name in pictures else None for name in modalities),
            *(item.id, item.outcome.truth, item.outcome.answer, item.outcome.confidence, item.outcome.loss),
        ]
        for item, pictures in zip(items, drawn, strict=True)
    ]
    return [*modalities, "id", "truth", "answer", "confidence", "loss"], rows


def _picture(url: str) -> Image.Image:
    """Return the picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
