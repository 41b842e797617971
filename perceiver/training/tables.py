"""Tables of what a run says of each tested sample: files in the run directory, shown by loggers with pictures."""

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from perceiver.inspection.capture import pictures_of
from perceiver.inspection.frames import Frame
from perceiver.model import Perceiver
from perceiver.processes import gathered
from perceiver.tasks.base import TableRow, Task
from perceiver.training.loggers.base import run_loggers
from perceiver.types import Batch

log = logging.getLogger(__name__)

Pictures = dict[str, Image.Image]
"""Modality -> what there is to see of a sample."""

CONFUSION_MATRIX = "confusion_matrix"
MAX_ROWS_SHOWN = 200
"""Rows, with their pictures, of the table that loggers are sent; the file has all."""
MAX_CLASSES_SHOWN = 100
"""Of a confusion matrix: a W&B table takes 10,000 rows, which are the cells of so many classes."""


class TestedSamples(Callback):
    """Collects the rows of the task's table from a test, and pictures of the inputs if a logger records.

    After the test every process has the rows of all.

    Attributes:
        name: of the table.
        rows: the values of all tested samples, the first to be shown first.
        pictures: those of the first `MAX_ROWS_SHOWN` rows.
    """

    def __init__(self) -> None:
        self.name = ""
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[Pictures] = []
        self._class_names: Sequence[str] = []
        self._own: list[TableRow] = []
        self._drawn: dict[int, Pictures] = {}
        self._draws = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.task, Task)
        description: Mapping[str, Any] = pl_module.description  # type: ignore[assignment]
        self.name, self._class_names = pl_module.task.table, description["class_names"]
        self._own, self._drawn = [], {}
        self._draws = any(logger.is_recording for logger in run_loggers(trainer))

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[TableRow],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        before = len(self._own)
        self._own += outputs
        if not self._draws or not outputs:
            return
        places = self._first([*self._drawn, *range(before, len(self._own))])
        new = [place for place in places if place >= before]
        try:
            assert isinstance(pl_module.model, Perceiver)
            pictures = _drawn(pl_module.model, batch, [place - before for place in new]) if new else []
        except Exception as error:  # a picture is not worth the results of a run
            log.warning("no pictures of the tested samples (%s: %s)", type(error).__name__, error)
            self._draws, self._drawn = False, {}
            return
        known = self._drawn | dict(zip(new, pictures, strict=True))
        self._drawn = {place: known[place] for place in places}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = gathered((self._own, self._drawn))
        order = sorted(
            (row.rank, place, process) for process, (rows, _) in enumerate(parts) for place, row in enumerate(rows)
        )
        self.rows = [parts[process][0][place].values for _, place, process in order]
        self.pictures = [parts[process][1].get(place, {}) for _, place, process in order[:MAX_ROWS_SHOWN]]
        self._own, self._drawn = [], {}

    def write(self, folder: Path) -> dict[str, Path]:
        """Write all rows, and the confusion matrix where each sample has one class: name -> file."""
        if not self.rows:
            return {}
        columns, names = _columns(self.rows), self._class_names
        written = {self.name: folder / f"{self.name}.csv"}
        _write(written[self.name], columns, ([row.get(column, "") for column in columns] for row in self.rows))
        if (counts := self._confusions()) is not None:
            written["confusion matrix"] = folder / f"{CONFUSION_MATRIX}.csv"
            matrix = ([true, *(counts[true, predicted] for predicted in names)] for true in names)
            _write(written["confusion matrix"], ["true", *names], matrix)
        return written

    def send(self, trainer: Trainer) -> None:
        """Show the first rows with pictures, and the confusion matrix of not too many classes."""
        if not self.rows:
            return
        shown = self.rows[: len(self.pictures)]
        columns, modalities = _columns(shown), _columns(self.pictures)
        cells = [
            [*map(pictures.get, modalities), *map(row.get, columns)]
            for row, pictures in zip(shown, self.pictures, strict=True)
        ]
        counts, names, step = self._confusions(), self._class_names, trainer.global_step
        for logger in run_loggers(trainer):
            logger.attempt(logger.table, f"test/{self.name}", [*modalities, *columns], cells, step)
            if counts is not None and len(names) <= MAX_CLASSES_SHOWN:
                logger.attempt(logger.confusion_matrix, f"test/{CONFUSION_MATRIX}", names, counts, step)

    def _confusions(self) -> Counter[tuple[str, str]] | None:
        """(true class, predicted class) -> number of samples; None where a sample has no class, or several."""
        if not {row.get("true") for row in self.rows} <= {*self._class_names}:
            return None
        return Counter((row["true"], row["predicted"]) for row in self.rows)

    def _first(self, places: Sequence[int]) -> list[int]:
        """Those of this process's rows which may be among the first of all."""
        return nsmallest(MAX_ROWS_SHOWN, places, key=lambda place: (self._own[place].rank, place))


@torch.no_grad()
def _drawn(model: Perceiver, batch: Batch, numbers: Sequence[int]) -> list[Pictures]:
    """What there is to see of some samples of a batch; of one with several views, the first."""
    counts = [len(names) for names in batch.views] or [1] * len(batch)
    rows = [sum(counts[:number]) for number in numbers]
    inputs = {name: raw[rows] for name, raw in batch.inputs.items()}
    frames = {name: Frame(picture.grid, picture) for name, picture in pictures_of(model, inputs).items()}
    drawn: list[Pictures] = [{} for _ in numbers]
    for name, frame in frames.items():
        for number, row in enumerate(rows):
            shown = frame.input_of(number)
            if shown is not None and _is_there(batch.masks.get(name), row):
                drawn[number][name] = Image.fromarray(shown.pixels)
    return drawn


def _is_there(mask: Tensor | None, row: int) -> bool:
    """Whether anything of a modality is real for a row of the batch."""
    return mask is None or bool(mask[row].any())


def _columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all rows, in the order in which they are first met."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    part = path.with_suffix(".part")  # a run that is killed while it writes loses nothing that was there
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    part.replace(path)
