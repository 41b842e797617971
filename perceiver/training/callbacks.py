"""What happens around the training steps."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from perceiver.types import Batch


class SaveOnInterrupt(Callback):
    """Writes `path` when training ends by Ctrl-C, a signal or an error, so that nothing computed is lost."""

    def __init__(self, *, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.training and trainer.global_step > 0:
            trainer.save_checkpoint(self.path)


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
