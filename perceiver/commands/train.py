"""Training: compose and check the config, build the run, fit, test the best checkpoint, write the results."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

from perceiver.commands.checks import callback_nodes, check_lengths, check_monitors
from perceiver.commands.results import (
    METRICS,
    WriteTrainingMetrics,
    best_checkpoint,
    best_score,
    final_metrics,
    log_classes,
    read_metrics,
    show_results,
    test,
    unreadable_samples,
    with_validation,
    write_metrics,
)
from perceiver.commands.resume import WEIGHTS_ALONE, build_or_resume
from perceiver.inspection.explorer.page import PAGE
from perceiver.runtime.checkpoints import BEST, LAST, NEXT, BestCheckpoint, DurableIO
from perceiver.runtime.config import check_parts, resolved
from perceiver.runtime.cost import cost_metrics
from perceiver.runtime.errors import ConfigError, PositionError, is_user_error, one_line
from perceiver.runtime.launch import run_in_subprocess, slurm_plugins, starts_processes, wait_for_first
from perceiver.runtime.lock import LOCK, lock, release
from perceiver.runtime.loggers.base import RunInfo, RunLogger, run_loggers
from perceiver.runtime.loggers.curves import Curves
from perceiver.runtime.overrides import interpolations
from perceiver.runtime.signals import INTERRUPTED, TERMINATED, EndedBySignal
from perceiver.runtime.summary import aggregate_metrics, console, model_table, note, show
from perceiver.runtime.sweep import display_name, group_name
from perceiver.runtime.tables import TestedSamples
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.training.build import Parts, config_errors, construct
from perceiver.training.callbacks import RunLog, StepLog, StepSeeds, TrainingClock
from perceiver.training.checkpoint import load_weights, read_checkpoint
from perceiver.training.lightning_data import LightningData
from perceiver.training.module import DivergedError
from perceiver.training.published import with_published_model
from perceiver.training.sharding import is_sharded
from perceiver.training.timing import peak_bytes

log = logging.getLogger(__name__)

NUM_EXAMPLES = 4
"""Samples for which the cost of the model is computed; several, since one may be unreadable."""


@dataclass(frozen=True)
class Run:
    """A training run, ready to be fitted.

    Attributes:
        folder: the run directory.
        config: checked.
        parts: data, model, task.
        trainer: with loggers and callbacks.
        clock, tested: the callbacks that measure speed and collect the tested samples.
        start: the checkpoint that training is resumed from, if any.
        cost: parameters and FLOPs of the model, as metrics; empty if no sample can be read.
    """

    folder: Path
    config: dict[str, Any]
    parts: Parts
    trainer: Trainer
    clock: TrainingClock
    tested: TestedSamples
    start: Path | None
    cost: dict[str, float]


def train(cfg: DictConfig) -> float | None:
    """Train as the config says, and test the best checkpoint.

    Returns:
        The best value of the validation metric that chose the checkpoint (for sweepers), if there was a validation set.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        try:
            config, interpolated = resolved(cfg), interpolations(cfg)
            if config["pretrained"] is not None:
                config = with_published_model(config)
                check_parts(config)
                interpolated = {key: value for key, value in interpolated.items() if not key.startswith("model.")}
            seed_everything(config["seed"], workers=True, verbose=False)  # also of the processes that Lightning starts
            prepare_torch(config)
            if is_distributed_in_sweep(config):
                run_in_subprocess(run_dir)
                return best_score(read_metrics(run_dir / METRICS))
            lock(run_dir)
            run = build_run(config, interpolated, run_dir)
        except Exception as error:
            if is_user_error(error):
                discard_if_unused(run_dir)
            raise
        with loggers_closed(run.trainer):
            fit(run)
            metrics = training_metrics(run)
            best = restore_best(run)
            metrics |= test(run.trainer, run.parts, config) | unreadable_samples(run.parts)
            log_results(run, metrics, best)
        write_results(run, metrics, best)
        return best_score(metrics)
    finally:
        release(run_dir)


@rank_zero_only
def discard_if_unused(run_dir: Path) -> None:
    """Remove a run directory with only Hydra's files; not one of a sweep, or of a resumed run."""
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN or (run_dir.parent / "multirun.yaml").exists()
    if in_sweep or "ckpt_path=last" in hydra.overrides.task:
        return
    if {path.name for path in run_dir.iterdir()} <= {".hydra", f"{hydra.job.name}.log", LOCK}:
        shutil.rmtree(run_dir, ignore_errors=True)  # another process may be writing to it


def is_distributed_in_sweep(config: dict[str, Any]) -> bool:
    """Whether a sweep's run would start further processes, which would each run the whole sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN and starts_processes(
        construct(config, "trainer", logger=False, enable_checkpointing=False)
    )


def build_run(config: dict[str, Any], interpolated: dict[str, str], run_dir: Path) -> Run:
    """Build the run, check it against its data, and print its model.

    Args:
        config: a checked config.
        interpolated: key -> interpolation, for the values of the config that are computed from others.
        run_dir: the run directory.
    """
    parts, start, step = build_or_resume(config, run_dir)
    parts.description["interpolations"] = interpolated
    clock, tested = TrainingClock(), TestedSamples()
    trainer = build_trainer(config, parts, run_dir, step, clock, tested)
    example = parts.data.probe(NUM_EXAMPLES)
    with config_errors(config, "model"):  # which may not be able to process the data
        cost = cost_metrics(parts.model, parts.task, example) if len(example) else {}
    check_monitors(trainer, config, parts, example)
    check_lengths(trainer, parts.data, config, resumed=start is not None)
    if trainer.is_global_zero and cost:
        show(model_table(parts.model, cost, example, parts.freezing.parameters(parts.model)))
    for name, vocabulary in (("tokenizer", "vocabulary"), ("input_tokenizer", "input_vocabulary")):
        if trainer.is_global_zero and parts.description[vocabulary] is not None:
            (run_dir / f"{name}.json").write_text(parts.description[vocabulary])
    return Run(run_dir, config, parts, trainer, clock, tested, start, cost)


def build_trainer(config: dict[str, Any], parts: Parts, run_dir: Path, step: int, *measures: Callback) -> Trainer:
    """Build the trainer with its callbacks and loggers.

    Args:
        config: a checked config.
        parts: of the run.
        run_dir: the run directory.
        step: optimizer steps done.
        measures: callbacks that measure the run.

    Raises:
        ConfigError: training has no end, or callbacks and strategy do not fit together.
    """
    folder, curves = run_dir / "checkpoints", Curves(run_dir / "metrics.csv")
    settings, hydra = config["trainer"], HydraConfig.get()
    for path in (*folder.glob("*.part"), folder / NEXT):  # of a process that was killed
        path.unlink(missing_ok=True)
    best = BestCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor=f"val/{parts.task.monitor}" if parts.data.has_validation(settings.get("limit_val_batches")) else None,
        mode=parts.task.monitor_mode,
        # After the training epoch, when all callbacks have seen the validation; unless there are several in an epoch.
        save_on_train_epoch_end=settings.get("val_check_interval") is None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    last = construct(config, "checkpointing", folder=str(folder), curves=curves)
    chosen = [construct(config, f"callbacks.{name}") for name in callback_nodes(config)]
    if is_sharded(settings) and any(isinstance(callback, WeightAveraging) for callback in chosen):
        raise ConfigError("callbacks: the average of sharded weights is not supported; leave out ema, or trainer=ddp")
    logs = [StepSeeds(seed=config["seed"]), StepLog(), RunLog(), construct(config, "attention")]
    experiment = hydra.runtime.choices.get("experiment")
    name, group = display_name(run_dir, experiment, hydra.overrides.task), group_name(run_dir, experiment)
    logger: RunLogger = construct(config, "logger")
    logger.begin(RunInfo(folder=run_dir, config=config, name=name, group=group, step=step))
    trainer: Trainer = construct(
        config,
        "trainer",
        callbacks=[best, last, *measures, *logs, *chosen, WriteTrainingMetrics(run_dir / METRICS)],
        logger=[curves, logger],
        plugins=[DurableIO(), *slurm_plugins()],
        default_root_dir=run_dir,
    )
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
        value = "null" if trainer.max_epochs is None else -1
        raise ConfigError(
            f"trainer.max_epochs={value}: the schedule needs an end; give trainer.max_epochs or max_steps"
        )
    return trainer


@contextmanager
def loggers_closed(trainer: Trainer) -> Iterator[None]:
    """Close the loggers at the end, with exit code 0 or, after an error, 1."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in run_loggers(trainer):
            logger.end(exit_code)


def fit(run: Run) -> None:
    """Train; Ctrl-C and signals leave `last.ckpt` and print the command that resumes the run.

    Raises:
        ConfigError: memory or loader settings do not suit the machine, or the loss diverged.
        SystemExit: a signal ended the run.
    """
    trainer = run.trainer
    logging.captureWarnings(True)  # so that train.log has them, too
    try:
        trainer.fit(run.parts.module, datamodule=LightningData(run.parts.data), ckpt_path=run.start, weights_only=True)
    except (EndedBySignal, DivergedError):
        log_how_to_continue(trainer)
        wait_for_first()
        raise
    except SystemExit as end:
        if not trainer.interrupted:
            raise
        log_how_to_continue(trainer)
        raise SystemExit(TERMINATED if isinstance(end, SIGTERMException) else INTERRUPTED) from end
    except PositionError as error:
        raise ConfigError(f"ckpt_path={run.start}: {error}; {WEIGHTS_ALONE.format(run.start)}") from error
    except (RuntimeError, MemoryError) as error:
        if advice := advice_on(error, run.config, trainer):
            raise ConfigError(advice) from error
        raise
    finally:
        logging.captureWarnings(False)
    for stopping in trainer.early_stopping_callbacks:
        if stopping.stopping_reason_message and trainer.is_global_zero:
            log.info("training stopped early: %s", stopping.stopping_reason_message)
    if run.start is not None and not run.clock.has_trained:
        ends = f"trainer.max_epochs={trainer.max_epochs}, trainer.max_steps={trainer.max_steps}"
        log.warning("%s: nothing is trained: the run has reached its end (%s, or early stopping)", run.start, ends)


@rank_zero_only
def log_how_to_continue(trainer: Trainer) -> None:
    """Print the argument that resumes the run, if there is a checkpoint to resume from."""
    run_dir = Path(trainer.default_root_dir)
    if (run_dir / "checkpoints" / LAST).exists():
        message = f"ended at step {trainer.global_step}; continue with run={run_dir}"
        console.print(message, soft_wrap=True)
        note(message, logging.WARNING)


def advice_on(error: BaseException, config: Mapping[str, Any], trainer: Trainer) -> str | None:
    """Which settings to change after an error of memory or of loader workers; None for any other error."""
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
            f"one of loader.num_workers={loader['num_workers']} worker processes died ({one_line(error)}), usually of "
            "too little memory: use fewer, or num_workers=0, which shows where"
        )
    if "DataLoader timed out" in text:
        return (
            f"the worker processes gave no batch within loader.timeout_seconds={loader['timeout_seconds']}; use more "
            "loader.num_workers, a longer time, or num_workers=0, which shows where it hangs"
        )
    return None


def training_metrics(run: Run) -> dict[str, float]:
    """Metrics of training and validation, speed, cost, and the best score; written, as the test may be killed."""
    path, checkpoints = run.folder / METRICS, run.trainer.checkpoint_callback
    assert isinstance(checkpoints, ModelCheckpoint)
    metrics = final_metrics(run.trainer) | run.clock.metrics | run.cost
    if run.start is not None:
        before = with_validation(run.trainer, read_metrics(path))
        # The file of a run that has ended has more metrics than its last checkpoint, which was saved before.
        metrics = before | metrics if run.clock.has_trained else metrics | before
    if checkpoints.best_model_score is not None:
        metrics[f"best/{checkpoints.monitor}"] = float(checkpoints.best_model_score)
    if run.trainer.is_global_zero:
        write_metrics(metrics, path)
    return metrics


def restore_best(run: Run) -> Path | None:
    """Load the weights of the best checkpoint: of this run, or the one it started from if nothing was trained."""
    best = best_checkpoint(run.trainer, run.folder / "checkpoints") or (None if run.clock.has_trained else run.start)
    if best is not None:
        load_weights(run.parts.module, read_checkpoint(best), best)
    return best


def log_results(run: Run, metrics: Mapping[str, float], best: Path | None) -> None:
    """Log tables, the summary and the checkpoints of a tested run."""
    log_classes(run.trainer, run.parts)
    run.tested.send(run.trainer)
    of_best = {name: value for name, value in metrics.items() if name.startswith(("best/", "test/"))}
    last = run.folder / "checkpoints" / LAST
    for logger in run_loggers(run.trainer):
        logger.attempt(logger.summary, aggregate_metrics(metrics))
        logger.attempt(logger.checkpoints, best, of_best, last, run.trainer.global_step)


@rank_zero_only
def write_results(run: Run, metrics: Mapping[str, float], best: Path | None) -> None:
    """Write metrics and tables to the run directory, and print the metrics and where everything is."""
    write_metrics(metrics, run.folder / METRICS)
    name = "checkpoint" if best == run.start else "last checkpoint, not validated"
    files = {
        "best checkpoint" if best_score(metrics) is not None else name: best,
        "metrics": run.folder / METRICS,
        **run.tested.write(run.folder),
        "attention": run.folder / "attention" / PAGE,
    }
    show_results(metrics, run.parts, {name: path for name, path in files.items() if path and path.exists()})
    note("done")
