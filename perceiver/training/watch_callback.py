"""Explanations of any LightningModule during training: the same samples after each validation, in W&B and on disk."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from perceiver.inspection import watch
from perceiver.inspection.maps.capture import undisturbed
from perceiver.inspection.watched.answers import Read
from perceiver.inspection.watched.grids import GivenInput, Input
from perceiver.runtime.loggers.wandb import log_attention

log = logging.getLogger(__name__)


class WatchCallback(Callback):
    """Explains the same samples at the end of validations, for the loggers and in `attention/` of the default root.

    The training is as without it: modes, random numbers and gradients are restored. An error switches it off with a
    warning.

    Args:
        inputs: of the samples, by name; see `watch`.
        model: path of the part of the module that is called; empty: the module itself.
        call: calls it; None: with the tensors among the inputs, in their order.
        logits, class_names, labels: see `WatchedAttention.explain`.
        every_n_epochs: epochs between two explanations.
    """

    def __init__(
        self,
        *,
        inputs: Mapping[str, GivenInput],
        model: str = "",
        call: Callable[[nn.Module], Any] | None = None,
        logits: Read | None = None,
        class_names: Sequence[str] | Callable[[int], str] = str,
        labels: Sequence[int] | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} must be at least 1")
        self.inputs = inputs
        self.model = model
        self.call = call
        self.logits = logits
        self.class_names = class_names
        self.labels = labels
        self.every_n_epochs = every_n_epochs
        self.is_off = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        try:
            pl_module.get_submodule(self.model)
        except AttributeError as error:
            raise ValueError(f"model={self.model!r}: {type(pl_module).__name__} has no such part") from error

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if trainer.sanity_checking or not due or self.is_off or not trainer.is_global_zero:
            return
        try:
            self._explain(trainer, pl_module)
        except Exception as error:  # of any model
            self.is_off = True
            log.warning("attention is not explained any more: %r", error)

    def _explain(self, trainer: Trainer, module: LightningModule) -> None:
        model = module.get_submodule(self.model)
        step, folder = trainer.global_step, Path(trainer.default_root_dir) / "attention"
        with torch.inference_mode(False), undisturbed(model), torch.enable_grad():
            tensors = [values.to(module.device) for values in self._tensors()]
            with watch(model, inputs=self.inputs, gradients=True) as attention:
                _ = self.call(model) if self.call is not None else model(*tensors)
            explanation = attention.explain(self.logits, class_names=self.class_names, labels=self.labels)
            runs = [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]
            for run in runs:
                log_attention(run, attention, explanation, step=step, epoch=trainer.current_epoch, folder=folder)
            if not runs:
                attention.write_page(folder, explanation, step=step, epoch=trainer.current_epoch)
        statistics = {f"attention/{name}": value for name, value in explanation.statistics.items()}
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                logger.log_metrics(statistics, step)

    def _tensors(self) -> list[Tensor]:
        return [values for given in self.inputs.values() if isinstance(values := Input.of(given).values, Tensor)]
