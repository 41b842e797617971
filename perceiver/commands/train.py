"""A run, from its config to its directory: build, fit, test, write down."""

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from perceiver.commands.results import (
    METRICS,
    MetricsOfTraining,
    best_checkpoint,
    best_score,
    class_rows,
    final_metrics,
    log_classes,
    of_best,
    test,
    unreadable,
    write_metrics,
    written_metrics,
)
from perceiver.commands.resume import check_lengths, prepare
from perceiver.inspection.explorer.page import PAGE
from perceiver.runtime.checkpoints import BEST, LAST, NEXT, BestCheckpoint, DurableIO
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import USER_ERRORS, ConfigError, nearest, one_line
from perceiver.runtime.launch import environment_plugins, leave_last, needs_processes_of_its_own, run_in_subprocess
from perceiver.runtime.lock import LOCK, lock, release
from perceiver.runtime.loggers.base import RunInfo, RunLogger, run_loggers
from perceiver.runtime.loggers.curves import Curves
from perceiver.runtime.overrides import interpolations
from perceiver.runtime.signals import INTERRUPTED, TERMINATED, EndedBySignal
from perceiver.runtime.summary import (
    class_table,
    console,
    cost_of,
    metrics_table,
    model_table,
    note,
    of_whole_sets,
    show,
)
from perceiver.runtime.sweep import display_name, group_of
from perceiver.runtime.tables import TestedSamples
from perceiver.training.build import Parts, blamed_on, construct, load_weights, read_checkpoint
from perceiver.training.callbacks import RunLog, StepLog, StepSeeds, TrainingClock
from perceiver.training.module import DivergedError
from perceiver.training.sharding import is_sharded
from perceiver.training.timing import peak_bytes
from perceiver.types import Batch

log = logging.getLogger(__name__)

EXAMPLES = 4
"""Samples on which the cost of the model is counted; several, since one may be unreadable."""
UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",  # small data sets on few cores train faster without
    ".*The number of training batches.*",
    ".*Total length of `list` across ranks is zero.*",  # there is no validation set
    "(?s).*exists and is not empty.*",  # Hydra made the run directory
    ".*treespec.*is deprecated.*",
    ".*but have no logger configured.*",  # what is measured again is printed and written
    ".*sync_dist=True.*",  # the metrics that are logged are those of all processes already
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # the data module goes on where it stopped
)


def train(cfg: DictConfig) -> float | None:
    """Train as the config says, and test the best checkpoint.

    Returns:
        The best value of the validation metric that chose the checkpoint (for sweepers), if there was a validation set.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        return train_in(run_dir, cfg)
    finally:
        release(run_dir)


def train_in(run_dir: Path, cfg: DictConfig) -> float | None:
    """The same in a directory, which is then locked."""
    try:
        config = resolved(cfg)
        prepare_torch(config)
        if HydraConfig.get().mode == RunMode.MULTIRUN and needs_processes_of_its_own(
            construct(config, "trainer", logger=False, enable_checkpointing=False)
        ):
            run_in_subprocess(run_dir)
            return best_score(run_dir)
        lock(run_dir)
        parts, start, step = prepare(config, run_dir)
        parts.module.description["interpolations"] = interpolations(cfg)
        trainer, clock, tested = build_trainer(config, parts, run_dir, step)
        example = parts.data.probe(EXAMPLES)
        with blamed_on(config, "model"):  # it may not take what the data holds
            cost = cost_of(parts.model, parts.task, example) if len(example) else {}
            table = model_table(parts.model, cost, example) if cost else None
        check_monitors(trainer, config, parts, example)
        check_lengths(trainer, parts.data, config, begins=start is None)
    except USER_ERRORS:
        discard_if_unused(run_dir)
        raise
    if trainer.is_global_zero and table is not None:
        show(table)
    if trainer.is_global_zero and parts.tokenizer is not None and parts.tokenizer.vocabulary is not None:
        (run_dir / "tokenizer.json").write_text(parts.tokenizer.vocabulary)
    exit_code = 1
    try:
        with warnings_in_log():
            fit(trainer, parts, config, start)
        if start is not None and not clock.has_trained:
            ends = f"trainer.max_epochs={trainer.max_epochs}, trainer.max_steps={trainer.max_steps}"
            log.warning("%s: nothing more is trained, the run was at its end there (%s, or stopped early)", start, ends)
        metrics = final_metrics(trainer) | clock.metrics | cost
        if start is not None:
            before = written_metrics(run_dir / METRICS)
            # What a run wrote at its end is more than its last checkpoint knows, which was saved before.
            metrics = before | metrics if clock.has_trained else metrics | before
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, ModelCheckpoint)
        if checkpoints.best_model_score is not None:
            metrics[f"best/{checkpoints.monitor}"] = float(checkpoints.best_model_score)
        if trainer.is_global_zero:
            write_metrics(metrics, run_dir / METRICS)  # of a run that is killed while it is tested
        best = best_checkpoint(trainer, run_dir / "checkpoints") or (None if clock.has_trained else start)
        if best is not None:
            load_weights(parts.module, read_checkpoint(best), best)
        metrics |= test(trainer, parts, config)
        log_classes(trainer, parts)
        tested.send(trainer)
        metrics |= unreadable(parts)
        last = run_dir / "checkpoints" / LAST
        for logger in run_loggers(trainer):
            logger.attempt(logger.summary, of_whole_sets(metrics))
            logger.attempt(logger.checkpoints, best, of_best(metrics), last, trainer.global_step)
        exit_code = 0
    finally:
        for logger in run_loggers(trainer):
            logger.end(exit_code)
    if trainer.is_global_zero:
        write_metrics(metrics, run_dir / METRICS)
        tables = tested.write(run_dir)
        if rows := class_rows(parts):
            show(class_table(rows))
        kind = "checkpoint" if best == start else "last checkpoint, not validated"
        written = {
            "best checkpoint" if checkpoints.best_model_score is not None else kind: best,
            "metrics": run_dir / METRICS,
            **tables,
            "attention": run_dir / "attention" / PAGE,
        }
        show(metrics_table(metrics, {name: path for name, path in written.items() if path and path.exists()}))
        note("done")
    return metrics.get(f"best/{checkpoints.monitor}")


def build_trainer(
    config: dict[str, Any], parts: Parts, run_dir: Path, step: int
) -> tuple[Trainer, TrainingClock, TestedSamples]:
    """The trainer with its loggers and callbacks, two of which are wanted afterwards; `step` as in `RunInfo`."""
    clock, tested, curves = TrainingClock(), TestedSamples(), Curves(run_dir / "metrics.csv")
    folder = run_dir / "checkpoints"
    callbacks: list[Callback] = [
        checkpoint_callback(parts, config, folder),
        construct(config, "checkpointing", folder=str(folder), curves=curves),
        clock,
        StepSeeds(seed=config["seed"]),
        StepLog(),
        RunLog(),
        construct(config, "attention"),
    ]
    chosen = config.get("callbacks") or {}
    callbacks += [construct(config, f"callbacks.{name}") for name, node in chosen.items() if node is not None]
    callbacks += [MetricsOfTraining(run_dir / METRICS), tested]
    if is_sharded(config["trainer"]) and any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise ConfigError("callbacks: a moving average of divided weights is not kept; leave out ema, or trainer=ddp")
    for path in (*folder.glob("*.part"), folder / NEXT):  # of a process that was killed
        path.unlink(missing_ok=True)
    hydra = HydraConfig.get()
    experiment = hydra.runtime.choices.get("experiment")
    name, group = display_name(run_dir, experiment, hydra.overrides.task), group_of(run_dir, experiment)
    logger: RunLogger = construct(config, "logger")
    logger.begin(RunInfo(folder=run_dir, config=config, name=name, group=group, step=step))
    trainer: Trainer = construct(
        config,
        "trainer",
        callbacks=callbacks,
        logger=[curves, logger],
        plugins=[DurableIO(), *environment_plugins()],
        default_root_dir=run_dir,
    )
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
        given = "null" if trainer.max_epochs is None else -1
        raise ConfigError(
            f"trainer.max_epochs={given}: the schedule needs an end; give trainer.max_epochs or max_steps"
        )
    return trainer, clock, tested


def check_monitors(trainer: Trainer, config: Mapping[str, Any], parts: Parts, example: Batch) -> None:
    """Refuse early stopping, or a choice of checkpoints, by what is not measured.

    Raises:
        ConfigError: it is; with what there is.
    """
    validates = parts.data.splits["val"] is not None and trainer.limit_val_batches != 0
    chosen = (config.get("callbacks") or {}).items()
    monitors = [("task.monitor", f"val/{parts.task.monitor}")] if validates else []
    for stopping in trainer.early_stopping_callbacks:
        asked = str(stopping.monitor)
        key = next((f"callbacks.{name}.monitor" for name, node in chosen if (node or {}).get("monitor") == asked), "")
        monitors.append((key, asked))
    for key, asked in monitors:
        if asked.startswith("val/") and not validates:
            raise ConfigError(f"{key}={asked}: nothing is validated; leave out early_stopping")
        names = [f"train/{name}" for name in parts.task.metric_parts("train")]
        names += [f"val/{name}" for name in parts.task.metric_parts("val")]
        if asked not in names and len(example):  # some are known only when something was measured
            names = sorted({*names, *(f"val/{name}" for name in measured_names(parts, example))})
        if len(example) and not any(_may_be(asked, name) for name in names):
            close = nearest(asked, names)
            if key == "task.monitor":  # which is told without its stage
                asked, close = asked.removeprefix("val/"), close.replace("val/", "")
            raise ConfigError(f"{key}={asked}: no such metric{close}")


def _may_be(asked: str, name: str) -> bool:
    """Whether a metric is the named one, or that of a part of the samples or of a kind, which a few need not have."""
    return asked == name or asked.startswith(f"{name}/") or asked.endswith(f"_{name.removeprefix('val/')}")


@torch.no_grad()
def measured_names(parts: Parts, example: Batch) -> set[str]:
    """The names of what a validation of a few samples measures."""
    task, model = copy.deepcopy(parts.task), copy.deepcopy(parts.model).eval()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = task.average_windows(task.outputs(model, example), example)
        task.update("val", outputs, task.loss(outputs, example), example)
        task.update_generated("val", model, example)
        return set(task.compute("val"))


@rank_zero_only
def discard_if_unused(run_dir: Path) -> None:
    """Remove a run directory that holds nothing but what Hydra puts there; not a sweep's, which counts its runs."""
    of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN or (run_dir.parent / "multirun.yaml").exists()
    if of_sweep or "ckpt_path=last" in HydraConfig.get().overrides.task:  # the latter is of a run that goes on
        return
    job = HydraConfig.get().job.name
    if {path.name for path in run_dir.iterdir()} <= {".hydra", f"{job}.log", LOCK}:
        shutil.rmtree(run_dir, ignore_errors=True)  # another process may be writing to it


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
    return BestCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor=f"val/{parts.task.monitor}" if validates else None,
        mode=parts.task.monitor_mode,
        # After the training epoch, when all callbacks have seen the validation; unless there are several in an epoch.
        save_on_train_epoch_end=settings.get("val_check_interval") is None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


def fit(trainer: Trainer, parts: Parts, config: Mapping[str, Any], start: Path | None) -> None:
    """Train; Ctrl-C and signals leave `last.ckpt` and say how to go on."""
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=start, weights_only=True)
        for stopping in trainer.early_stopping_callbacks:
            if stopping.stopping_reason_message and trainer.is_global_zero:
                log.info("training stopped early: %s", stopping.stopping_reason_message)
    except (EndedBySignal, DivergedError):
        tell_how_to_go_on(trainer)
        leave_last()
        raise
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        tell_how_to_go_on(trainer)
        raise SystemExit(TERMINATED if isinstance(end, SIGTERMException) else INTERRUPTED) from end
    except (RuntimeError, MemoryError) as error:
        if advice := advice_on(error, config, trainer):
            raise ConfigError(advice) from error
        raise


@contextmanager
def warnings_in_log() -> Iterator[None]:
    """Python's warnings go where the program's own go: to the terminal and to the run's log file."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


def tell_how_to_go_on(trainer: Trainer) -> None:
    """The command that continues the run, if there is a checkpoint to continue from."""
    run_dir = Path(trainer.default_root_dir)
    if trainer.is_global_zero and (run_dir / "checkpoints" / LAST).exists():
        how = f"ended at step {trainer.global_step}; continue with run={run_dir}"
        console.print(how, soft_wrap=True)
        note(how, logging.WARNING)


def advice_on(error: BaseException, config: Mapping[str, Any], trainer: Trainer) -> str | None:
    """What to do about an error that says nothing of the run's settings; None for those that are no such."""
    text, loader = str(error), config["loader"]
    size = loader["batch_size"]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        peak = peak_bytes(trainer.strategy.root_device) / 2**30
        steps = 2 * trainer.accumulate_grad_batches
        halves = f"loader.batch_size={max(size // 2, 1)} trainer.accumulate_grad_batches={steps}"
        return (
            f"out of memory in batches of loader.batch_size={size} on each of {trainer.world_size} processes "
            f"({peak:.1f} GiB at most so far). The same optimizer steps with less memory: {halves}; "
            "further trainer.precision=bf16-mixed, model.memory.activation_checkpointing=true, trainer=fsdp"
        )
    if "DataLoader worker" in text and "timed out" not in text:
        return (
            f"one of loader.num_workers={loader['num_workers']} reading processes has died ({one_line(error)}), mostly "
            "for want of memory: fewer of them, or num_workers=0, which shows where"
        )
    if "DataLoader timed out" in text:
        return (
            f"no batch came from the reading processes in loader.timeout_seconds={loader['timeout_seconds']}; "
            "more loader.num_workers, a longer time, or num_workers=0, which shows where it hangs"
        )
    return None
