"""Every few epochs a look at the same samples: exact maps into the run directory, contact sheets to W&B."""

import logging
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from perceiver.inspection.capture import capture
from perceiver.inspection.maps import contact_sheets, event_arrays
from perceiver.inspection.panels import log_panels
from perceiver.training.module import TrainingModule
from perceiver.types import Batch

log = logging.getLogger(__name__)

MAX_FAILURES = 3


class AttentionCallback(Callback):
    """Looks at the attention on a fixed probe set, after validation and so at the step of its metrics.

    Failing three times switches it off with a warning; training goes on.

    Args:
        every_n_epochs: epochs between two looks; the last epoch is always looked at. 0 for never.
        num_samples: size of the probe set, spread evenly over the validation samples.
        num_latents: latents shown in a contact sheet.
        rollout_alpha: share of attention against residual in the rollout.
        max_megabytes: of exact weights kept per layer and event.
    """

    def __init__(
        self, *, every_n_epochs: int, num_samples: int, num_latents: int, rollout_alpha: float, max_megabytes: float
    ) -> None:
        if every_n_epochs < 0 or num_samples < 1:
            raise ValueError(
                f"every_n_epochs={every_n_epochs} must be at least 0, num_samples={num_samples} at least 1"
            )
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.num_latents = num_latents
        self.rollout_alpha = rollout_alpha
        self.max_megabytes = max_megabytes
        self.failures = 0
        self._probe: Batch | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._look_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            self._look_if_due(trainer, pl_module)

    def _look_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        if self.every_n_epochs == 0 or self.failures >= MAX_FAILURES:
            return
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs and done != trainer.max_epochs:
            return
        assert isinstance(module, TrainingModule)
        try:
            self._look(trainer, module)
        except Exception as error:  # whatever breaks here, the training is worth more
            self.failures += 1
            off = "; attention maps are off now" if self.failures == MAX_FAILURES else ""
            log.warning("attention maps of epoch %d failed (%s: %s)%s", done, type(error).__name__, error, off)

    def _look(self, trainer: Trainer, module: TrainingModule) -> None:
        # The step under which Lightning logs the metrics of this validation.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        batch = self._probe_batch(trainer).to(module.device)
        with capture(module.model) as captured, trainer.precision_plugin.forward_context():
            module.task.outputs(module.model, batch)
        if not trainer.is_global_zero:
            return
        arrays = event_arrays(captured, batch, max_megabytes=self.max_megabytes)
        arrays |= {"step": np.array(step), "epoch": np.array(trainer.current_epoch)}
        folder = Path(trainer.default_root_dir) / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"step_{step:08d}.npz", **arrays)  # type: ignore[arg-type]
        sheets = contact_sheets(captured, batch.inputs, num_latents=self.num_latents, alpha=self.rollout_alpha)
        captions = [f"{id} · step {step} · epoch {trainer.current_epoch}" for id in batch.ids]
        log_panels(trainer.loggers, {f"attention/{key}": sheet for key, sheet in sheets.items()}, captions, step)

    def _probe_batch(self, trainer: Trainer) -> Batch:
        if self._probe is None:
            self._probe = trainer.datamodule.probe(self.num_samples)  # type: ignore[attr-defined]
        return self._probe
