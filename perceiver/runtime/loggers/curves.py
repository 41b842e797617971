"""Every logged scalar in `metrics.csv`, the durable copy, which a run keeps whatever its logger is."""

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

ROWS_IN_MEMORY = 100
"""So many rows of `metrics.csv` are written together."""


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
