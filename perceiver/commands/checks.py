"""Checks of settings that depend on the data and the trainer, before training."""

import copy
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging

from perceiver.runtime.errors import ConfigError
from perceiver.runtime.suggestions import nearest
from perceiver.training.build import Parts
from perceiver.training.data_module import DataModule
from perceiver.types import Batch

log = logging.getLogger(__name__)

ANY_GROUP = "*"
"""Stands for the name of a group in that of a metric."""


def check_monitors(trainer: Trainer, config: Mapping[str, Any], parts: Parts, example: Batch) -> None:
    """Check that the metrics that choose checkpoints and stop the run early exist.

    Args:
        trainer: with its callbacks.
        config: the checked config.
        parts: of the run.
        example: a few samples, of which a validation is tried; may be empty.

    Raises:
        ConfigError: one does not exist.
    """
    validates = parts.data.has_validation(trainer.limit_val_batches)
    keys = {str(node.get("monitor")): f"callbacks.{name}.monitor" for name, node in callback_nodes(config).items()}
    monitors = [("task.monitor", f"val/{parts.task.monitor}")] if validates else []
    monitors += [(keys.get(str(one.monitor), ""), str(one.monitor)) for one in trainer.early_stopping_callbacks]
    known = {f"{stage}/{name}" for stage in ("train", "val") for name in parts.task.metric_names(stage)}
    for key, monitor in monitors:
        if monitor.startswith("val/") and not validates:
            raise ConfigError(f"{key}={monitor}: the run has no validation; leave out early_stopping")
        if monitor in known or not len(example):
            continue
        later = validation_metrics(parts, example) - known
        if not any(_is_metric(monitor, name) for name in later):
            names = sorted(name for name in known | later if ANY_GROUP not in name)
            close = nearest(monitor.replace("test/", "val/", 1), names)  # the test comes after training
            if key == "task.monitor":  # which is given without the stage
                monitor, close = monitor.removeprefix("val/"), close.replace("val/", "")
            raise ConfigError(f"{key}={monitor}: no such metric{close}")


def _is_metric(monitor: str, name: str) -> bool:
    """Whether a monitor is a metric, or that of a group or a kind of facts which a few samples may not have."""
    before, in_group, after = name.partition(ANY_GROUP)
    if in_group:
        return len(monitor) > len(before + after) and monitor.startswith(before) and monitor.endswith(after)
    return monitor == name or monitor.startswith(f"{name}/")


@torch.no_grad()
def validation_metrics(parts: Parts, example: Batch) -> set[str]:
    """The names of the metrics of a validation of a few samples; those of groups also with `ANY_GROUP`."""
    task, model = copy.deepcopy(parts.task), copy.deepcopy(parts.model).eval()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = task.average_windows(task.outputs(model, example), example)
        loss, texts = task.loss(outputs, example), task.generated(model, example)
        task.update("val", outputs, loss, example)
        task.update_generated("val", texts)
        if "group" in example.targets:
            groups = [ANY_GROUP] * len(example)
            task.update("val", outputs, loss, replace(example, targets={**example.targets, "group": groups}))
            grouped = {name: [replace(one, group=ANY_GROUP) for one in found] for name, found in texts.items()}
            task.update_generated("val", grouped)
        return {f"val/{name}" for name in task.compute("val")}


def check_lengths(trainer: Trainer, data: DataModule, config: Mapping[str, Any], *, resumed: bool) -> None:
    """Compare the settings that count epochs, steps or batches with the length of the run and of its epochs.

    Raises:
        ConfigError: the run would never train, validate or average its weights.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0 and not resumed:
            log.warning("trainer.%s=0: nothing is trained, and the untrained weights are tested", name)
    data.trainer = trainer  # for its limits and processes, as in training
    batches = data.batches_in_epoch(data.train_dataloader())
    if batches == 0 and 0 not in (trainer.max_epochs, trainer.max_steps):
        limit = trainer.limit_train_batches
        raise ConfigError(f"trainer.limit_train_batches={limit}: leaves no batch to train on; give at least 1, or null")
    every = getattr(trainer, "val_check_interval", None)  # missing if it is a time
    if trainer.check_val_every_n_epoch is not None and type(every) is int and every > batches:
        hint = "give at most that, or trainer.check_val_every_n_epoch=null to count batches over epochs"
        raise ConfigError(f"trainer.val_check_interval={every}: an epoch has {batches} batches; {hint}")
    if (accumulated := trainer.accumulate_grad_batches) > batches > 0:
        problem = f"an epoch has {batches} batches, and a step accumulates no more than these"
        log.warning("trainer.accumulate_grad_batches=%d: %s", accumulated, problem)
    epochs = math.ceil(data.total_steps() / max(math.ceil(batches / accumulated), 1))
    if (release := config["unfreeze_at_epoch"]) is not None and release >= epochs:
        log.warning("unfreeze_at_epoch=%d: what is frozen stays so, as the run has no epoch %d", release, release)
    check_averages(trainer, config, total_steps=data.total_steps(), epochs=epochs)


def check_averages(trainer: Trainer, config: Mapping[str, Any], *, total_steps: int, epochs: int) -> None:
    """Check that each moving average of the weights is updated between the first step and the end of the run.

    Raises:
        ConfigError: one is not: the tested weights would be those of the first step.
    """
    for average in (callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)):  # type: ignore[attr-defined]
        steps = range(min(1, total_steps - 1), total_steps)
        if (
            total_steps == 0
            or any(average.should_update(step_idx=step) for step in steps)
            or any(average.should_update(epoch_idx=epoch) for epoch in range(epochs))
        ):
            continue
        nodes = callback_nodes(config)
        name = next(name for name in nodes if nodes[name]["_target_"].endswith(f".{type(average).__name__}"))
        settings = [f"callbacks.{name}.{key}={value}" for key, value in nodes[name].items() if "update" in key]
        problem = f"the run has {total_steps} steps, so that the average would be that of its first weights"
        raise ConfigError(
            f"{', '.join(settings) or f'callbacks.{name}'}: {problem}; update it earlier, or leave out {name}"
        )


def callback_nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The config nodes of the callbacks that are chosen, by name."""
    return {name: node for name, node in (config.get("callbacks") or {}).items() if node is not None}
