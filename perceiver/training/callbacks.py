"""What happens around the training steps."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from perceiver.data.sampler import mix
from perceiver.training.module import DivergedError
from perceiver.types import Batch


class LastCheckpoint(Checkpoint):
    """Keeps the newest state at `path`, so that nothing computed is lost.

    Written after each epoch, before its validation and again after it; where `max_steps` or `max_time` end a run within
    an epoch; and when training ends by Ctrl-C, a signal or an error. The file is replaced as a whole.
    """

    def __init__(self, *, path: Path) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # Not at the end of the epoch alone: there, Lightning counts one that was cut short as done.
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if ends or _is_last_batch(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_last_batch(trainer):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Of several processes, one that fails alone would wait for the others for ever.
        together = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if trainer.training and trainer.global_step > 0 and together and not isinstance(exception, DivergedError):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.is_global_zero:
            part.replace(self.path)


def _is_last_batch(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class StepSeeds(Callback):
    """Seeds what is random in a training step (dropout, mixing, SpecAugment) by (seed, process, batches done).

    A run that is resumed so draws what it would have drawn without the stop.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        torch.manual_seed(mix(self.seed, trainer.global_rank, done))


class MovingAverage(WeightAveraging):
    """The exponential moving average of the weights is what is validated, saved and tested.

    Lightning's own EMA takes d·a + (1 - d)·b, which for a = b is not always a: windows, filters and frequencies would
    drift away from those that a checkpoint is loaded into. Here it is a + (1 - d)·(b - a).

    Args:
        decay: d, in [0, 1].
        update_every_n_steps: optimizer steps from one update of the average to the next.
    """

    def __init__(self, *, decay: float, update_every_n_steps: int) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1]")
        if update_every_n_steps < 1:
            raise ValueError(f"update_every_n_steps={update_every_n_steps} must be at least 1")
        super().__init__(avg_fn=partial(_moved, 1.0 - decay))
        self.update_every_n_steps = update_every_n_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.update_every_n_steps == 0


def _moved(share: float, average: Tensor, current: Tensor, num_averaged: Tensor) -> Tensor:
    """An average, moved by a share of the way to what is averaged; of whole numbers there is none."""
    return average.lerp(current.to(average.dtype), share) if average.is_floating_point() else current


class TrainingClock(Callback):
    """Measures `samples_per_second` of the training steps, their data included and validation left out."""

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.samples += len(batch) * trainer.world_size
            self.seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = None

    @property
    def metrics(self) -> dict[str, float]:
        return {"train/seconds": self.seconds, "samples_per_second": self.samples / max(self.seconds, 1e-9)}
