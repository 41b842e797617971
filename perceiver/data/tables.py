"""Tables in CSV files; whatever is wrong with one is told with the file, the line and the column."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf, nan
from pathlib import Path

from perceiver.data.files import UnreadableError, refuse_special
from perceiver.data.text_checks import is_file_name

WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The line that Excel writes above a header, and looks for."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table at `path`: what stands in each column; `line` counts from 1."""

    path: Path
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def error(self, message: str) -> UnreadableError:
        """What is wrong with the row, to be raised."""
        return UnreadableError(f"{self.path}: line {self.line}: {message}")

    def integer(self, column: str) -> int:
        cell = self.cells[column]
        if not WHOLE_NUMBER.fullmatch(cell):  # `int` takes 1_0 for ten
            raise self.error(f"{column}={cell[:40]!r} is not a whole number")
        return int(cell)

    def seconds(self, column: str) -> float:
        """A time, from 0 on."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = nan
        if not 0.0 <= value < inf:
            raise self.error(f"{column}={self.cells[column][:40]!r} is not a number of seconds")
        return value

    def file_name(self, column: str) -> str:
        """A path below some folder: neither that folder itself nor anything outside."""
        name = self.cells[column]
        if not is_file_name(name):
            raise self.error(f"{column}={name[:80]!r} is not a name of a file")
        return name


def read_rows(path: Path, columns: Sequence[str], *, header: bool, comment: str | None = None) -> Iterator[Row]:
    """The rows of a table in UTF-8, with or without a byte order mark; empty lines are left out.

    Cells may be quoted, also after blanks, with quotes doubled. A table with a header may be separated by semicolons or
    tabs as well, by what its first line says (`sep=;`, as Excel has it) or the header shows; empty columns after the
    last are left out, and columns are found in small letters and capitals alike.

    Args:
        path: the file.
        columns: those that are wanted.
        header: whether the first row names the columns, in any order and among others. Otherwise `columns` are all
            there are, in order.
        comment: what lines begin with that are none of the table.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no such table; names the line or the column.
    """
    refuse_special(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = ("\n" if comment and line.startswith(comment) else line for line in file)
            start, separator = _start(lines, columns) if header else ([], ",")
            reader = csv.reader(chain(start, lines), delimiter=separator, strict=True, skipinitialspace=True)
            try:
                rows = (cells for cells in reader if cells)
                names = _named_alike([name.strip() for name in next(rows, [])], columns) if header else columns
                if missing := [name for name in columns if name not in names]:
                    there = ", ".join(names) or "none"
                    raise UnreadableError(f"{path}: there is no column {missing[0]!r}; there are: {there}")
                if twice := [name for name, count in Counter(names).items() if count > 1 and name in columns]:
                    raise UnreadableError(f"{path}: there are two columns {twice[0]!r}")
                for cells in rows:
                    while len(cells) > len(names) and not cells[-1].strip():
                        cells.pop()
                    if len(cells) != len(names):
                        count = f"{len(cells)} cell{'s'[: len(cells) != 1]}"
                        raise UnreadableError(f"{path}: line {reader.line_num}: {count} for {len(names)} columns")
                    yield Row(path, reader.line_num, dict(zip(names, cells, strict=True)))
            except csv.Error as error:
                raise UnreadableError(f"{path}: line {reader.line_num}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: not text in UTF-8") from error
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error


def _start(lines: Iterator[str], columns: Sequence[str]) -> tuple[list[str], str]:
    """The lines of a table up to its header, and what stands between its cells."""
    start: list[str] = []
    for line in lines:
        if stated := SEPARATOR.fullmatch(line):
            return [*start, "\n"], stated[1]
        start.append(line)
        if line.strip():
            break
    header = start[-1] if start else ""
    wanted = {name.lower() for name in columns}
    for separator in ",;\t":
        if wanted <= {cell.strip(' "\r\n').lower() for cell in header.split(separator)}:
            return start, separator
    return start, ","


def _named_alike(names: list[str], columns: Sequence[str]) -> list[str]:
    """The names in a header as they are wanted, where only small letters and capitals differ; no empty ones at the end.

    Where two would be the same then, both stay as they are.
    """
    while names and not names[-1]:
        names.pop()
    lower = Counter(name.lower() for name in names)
    wanted = {name.lower(): name for name in columns if name not in names and lower[name.lower()] == 1}
    return [wanted.get(name.lower(), name) for name in names]


class ClassTable:
    """The classes of a data set by label, and by what other tables call them.

    Args:
        path: the table.
        rows: what it holds; labels may come in any order.
        index, key, name: the columns of the label, of what other tables call the class, and of its name.
        num_classes: how many classes there must be.

    Raises:
        UnreadableError: a class is listed twice or without a name, or labels are not 0, 1, 2, …; names the line.
        ValueError: there are not `num_classes` classes.
    """

    def __init__(self, path: Path, rows: Iterable[Row], *, index: str, key: str, name: str, num_classes: int) -> None:
        self.path = path
        listed = list(rows)
        if len(listed) != num_classes:
            raise ValueError(f"num_classes={num_classes}, but {path} has {len(listed)} classes")
        names: dict[int, str] = {}
        self.labels: dict[str, int] = {}
        for row in listed:
            label = row.integer(index)
            if label in names or not 0 <= label < num_classes:
                raise row.error(f"{index}={label}: the classes must be numbered from 0 to {num_classes - 1}")
            for column, there in ((key, self.labels.keys()), (name, names.values())):
                if not row[column].strip():
                    raise row.error(f"{column} is empty")
                if row[column] in there:
                    raise row.error(f"{column}={row[column]!r} is there a second time")
            names[label] = row[name]
            self.labels[row[key]] = label
        self.names: Sequence[str] = [names[label] for label in range(num_classes)]

    def labels_in(self, row: Row, column: str) -> list[int]:
        """The classes in a cell, where commas separate them; none where it is empty.

        Raises:
            UnreadableError: one of them is unknown; names the line.
        """
        keys = [key.strip() for key in row[column].split(",")] if row[column].strip() else []
        if unknown := [key for key in keys if key not in self.labels]:
            raise row.error(f"{column}: {unknown[0]!r} is no class of {self.path}")
        return [self.labels[key] for key in keys]
