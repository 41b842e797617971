"""A copy of the run in Weights & Biases; its errors do not stop training."""

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

from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.watched.watch import WatchedAttention
from perceiver.runtime.loggers.base import RunInfo, RunLogger
from perceiver.tasks.base import monitor_mode

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 600
"""Time that the end of a run waits for uploads; `wandb sync` uploads the rest."""
MAX_PAGE_BYTES = 20 * 2**20
"""W&B recommends at most 25 MB in a call."""
NUM_LATENTS = 6
"""Latents, or queries, in a contact sheet of a watched model."""
MIN_IMAGE_SIDE = 64
"""Pixels of the longer side of an image in a table; smaller ones, such as digits of 8 pixels, are enlarged."""


class WandB(RunLogger):
    """A W&B run, which is resumed with the run directory and never prompts.

    The summary of a validation metric is its best value; `summary` adds the final metrics. All items of one event are
    logged as one row.

    Args:
        project, entity, name, group, job_type, tags, notes: as in `wandb.init`; the run's own name and group where
            these are None.
        log_model: checkpoints that become versions of the artifact `model-<run id>`: `best`, or true, the best one at
            the end of the run; `all`, each new best one, and the last; false, none.
        mode: `auto` is `WANDB_MODE` if it is set, otherwise online if the user is logged in, and offline if not.
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
        log_model: Literal[False, True, "best", "all"] = False,
        mode: Literal["auto", "online", "offline", "disabled"],
    ) -> None:
        if log_model not in (False, True, "best", "all"):
            raise ValueError(f"log_model={log_model} must be false, true, best or all")
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
        self._logged_step = -1
        self._best_score: str | None = None
        self._summarized: set[str] = set()
        self._buffer: dict[int, dict[str, Any]] = {}

    def start(self, run: RunInfo) -> None:
        folder = run.folder.absolute()
        # Staged media and logs would otherwise be written to the home folder.
        os.environ["WANDB_DATA_DIR"] = f"{folder}/wandb"
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder))
        self.mode = usable_mode(self.mode)
        id_file = folder / "wandb" / "run_id"
        self._id = self._id or (read_id(id_file) if run.step else None) or _sweep_agent_id() or generate_id()
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
        if self.experiment.resumed:  # with the rows that were logged after the checkpoint
            self._logged_step = self.experiment.summary.get(STEP, -1)

    def recovers(self, error: Exception) -> bool:
        if self.experiment is not None or self.mode != "online":
            return False
        log.warning("W&B cannot be reached (%r); this run is recorded offline", error)
        self.mode = "offline"
        with suppress(Exception):
            wandb.teardown()  # its process has the id of the failed run
        return True

    @property
    def is_recording(self) -> bool:
        return super().is_recording and self.mode != "disabled"

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._log({**values, **self._buffer.pop(step, {})}, step)

    def images(self, images: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], step: int) -> None:
        for key, pictures in images.items():
            # As 8-bit RGB: wandb casts float arrays to integers, which makes them black.
            padded = zip(pad_to_same_size(pictures), captions, strict=True)
            self._add(step, key, [wandb.Image(picture, caption=caption) for picture, caption in padded])

    def html(self, key: str, page: Path, step: int) -> None:
        if (size := page.stat().st_size) <= MAX_PAGE_BYTES:
            self._add(step, key, wandb.Html(page.read_text(encoding="utf-8"), inject=False))
        else:
            problem = "%s is too large for W&B (%d MB); fewer attention.num_samples would make it smaller"
            log.warning(problem, page, size >> 20)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        cells = [
            [wandb.Image(_enlarged(cell)) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows
        ]
        self._add(step, key, wandb.Table(columns=list(columns), data=cells))

    def confusion_matrix(
        self, key: str, class_names: Sequence[str], counts: Mapping[tuple[str, str], int], step: int
    ) -> None:
        cells = [[true, predicted, counts[true, predicted]] for true in class_names for predicted in class_names]
        columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
        chart = wandb.plot_table(
            "wandb/confusion_matrix/v1",  # as by `wandb.plot.confusion_matrix`, which takes labels
            wandb.Table(columns=columns, data=cells),
            {str(column): column for column in columns},
            {"title": f"{key.partition('/')[0]} samples"},
        )
        self._add(step, key, chart)

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the columns of W&B's table of runs; the best validation metrics are columns already."""
        self.flush()
        self.experiment.summary.update({name: value for name, value in values.items() if not name.startswith("val/")})

    def checkpoints(self, best: Path | None, metrics: Mapping[str, float], last: Path, step: int) -> None:
        if self._log_model and best is not None:
            self._upload(best, "best", metrics)
        if self._log_model == "all" and last.is_file():
            self._upload(last, "last", {"step": step})

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload a new best checkpoint with `log_model=all`."""
        score, path = checkpoint_callback.best_model_score, Path(checkpoint_callback.best_model_path)
        if self._log_model == "all" and score is not None and f"{score}" != self._best_score and path.is_file():
            self._best_score = f"{score}"
            step = checkpoint_callback._last_global_step_saved
            self.attempt(self._upload, path, "best", {str(checkpoint_callback.monitor): float(score), "step": step})

    def flush(self) -> None:
        for step in list(self._buffer):
            self._log(self._buffer.pop(step), step)

    def close(self, exit_code: int) -> None:
        """End the W&B run, so that the process can start another one, also after W&B's own process has died."""
        try:
            self.experiment.finish(exit_code=exit_code)
        except Exception:
            with suppress(Exception):
                wandb.teardown()  # forgets its dead process
            wandb.run = None
            raise

    def _add(self, step: int, key: str, media: Any) -> None:
        """Add media to the row of the metrics that follow."""
        self._buffer.setdefault(step, {})[key] = media

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        if step < self._logged_step:
            return
        for name in sorted(row.keys() - self._summarized):
            if name.startswith("val/"):
                self.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=monitor_mode(name))
        self._summarized.update(row)
        self.experiment.log({**row, STEP: step})

    def _upload(self, path: Path, alias: str, metadata: Mapping[str, float]) -> None:
        """Log a checkpoint as a version of the run's artifact; an unchanged one only gets the alias."""
        artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model", metadata=dict(metadata))
        artifact.add_file(str(path), name=path.name)
        self.experiment.log_artifact(artifact, aliases=[alias])


def log_attention(
    run: Any, attention: WatchedAttention, explanation: Explanation, *, step: int, folder: str | Path, epoch: int = 0
) -> Path:
    """Log the attention of a watched model in a W&B run of any training loop, and write it into a folder.

    Logged as one row, without W&B's own `step`: `trainer/global_step`, `attention/stat/<layer>/<name>`,
    `attention/{deletion,insertion}/<map>`, the contact sheets `attention/<input>/<layer>`, and the page
    `attention/explorer`.

    Args:
        run: the W&B run.
        attention: of the last call of the model.
        explanation: of it.
        step, epoch: of the training.
        folder: for the page, which is returned, and the exact maps.
    """
    evaluation = attention.evaluate(explanation)
    page = attention.write_page(folder, explanation, step=step, epoch=epoch, evaluation=evaluation)
    row: dict[str, Any] = {**explanation.statistics, **evaluation.scores}
    captions = [f"{id} · step {step}" for id in explanation.batch.ids]
    for name, sheets in attention.writer(explanation).contact_sheets(NUM_LATENTS).items():
        row[name] = [
            wandb.Image(sheet, caption=caption)
            for sheet, caption in zip(pad_to_same_size(sheets), captions, strict=True)
        ]
    row["explorer"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    run.log({f"attention/{name}": value for name, value in row.items()} | {STEP: step})
    return page


def pad_to_same_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pad images with white to the right and below to the size of the largest: W&B shows all in equal frames."""
    width, height = (max((picture.size[side] for picture in pictures), default=0) for side in (0, 1))
    padded = [Image.new("RGB", (width, height), "white") for _ in pictures]
    for page, picture in zip(padded, pictures, strict=True):
        page.paste(picture)
    return padded


def _enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge an image by a whole factor to at least `MIN_IMAGE_SIDE`."""
    factor = max(1, -(-MIN_IMAGE_SIDE // max(picture.size)))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def read_id(path: Path) -> str | None:
    """Read the id of a W&B run; None if the file has no valid one."""
    with suppress(OSError, UnicodeDecodeError):
        found = re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", path.read_text().strip())
        return found and found[0]
    return None


def _sweep_agent_id() -> str | None:
    """The id that an agent of a W&B sweep has assigned to this run, if any."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def usable_mode(mode: str) -> str:
    """Resolve `auto`, and replace `online` by `offline` if the user is not logged in; never prompts."""
    if mode not in ("auto", "online"):
        return mode
    try:
        if wandb.login(prompt=False):
            return "online"
        problem = "not logged in to W&B" if mode == "online" else None
    except Exception as error:  # an invalid key, or no connection
        problem = f"login to W&B failed ({error!r})"
    if problem:
        log.warning("%s; this run is recorded offline", problem)
    return "offline"
