"""Every few epochs a look at the same samples: exact maps into the run directory, contact sheets to W&B."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from perceiver.inspection.capture import capture
from perceiver.inspection.maps import contact_sheets, event_arrays
from perceiver.inspection.panels import log_panels
from perceiver.model import Perceiver
from perceiver.tasks.base import Task
from perceiver.types import Batch

log = logging.getLogger(__name__)

MAX_FAILURES = 3


class AttentionCallback(Callback):
    """Looks at the attention on a fixed probe set at the end of epochs, at the step of their metrics.

    Failing three times switches it off with a warning; training goes on.

    Args:
        every_n_epochs: epochs between two looks; the end of training is always looked at. 0 for never.
        num_samples: size of the probe set, spread evenly over the validation samples.
        num_latents: latents shown in a contact sheet.
        rollout_alpha: share of attention against residual in the rollout.
        max_megabytes: of exact weights kept per event.
    """

    def __init__(
        self, *, every_n_epochs: int, num_samples: int, num_latents: int, rollout_alpha: float, max_megabytes: float
    ) -> None:
        for name, value, least in (("every_n_epochs", every_n_epochs, 0), ("num_samples", num_samples, 1)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.num_latents = num_latents
        self.rollout_alpha = rollout_alpha
        self.max_megabytes = max_megabytes
        self.failures = 0
        self._last_step: int | None = None
        self._probe: Batch | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._try_to_look(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and self._last_step != _last_step(trainer):  # however training came to its end
            self._try_to_look(trainer, pl_module, trainer.current_epoch - 1)

    def _try_to_look(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        if self.failures >= MAX_FAILURES:
            return
        self._last_step = _last_step(trainer)
        try:
            with _validated_weights(trainer, module):
                self._look(trainer, module, self._last_step, epoch)
        except Exception as error:  # whatever breaks here, the training is worth more
            self.failures += 1
            off = "; attention maps are off now" if self.failures == MAX_FAILURES else ""
            log.warning("attention maps of epoch %d failed (%s: %s)%s", epoch, type(error).__name__, error, off)

    def _look(self, trainer: Trainer, module: LightningModule, step: int, epoch: int) -> None:
        model, task = module.model, module.task
        assert isinstance(model, Perceiver)
        assert isinstance(task, Task)
        batch = trainer.precision_plugin.convert_input(self._probe_batch(trainer).to(module.device))
        with capture(model) as captured, trainer.precision_plugin.forward_context():
            task.outputs(model, batch)
        if not trainer.is_global_zero:
            return
        arrays = event_arrays(captured, batch, max_megabytes=self.max_megabytes, alpha=self.rollout_alpha)
        arrays |= {"step": np.array(step), "epoch": np.array(epoch)}
        folder = Path(trainer.default_root_dir) / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / f"step_{step:08d}.npz", **arrays)  # type: ignore[arg-type]
        sheets = contact_sheets(captured, batch.inputs, num_latents=self.num_latents, alpha=self.rollout_alpha)
        captions = [f"{id} · step {step} · epoch {epoch}" for id in batch.ids]
        log_panels(trainer.loggers, {f"attention/{key}": sheet for key, sheet in sheets.items()}, captions, step)

    def _probe_batch(self, trainer: Trainer) -> Batch:
        if self._probe is None:
            self._probe = trainer.datamodule.probe(self.num_samples)  # type: ignore[attr-defined]
        return self._probe


def _last_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what it measures at the end of an epoch, `val/loss` among it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


@contextmanager
def _validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, `module` has the weights that are validated, saved and tested: where weights are averaged, the mean."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, module)
