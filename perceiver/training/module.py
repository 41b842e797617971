"""The one LightningModule: any task, any model, one step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from perceiver.model import Perceiver
from perceiver.tasks.base import Task
from perceiver.training.errors import ConfigError, nearest
from perceiver.training.optimization import Schedule, parameter_groups
from perceiver.types import Batch, Stage

OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]


class DivergedError(ConfigError):
    """The loss is not a number any more, and so is no weight."""


class TrainingModule(LightningModule):
    """Runs the task on the model and logs its metrics as `<stage>/<metric>`.

    Args:
        model: what is trained.
        task: loss and metrics.
        optimizer: parameter groups -> optimizer.
        schedule: factor of the learning rate by optimizer step.
        description: plain values that travel in every checkpoint, enough to rebuild the run (its config, class names).
    """

    def __init__(
        self,
        *,
        model: Perceiver,
        task: Task,
        optimizer: OptimizerFactory,
        schedule: Schedule,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.description = description

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""] | None:
        batch = self.task.training_batch(batch)
        loss = self._step("train", batch)
        if loss is not None:
            # Once an epoch, since asking makes a GPU wait; weights that are not numbers never become numbers again.
            if self.trainer.is_last_batch and loss.isnan():
                raise DivergedError(
                    f"train/loss is nan in epoch {self.current_epoch}: training diverged; "
                    "try a lower optimizer.lr, or trainer.gradient_clip_val=1.0"
                )
            self.log("train/loss_step", loss, on_step=True, on_epoch=False, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: Stage, batch: Batch) -> Float[Tensor, ""] | None:
        """Loss of a batch, counted into the metrics; None for a batch of which no sample could be read."""
        if len(batch) == 0:
            return None
        outputs = self.task.merged(self.task.outputs(self.model, batch), batch)
        loss = self.task.loss(outputs, batch)
        self.task.update(stage, outputs, loss, batch)
        if stage != "train":
            self.task.examine(stage, self.model, batch)
        return loss

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: Stage) -> None:
        metrics = self.task.metrics(stage)
        monitor, values = self.task.monitor, metrics.compute()
        if stage == "val" and monitor not in values:
            raise ConfigError(f"task.monitor={monitor}: validation has no such metric{nearest(monitor, list(values))}")
        shown = (monitor, "loss")
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=stage != "test" and name in shown)
        metrics.reset()

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self.make_optimizer(parameter_groups(self.model))
        total_steps = self._total_steps()
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Lightning's `estimated_stepping_batches` would be the same number, but asking for it makes the training loader
        start to read, before a run that is resumed knows from where on.
        """
        trainer = self.trainer
        length = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = trainer.limit_train_batches
        batches = min(length, limit) if isinstance(limit, int) else int(length * limit)
        ends = (math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs, trainer.max_steps)  # type: ignore[operator]
        return min(end for end in ends if end >= 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["description"] = self.description
