"""`metrics.csv`: all logged scalars, written by every run whatever its logger is."""

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from perceiver.runtime.loggers.base import UnnamedLogger

log = logging.getLogger(__name__)

BUFFER_SIZE = 100
"""Rows that are written together."""


class Curves(UnnamedLogger):
    """A CSV file with one row for each call of `log_metrics`.

    A resumed run keeps the rows before its checkpoint; Lightning's `CSVLogger` would delete them.

    Attributes:
        rows: number of rows, written or buffered.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        self._buffer: list[dict[str, Any]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {**{name: float(value) for name, value in metrics.items()}, "step": step}
        if any(name.startswith("test/") for name in row):
            row.pop("epoch", None)  # Lightning's, which is 0 where this process has not trained
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) >= BUFFER_SIZE:
            self.save()

    @rank_zero_only
    def truncate(self, rows: int, *, keep_end: bool = False) -> None:
        """Continue after a number of rows of the file, and forget those that follow.

        Args:
            rows: to keep.
            keep_end: also keep the following rows up to the first one of the test: they were logged after the last
                checkpoint was saved and before it became `last.ckpt`. The test is done again.
        """
        found = self._read()
        tested = (index for index, row in enumerate(found) if any(row[name] for name in row if "test/" in name))
        end = max(rows, next(tested, len(found))) if keep_end else rows
        self._columns, self._buffer = [], found[:end]
        self.rows = len(self._buffer)

    @rank_zero_only
    def save(self) -> None:
        """Write the buffered rows; on a full disk they stay buffered."""
        new = {name for row in self._buffer for name in row}.difference(self._columns)
        try:
            if new:
                rows = [*(self._read() if self._columns else []), *self._buffer]
                columns = sorted({*self._columns, *new})
                part = self.path.with_suffix(".part")
                self._write(part, "w", columns, rows)
                part.replace(self.path)
                self._columns = columns
            elif self._buffer:
                size = self.path.stat().st_size
                try:
                    self._write(self.path, "a", self._columns, self._buffer)
                except OSError:
                    os.truncate(self.path, size)  # rows that were written would be written again
                    raise
            self._buffer = []
        except OSError as error:
            log.warning("%s could not be written (%s); its newest rows are kept in memory", self.path, error.strerror)

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
