"""Where a run's scalars go: to `metrics.csv`, and to Weights & Biases as a mirror, without which training goes on."""

import csv
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from wandb.sdk.lib.runid import generate_id

from perceiver.tasks.base import LOWER_IS_BETTER

log = logging.getLogger(__name__)

MAX_FAILURES = 3
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 600
"""How long the end of a run waits for uploads; `wandb sync` sends what is left."""
ROWS_IN_MEMORY = 100
"""So many rows of `metrics.csv` are written together."""


def log_now(trainer: Trainer, values: Mapping[str, Tensor | float]) -> None:
    """Log scalars of the last training step at once.

    `LightningModule.log` hands them on after the callbacks, of which one writes the checkpoint: a run that is continued
    from there would lack them.
    """
    numbers = {name: float(value) for name, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, trainer.global_step - 1)


def table_of(rows: Sequence[Mapping[str, Any]]) -> wandb.Table:
    """Rows with the same columns as W&B shows them."""
    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


class Curves(Logger):
    """Every logged scalar in a CSV file, a row a call. A run that is continued goes on where its checkpoint was.

    Lightning's own logger deletes what an earlier part of the run has written.

    Attributes:
        rows: how many there are, be they written already or not.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {**{name: float(value) for name, value in metrics.items()}, "step": step}
        if any(name.startswith("test/") for name in row):
            row.pop("epoch", None)  # Lightning's count, which is another where this process did not train
        self._waiting.append(row)
        self.rows += 1
        if len(self._waiting) >= ROWS_IN_MEMORY:
            self.save()

    @rank_zero_only
    def keep(self, rows: int, *, and_of_the_end: bool = False) -> None:
        """Go on after so many rows of the file; those that follow are forgotten, but for those of the end of training.

        These are what was measured after the last checkpoint was saved and before it took its place; then comes the
        test, which is done again.
        """
        found = self._read()
        of_test = (place for place, row in enumerate(found) if any(row[name] for name in row if "test/" in name))
        end = max(rows, next(of_test, len(found))) if and_of_the_end else rows
        self._columns, self._waiting = [], found[:end]
        self.rows = len(self._waiting)

    @rank_zero_only
    def save(self) -> None:
        """Write what waits. On a full disk it goes on waiting."""
        new = {name for row in self._waiting for name in row}.difference(self._columns)
        try:
            if new:
                rows = [*(self._read() if self._columns else []), *self._waiting]
                columns = sorted({*self._columns, *new})
                part = self.path.with_suffix(".part")
                self._write(part, "w", columns, rows)
                part.replace(self.path)
                self._columns = columns
            elif self._waiting:
                size = self.path.stat().st_size
                try:
                    self._write(self.path, "a", self._columns, self._waiting)
                except OSError:
                    os.truncate(self.path, size)  # what did find room would come twice
                    raise
            self._waiting = []
        except OSError as error:
            log.warning("%s: %s; its newest rows wait for a better time", self.path, error.strerror)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, path: Path, mode: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
        with path.open(mode, newline="") as file:
            writer = csv.DictWriter(file, columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)

    def finalize(self, status: str) -> None:
        self.save()


class WandbMirror(WandbLogger):
    """A W&B logger that never asks, and never stops a run.

    The summary of a validation metric is its best value, and `summarize` adds what the run came to.

    Args:
        project, entity, name, group, job_type, tags, notes: as in `wandb.init`.
        log_model: checkpoints to keep as versions of the artifact `model-<run id>`: `best`, the best when the run ends;
            `all`, each best when it is found, and the last; false, none.
        mode: `auto` is what `WANDB_MODE` says where it is set, otherwise online where the user is logged in and offline
            elsewhere.
        run_dir: everything W&B writes stays below it, in `wandb/`.
        continued: whether the run goes on, and with it the W&B run whose id lies there.
        run_config: the run's config, shown by W&B.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str],
        notes: str | None = None,
        log_model: Literal[False, "best", "all"] = False,
        mode: Literal["auto", "online", "offline", "disabled"],
        run_dir: str,
        continued: bool,
        run_config: Mapping[str, Any],
    ) -> None:
        if log_model not in (False, "best", "all"):
            raise ValueError(f"log_model={log_model} must be false, best or all")
        folder = str(Path(run_dir).absolute())
        self._id_file = Path(folder) / "wandb" / "run_id"
        # Staged media and logs would otherwise go to the home folder, and be lost with it.
        os.environ["WANDB_DATA_DIR"] = f"{folder}/wandb"
        os.environ.setdefault("WANDB_CACHE_DIR", folder)
        super().__init__(
            project=project,
            entity=entity,
            name=name,
            group=group,
            job_type=job_type,
            tags=tags,
            notes=notes,
            mode=_possible_mode(mode),
            save_dir=folder,
            id=(_id_in(self._id_file) if continued else None) or _id_in_sweep() or generate_id(),
            config=dict(run_config),
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS, silent=True
            ),
        )
        del self._wandb_init["anonymous"]  # Lightning's default; W&B warns that it has no effect
        self.keeps = log_model
        self.failures = 0
        self._begins = True
        self._best: str | None = None
        self._summarized: set[str] = set()
        self._known_step = -1

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log scalars, or all scalars and media of one event, in one row."""
        self._attempt(lambda: self._log(dict(metrics), step))

    @rank_zero_only
    def log_made(self, make: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables and charts, which are made only if they arrive anywhere."""
        if self.is_recording:
            self._attempt(lambda: self._log(dict(make()), None))

    def _log(self, metrics: dict[str, Any], step: int | None) -> None:
        run = self.experiment
        if self._begins:
            self._begins = False
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            self._id_file.write_text(f"{run.id}\n")
            if run.resumed:  # it has what was logged behind the checkpoint from which the run goes on
                self._known_step = run.summary.get("trainer/global_step", -1)
        if step is None or step >= self._known_step:
            for name in sorted(metrics.keys() - self._summarized):
                if name.startswith("val/"):
                    best = "min" if name.rpartition("/")[2] in LOWER_IS_BETTER else "max"
                    run.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary=best)
            self._summarized.update(metrics)
            super().log_metrics(metrics, step)

    @property
    def version(self) -> str:
        """Nothing that a progress bar would show; the run's id is in `wandb/run_id`."""
        return ""

    @property
    def is_recording(self) -> bool:
        """Whether what is logged arrives anywhere."""
        return self._wandb_init["mode"] != "disabled" and self.failures < MAX_FAILURES

    @rank_zero_only
    def summarize(self, values: Mapping[str, float]) -> None:
        """What a run came to, into the columns of W&B's table of runs; validation's best are there already."""
        chosen = {name: value for name, value in values.items() if not name.startswith("val/")}
        self._attempt(lambda: self.experiment.summary.update(chosen))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Keep a new best checkpoint, where each is kept."""
        score, path = checkpoint_callback.best_model_score, Path(checkpoint_callback.best_model_path)
        found = f"{score}"
        if self.keeps == "all" and score is not None and found != self._best and path.is_file():
            self._best = found
            about = {
                str(checkpoint_callback.monitor): float(score),
                "step": checkpoint_callback._last_global_step_saved,
            }
            self.keep(path, "best", about)

    @rank_zero_only
    def keep_final(self, best: Path | None, about_best: Mapping[str, float], last: Path, step: int) -> None:
        """Keep the checkpoints with which a run ends."""
        if self.keeps and best is not None:
            self.keep(best, "best", about_best)
        if self.keeps == "all" and last.is_file():
            self.keep(last, "last", {"step": step})

    def keep(self, path: Path, alias: str, about: Mapping[str, float]) -> None:
        """A checkpoint as a version of the run's artifact; one that is there already only gets its alias."""
        if not self.is_recording:
            return

        def upload() -> None:
            run = self.experiment
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(about))
            artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact, aliases=[alias])

        self._attempt(upload)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is logged when the run starts; there is nothing to add."""

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """End the W&B run, so that the next one in this process is another, even where W&B itself has died."""
        if self._experiment is None:
            return
        try:
            self._experiment.finish(exit_code=exit_code)
        except Exception as error:
            if self.failures < MAX_FAILURES:
                log.warning("W&B could not end its run (%r); the run directory has everything", error)
            with suppress(Exception):
                wandb.teardown()  # lets go of its dead process
            wandb.run = None

    def _attempt(self, call: Callable[[], None]) -> None:
        if self.failures >= MAX_FAILURES:
            return
        try:
            call()
        except Exception as error:  # W&B raises anything, down to a broken pipe of its own process
            self.failures += 1
            if self._experiment is None and self._wandb_init["mode"] == "online":
                log.warning("W&B cannot be reached (%r); this run is recorded offline", error)
                self._wandb_init["mode"] = "offline"
                with suppress(Exception):
                    wandb.teardown()  # its process holds the id of the run that failed
                self._attempt(call)
            elif self.failures >= MAX_FAILURES:
                log.warning(
                    "W&B failed %d times (%r) and is off now; the run directory has everything", self.failures, error
                )


def _id_in(path: Path) -> str | None:
    """The id of a W&B run that a file holds, if it holds one."""
    with suppress(OSError, UnicodeDecodeError):
        found = re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", path.read_text().strip())
        return found and found[0]
    return None


def _id_in_sweep() -> str | None:
    """The id that an agent of W&B's sweeps has given the run it started."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def _possible_mode(mode: str) -> str:
    """`online` only where it will work, without ever asking anyone."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    if mode not in ("auto", "online"):
        return mode
    try:
        if wandb.login(prompt=False):
            return "online"
        problem = "nobody is logged in to W&B" if mode == "online" else None
    except Exception as error:  # the key is wrong, or nobody answers
        problem = f"W&B does not let us in ({error!r})"
    if problem:
        log.warning("%s; this run is recorded offline", problem)
    return "offline"
