"""Tables of what a run says of each tested sample: files in the run directory, shown by loggers with pictures."""

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from perceiver.inspection.capture import Explainable, pictures_of
from perceiver.inspection.figures import Frame
from perceiver.processes import all_gather
from perceiver.runtime.loggers.base import run_loggers
from perceiver.tasks.base import TableRow
from perceiver.types import Batch

log = logging.getLogger(__name__)

Pictures = dict[str, Image.Image]
"""Modality -> what there is to see of a sample."""

PREDICTIONS, CONFUSION_MATRIX = "predictions", "confusion_matrix"
MAX_ROWS_SHOWN = 200
"""Rows, with their pictures, of the table that loggers are sent; the file has all."""
MAX_CLASSES_SHOWN = 100
"""Of a confusion matrix: a W&B table takes 10,000 rows, which are the cells of so many classes."""


class SampleTable:
    """One of the task's tables, filled during a test.

    Attributes:
        rows: the values of all tested samples, the first to be shown first; after `gather`.
        pictures: those of the first `MAX_ROWS_SHOWN` rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[Pictures] = []
        self._own: list[TableRow] = []
        self._drawn: dict[int, Pictures] = {}

    def add(self, rows: Sequence[TableRow], draw: Callable[[Sequence[int]], list[Pictures]]) -> None:
        """Take the rows of a batch; `draw` makes pictures of some of its samples, by their numbers."""
        before = len(self._own)
        self._own += rows
        wanted = [*self._drawn, *range(before, len(self._own))]  # of this process; others may have some before them
        places = nsmallest(MAX_ROWS_SHOWN, wanted, key=lambda place: (self._own[place].rank, place))
        new = [place for place in places if place >= before]
        pictures = draw([place - before for place in new]) if new else []
        known = self._drawn | dict(zip(new, pictures, strict=True))
        self._drawn = {place: known[place] for place in places}

    def gather(self) -> None:
        """Have the rows of all processes."""
        parts = all_gather((self._own, self._drawn))
        order = sorted(
            (row.rank, place, process) for process, (rows, _) in enumerate(parts) for place, row in enumerate(rows)
        )
        self.rows = [parts[process][0][place].values for _, place, process in order]
        self.pictures = [parts[process][1].get(place, {}) for _, place, process in order[:MAX_ROWS_SHOWN]]
        self._own, self._drawn = [], {}

    def shown(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and cells of the first rows, with their pictures."""
        rows = self.rows[: len(self.pictures)]
        columns, modalities = _columns(rows), _columns(self.pictures)
        cells = [
            [*map(pictures.get, modalities), *map(row.get, columns)]
            for row, pictures in zip(rows, self.pictures, strict=True)
        ]
        return [*modalities, *columns], cells

    def confusions(self, class_names: Sequence[str]) -> Counter[tuple[str, str]] | None:
        """(true class, predicted class) -> number of samples; None where a sample has no class, or several."""
        if not {row.get("true") for row in self.rows} <= {*class_names}:
            return None
        return Counter((row["true"], row["predicted"]) for row in self.rows)


class TestedSamples(Callback):
    """Collects the rows of the task's tables from a test, and pictures of the inputs if a logger records.

    After the test every process has the rows of all.

    Attributes:
        tables: by name.
    """

    def __init__(self) -> None:
        self.tables: dict[str, SampleTable] = {}
        self._class_names: Sequence[str] = []
        self._draws = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        description: Mapping[str, Any] = pl_module.description  # type: ignore[assignment]
        self.tables, self._class_names = {}, description["class_names"]
        self._draws = any(logger.is_recording for logger in run_loggers(trainer))

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, list[TableRow]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        def draw(numbers: Sequence[int]) -> list[Pictures]:
            if not self._draws:
                return [{} for _ in numbers]
            try:
                assert isinstance(pl_module.model, Explainable)
                return _drawn(pl_module.model, batch, numbers)
            except Exception as error:  # a picture is not worth the results of a run
                log.warning("no pictures of the tested samples (%s: %s)", type(error).__name__, error)
                self._draws = False
                return [{} for _ in numbers]

        for name, rows in outputs.items():
            self.tables.setdefault(name, SampleTable()).add(rows, draw)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in sorted({name for names in all_gather(list(self.tables)) for name in names}):
            self.tables.setdefault(name, SampleTable()).gather()

    def write(self, folder: Path) -> dict[str, Path]:
        """Write all rows, and the confusion matrix where each sample has one class: name -> file."""
        written, names = {}, self._class_names
        for name, table in self._filled():
            columns = _columns(table.rows)
            written[name] = folder / f"{name}.csv"
            _write(written[name], columns, ([row.get(column, "") for column in columns] for row in table.rows))
            if (counts := table.confusions(names)) is not None:
                matrix = _matrix_of(name)
                written[matrix.replace("_", " ")] = folder / f"{matrix}.csv"
                rows = ([true, *(counts[true, predicted] for predicted in names)] for true in names)
                _write(folder / f"{matrix}.csv", ["true", *names], rows)
        return written

    def send(self, trainer: Trainer) -> None:
        """Show the first rows with pictures, and the confusion matrix of not too many classes."""
        names, step = self._class_names, trainer.global_step
        for name, table in self._filled():
            columns, cells = table.shown()
            counts = table.confusions(names)
            for logger in run_loggers(trainer):
                logger.attempt(logger.table, f"test/{name}", columns, cells, step)
                if counts is not None and len(names) <= MAX_CLASSES_SHOWN:
                    logger.attempt(logger.confusion_matrix, f"test/{_matrix_of(name)}", names, counts, step)

    def _filled(self) -> list[tuple[str, SampleTable]]:
        return [(name, table) for name, table in self.tables.items() if table.rows]


def _matrix_of(table: str) -> str:
    """The name of the confusion matrix that belongs to a table of predictions."""
    return table.removesuffix(PREDICTIONS) + CONFUSION_MATRIX


@torch.no_grad()
def _drawn(model: Explainable, batch: Batch, numbers: Sequence[int]) -> list[Pictures]:
    """What there is to see of some samples of a batch; of one with several windows, the first."""
    counts = [len(names) for names in batch.windows] or [1] * len(batch)
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
