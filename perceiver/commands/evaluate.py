"""Evaluate a finished run on a split of its data."""

from pathlib import Path

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from perceiver.commands.finished_run import load_named
from perceiver.commands.results import show_results, test, unreadable_samples, write_metrics
from perceiver.runtime.config import check_parts
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.training.build import construct
from perceiver.types import STAGES


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Print metrics of a run's checkpoint on a split, and write them to `evaluation.json` in the run directory.

    Those of other splits are written to `evaluation_val.json` and `evaluation_train.json`. Training samples are not
    augmented, as far as the `augment` settings of the data set decide.
    """
    split = cfg.split
    if split not in STAGES:
        raise ConfigError(f"split={split}: must be one of {', '.join(STAGES)}")
    finished = load_named(cfg, cfg.overrides, augment=split != "train")
    config, parts = finished.config, finished.parts
    prepare_torch(config)
    finished.check_data(split, allow_trained=cfg.allow_trained)
    parts.data.tested = split
    limit = None if split == "train" else config["trainer"].get(f"limit_{split}_batches")
    limited = config | {"trainer": config["trainer"] | {"limit_test_batches": limit}}
    check_parts({"trainer": limited["trainer"]})
    trainer: Trainer = construct(limited, "trainer", logger=False, enable_checkpointing=False)
    metrics = test(trainer, parts, config)
    if not metrics:
        if cfg.run is None:
            raise ConfigError(f"a published model has no {split} samples of its own; give data=… data.root=…")
        if limit == 0 and parts.data.splits[split] is not None:
            raise ConfigError(f"trainer.limit_{split}_batches=0: evaluates nothing; set it to 1.0 by overrides")
        raise ConfigError(f"run={cfg.run}: its data set has no {split} samples")
    metrics |= unreadable_samples(parts)
    if not trainer.is_global_zero:
        return metrics
    name = "evaluation.json" if split == "test" else f"evaluation_{split}.json"
    path = finished.output_dir / name if cfg.output is None else Path(cfg.output)
    show_results(metrics, parts, {"checkpoint": finished.checkpoint, "metrics": path})
    of = {
        **{"checkpoint": str(finished.checkpoint.absolute()), "step": finished.step, "epoch": finished.epoch},
        **{"split": split, "overrides": list(cfg.overrides), "data": config["data"]},
    }
    try:
        write_metrics(metrics, path, of)
    except OSError as error:
        raise ConfigError(f"output={path}: could not be written ({error.strerror}); choose another file") from error
    return metrics
