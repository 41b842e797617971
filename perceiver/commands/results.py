"""The results of a run: the metrics of training and test, and the files and tables that show them."""

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from perceiver.processes import all_gather
from perceiver.runtime.checkpoints import BEST, LAST
from perceiver.runtime.loggers.base import run_loggers
from perceiver.runtime.signals import TERMINATED
from perceiver.runtime.summary import class_table, metrics_table, show, show_files
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.build import Parts, config_errors
from perceiver.training.lightning_data import LightningData, data_of
from perceiver.training.module import TrainingModule

METRICS = "metrics.json"


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Training and validation metrics of the last epoch, and the scores of the last attention event."""
    assert isinstance(trainer.lightning_module, TrainingModule)
    metrics = with_validation(trainer, trainer.lightning_module.measured)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AttentionCallback):
            metrics |= callback.scores
    return metrics


def with_validation(trainer: Trainer, metrics: Mapping[str, float]) -> dict[str, float]:
    """Some metrics, without those of validation that a run without validation has from its checkpoint."""
    if data_of(trainer).has_validation(trainer.limit_val_batches):
        return dict(metrics)
    return {name: value for name, value in metrics.items() if not name.startswith(("val/", "best/"))}


class WriteTrainingMetrics(Callback):
    """Writes the metrics of training before its last checkpoint is written, from which they could not be restored.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with suppress(OSError):  # a full disk raises at the end of the run
                write_metrics(final_metrics(trainer), self.path)


def best_checkpoint(trainer: Trainer, folder: Path) -> Path | None:
    """The best checkpoint of a run; without validation the last one, which is copied to the name of the best."""
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    best, last = Path(trainer.checkpoint_callback.best_model_path), folder / LAST
    if best.is_file():
        return best
    if not last.is_file():
        return None
    if trainer.is_global_zero:
        shutil.copyfile(last, folder / BEST)
    trainer.strategy.barrier()
    return folder / BEST


def test(trainer: Trainer, parts: Parts, config: dict[str, Any]) -> dict[str, float]:
    """Metrics of the module's current weights on the tested split, of single classes too; empty without a split."""
    with config_errors(config, "data"):
        if parts.data.splits[parts.data.tested] is None:
            return {}
        parts.data.check_readable("test")
    # The step at which metrics are logged; a checkpoint from within an epoch stores one less.
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
    try:
        results = trainer.test(parts.module, datamodule=LightningData(parts.data), verbose=False)
    except SIGTERMException as end:  # Lightning would exit with status 0
        raise SystemExit(TERMINATED) from end
    metrics = {name: float(value) for result in results for name, value in result.items()}
    for row in class_rows(parts):
        metrics |= {f"test/{name}/{row['class']}": value for name, value in row.items() if name != "class"}
    return {f"{parts.data.tested}/{name.removeprefix('test/')}": value for name, value in metrics.items()}


def unreadable_samples(parts: Parts) -> dict[str, float]:
    """The number of samples that some process could not read, as a metric; empty if there are none."""
    messages = {message for part in all_gather(list(parts.data.unreadable)) for message in part}
    return {"data/unreadable": float(len(messages))} if messages else {}


def class_rows(parts: Parts) -> list[dict[str, Any]]:
    """The metrics of each class in the last test, NaN where they are undefined; the name is under `class`."""
    columns = parts.task.class_metrics("test")
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    names = parts.description["class_names"] if columns else []
    return [{"class": name, **dict(zip(columns, row, strict=True))} for name, row in zip(names, values, strict=True)]


def log_classes(trainer: Trainer, parts: Parts) -> None:
    """Log the metrics of each class as one table."""
    if rows := class_rows(parts):
        cells = [list(row.values()) for row in rows]
        for logger in run_loggers(trainer):
            logger.attempt(logger.table, "test/classes", list(rows[0]), cells, trainer.global_step)


def show_results(metrics: Mapping[str, float], parts: Parts, files: Mapping[str, Path]) -> None:
    """Print metrics, those of each class in a table of their own, and the files with results by name."""
    if rows := class_rows(parts):
        show(class_table(rows))
    show(metrics_table(metrics))
    show_files(files)


def write_metrics(metrics: Mapping[str, float], path: Path, of: Mapping[str, Any] | None = None) -> None:
    """Write metrics as one flat JSON object, sorted by name; NaN and infinity as null.

    Args:
        metrics: by name.
        path: the file.
        of: checkpoint and data that were measured, under the key `of`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    part = path.with_suffix(".part")  # a run that is killed while writing keeps the previous file
    part.write_text(json.dumps(finite if of is None else {"of": of, **finite}, indent=2) + "\n")
    part.replace(path)


def read_metrics(path: Path) -> dict[str, float]:
    """Metrics written by `write_metrics`; empty if there is no such file."""
    written = json.loads(path.read_text()) if path.exists() else {}
    return {name: math.nan if value is None else value for name, value in written.items()}


def best_score(metrics: Mapping[str, float]) -> float | None:
    """The best value of the validation metric that chose the checkpoint, if there was a validation."""
    return next((value for name, value in metrics.items() if name.startswith("best/")), None)
