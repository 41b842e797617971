"""Weights & Biases as a mirror of the run directory, without which training goes on."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from wandb.sdk.lib.runid import generate_id

from perceiver.runtime.loggers.base import RunInfo, RunLogger
from perceiver.tasks.base import monitor_mode

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 600
"""How long the end of a run waits for uploads; `wandb sync` sends what is left."""
MOST_PAGE_BYTES = 20 * 2**20
"""W&B advises to log no more than 25 MB in a call."""
MIN_PICTURE_SIDE = 64
"""In pixels, of the longer side of a picture in a table: the 8 of a digit are too few to see."""


class WandB(RunLogger):
    """A W&B run that never asks, and goes on with the run directory's.

    The summary of a validation metric is its best value, and `summary` adds what the run came to. What is shown of one
    event, or at the end, is one row.

    Args:
        project, entity, name, group, job_type, tags, notes: as in `wandb.init`; the run's own name and group where
            these are None.
        log_model: checkpoints to keep as versions of the artifact `model-<run id>`: `best`, the best when the run ends;
            `all`, each best when it is found, and the last; false, none.
        mode: `auto` is what `WANDB_MODE` says where it is set, otherwise online where the user is logged in and offline
            elsewhere.
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
    ) -> None:
        if log_model not in (False, "best", "all"):
            raise ValueError(f"log_model={log_model} must be false, best or all")
        self.experiment: Any = None
        self.mode: Any = (os.environ.get("WANDB_MODE") or mode) if mode == "auto" else mode
        self._name, self._group = name, group
        self._settings: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "job_type": job_type,
            "tags": tags,
            "notes": notes,
        }
        self._log_model = log_model
        self._id: str | None = None
        self._known_step = -1
        self._best: str | None = None
        self._summarized: set[str] = set()
        self._waiting: dict[int, dict[str, Any]] = {}

    def start(self, run: RunInfo) -> None:
        folder = run.folder.absolute()
        # Staged media and logs would otherwise go to the home folder, and be lost with it.
        os.environ["WANDB_DATA_DIR"] = f"{folder}/wandb"
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder))
        self.mode = possible_mode(self.mode)
        id_file = folder / "wandb" / "run_id"
        self._id = self._id or (_id_in(id_file) if run.step else None) or _id_in_sweep() or generate_id()
        self.experiment = wandb.init(
            **self._settings,
            name=self._name or run.name,
            group=self._group or run.group,
            mode=self.mode,
            dir=str(folder),
            id=self._id,
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS, silent=True
            ),
        )
        self.experiment.define_metric(STEP)
        self.experiment.define_metric("*", step_metric=STEP, step_sync=True)
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(f"{self.experiment.id}\n")
        if self.experiment.resumed:  # it has what was logged after the checkpoint from which the run is resumed
            self._known_step = self.experiment.summary.get(STEP, -1)

    def recovers(self, error: Exception) -> bool:
        if self.experiment is not None or self.mode != "online":
            return False
        log.warning("W&B cannot be reached (%r); this run is recorded offline", error)
        self.mode = "offline"
        with suppress(Exception):
            wandb.teardown()  # its process holds the id of the run that failed
        return True

    @property
    def is_recording(self) -> bool:
        return super().is_recording and self.mode != "disabled"

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._log({**values, **self._waiting.pop(step, {})}, step)

    def images(self, images: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], step: int) -> None:
        for key, pictures in images.items():
            # Only 8-bit RGB arrives as it is: wandb casts float arrays to integers, which makes them black.
            padded = zip(of_one_size(pictures), captions, strict=True)
            self._wait(step, key, [wandb.Image(picture, caption=caption) for picture, caption in padded])

    def html(self, key: str, page: Path, step: int) -> None:
        if (size := page.stat().st_size) <= MOST_PAGE_BYTES:
            self._wait(step, key, wandb.Html(page.read_text(encoding="utf-8"), inject=False))
        else:
            problem = "%s is too large for W&B (%d MB); fewer attention.num_samples make it smaller"
            log.warning(problem, page, size >> 20)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        cells = [
            [wandb.Image(_enlarged(cell)) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows
        ]
        self._wait(step, key, wandb.Table(columns=list(columns), data=cells))

    def confusion_matrix(
        self, key: str, class_names: Sequence[str], counts: Mapping[tuple[str, str], int], step: int
    ) -> None:
        cells = [[true, predicted, counts[true, predicted]] for true in class_names for predicted in class_names]
        columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
        chart = wandb.plot_table(
            "wandb/confusion_matrix/v1",  # what `wandb.plot.confusion_matrix` makes of labels
            wandb.Table(columns=columns, data=cells),
            {str(column): column for column in columns},
            {"title": "test samples"},
        )
        self._wait(step, key, chart)

    def summary(self, values: Mapping[str, float]) -> None:
        """Into the columns of W&B's table of runs; validation's best are there already."""
        self.flush()
        self.experiment.summary.update({name: value for name, value in values.items() if not name.startswith("val/")})

    def checkpoints(self, best: Path | None, metrics: Mapping[str, float], last: Path, step: int) -> None:
        if self._log_model and best is not None:
            self._keep(best, "best", metrics)
        if self._log_model == "all" and last.is_file():
            self._keep(last, "last", {"step": step})

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Keep a new best checkpoint, where each is kept."""
        score, path = checkpoint_callback.best_model_score, Path(checkpoint_callback.best_model_path)
        found = f"{score}"
        if self._log_model == "all" and score is not None and found != self._best and path.is_file():
            self._best = found
            about = {
                str(checkpoint_callback.monitor): float(score),
                "step": checkpoint_callback._last_global_step_saved,
            }
            self.attempt(self._keep, path, "best", about)

    def flush(self) -> None:
        for step in list(self._waiting):
            self._log(self._waiting.pop(step), step)

    def close(self, exit_code: int) -> None:
        """End the W&B run, so that the next one in this process is another, even where W&B itself has died."""
        try:
            self.experiment.finish(exit_code=exit_code)
        except Exception:
            with suppress(Exception):
                wandb.teardown()  # lets go of its dead process
            wandb.run = None
            raise

    def _wait(self, step: int, key: str, media: Any) -> None:
        """Leave media to the row of the metrics that follow."""
        self._waiting.setdefault(step, {})[key] = media

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        if step < self._known_step:
            return
        for name in sorted(row.keys() - self._summarized):
            if name.startswith("val/"):
                best = monitor_mode(name)
                self.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=best)
        self._summarized.update(row)
        self.experiment.log({**row, STEP: step})

    def _keep(self, path: Path, alias: str, about: Mapping[str, float]) -> None:
        """A checkpoint as a version of the run's artifact; one that is there already only gets its alias."""
        artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata=dict(about))
        artifact.add_file(str(path), name=path.name)
        self.experiment.log_artifact(artifact, aliases=[alias])


def of_one_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures with white to the right and below, as far as others are larger: W&B shows all in one frame."""
    width, height = (max((picture.size[side] for picture in pictures), default=0) for side in (0, 1))
    padded = [Image.new("RGB", (width, height), "white") for _ in pictures]
    for page, picture in zip(padded, pictures, strict=True):
        page.paste(picture)
    return padded


def _enlarged(picture: Image.Image) -> Image.Image:
    """A picture, each of whose pixels is a square of them where it is too small to be seen in a table."""
    times = max(1, -(-MIN_PICTURE_SIDE // max(picture.size)))
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


def _id_in(path: Path) -> str | None:
    """The id of a W&B run that a file holds, if it holds one."""
    with suppress(OSError, UnicodeDecodeError):
        found = re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", path.read_text().strip())
        return found and found[0]
    return None


def _id_in_sweep() -> str | None:
    """The id that an agent of W&B's sweeps has given the run it started."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def possible_mode(mode: str) -> str:
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
