"""The atlas of latents at the end of training, in the run directory and for the loggers."""

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from perceiver.inspection.explorer.atlas import Atlas, collect
from perceiver.inspection.explorer.atlas_page import ATLAS, write_atlas
from perceiver.runtime.loggers.base import RunLogger, log_explanation
from perceiver.training.attention_callback import (
    events_folder,
    last_step,
    training_explainer,
    validated_weights,
)
from perceiver.training.lightning_data import data_of
from perceiver.training.module import TrainingModule

log = logging.getLogger(__name__)


class AtlasCallback(Callback):
    """Writes at the end of training the atlas of the latents over the validation samples, and logs its page.

    An error is a warning; the run ends as without it.

    Args:
        top: number of tokens of each latent and modality.
        num_samples: number of samples, evenly spread; None for all.
    """

    def __init__(self, *, top: int, num_samples: int | None = None) -> None:
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        Atlas(top)  # raises if `top` is not valid
        self.top = top
        self.num_samples = num_samples

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            with validated_weights(trainer, pl_module):
                if trainer.is_global_zero:
                    self._write(trainer, pl_module)
        except Exception as error:  # no error of inspection may end a training
            log.warning("the atlas of latents failed (%s: %s)", type(error).__name__, error)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        data = data_of(trainer)
        assert isinstance(module, TrainingModule)
        batches = (batch.to(module.device) for batch in data.in_order(data.probe_stage, self.num_samples))
        atlas = collect(training_explainer(trainer, module), batches, data.dataset.pieces, Atlas(self.top))
        name = "/".join(Path(trainer.default_root_dir).absolute().parts[-2:])
        page = write_atlas(events_folder(trainer) / ATLAS, name, atlas)

        def show(logger: RunLogger) -> None:
            logger.html("attention/atlas", page, last_step(trainer))

        log_explanation(trainer.loggers, {}, last_step(trainer), show)
