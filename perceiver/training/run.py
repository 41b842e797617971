"""A run, from its config to its directory: build, fit, test, write down."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig

from perceiver.data.collate import collate
from perceiver.training.build import Parts, build, read_checkpoint
from perceiver.training.callbacks import SaveOnInterrupt, TrainingClock
from perceiver.training.config import ConfigError, resolved
from perceiver.training.loggers import WandbMirror
from perceiver.training.summary import console, metrics_table, model_table

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status of a run that was ended by Ctrl-C, as of any program that was."""


UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",  # small data sets on few cores train faster without
    ".*The number of training batches.*",
    ".*exists and is not empty.*",  # Hydra made the run directory
    ".*treespec.*is deprecated.*",
)


def train(cfg: DictConfig) -> float | None:
    """Train as the config says, and test the best checkpoint.

    Returns:
        The validation metric that chose the checkpoint (for sweepers), if there was a validation set.
    """
    config = resolved(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if config["ckpt_path"] is not None and not Path(config["ckpt_path"]).exists():
        raise ConfigError(f"ckpt_path={config['ckpt_path']}: no such checkpoint")
    prepare_torch(config)
    parts = build(config)
    if config["compile"]:
        parts.model.compile()
    example = collate([parts.data.train_samples[0]])
    console.print(model_table(parts.model, example))

    checkpoints = checkpoint_callback(parts, config, run_dir / "checkpoints")
    clock = TrainingClock()
    callbacks: list[Callback] = [checkpoints, SaveOnInterrupt(path=run_dir / "checkpoints" / "last.ckpt"), clock]
    callbacks.append(instantiate(config["attention"]))
    callbacks += [instantiate(node, _convert_="all") for node in config["callbacks"].values() if node is not None]
    wandb_logger = instantiate(config["logger"], run_dir=str(run_dir), run_config=config, _recursive_=False)
    assert isinstance(wandb_logger, WandbMirror)
    loggers = [CSVLogger(save_dir=run_dir, name="", version=""), wandb_logger]
    trainer: Trainer = instantiate(
        config["trainer"], callbacks=callbacks, logger=loggers, default_root_dir=run_dir, _convert_="all"
    )
    exit_code = 1
    try:
        fit(trainer, parts, config, run_dir)
        metrics = final_metrics(trainer) | clock.metrics
        score = None if checkpoints.best_model_score is None else float(checkpoints.best_model_score)
        best = Path(checkpoints.best_model_path)
        if best.is_file():
            parts.module.load_state_dict(read_checkpoint(best).state)
        metrics |= test(trainer, parts)
        exit_code = 0
    finally:
        wandb_logger.close(exit_code)
    if parts.data.unreadable:
        metrics["data/unreadable"] = float(len(parts.data.unreadable))
    write_metrics(metrics, run_dir / "metrics.json")
    written = {"best checkpoint": best, "metrics": run_dir / "metrics.json", "attention": run_dir / "attention"}
    console.print(metrics_table(metrics, {name: path for name, path in written.items() if path.exists()}))
    return score


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
    """`best.ckpt` by the task's validation metric, or the newest where nothing is validated; and `last.ckpt`."""
    validates = parts.data.splits["val"] is not None and config["trainer"]["limit_val_batches"] != 0
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=f"val/{parts.task.monitor}" if validates else None,
        mode=parts.task.monitor_mode,
        save_last=True,
        save_on_train_epoch_end=not validates,
        every_n_epochs=config["trainer"]["check_val_every_n_epoch"],
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


def fit(trainer: Trainer, parts: Parts, config: Mapping[str, Any], run_dir: Path) -> None:
    """Train; Ctrl-C leaves `last.ckpt` and says how to go on."""
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=config["ckpt_path"])
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        last = run_dir / "checkpoints" / "last.ckpt"
        if last.exists():
            console.print(f"interrupted; continue with ckpt_path={last}")
        raise SystemExit(INTERRUPTED) from end


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Training and validation metrics of the last epoch."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("train/", "val/")) and not name.endswith("_step")
    }


def test(trainer: Trainer, parts: Parts) -> dict[str, float]:
    """The test metrics of the module's present weights; none where there is no test set."""
    if parts.data.splits["test"] is None:
        return {}
    (metrics,) = trainer.test(parts.module, datamodule=parts.data, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write metrics as one flat JSON object, sorted by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(metrics.items())), indent=2) + "\n")
