"""The interface of loggers, which show a run outside of its directory, and what training logs with it."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)
P = ParamSpec("P")

MAX_FAILURES = 3
"""Errors after which a logger is switched off."""


@dataclass(frozen=True)
class RunInfo:
    """A description of the run for its logger.

    Attributes:
        folder: the run directory, below which a logger writes all its files.
        config: of the run, as plain values.
        name: distinguishes the run from others.
        group: the runs that it belongs to.
        step: optimizer steps done before a resumed run, which will log the steps from this one on again; or 0.
    """

    folder: Path
    config: Mapping[str, Any]
    name: str | None = None
    group: str | None = None
    step: int = 0


class UnnamedLogger(Logger):
    """A logger without hyperparameters, name and version, since the run directory has the config."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""


class RunLogger(UnnamedLogger):
    """Shows a run, without the ability to stop it.

    A subclass implements `start`, `metrics`, `close`, and those of the methods up to `flush` that it supports. They are
    called in the first process only, `start` before the first logged item, and may raise any exception: after
    `MAX_FAILURES` of them the logger is switched off. A constructor has no effects, and raises a ValueError or
    ImportError if the logger cannot work.
    """

    failures: int = 0
    _run: RunInfo | None = None
    _is_started: bool = False

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Start or resume the run."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars of an optimizer step, counted from 0."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End the run after a last `flush`; the exit code is 0 for a run that has finished."""

    def images(self, images: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], step: int) -> None:
        """Log one image of each sample under each key, and a caption of each sample; before `metrics` of the event."""

    def html(self, key: str, page: Path, step: int) -> None:
        """Log a self-contained HTML page; before `metrics` of the event."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table, whose cells are numbers, texts, images or None."""

    def confusion_matrix(
        self, key: str, class_names: Sequence[str], counts: Mapping[tuple[str, str], int], step: int
    ) -> None:
        """Log the number of samples by (true class, predicted class)."""
        rows = [[true, *(counts[true, predicted] for predicted in class_names)] for true in class_names]
        self.table(key, ["true", *class_names], rows, step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Log the final metrics."""

    def checkpoints(self, best: Path | None, metrics: Mapping[str, float], last: Path, step: int) -> None:
        """Log the final checkpoints: the best one with its metrics, and the last one."""

    def flush(self) -> None:
        """Write all buffered items before a checkpoint is saved, after which a resumed run does not log them again."""

    def recovers(self, error: Exception) -> bool:
        """Whether the call that raised an error is to be repeated, after a change of this logger's settings."""
        return False

    @property
    def is_recording(self) -> bool:
        """Whether logged items are kept; otherwise only `start` and `close` are called."""
        return self.failures < MAX_FAILURES

    # Called by the training loop.

    def begin(self, run: RunInfo) -> None:
        """Set the run to which the following calls belong."""
        self._run = run

    @rank_zero_only
    def attempt(self, method: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call one of the methods above; its errors are counted, and the last one is logged."""
        if self.failures >= MAX_FAILURES:
            return
        try:
            if not self._is_started:
                assert self._run is not None, "begin was not called"
                self.start(self._run)
                self._is_started = True
            if self.is_recording:
                method(*args, **kwargs)
        except Exception as error:  # of any library, and broken pipes of its processes
            self.failures += 1
            if self.recovers(error):
                self.attempt(method, *args, **kwargs)
            elif self.failures >= MAX_FAILURES:
                problem = "%s failed %d times (%r) and is switched off; the run directory has all results"
                log.warning(problem, type(self).__name__, self.failures, error)

    @rank_zero_only
    def end(self, exit_code: int) -> None:
        """Flush and close the logger if it was started."""
        if not self._is_started:
            return
        self.save()
        self._is_started = False
        try:
            self.close(exit_code)
        except Exception as error:
            if self.failures < MAX_FAILURES:
                problem = "%s could not end its run (%r); the run directory has all results"
                log.warning(problem, type(self).__name__, error)

    # Called by Lightning.

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Call `metrics`."""
        assert step is not None
        self.attempt(self.metrics, metrics, step)

    def save(self) -> None:
        """Call `flush`."""
        if self._is_started:
            self.attempt(self.flush)


def run_loggers(trainer: Trainer) -> list[RunLogger]:
    """The `RunLogger`s of a trainer, i.e. without `Curves`."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]


def log_now(trainer: Trainer, values: Mapping[str, Tensor | float]) -> None:
    """Log scalars of the last training step at once.

    `LightningModule.log` would pass them on after the checkpoint is written, so that a resumed run would lack them.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, trainer.global_step - 1)


def log_explanation(
    loggers: Iterable[Logger], scores: Mapping[str, float], step: int, show: Callable[[RunLogger], None] | None
) -> None:
    """Log the scores of an attention event, and before them its images or page.

    Args:
        loggers: of the trainer.
        scores: by metric.
        step: as in `RunLogger.metrics`.
        show: logs images or a page with a logger.
    """
    for logger in loggers:
        if show is not None and isinstance(logger, RunLogger):
            logger.attempt(show, logger)
        if scores:
            logger.log_metrics(dict(scores), step)
