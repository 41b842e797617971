"""Tables in CSV files; whatever is wrong with one is told with the file, the line and the column."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from perceiver.data.base import UnreadableError


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
        try:
            return int(self.cells[column])
        except ValueError:
            raise self.error(f"{column}={self.cells[column]!r} is not a whole number") from None

    def file_name(self, column: str) -> str:
        """A path below some folder: neither that folder itself nor anything outside."""
        name = self.cells[column]
        if not is_file_name(name):
            raise self.error(f"{column}={name!r} is not a name of a file")
        return name


def is_file_name(name: str) -> bool:
    """Whether it names something below some folder: neither that folder itself nor anything outside."""
    path = PurePath(name)
    return not (path.anchor or ".." in path.parts or not path.parts or "\0" in name)


def read_rows(
    path: Path, columns: Sequence[str], *, header: bool, skip_initial_space: bool = False, comment: str | None = None
) -> Iterator[Row]:
    """The rows of a table in UTF-8, with or without a byte order mark; empty lines are left out.

    Args:
        path: the file.
        columns: those that are wanted.
        header: whether the first row names the columns, in any order and among others. Otherwise `columns` are all
            there are, in order.
        skip_initial_space: whether blanks may stand between a comma and a quote.
        comment: what lines begin with that are none of the table.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no such table; names the line or the column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = ("\n" if comment and line.startswith(comment) else line for line in file)
            reader = csv.reader(lines, strict=True, skipinitialspace=skip_initial_space)
            try:
                rows = (cells for cells in reader if cells)
                names = [name.strip() for name in next(rows, [])] if header else columns
                if missing := [name for name in columns if name not in names]:
                    there = ", ".join(names) or "none"
                    raise UnreadableError(f"{path}: there is no column {missing[0]!r}; there are: {there}")
                for cells in rows:
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
