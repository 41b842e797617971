"""Checkpoints that outlive whatever happens to the process that writes them.

They are written beside their place, synced and renamed, so that under their name there is always a whole one. torch
puts a CRC-32 beside each record of a file and never reads it again; here it is compared with what is read, since most
flipped bits would load without an error.
"""

import logging
import os
import time
import zipfile
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
from perceiver.types import Batch

log = logging.getLogger(__name__)

BEST, LAST, PREVIOUS, NEXT = "best.ckpt", "last.ckpt", "previous.ckpt", "next.ckpt"
MAX_FAILURES = 3
"""So many checkpoints in a row may fail to be written before the run ends."""


DOS_FOLDER = 0x10
"""The bit of a record's attributes in a zip that says that it is a folder."""


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, if anything is."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            # torch does not read a record that is marked as a folder, and leaves its tensor as it is in memory.
            marked = next((one.filename for one in archive.infolist() if one.external_attr & DOS_FOLDER), None)
    except Exception as error:  # a flipped bit has zipfile raise anything
        return str(error) or type(error).__name__
    if marked:
        return f"{marked} is marked as a folder"
    return f"the checksum of {record} does not fit" if record else None


class DurableIO(TorchCheckpointIO):
    """Writes a checkpoint so that its name always stands for a whole one; where that fails, training goes on.

    Attributes:
        failures: how many have failed since the last that did not.
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
            problem = f"{path} could not be written ({str(error).strip().splitlines()[0]})"
            if self.failures >= MAX_FAILURES:
                raise ConfigError(f"{problem}, nor could {self.failures - 1} before it; older ones are kept") from error
            log.warning("%s; the one before is kept, and training goes on", problem)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """From a file; to fsspec, `::` in its path would be a chain of URLs."""
        return dict(torch.load(path, map_location=map_location or "cpu", weights_only=weights_only))


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the best of all validations, and has the state validated with which training ends.

    Without this, where `max_steps` or `max_time` end a run within an epoch, or an epoch without a validation is the
    last, Lightning would not validate at all. Of a run whose directory was moved it goes on with the best that moved
    along; Lightning would take the next one for the best, whatever came before the move. A run that begins with the
    checkpoint of another has no best yet; Lightning would test that of the other where nothing is validated.
    """

    def __init__(self, *, dirpath: Path, **settings: Any) -> None:
        super().__init__(dirpath=dirpath, **settings)
        self.dirpath = os.path.realpath(dirpath)  # where it takes the path for a URL's, it keeps a Path, which is saved
        self._validated = False  # whether there is a validation that the choice of the best has not heard of

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.monitor is not None and _is_over(trainer):
            # After so many batches, and whatever the epoch or the clock.
            trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            trainer.check_val_every_n_epoch = None
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated |= not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)
        if _is_over(trainer) and not (_is_last_batch(trainer) or self._should_skip_saving_checkpoint(trainer)):
            # What is saved after the epoch could not be continued within it.
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated or self.monitor is None:
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        before, here = state_dict.get("dirpath"), str(Path(self.dirpath) / BEST)
        if before not in (None, self.dirpath):
            if not Path(here).exists():
                return  # another run began there, whose best is not this one's
            score = state_dict["best_model_score"]
            known = {} if self.monitor is None or score is None else {here: score}
            state_dict = state_dict | {"dirpath": self.dirpath, "best_model_path": here, "best_k_models": known}
            state_dict["kth_best_model_path"] = here if known else ""
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps the newest state as `last.ckpt` and the one before it as `previous.ckpt`, so that nothing computed is lost.

    Written at the end of each epoch and after each validation, and one step before, so that a run that is killed while
    it validates has one step to do again; at intervals in between; where `max_steps` or `max_time` end a run within an
    epoch; and when Ctrl-C, a signal to any process or an error ends it. Only ever between two optimizer steps, since
    half of an accumulated gradient would be lost. The one with which training ends takes its place when all that is
    done at the end is done; a run that is killed before does its last step again, and with it what follows.

    Args:
        folder: where they are kept.
        curves: what is logged, which is on disk before a checkpoint is.
        ending: hears of signals.
        every_n_steps, every_n_minutes: intervals; None for none.
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
        self._within_step = self._held = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.curves.rows, "ends": self._held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves.keep(state_dict.get("rows", 0), and_of_the_end=state_dict.get("ends", False))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.install()
        self._step, self._saved_step, self._saved_at = trainer.global_step, trainer.global_step or -1, time.monotonic()
        for stopping in trainer.early_stopping_callbacks:
            trainer.should_stop |= stopping.stopped_epoch > 0  # it had stopped before

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
            # A run that is continued from here would leave out the validation. There is a checkpoint after it, and
            # one a step before.
            if signal and self._saved_step == trainer.global_step - 1:
                self.ending.end(signal, trainer.global_step)
            return
        # Not at the end of the epoch alone: there, Lightning counts one that was cut short as done.
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
        # Several processes have not equally many batches; they end after the validation.
        if trainer.world_size == 1 and self.ending.signal and self._saved_step >= trainer.global_step - 1:
            self.ending.end(self.ending.signal, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        within_step = trainer.fit_loop._should_accumulate()
        if not (trainer.sanity_checking or within_step or _is_last_batch(trainer)):
            self._save(trainer)
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_last_batch(trainer):
            self._save(trainer)
            self._end_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._held:
            self.curves.save()
            self._put_in_place(trainer)
        self._end_if_asked(trainer)
        self.ending.restore()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.install(at_once=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ending.restore()

    def _end_if_asked(self, trainer: Trainer) -> None:
        (signal,) = all_reduce_max(self.ending.signal)
        if signal:
            self.ending.end(signal, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        between_steps = trainer.training and 0 < trainer.global_step == self._step and not self._within_step
        unspoilt = not isinstance(exception, ConfigError | EndedBySignal)
        try:
            # Of several processes, one that fails alone would wait for the others for ever.
            if between_steps and unspoilt and trainer.world_size == 1 and trainer.accumulate_grad_batches == 1:
                self._save(trainer)
        finally:
            self.ending.restore()

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()
        self._held = _is_over(trainer) and self._saved_step >= trainer.global_step - 1
        trainer.save_checkpoint(self.folder / NEXT, weights_only=False)
        if not self._held:
            self._put_in_place(trainer)

    def _put_in_place(self, trainer: Trainer) -> None:
        """Make what was saved the last."""
        new = self.folder / NEXT
        if trainer.is_global_zero and new.exists():
            with suppress(FileNotFoundError):
                (self.folder / LAST).replace(self.folder / PREVIOUS)
            new.replace(self.folder / LAST)
            sync_folder(self.folder)
        self._saved_at, self._saved_step, self._held = time.monotonic(), trainer.global_step, False


def _is_last_batch(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _is_over(trainer: Trainer) -> bool:
    """Whether training ends here, be it within an epoch."""
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    in_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    return stops or trainer.global_step == trainer.max_steps or (in_last_epoch and _is_last_batch(trainer))


def _is_boundary(trainer: Trainer, batches: int) -> bool:
    """Whether after so many batches of the epoch it is over, or validation is due."""
    in_epoch = int(trainer.num_training_batches)
    if batches == in_epoch:
        return True
    if trainer.check_val_every_n_epoch is None:  # validation takes no account of epochs
        batches += trainer.current_epoch * in_epoch
    every = trainer.val_check_batch
    return trainer.enable_validation and isinstance(every, int) and batches % every == 0
