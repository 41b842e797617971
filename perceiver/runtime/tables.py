"""Tables of the tested samples: files in the run directory, and tables with images for the loggers."""

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

from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.maps.capture import Explainable, input_pictures
from perceiver.processes import all_gather
from perceiver.runtime.loggers.base import run_loggers
from perceiver.tasks.base import TableRow
from perceiver.types import Batch

log = logging.getLogger(__name__)

Pictures = dict[str, Image.Image]
"""Modality -> image of a sample's input."""

PREDICTIONS, CONFUSION_MATRIX = "predictions", "confusion_matrix"
MAX_ROWS_SHOWN = 200
"""Rows of the table for the loggers, with images; the file has all rows."""
MAX_CLASSES_SHOWN = 100
"""Classes of the confusion matrix for the loggers: a W&B table has at most 10,000 rows, one for each cell."""


class SampleTable:
    """One of the task's tables, filled during a test.

    Attributes:
        rows: of all tested samples, by rank; after `gather`.
        pictures: of the first `MAX_ROWS_SHOWN` rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[Pictures] = []
        self._own: list[TableRow] = []
        self._drawn: dict[int, Pictures] = {}

    def add(self, rows: Sequence[TableRow], draw: Callable[[Sequence[int]], list[Pictures]]) -> None:
        """Add the rows of a batch; `draw` returns the images of the samples with some indices."""
        start = len(self._own)
        self._own += rows
        candidates = [*self._drawn, *range(start, len(self._own))]
        # The first rows of this process; some of them may not be among the first of all processes.
        first = nsmallest(MAX_ROWS_SHOWN, candidates, key=lambda index: (self._own[index].rank, index))
        new = [index for index in first if index >= start]
        pictures = draw([index - start for index in new]) if new else []
        drawn = self._drawn | dict(zip(new, pictures, strict=True))
        self._drawn = {index: drawn[index] for index in first}

    def gather(self) -> None:
        """Collect the rows of all processes."""
        parts = all_gather((self._own, self._drawn))
        order = sorted(
            (row.rank, index, process) for process, (rows, _) in enumerate(parts) for index, row in enumerate(rows)
        )
        self.rows = [parts[process][0][index].values for _, index, process in order]
        self.pictures = [parts[process][1].get(index, {}) for _, index, process in order[:MAX_ROWS_SHOWN]]
        self._own, self._drawn = [], {}

    def shown(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and cells of the first rows, with images."""
        rows = self.rows[: len(self.pictures)]
        columns, modalities = _columns(rows), _columns(self.pictures)
        cells = [
            [*map(pictures.get, modalities), *map(row.get, columns)]
            for row, pictures in zip(rows, self.pictures, strict=True)
        ]
        return [*modalities, *columns], cells

    def confusions(self, class_names: Sequence[str]) -> Counter[tuple[str, str]] | None:
        """Number of samples by (true class, predicted class); None unless each sample has exactly one class."""
        if not {row.get("true") for row in self.rows} <= {*class_names}:
            return None
        return Counter((row["true"], row["predicted"]) for row in self.rows)


class TestedSamples(Callback):
    """Collects the rows of the task's tables during a test, on all processes; with images if a logger records them.

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
        def draw(indices: Sequence[int]) -> list[Pictures]:
            if self._draws:
                try:
                    assert isinstance(pl_module.model, Explainable)
                    return draw_inputs(pl_module.model, batch, indices)
                except Exception as error:  # an image must not end a run
                    log.warning("no images of the tested samples (%s: %s)", type(error).__name__, error)
                    self._draws = False
            return [{} for _ in indices]

        for name, rows in outputs.items():
            self.tables.setdefault(name, SampleTable()).add(rows, draw)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in sorted({name for names in all_gather(list(self.tables)) for name in names}):
            self.tables.setdefault(name, SampleTable()).gather()

    def write(self, folder: Path) -> dict[str, Path]:
        """Write all rows, and the confusion matrix if each sample has one class: name -> file."""
        files, names = {}, self._class_names
        for name, table in self._filled_tables():
            columns = _columns(table.rows)
            files[name] = folder / f"{name}.csv"
            _write(files[name], columns, ([row.get(column, "") for column in columns] for row in table.rows))
            if (counts := table.confusions(names)) is not None:
                matrix = _matrix_name(name)
                files[matrix.replace("_", " ")] = folder / f"{matrix}.csv"
                rows = ([true, *(counts[true, predicted] for predicted in names)] for true in names)
                _write(folder / f"{matrix}.csv", ["true", *names], rows)
        return files

    def send(self, trainer: Trainer) -> None:
        """Log the first rows with images, and confusion matrices of at most `MAX_CLASSES_SHOWN` classes."""
        names, step = self._class_names, trainer.global_step
        for name, table in self._filled_tables():
            columns, cells = table.shown()
            counts = table.confusions(names)
            for logger in run_loggers(trainer):
                logger.attempt(logger.table, f"test/{name}", columns, cells, step)
                if counts is not None and len(names) <= MAX_CLASSES_SHOWN:
                    logger.attempt(logger.confusion_matrix, f"test/{_matrix_name(name)}", names, counts, step)

    def _filled_tables(self) -> list[tuple[str, SampleTable]]:
        return [(name, table) for name, table in self.tables.items() if table.rows]


def _matrix_name(table: str) -> str:
    """The name of the confusion matrix of a table of predictions."""
    return table.removesuffix(PREDICTIONS) + CONFUSION_MATRIX


@torch.no_grad()
def draw_inputs(model: Explainable, batch: Batch, indices: Sequence[int]) -> list[Pictures]:
    """Draw the inputs of some samples of a batch, without missing modalities; of several windows, the first."""
    counts = [len(names) for names in batch.windows] or [1] * len(batch)
    rows = [sum(counts[:index]) for index in indices]
    inputs = {name: raw[rows] for name, raw in batch.inputs.items()}
    drawn: list[Pictures] = [{} for _ in indices]
    for name, picture in input_pictures(model, inputs).items():
        frame, mask = Frame(picture.grid, picture), batch.masks.get(name)
        for number, row in enumerate(rows):
            image = frame.input_of(number)
            if image is not None and (mask is None or bool(mask[row].any())):
                drawn[number][name] = Image.fromarray(image.pixels)
    return drawn


def _columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all rows, in order of first occurrence."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    part = path.with_suffix(".part")  # a run that is killed while writing keeps the previous file
    with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    part.replace(path)
