"""A finished run, rebuilt from its checkpoint, and measured again."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from perceiver.commands.results import class_rows, test, unreadable, write_metrics
from perceiver.commands.train import prepare_torch
from perceiver.runtime.config import check_parts
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import overridden
from perceiver.runtime.summary import class_table, console, metrics_table
from perceiver.training.build import Parts, blamed_on, build, construct, load_weights, read_checkpoint
from perceiver.training.trust import check_trust
from perceiver.types import Stage

log = logging.getLogger(__name__)

STAGES = ("train", "val", "test")


@dataclass(frozen=True)
class Finished:
    """A run as one of its checkpoints has it; `step` and `epoch` number the last that were trained.

    What is made of it is kept in `home`: the run directory, or for a checkpoint that lies elsewhere, a folder beside it
    that has its name without the ending.
    """

    config: dict[str, Any]
    parts: Parts
    step: int
    epoch: int
    checkpoint: Path
    home: Path


def load(
    run: str, checkpoint: str | None = None, overrides: Sequence[str] = (), trusted: str | Iterable[str] = ()
) -> Finished:
    """Rebuild a run from one of its checkpoints, with the model in evaluation mode: also for use in a notebook.

    Args:
        run: the run directory, or the file of a checkpoint.
        checkpoint: of the run directory, `best` (also if None) or `last`.
        overrides: changes to the run's config, as `key=value`.
        trusted: packages of the user's own, of which the run may build any class; one or several.

    Raises:
        ConfigError: the run or checkpoint is not there or not readable, or an override names an unknown key.
    """
    path, home = located(run, checkpoint)
    found = read_checkpoint(path)
    check_trust(found.config, [trusted] if isinstance(trusted, str) else [str(one) for one in trusted], path)
    config = overridden(found.config, overrides, found.interpolations)
    check_parts(config)
    parts = build(config, found.data_info)
    try:
        load_weights(parts.module, found, path)
    except ConfigError as error:
        raise ConfigError(f"overrides={list(overrides)}: {error}" if overrides else str(error)) from error
    parts.module.description["trained_on"] = found.trained_on
    parts.module.eval()
    return Finished(config, parts, found.step, found.epoch, path, home)


def located(
    run: str, checkpoint: str | None, key: str = "run", checkpoint_key: str = "checkpoint"
) -> tuple[Path, Path]:
    """The file of a checkpoint, and where what is made of it is kept.

    Raises:
        ConfigError: there is no such run, or the two contradict each other.
    """
    path = Path(run)
    if path.is_dir():
        return path / "checkpoints" / f"{checkpoint or 'best'}.ckpt", path
    if not path.exists():
        raise ConfigError(f"{key}={run}: no such run directory, nor a checkpoint")
    if checkpoint not in (None, path.stem):
        raise ConfigError(f"{checkpoint_key}={checkpoint}: {key}={run} is another checkpoint; leave one of them out")
    of_run = path.absolute().parent.name == "checkpoints" and (path.absolute().parents[1] / ".hydra").is_dir()
    if not (of_run or path.suffix):
        raise ConfigError(f"{key}={run}: neither a run directory nor a checkpoint, whose name ends in .ckpt")
    return path, path.absolute().parents[1] if of_run else path.with_suffix("")


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before there is anything to write.

    Raises:
        ConfigError: it, or the nearest one above it that exists, is not a folder or may only be read.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"output={folder}: nothing can be written there; name another place with output=…")


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Metrics of a run's checkpoint on a split: printed, and written to `evaluation.json` in the run directory.

    Those of another split than that for tests have names and a file of their own. The training samples are measured
    without augmentation, as far as the data set's `augment` makes it.
    """
    split = cfg.split
    if split not in STAGES:
        raise ConfigError(f"split={split}: must be one of {', '.join(STAGES)}")
    finished = load(str(cfg.run), cfg.checkpoint, cfg.overrides, cfg.trusted)
    if split == "train" and (plain := [f"{key}=null" for key in augmentations(finished.config["data"], "data")]):
        finished = load(str(cfg.run), cfg.checkpoint, [*cfg.overrides, *plain], cfg.trusted)
    config, parts = finished.config, finished.parts
    prepare_torch(config)
    parts.data.tested = split
    with blamed_on(config, "data"):
        check_data(parts, split, allow_trained=cfg.allow_trained)
    limit = None if split == "train" else config["trainer"].get(f"limit_{split}_batches")
    limited = config | {"trainer": config["trainer"] | {"limit_test_batches": limit}}
    trainer: Trainer = construct(limited, "trainer", logger=False, enable_checkpointing=False)
    metrics = test(trainer, parts, config)
    if not metrics:
        raise ConfigError(f"run={cfg.run}: its data set has no {split} samples")
    metrics |= unreadable(parts)
    if not trainer.is_global_zero:
        return metrics
    if rows := class_rows(parts):
        console.print(class_table(rows))
    name = "evaluation.json" if split == "test" else f"evaluation_{split}.json"
    path = finished.home / name if cfg.output is None else Path(cfg.output)
    console.print(metrics_table(metrics, {"checkpoint": finished.checkpoint, "metrics": path}))
    of = {
        **{"checkpoint": str(finished.checkpoint.absolute()), "step": finished.step, "epoch": finished.epoch},
        **{"split": split, "overrides": list(cfg.overrides), "data": config["data"]},
    }
    try:
        write_metrics(metrics, path, of)
    except OSError as error:
        raise ConfigError(f"output={path}: could not be written ({error.strerror}); name another file") from error
    return metrics


def check_data(parts: Parts, stage: Stage, *, allow_trained: bool) -> None:
    """Compare the data of a stage with that of the run: what its labels mean, and what the run was trained on.

    Raises:
        ValueError: the classes are others, or samples outside of the training set were trained on; with `allow_trained`
            these are warned of.
    """
    parts.data.prepare_data()
    parts.data.match_classes(parts.module.description["class_names"])
    before = parts.module.description["trained_on"]
    train, tested = parts.data.fingerprints("train"), parts.data.fingerprints(stage)
    if before is None:
        log.warning("the checkpoint does not say which samples it was trained on: none of them can be recognised")
        return
    if gone := int((~torch.isin(before, train)).sum()):
        renamed = "if they were only renamed or moved, others may be tested that the run was trained on"
        log.warning("of %d training samples of the run %d are no longer there; %s", len(before), gone, renamed)
    if stage == "train":
        return
    known = torch.isin(tested, before)
    if not known.any():
        return
    split = parts.data.splits[stage]
    assert split is not None
    first = split.name_of(int(known.nonzero()[0]))
    problem = f"{int(known.sum())} of its {len(known)} {stage} samples were trained on, such as {first}"
    # What is both trained on and tested, now as then, has not moved: two samples may have the same name.
    if not allow_trained and (known & ~torch.isin(tested, train)).any():
        hint = "use the data and the split of the run, or measure all the same with allow_trained=true"
        raise ValueError(f"{problem}; {hint}")
    log.warning("%s", problem)


def augmentations(node: Any, key: str) -> list[str]:
    """The keys of what changes samples in training, below the config of a data set."""
    if not isinstance(node, dict):
        return []
    found = [f"{key}.augment"] if node.get("augment") is not None else []
    return found + [
        one for name, child in node.items() if name != "augment" for one in augmentations(child, f"{key}.{name}")
    ]
