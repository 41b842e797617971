"""A finished run, rebuilt from its checkpoint, and measured again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from perceiver.training.build import Parts, build, check_trust, construct, load_weights, read_checkpoint
from perceiver.training.config import check_parts
from perceiver.training.errors import ConfigError
from perceiver.training.overrides import overridden
from perceiver.training.results import class_rows, test, unreadable, write_metrics
from perceiver.training.run import prepare_torch
from perceiver.training.summary import class_table, console, metrics_table


@dataclass(frozen=True)
class Finished:
    """A run as one of its checkpoints has it; `step` and `epoch` number the last that were trained."""

    config: dict[str, Any]
    parts: Parts
    step: int
    epoch: int


def load(
    run: str, checkpoint: str = "best", overrides: Sequence[str] = (), trusted: str | Iterable[str] = ()
) -> Finished:
    """Rebuild a run from one of its checkpoints, with the model in evaluation mode: also for use in a notebook.

    Args:
        run: the run directory.
        checkpoint: `best` or `last`.
        overrides: changes to the run's config, as `key=value`.
        trusted: packages of the user's own, of which the run may build any class; one or several.

    Raises:
        ConfigError: the run or checkpoint is not there or not readable, or an override names an unknown key.
    """
    run_dir = Path(run)
    if not run_dir.is_dir():
        raise ConfigError(f"run={run}: no such run directory")
    path = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    found = read_checkpoint(path)
    check_trust(found.config, [trusted] if isinstance(trusted, str) else [str(one) for one in trusted], path)
    config = overridden(found.config, overrides, found.interpolations)
    check_parts(config)
    parts = build(config, found.learned)
    try:
        load_weights(parts.module, found, path)
    except ConfigError as error:
        raise ConfigError(f"overrides={list(overrides)}: {error}" if overrides else str(error)) from error
    parts.module.eval()
    return Finished(config, parts, found.step, found.epoch)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test metrics of a run's checkpoint: printed, and written to `evaluation.json` in the run directory."""
    finished = load(str(cfg.run), cfg.checkpoint, cfg.overrides, cfg.trusted)
    config, parts = finished.config, finished.parts
    prepare_torch(config)
    trainer: Trainer = construct(config, "trainer", logger=False, enable_checkpointing=False)
    metrics = test(trainer, parts, config)
    if not metrics:
        raise ConfigError(f"run={cfg.run}: its data set has no test samples")
    metrics |= unreadable(parts)
    if not trainer.is_global_zero:
        return metrics
    path = Path(cfg.run) / "evaluation.json"
    write_metrics(metrics, path)
    if rows := class_rows(parts):
        console.print(class_table(rows))
    console.print(metrics_table(metrics, {"metrics": path}))
    return metrics
