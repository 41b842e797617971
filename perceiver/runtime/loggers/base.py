"""What a run shows elsewhere than in its directory: curves, pictures, tables and pages, and to whom.

A logger is a `RunLogger` in a file of its own, and a yaml in `conf/logger` that names it.
"""

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


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told of the run.

    Attributes:
        folder: the run directory, below which everything stays that a logger writes.
        config: the run's config as plain values.
        name: what sets the run apart from others, if anything does.
        group: the runs that it belongs to, if there are such.
        step: optimizer steps from which the run is resumed; 0 for one that begins. What was logged for steps from this
            one on will be logged again.
    """

    folder: Path
    config: Mapping[str, Any]
    name: str | None = None
    group: str | None = None
    step: int = 0


class RunLogger(Logger):
    """Shows a run, and never stops it.

    A subclass writes `start`, `metrics` and `close`, and of the other methods up to `flush` those for which it has a
    place. They are called in the first process alone, `start` with the first thing that is logged, and may raise
    anything: after `MAX_FAILURES` errors the logger is off. A constructor touches no file, asks nobody, and raises a
    ValueError or ImportError where the logger could not work.
    """

    failures: int = 0
    _run: RunInfo | None = None
    _is_started: bool = False

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Begin to show a run, or go on with one."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Scalars of an optimizer step, the first of which is 0."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End after a last `flush`; 0 for a run that came to its end."""

    def images(self, images: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], step: int) -> None:
        """One picture a sample under each key, and one caption a sample; before `metrics` of the same event."""

    def html(self, key: str, page: Path, step: int) -> None:
        """A page that needs nothing outside of its file; before `metrics` of the same event."""

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table, whose cells are numbers, texts, pictures, or None."""

    def confusion_matrix(
        self, key: str, class_names: Sequence[str], counts: Mapping[tuple[str, str], int], step: int
    ) -> None:
        """How many samples of a class were predicted to be of another, by (true class, predicted class)."""
        rows = [[true, *(counts[true, predicted] for predicted in class_names)] for true in class_names]
        self.table(key, ["true", *class_names], rows, step)

    def summary(self, values: Mapping[str, float]) -> None:
        """What the run came to."""

    def checkpoints(self, best: Path | None, metrics: Mapping[str, float], last: Path, step: int) -> None:
        """The checkpoints with which the run ends: the best one, its metrics, and the last one."""

    def flush(self) -> None:
        """Write what waits: a checkpoint will be saved, and a run that is resumed from it logs only what follows."""

    def recovers(self, error: Exception) -> bool:
        """Whether what has failed should be tried again, in another way that this method has chosen."""
        return False

    @property
    def is_recording(self) -> bool:
        """Whether what is logged arrives anywhere; where it does not, nothing is called but `start` and `close`."""
        return self.failures < MAX_FAILURES

    # What the training calls.

    def begin(self, run: RunInfo) -> None:
        """Learn which run it is."""
        self._run = run

    @rank_zero_only
    def attempt(self, show: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call one of the methods above; its errors are counted and warned of."""
        if self.failures >= MAX_FAILURES:
            return
        try:
            if not self._is_started:
                assert self._run is not None, "begin was not called"
                self.start(self._run)
                self._is_started = True
            if self.is_recording:
                show(*args, **kwargs)
        except Exception as error:  # other people's libraries raise anything, down to a broken pipe of their processes
            self.failures += 1
            if self.recovers(error):
                self.attempt(show, *args, **kwargs)
            elif self.failures >= MAX_FAILURES:
                problem = "%s failed %d times (%r) and is off now; the run directory has everything"
                log.warning(problem, type(self).__name__, self.failures, error)

    @rank_zero_only
    def end(self, exit_code: int) -> None:
        """Flush and close what was started."""
        if not self._is_started:
            return
        self.save()
        self._is_started = False
        try:
            self.close(exit_code)
        except Exception as error:
            if self.failures < MAX_FAILURES:
                problem = "%s could not end its run (%r); the run directory has everything"
                log.warning(problem, type(self).__name__, error)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Lightning's way to `metrics`."""
        assert step is not None
        self.attempt(self.metrics, metrics, step)

    def save(self) -> None:
        """Lightning's way to `flush`."""
        if self._is_started:
            self.attempt(self.flush)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """A logger has the config from `start`; there is nothing to add."""

    @property
    def name(self) -> str:
        """Nothing that Lightning would name a folder by."""
        return ""

    @property
    def version(self) -> str:
        """Nothing that a progress bar would show."""
        return ""


def run_loggers(trainer: Trainer) -> list[RunLogger]:
    """The loggers of a trainer that show more than scalars."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]


def log_now(trainer: Trainer, values: Mapping[str, Tensor | float]) -> None:
    """Log scalars of the last training step at once.

    `LightningModule.log` hands them on after the callbacks, of which one writes the checkpoint: a run that is continued
    from there would lack them.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, trainer.global_step - 1)


def log_explanation(
    loggers: Iterable[Logger],
    scores: Mapping[str, float],
    contact_sheets: Mapping[str, Sequence[Image.Image]],
    captions: Sequence[str],
    step: int,
) -> None:
    """Log everything of one event, at the step that the event's metrics have.

    Args:
        loggers: those of the trainer.
        scores: fixed key -> number.
        contact_sheets: fixed key -> one picture a sample.
        captions: one a sample.
        step: as in `RunLogger.metrics`.
    """
    for logger in loggers:
        if contact_sheets and isinstance(logger, RunLogger):
            logger.attempt(logger.images, contact_sheets, captions, step)
        if scores:
            logger.log_metrics(dict(scores), step)


def log_explorer(loggers: Iterable[Logger], scores: Mapping[str, float], page: Path, step: int) -> None:
    """Log the explorer and what was tested last."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.attempt(logger.html, "attention/explorer", page, step)
        if scores:
            logger.log_metrics(dict(scores), step)
