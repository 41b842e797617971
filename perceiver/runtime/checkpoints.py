"""Checkpoints that stay complete and loadable when the process that writes them is killed.

A file is written under another name, synced and renamed, so that a file with the name of a checkpoint is always
complete.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from perceiver.processes import all_reduce_max
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.loggers.curves import Curves
from perceiver.runtime.signals import EndedBySignal, PreemptionHandler
from perceiver.types import Batch, first_line

log = logging.getLogger(__name__)

BEST, LAST, PREVIOUS, NEXT = "best.ckpt", "last.ckpt", "previous.ckpt", "next.ckpt"
MAX_FAILURES = 3
"""Consecutive failures to write a checkpoint that end the run."""


class DurableIO(TorchCheckpointIO):
    """Writes checkpoints atomically; if that fails, the previous file is kept and training continues.

    Attributes:
        failures: number of consecutive failures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
            self.failures = 0
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            with suppress(OSError):
                part.unlink()
            self.failures += 1
            problem = f"{path} could not be written ({first_line(error)})"
            if self.failures >= MAX_FAILURES:
                raise ConfigError(f"{problem} {self.failures} times in a row; older ones are kept") from error
            log.warning("%s; the previous one is kept, and training continues", problem)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load from a local path; Lightning's fsspec would read `::` in it as a chain of URLs."""
        return dict(torch.load(path, map_location=map_location or "cpu", weights_only=weights_only))


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, where the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` by the monitored metric, and validates the final state of training.

    It differs from Lightning's in three ways. A run that `max_steps` or `max_time` ends within an epoch, or whose last
    epoch has no validation, is validated at its end. After the run directory was moved, the best checkpoint is the one
    in the new place, with its score; Lightning would forget it. A run that starts from the checkpoint of another has no
    best checkpoint; Lightning would keep that of the other, and test it if there is no validation.
    """

    def __init__(self, *, dirpath: Path, **settings: Any) -> None:
        super().__init__(dirpath=dirpath, **settings)
        self.dirpath = os.path.realpath(dirpath)  # a path like a URL stays a Path, which would be saved
        self._has_new_validation = False  # since the best was chosen last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.monitor is not None and _is_over(trainer):
            # Validate after the current batch, independently of epoch and time.
            trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            trainer.check_val_every_n_epoch = None
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_new_validation |= not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)
        if _is_over(trainer) and not (_is_last_batch(trainer) or self._should_skip_saving_checkpoint(trainer)):
            # A checkpoint saved after the epoch could not be resumed within it.
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_new_validation or self.monitor is None:
            super().on_train_epoch_end(trainer, pl_module)
        self._has_new_validation = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        before, here = state_dict.get("dirpath"), str(Path(self.dirpath) / BEST)
        if before not in (None, self.dirpath):
            if not Path(here).exists():
                return  # the checkpoint is that of another run
            score = state_dict["best_model_score"]
            known = {} if self.monitor is None or score is None else {here: score}
            state_dict = state_dict | {"dirpath": self.dirpath, "best_model_path": here, "best_k_models": known}
            state_dict["kth_best_model_path"] = here if known else ""
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps the newest state as `last.ckpt` and the one before it as `previous.ckpt`.

    They are written at the end of each epoch and after each validation, and one step before each, so that a run that is
    killed during a validation repeats one step; at the given intervals; where `max_steps` or `max_time` end a run
    within an epoch; and when Ctrl-C, a signal to any process or an error ends it. They are written between two
    optimizer steps only, since a partly accumulated gradient is not saved. The final checkpoint becomes `last.ckpt`
    after all that is done at the end of training; a run that is killed before repeats its last step and all of that.

    Args:
        folder: of the checkpoints.
        curves: the logged rows, which are written before each checkpoint.
        ending: handles signals.
        every_n_steps, every_n_minutes: intervals, or None.
    """

    def __init__(
        self,
        *,
        folder: str,
        curves: Curves,
        ending: PreemptionHandler,
        every_n_steps: int | None,
        every_n_minutes: float | None,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        self.folder = Path(folder)
        self.curves = curves
        self.ending = ending
        self.every_n_steps = every_n_steps
        self.seconds = None if every_n_minutes is None else 60.0 * every_n_minutes
        self._saved_at = time.monotonic()
        self._saved_step = self._step = -1
        self._within_step = self._is_pending = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.curves.rows, "ends": self._is_pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves.truncate(state_dict.get("rows", 0), keep_end=state_dict.get("ends", False))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.install()
        self._step, self._saved_step, self._saved_at = trainer.global_step, trainer.global_step or -1, time.monotonic()
        for stopping in trainer.early_stopping_callbacks:
            trainer.should_stop |= stopping.stopped_epoch > 0  # also after resuming

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._within_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._within_step = False
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        signal, due = all_reduce_max(self.ending.signal, self._is_due(trainer.global_step))
        if _is_boundary(trainer, batch_idx + 1):
            # A run resumed from here would skip the validation. There are checkpoints after it and one step before.
            if signal and self._saved_step == trainer.global_step - 1:
                self.ending.end(signal, trainer.global_step)
            return
        # At the end of an epoch that was cut short, Lightning counts the epoch as done.
        ends = _is_over(trainer) or trainer.global_step + 1 == trainer.max_steps
        following = range(batch_idx + 2, batch_idx + 2 + trainer.accumulate_grad_batches)
        if signal or due or ends or any(_is_boundary(trainer, batches) for batches in following):
            self._save(trainer)
        if signal:
            self.ending.end(signal, trainer.global_step)

    def _is_due(self, step: int) -> bool:
        late = self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
        return late or (self.every_n_steps is not None and step - self._saved_step >= self.every_n_steps)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Several processes may differ in their number of batches; they end after the validation.
        if trainer.world_size == 1 and self.ending.signal and self._saved_step >= trainer.global_step - 1:
            self.ending.end(self.ending.signal, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        within_step = trainer.fit_loop._should_accumulate()
        if not (trainer.sanity_checking or within_step or _is_last_batch(trainer)):
            self._save(trainer)
            self._end_if_signalled(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_last_batch(trainer):
            self._save(trainer)
            self._end_if_signalled(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_pending:
            self.curves.save()
            self._promote(trainer)
        self._end_if_signalled(trainer)
        self.ending.restore()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.install(at_once=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.restore()

    def _end_if_signalled(self, trainer: Trainer) -> None:
        (signal,) = all_reduce_max(self.ending.signal)
        if signal:
            self.ending.end(signal, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        between_steps = trainer.training and 0 < trainer.global_step == self._step and not self._within_step
        is_resumable = not isinstance(exception, ConfigError | EndedBySignal)
        try:
            # Of several processes, a single one that fails would wait for the others without end.
            if between_steps and is_resumable and trainer.world_size == 1 and trainer.accumulate_grad_batches == 1:
                self._save(trainer)
        finally:
            self.ending.restore()

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()
        self._is_pending = _is_over(trainer) and self._saved_step >= trainer.global_step - 1
        trainer.save_checkpoint(self.folder / NEXT, weights_only=False)
        if not self._is_pending:
            self._promote(trainer)

    def _promote(self, trainer: Trainer) -> None:
        """Rename the saved checkpoint to `last.ckpt`, and the last one to `previous.ckpt`."""
        new = self.folder / NEXT
        if trainer.is_global_zero and new.exists():
            with suppress(FileNotFoundError):
                (self.folder / LAST).replace(self.folder / PREVIOUS)
            new.replace(self.folder / LAST)
            sync_folder(self.folder)
        self._saved_at, self._saved_step, self._is_pending = time.monotonic(), trainer.global_step, False


def _is_last_batch(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _is_over(trainer: Trainer) -> bool:
    """Whether training ends after the current step, also within an epoch."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    in_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    return stops or trainer.global_step == trainer.max_steps or (in_last_epoch and _is_last_batch(trainer))


def _is_boundary(trainer: Trainer, batches: int) -> bool:
    """Whether the epoch ends, or a validation is due, after a number of batches of the epoch."""
    in_epoch = int(trainer.num_training_batches)
    if batches == in_epoch:
        return True
    if trainer.check_val_every_n_epoch is None:  # batches are counted over epochs
        batches += trainer.current_epoch * in_epoch
    every = trainer.val_check_batch
    return trainer.enable_validation and isinstance(every, int) and batches % every == 0
