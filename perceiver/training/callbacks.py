"""Callbacks of the training loop: seeds, logs, speed, and a moving average of the weights."""

import random
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from torch import Tensor

from perceiver.data.sampler import fold_in
from perceiver.runtime.loggers.base import log_now
from perceiver.runtime.summary import note
from perceiver.training.lightning_data import data_of
from perceiver.training.module import TrainingModule
from perceiver.types import Batch


class ProgressBar(RichProgressBar):
    """Lightning's, which also shows the loss of the last optimizer step.

    It reads the loss when it is drawn; Lightning's `log` would store it at every step, for 0.7 ms of CPU time.
    """

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, TrainingModule)
        shown = {name: value for name, value in pl_module.progress.items() if name == "train/loss_step"}
        return super().get_metrics(trainer, pl_module) | {name: float(value) for name, value in shown.items()}


class StepSeeds(Callback):
    """Seeds the random draws of a step (dropout, mixing, SpecAugment) by (seed, process, batches done).

    The draws of a resumed run are therefore those of an uninterrupted one.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        self._seed(trainer.global_rank, done)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed(trainer.global_rank, trainer.global_step, batch_idx)

    def _seed(self, *numbers: int) -> None:
        mixed = fold_in(self.seed, *numbers)
        torch.default_generator.manual_seed(mixed)
        if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
            torch.get_device_module(accelerator).manual_seed_all(mixed)
        random.seed(mixed)
        np.random.seed(mixed % 2**32)


class StepLog(Callback):
    """Logs `TrainingModule.progress` every `log_every_n_steps` optimizer steps."""

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step > self._step and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            log_now(trainer, pl_module.progress)
        self._step = step


class MovingAverage(WeightAveraging):
    """Validates, saves and tests the exponential moving average of the weights.

    Lightning's computes d·a + (1 - d)·b, which for a = b is not always a: constant buffers (windows, filters,
    frequencies) would drift away from those that a checkpoint is loaded into. Here it is a + (1 - d)·(b - a).

    Args:
        decay: d, in [0, 1].
        warmup: after n updates d is at most (1 + n) / (10 + n), as in TensorFlow's `ExponentialMovingAverage` with
            `num_updates`. Without it, the first weights keep the weight dⁿ.
        update_every_n_steps: optimizer steps from one update of the average to the next.
    """

    def __init__(self, *, decay: float, warmup: bool, update_every_n_steps: int) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay} must be in [0, 1]")
        if update_every_n_steps < 1:
            raise ValueError(f"update_every_n_steps={update_every_n_steps} must be at least 1")
        if torch.__version__ < "2.12":  # groups no averages with weights of another type, as in bf16-true
            super().__init__(avg_fn=partial(_updated_average, decay, warmup))
        else:
            super().__init__(multi_avg_fn=partial(_update_averages, decay, warmup))
        self.update_every_n_steps = update_every_n_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.update_every_n_steps == 0


def _update_averages(
    decay: float, warmup: bool, averages: list[Tensor], current: list[Tensor], num_averaged: Tensor
) -> None:
    """Update the averages of tensors of one type, maybe not that of the averages; integers are replaced."""
    if not averages[0].is_floating_point():
        torch._foreach_copy_(averages, current)
        return
    num = num_averaged.to(averages[0].dtype)
    rate = (9.0 / (10.0 + num) if warmup else torch.zeros_like(num)).clamp_min(1.0 - decay)
    same_type = [value.to(average.dtype) for value, average in zip(current, averages, strict=True)]
    torch._foreach_lerp_(averages, same_type, [rate] * len(averages))


def _updated_average(decay: float, warmup: bool, average: Tensor, current: Tensor, num_averaged: Tensor) -> Tensor:
    """Return the average of one tensor, updated in place."""
    _update_averages(decay, warmup, [average], [current], num_averaged)
    return average


class TrainingClock(Callback):
    """Measures `samples_per_second` of the training steps with data loading, without validation; over all resumes.

    Attributes:
        has_trained: whether this process has done a step.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self.has_trained = False
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.seconds = state_dict["samples"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()  # a run resumed within an epoch starts none

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.has_trained = True
        self.samples += len(batch) * trainer.world_size
        self.seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    @property
    def metrics(self) -> dict[str, float]:
        return {"train/seconds": self.seconds, "samples_per_second": self.samples / max(self.seconds, 1e-9)}


class RunLog(Callback):
    """Writes device and data sizes, the metrics of each validation, and each new best checkpoint to the run's log."""

    def __init__(self) -> None:
        self._best: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        splits = data_of(trainer).splits
        sizes = {split: len(samples) for split, samples in splits.items() if samples is not None}
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        note(
            f"training in {trainer.world_size} process(es) on {device.type} ({name}), precision {trainer.precision}; "
            f"samples: {', '.join(f'{split} {size:,}' for split, size in sizes.items())}"
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        ends = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        until = ", ".join(f"{key} {value}" for key, value in ends.items() if value not in (None, -1))
        note(f"starts at step {trainer.global_step}, epoch {trainer.current_epoch}; until {until}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._note_metrics(trainer, "val/")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_best(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note_metrics(trainer, "train/")
        self._note_best(trainer)

    def _note_metrics(self, trainer: Trainer, stage: str) -> None:
        assert isinstance(trainer.lightning_module, TrainingModule)
        values = {name: value for name, value in trainer.lightning_module.measured.items() if name.startswith(stage)}
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        when = f"epoch {trainer.current_epoch}" if stage == "val/" else "trained"
        note(f"{when}, step {trainer.global_step}: {text}")

    def _note_best(self, trainer: Trainer) -> None:
        """Called one event late, since checkpoints are written after the other callbacks of an epoch."""
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, ModelCheckpoint)
        score = checkpoints.best_model_score
        if score is not None and score != self._best:
            self._best = score
            note(f"best checkpoint: {checkpoints.monitor} {score:.4g}, {checkpoints.best_model_path}")
