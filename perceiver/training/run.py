"""A run, from its config to its directory: build, fit, test, write down."""

import json
import logging
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from perceiver.inspection.callback import AttentionCallback
from perceiver.inspection.explorer import PAGE
from perceiver.training.build import Parts, blamed_on, build, construct, load_weights, read_checkpoint
from perceiver.training.callbacks import LastCheckpoint, StepSeeds, TrainingClock
from perceiver.training.config import resolved
from perceiver.training.errors import USER_ERRORS, ConfigError
from perceiver.training.loggers import WandbMirror
from perceiver.training.summary import class_table, console, metrics_table, model_table

INTERRUPTED, TERMINATED = 130, 143
"""Exit status of a run that was ended by Ctrl-C or by SIGTERM, as of any program that was."""
EXAMPLES = 4
"""Samples on which the cost of the model is counted; several, since one may be unreadable."""
UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",  # small data sets on few cores train faster without
    ".*The number of training batches.*",
    ".*Total length of `list` across ranks is zero.*",  # there is no validation set
    ".*exists and is not empty.*",  # Hydra made the run directory
    ".*treespec.*is deprecated.*",
    ".*training_step. returned .None.*",  # of a batch without a readable sample, which is said already
    ".*sync_dist=True.*",  # the metrics that are logged are those of all processes already
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # the data module goes on where it stopped
)


def train(cfg: DictConfig) -> float | None:
    """Train as the config says, and test the best checkpoint.

    Returns:
        The validation metric that chose the checkpoint (for sweepers), if there was a validation set.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        config, parts = prepare(cfg)
        trainer, clock = build_trainer(config, parts, run_dir)
        example = parts.data.probe(EXAMPLES)
        with blamed_on(config, "model"):  # it may not take what the data holds
            table = model_table(parts.model, parts.task, example) if len(example) else None
    except USER_ERRORS:
        discard_if_unused(run_dir)
        raise
    if trainer.is_global_zero and table is not None:
        console.print(table)
    if trainer.is_global_zero and parts.tokenizer is not None and parts.tokenizer.vocabulary is not None:
        (run_dir / "tokenizer.json").write_text(parts.tokenizer.vocabulary)
    exit_code = 1
    try:
        fit(trainer, parts, config, run_dir)
        metrics = final_metrics(trainer) | clock.metrics
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, ModelCheckpoint)
        score = None if checkpoints.best_model_score is None else float(checkpoints.best_model_score)
        best = best_checkpoint(trainer, run_dir / "checkpoints")
        if best is not None:
            load_weights(parts.module, read_checkpoint(best), best)
        metrics |= test(trainer, parts, config)
        log_classes(trainer, parts)
        exit_code = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbMirror):
                logger.close(exit_code)
    if parts.data.unreadable:
        metrics["data/unreadable"] = float(len(parts.data.unreadable))
    if trainer.is_global_zero:
        write_metrics(metrics, run_dir / "metrics.json")
        if rows := class_rows(parts):
            console.print(class_table(rows))
        written = {
            "best checkpoint": best,
            "metrics": run_dir / "metrics.json",
            "attention": run_dir / "attention" / PAGE,
        }
        console.print(metrics_table(metrics, {name: path for name, path in written.items() if path and path.exists()}))
    return score


def prepare(cfg: DictConfig) -> tuple[dict[str, Any], Parts]:
    """Check the config and build what it names, so that whatever is wrong with it is said before anything is done."""
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    if config["ckpt_path"] is not None:
        path = Path(config["ckpt_path"])
        try:
            found = read_checkpoint(path)
            if found.learned.vocabulary != parts.module.description["vocabulary"]:
                raise ConfigError(f"{path}: its tokenizer has learned other words than those of this data")
            load_weights(parts.module, found, path)
        except ConfigError as error:
            raise ConfigError(f"ckpt_path={error}") from error
    if config["compile"]:
        parts.model.compile()
    return config, parts


def build_trainer(config: dict[str, Any], parts: Parts, run_dir: Path) -> tuple[Trainer, TrainingClock]:
    """The trainer with its loggers and callbacks, of which the clock is wanted afterwards."""
    clock = TrainingClock()
    callbacks: list[Callback] = [
        checkpoint_callback(parts, config, run_dir / "checkpoints"),
        LastCheckpoint(path=run_dir / "checkpoints" / "last.ckpt"),
        clock,
        StepSeeds(seed=config["seed"]),
        construct(config, "attention"),
    ]
    chosen = config.get("callbacks") or {}
    callbacks += [construct(config, f"callbacks.{name}") for name, node in chosen.items() if node is not None]
    mirror = construct(config, "logger", run_dir=str(run_dir), run_config=config, _recursive_=False)
    loggers = [CSVLogger(save_dir=run_dir, name="", version=""), mirror]
    trainer: Trainer = construct(config, "trainer", callbacks=callbacks, logger=loggers, default_root_dir=run_dir)
    if trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs=-1: the schedule needs an end; give trainer.max_epochs or max_steps")
    if trainer.world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        # Lightning starts the other processes with this one's command line: they would each run the whole sweep.
        raise ConfigError(f"-m (a sweep) cannot start runs of {trainer.world_size} processes; start them one by one")
    return trainer, clock


@rank_zero_only
def discard_if_unused(run_dir: Path) -> None:
    """Remove a run directory that holds nothing but what Hydra puts there; not a sweep's, which counts its runs."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    job = HydraConfig.get().job.name
    if {path.name for path in run_dir.iterdir()} <= {".hydra", f"{job}.log"}:
        shutil.rmtree(run_dir)


def prepare_torch(config: Mapping[str, Any]) -> None:
    """Process-wide settings."""
    seed_everything(config["seed"], workers=True, verbose=False)
    torch.set_float32_matmul_precision(config["matmul_precision"])
    if config["num_threads"] is not None:
        torch.set_num_threads(config["num_threads"])
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def checkpoint_callback(parts: Parts, config: Mapping[str, Any], folder: Path) -> ModelCheckpoint:
    """`best.ckpt` by the task's validation metric, or the newest where nothing is validated."""
    settings = config["trainer"]
    validates = parts.data.splits["val"] is not None and settings.get("limit_val_batches") != 0
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=f"val/{parts.task.monitor}" if validates else None,
        mode=parts.task.monitor_mode,
        # After the training epoch, when all callbacks have seen the validation; unless there are several in an epoch.
        save_on_train_epoch_end=settings.get("val_check_interval") is None,
        every_n_epochs=settings.get("check_val_every_n_epoch", 1) if validates else 1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


def best_checkpoint(trainer: Trainer, folder: Path) -> Path | None:
    """The best checkpoint of a run; the last, also under the name of the best, where none was chosen by a metric."""
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    best, last = Path(trainer.checkpoint_callback.best_model_path), folder / "last.ckpt"
    if best.is_file():
        return best
    if not last.is_file():
        return None
    if trainer.is_global_zero:
        shutil.copyfile(last, folder / "best.ckpt")
    trainer.strategy.barrier()
    return folder / "best.ckpt"


def fit(trainer: Trainer, parts: Parts, config: Mapping[str, Any], run_dir: Path) -> None:
    """Train; Ctrl-C and SIGTERM leave `last.ckpt` and say how to go on."""
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=config["ckpt_path"], weights_only=True)
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        last = run_dir / "checkpoints" / "last.ckpt"
        if last.exists():
            console.print(f"interrupted; continue with ckpt_path={last}", soft_wrap=True)
        raise SystemExit(TERMINATED if isinstance(end, SIGTERMException) else INTERRUPTED) from end


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Training and validation metrics of the last epoch, and what the last look at the attention measured."""
    measured = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("train/", "val/")) and not name.endswith("_step")
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AttentionCallback):
            measured |= callback.scores
    return measured


def test(trainer: Trainer, parts: Parts, config: dict[str, Any]) -> dict[str, float]:
    """The test metrics of the module's present weights, also those of classes; none where there is no test set."""
    with blamed_on(config, "data"):
        if parts.data.splits["test"] is None:
            return {}
    metrics = trainer.test(parts.module, datamodule=parts.data, verbose=False)
    of_all = {name: float(value) for dataloader in metrics for name, value in dataloader.items()}
    of_classes = {f"test/{metric}/{row['class']}": value for row in class_rows(parts) for metric, value in row.items()}
    return of_all | {name: value for name, value in of_classes.items() if not isinstance(value, str)}


def class_rows(parts: Parts) -> list[dict[str, Any]]:
    """The last test's metrics of each class, NaN where one is not defined for it."""
    columns = parts.task.class_metrics("test")
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    names = parts.module.description["class_names"] if columns else []
    return [{"class": name, **dict(zip(columns, row, strict=True))} for name, row in zip(names, values, strict=True)]


def log_classes(trainer: Trainer, parts: Parts) -> None:
    """The metrics of each class as one table."""
    rows = class_rows(parts)
    for logger in trainer.loggers:
        if rows and isinstance(logger, WandbMirror):
            logger.log_table("test/classes", columns=list(rows[0]), data=[list(row.values()) for row in rows])


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write metrics as one flat JSON object, sorted by name; null stands for what is not defined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    path.write_text(json.dumps(finite, indent=2) + "\n")
