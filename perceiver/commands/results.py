"""What a run comes to: its best checkpoint, the metrics of it, and the files they are written to."""

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
from perceiver.training.attention_callback import AttentionCallback
from perceiver.training.build import Parts, blamed_on
from perceiver.training.module import TrainingModule

METRICS = "metrics.json"


def best_checkpoint(trainer: Trainer, folder: Path) -> Path | None:
    """The best checkpoint of a run; the last, also under the name of the best, where none was chosen by a metric."""
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


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Training and validation metrics of the last epoch, and what the last look at the attention measured."""
    assert isinstance(trainer.lightning_module, TrainingModule)
    measured = dict(trainer.lightning_module.measured)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AttentionCallback):
            measured |= callback.scores
    return measured


class MetricsOfTraining(Callback):
    """Has what training measured on disk before its last checkpoint takes its place, after which it is not done again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with suppress(OSError):  # where the disk is full, the end of the run says so
                write_metrics(final_metrics(trainer), self.path)


def test(trainer: Trainer, parts: Parts, config: dict[str, Any]) -> dict[str, float]:
    """The metrics of the module's present weights on the split that is tested, also those of classes.

    There are none where there is no such split.
    """
    with blamed_on(config, "data"):
        if parts.data.splits[parts.data.tested] is None:
            return {}
        parts.data.check_readable("test")
    # What the test is logged with; a checkpoint from within an epoch has it one short.
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
    try:
        metrics = trainer.test(parts.module, datamodule=parts.data, verbose=False)
    except SIGTERMException as end:  # its status is that of success
        raise SystemExit(TERMINATED) from end
    of_all = {name: float(value) for dataloader in metrics for name, value in dataloader.items()}
    of_classes = {f"test/{metric}/{row['class']}": value for row in class_rows(parts) for metric, value in row.items()}
    all_ = of_all | {name: value for name, value in of_classes.items() if not isinstance(value, str)}
    return {f"{parts.data.tested}/{name.removeprefix('test/')}": value for name, value in all_.items()}


def unreadable(parts: Parts) -> dict[str, float]:
    """How many samples could not be read by any of the processes, if there are any."""
    messages = {message for part in all_gather(list(parts.data.unreadable)) for message in part}
    return {"data/unreadable": float(len(messages))} if messages else {}


def class_rows(parts: Parts) -> list[dict[str, Any]]:
    """The last test's metrics of each class, NaN where one is not defined for it."""
    columns = parts.task.class_metrics("test")
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    names = parts.module.description["class_names"] if columns else []
    return [{"class": name, **dict(zip(columns, row, strict=True))} for name, row in zip(names, values, strict=True)]


def log_classes(trainer: Trainer, parts: Parts) -> None:
    """The metrics of each class as one table."""
    if rows := class_rows(parts):
        cells = [list(row.values()) for row in rows]
        for logger in run_loggers(trainer):
            logger.attempt(logger.table, "test/classes", list(rows[0]), cells, trainer.global_step)


def write_metrics(metrics: Mapping[str, float], path: Path, of: Mapping[str, Any] | None = None) -> None:
    """Write metrics as one flat JSON object, sorted by name; null stands for what is not defined.

    Args:
        metrics: by name.
        path: the file.
        of: what they were measured of, under `of`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    part = path.with_suffix(".part")  # a run that is killed while it writes loses nothing that was there
    part.write_text(json.dumps(finite if of is None else {"of": of, **finite}, indent=2) + "\n")
    part.replace(path)


def written_metrics(path: Path) -> dict[str, float]:
    """Metrics as they were written, if they were."""
    written = json.loads(path.read_text()) if path.exists() else {}
    return {name: math.nan if value is None else value for name, value in written.items()}


def of_best(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of the final metrics, those of the best checkpoint."""
    return {name: value for name, value in metrics.items() if name.startswith(("best/", "test/"))}


def best_score(run_dir: Path) -> float | None:
    """What a run that was done by other processes has come to; see `train`."""
    metrics = json.loads((run_dir / METRICS).read_text())
    return next((value for name, value in metrics.items() if name.startswith("best/")), None)
