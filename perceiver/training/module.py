"""The LightningModule for all tasks and models: training, validation and test steps, optimizer, metrics."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from perceiver.model import Perceiver
from perceiver.processes import all_gather
from perceiver.runtime.errors import ConfigError, PositionError
from perceiver.runtime.loggers.base import log_now
from perceiver.runtime.suggestions import nearest
from perceiver.tasks.base import TableRow, Task
from perceiver.tasks.text_metrics import ScoredText
from perceiver.training.accumulation import Accumulation
from perceiver.training.freezing import Freezing
from perceiver.training.lightning_data import data_of
from perceiver.training.optimization import (
    Schedule,
    build_scheduler,
    full_tensor,
    fuse_on_cpu,
    gradient_norm,
    remove_gradients,
    scale_gradients,
)
from perceiver.types import Batch, HasAuxiliaryLoss, Stage


class DivergedError(ConfigError):
    """The loss or its gradient is not finite; no optimizer step was done with it."""


OnNonfinite: TypeAlias = Literal["stop", "skip"]
MAX_SKIPPED_IN_A_ROW = 50
"""Optimizer steps that may be skipped one after the other."""


def auxiliary_parts(model: nn.Module) -> list[HasAuxiliaryLoss]:
    """Return the modules of a model that need a loss of their own."""
    return [part for part in model.modules() if isinstance(part, HasAuxiliaryLoss)]


def auxiliary_loss(
    parts: Sequence[HasAuxiliaryLoss],
    task: Task,
    outputs: Mapping[str, Tensor],
    batch: Batch,
    *,
    has_samples: bool = True,
) -> Float[Tensor, ""]:
    """Return the sum of the losses of some parts of the model, per term of the batch.

    Args:
        parts: at least one.
        task: which the model is trained for.
        outputs: of samples, see `Task.average_windows`.
        batch: the samples.
        has_samples: False: the batch only stands for one without samples.
    """
    with torch.no_grad():
        losses, terms = task.sample_losses(outputs, batch)
    losses = losses if has_samples else torch.full_like(losses, torch.nan)
    total = torch.stack([part.auxiliary_loss(losses, terms) for part in parts]).sum()
    return total / terms.sum().clamp_min(torch.finfo(terms.dtype).tiny)


class TrainingModule(LightningModule):
    """Runs the task on the model and logs its metrics as `<stage>/<metric>`.

    The loss of an optimizer step is the mean over all terms (`Task.num_terms`) of its batches (`Accumulation`).

    Attributes:
        progress: values of the last optimizer step, by the name under which they are logged.
        measured: the latest metrics of training and validation, restored from checkpoints.
        skipped: number of optimizer steps skipped.

    Args:
        model: is trained.
        task: loss and metrics.
        optimizer: model -> optimizer of its trainable parameters.
        schedule: factor of the learning rate by optimizer step; or one of torch's schedulers, without its optimizer. It
            advances at each optimizer step, `ReduceLROnPlateau` at each validation by the task's monitored metric.
        freezing: parts of the model that are not trained, or not from the start.
        description: plain values stored in every checkpoint, from which the run can be rebuilt (config, class names).
        on_nonfinite: if a loss or gradient is NaN or infinite, `stop` the run and list the samples, or `skip` and count
            the optimizer step.
    """

    def __init__(
        self,
        *,
        model: Perceiver,
        task: Task,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Schedule | partial[LRScheduler],
        freezing: Freezing,
        description: dict[str, Any],
        on_nonfinite: OnNonfinite,
    ) -> None:
        super().__init__()
        task.build_metrics()
        self.model = model
        self.task = task
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.freezing = freezing
        self.description = description
        self.on_nonfinite = on_nonfinite
        self.progress: dict[str, Tensor | float] = {}
        self.measured: dict[str, float] = {}
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._accumulation = Accumulation()
        self._auxiliary_parts = auxiliary_parts(model)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.freezing.set_modes(self.model)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        has_samples = len(batch) > 0
        if not has_samples:  # other processes and the gradient scaler need a gradient, which is zero
            batch = data_of(self.trainer).placeholder.to(self.device)
        batch = self.task.prepare(batch, train=True)
        outputs = self.task.average_windows(self.task.outputs(self.model, batch), batch)
        loss = self.task.loss(outputs, batch)
        terms = loss.new_zeros(()) + (self.task.num_terms(batch) if has_samples else 0)
        weight = self._accumulation.add(loss, terms, batch.ids if has_samples else [])
        if has_samples and (self.on_nonfinite == "stop" or bool(self._accumulation.batches[-1].mean_loss.isfinite())):
            self.task.update("train", outputs, loss, batch)
        if self._auxiliary_parts:
            loss = loss + auxiliary_loss(self._auxiliary_parts, self.task, outputs, batch, has_samples=has_samples)
        return loss * weight

    def on_after_backward(self) -> None:
        self.freezing.remove_gradients(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Correct the gradient to that of the mean over all terms, check that it is finite, and clip it."""
        self.freezing.restart_counts(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        done, self._accumulation = self._accumulation, Accumulation()
        if (num_batches := self.trainer.accumulate_grad_batches) > 1:
            scale_gradients(parameters, done.correction(num_batches))  # Lightning divided by num_batches
        sharded_norm = gradient_norm(parameters)
        norm = full_tensor(sharded_norm)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # skips such steps itself
        if not (done.is_finite if scaled else done.is_finite & norm.isfinite()):
            if self.on_nonfinite == "stop":
                raise self._diverged(done)
            self._skip()
            remove_gradients(parameters)
            return
        if not done.terms > 0:  # no sample could be read
            remove_gradients(parameters)
            return
        self._skipped_in_a_row = 0
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, sharded_norm)
        self.progress |= {
            "train/loss_step": done.loss,
            "train/gradient_norm": norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"] / self._settings[0].get("lr_scale", 1.0),
        }

    def _skip(self) -> None:
        """Count a skipped step.

        Raises:
            DivergedError: the steps before it were skipped, too.
        """
        self.skipped += 1
        self._skipped_in_a_row += 1
        self.progress["train/skipped"] = float(self.skipped)
        if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"{self._skipped_in_a_row} steps in a row had a loss or gradient that was not finite and were "
                f"skipped, up to step {self.trainer.global_step}: training diverged; try a lower optimizer.lr"
            )

    def _diverged(self, done: Accumulation) -> DivergedError:
        """The error to raise; the samples whose loss is not finite, or else all, are listed in `nonfinite.json`."""
        step, ids = self.trainer.global_step, done.nonfinite_samples()
        path = Path(self.trainer.default_root_dir) / "nonfinite.json"
        value = ", ".join(dict.fromkeys(f"{float(batch.mean_loss):g}" for batch in done.batches))
        content = {"step": step, "epoch": self.current_epoch, "loss": value, "samples": ids}
        if self.trainer.is_global_zero:
            with suppress(OSError):  # a full disk must not hide the error
                path.write_text(json.dumps(content, indent=2) + "\n")
        return DivergedError(
            f"train/loss is {value} and its gradient not finite at step {step}, epoch {self.current_epoch}; "
            f"{path} lists the samples. Try a lower optimizer.lr, trainer.gradient_clip_val=1.0, "
            "or on_nonfinite=skip, which skips such steps"
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[TableRow]]:
        """Return the rows of the task's tables, for callbacks."""
        evaluated = self._evaluate("test", batch)
        return {} if evaluated is None else self.task.table_rows(*evaluated, self.description["class_names"])

    def _evaluate(
        self, stage: Stage, batch: Batch
    ) -> tuple[dict[str, Tensor], Batch, dict[str, list[ScoredText]]] | None:
        """Add a batch to the metrics, unless no sample of it could be read.

        Returns:
            The outputs per sample, the batch, and the generated texts.
        """
        if len(batch) == 0:
            return None
        batch = self.task.prepare(batch, train=False)
        outputs = self.task.average_windows(self.task.outputs(self.model, batch), batch)
        self.task.update(stage, outputs, self.task.loss(outputs, batch), batch)
        texts = self.task.generated(self.model, batch)
        self.task.update_generated(stage, texts)
        return outputs, batch, texts

    def on_train_epoch_start(self) -> None:
        self.freezing.start_epoch(self.model, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        is_fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if is_fitting and isinstance(scheduler := self.lr_schedulers(), ReduceLROnPlateau):
            scheduler.step(self.measured[f"val/{self.task.monitor}"])

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: Stage) -> None:
        monitor, values = self.task.monitor, self.task.compute(stage)
        if stage == "val" and monitor not in values:
            raise ConfigError(f"task.monitor={monitor}: validation has no such metric{nearest(monitor, list(values))}")
        for name, value in values.items():
            prog_bar = stage == "val" and name in (monitor, "loss")  # those of training would be an epoch old
            self.log(f"{stage}/{name}", value, prog_bar=prog_bar, logger=stage != "train")
        if stage != "test":
            self.measured |= {f"{stage}/{name}": float(value) for name, value in values.items()}
        if stage == "train":  # before the checkpoint is written
            log_now(self.trainer, {f"{stage}/{name}": value for name, value in values.items()})
        self.task.reset(stage)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer, mode = self.make_optimizer(self.model), self.task.monitor_mode
        fuse_on_cpu(optimizer)
        self._settings = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
        data = data_of(self.trainer)
        total_steps = data.total_steps()
        try:
            scheduler = build_scheduler(self.schedule, optimizer, total_steps=total_steps, monitor_mode=mode)
        except ValueError as error:
            raise ConfigError(f"schedule: {error}") from error
        has_validation = data.has_validation(self.trainer.limit_val_batches)
        if isinstance(scheduler, ReduceLROnPlateau) and not has_validation:
            raise ConfigError("schedule: ReduceLROnPlateau needs a validation, and the run has none; choose another")
        # Lightning would step ReduceLROnPlateau after the checkpoint of an epoch, and never in a run resumed from it.
        options = {"scheduler": scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": options}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_train_start(self) -> None:
        """Freeze as the epoch requires; replace the optimizer settings of a resumed run by those of the config."""
        self.freezing.start_epoch(self.model, self.current_epoch)  # a run resumed within an epoch starts none
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, LambdaLR):  # others restore some settings themselves
            return
        scheduler.base_lrs = [settings["lr"] for settings in self._settings]
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group, settings in zip(scheduler.optimizer.param_groups, self._settings, strict=True):
            group |= settings | {"initial_lr": settings["lr"], "lr": settings["lr"] * factor}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counted = {
            name: {state: value.cpu() for state, value in metric.metric_state.items() if isinstance(value, Tensor)}
            for name, metric in self.task.metric_parts("train").items()
        }
        checkpoint["description"] = self.description
        checkpoint["counted"] = all_gather(counted)
        checkpoint["skipped"] = self.skipped
        checkpoint["measured"] = self.measured
        checkpoint["progress"] = {name: float(value) for name, value in self.progress.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of training.

        Raises:
            PositionError: the checkpoint lacks that of the data, which Lightning stores under the name of its class and
                ignores if it is missing.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and (name := type(data).__qualname__) not in checkpoint:
            raise PositionError(f"has no position in the data, {name}: it was written by another version of this code")
        self.skipped = checkpoint["skipped"]
        self.measured, self.progress = dict(checkpoint["measured"]), dict(checkpoint["progress"])
        # The state of each process's metrics within the epoch; with fewer processes, one takes several.
        metrics = self.task.metric_parts("train")
        for counted in checkpoint["counted"][self.trainer.global_rank :: self.trainer.world_size]:
            for name, state in counted.items():
                metric = metrics[name]
                metric.merge_state({key: value.to(metric.device) for key, value in state.items()})

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a checkpoint.

        Raises:
            RuntimeError: they do not fit the model.
        """
        self.load_state_dict(weights)

    def full_parameters(self) -> AbstractContextManager[None]:
        """A context in which each process has all weights and can run the model independently of the others."""
        return nullcontext()
