"""Text files: plain, CSV and TSV tables, JSON. Errors name the file and the line, or the place in the JSON."""

import csv
import gzip
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from itertools import chain
from math import inf, nan
from pathlib import Path
from typing import Any, TypeVar

from perceiver.data.files import CONTROL_CHARACTERS, File, UnreadableError, is_file_name, refuse_special

MAX_LENGTH = 2**17
"""Largest number of characters in a text, as in a cell of Python's csv."""
INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The line that Excel writes above a header to declare the separator."""
TSV_CELL = re.compile(r'(?: *"(?P<quoted>(?:[^"]|"")*)" *|(?P<plain>[^\t"]*))(?P<end>\t|$)')
"""A cell and the tab after it: quoted, or without any quote."""
TYPE_NAMES: dict[type, str] = {str: "a string", list: "a list", int: "an integer"}
Value = TypeVar("Value")

log = logging.getLogger(__name__)


def text_problem(text: str) -> str | None:
    """Return why a string is not a valid text, or None if it is one."""
    if len(text) > MAX_LENGTH:
        return f"{len(text):,} characters are more than the maximum of {MAX_LENGTH:,}"
    found = CONTROL_CHARACTERS.search(text)
    return None if found is None else f"character {found.start() + 1}, U+{ord(found.group()):04X}, is not valid in text"


def normalize_spaces(text: str) -> str:
    """Return a text on one line, with single spaces between words."""
    return " ".join(text.split())


def read_text(path: File) -> str:
    r"""Read a UTF-8 file, with or without a byte order mark, or one compressed as `.gz`; all line ends become \n.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is not UTF-8 text, or damaged.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw:
            content = gzip.decompress(raw.read()) if str(path).endswith(".gz") else raw.read()
        return TextIOWrapper(BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table at `path`: column -> cell; `line` counts from 1."""

    path: Path
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def error(self, message: str) -> UnreadableError:
        """Return an error about this row."""
        return UnreadableError(f"{self.path}: line {self.line}: {message}")

    def integer(self, column: str) -> int:
        cell = self.cells[column]
        if not INTEGER.fullmatch(cell):  # `int` reads 1_0 as ten
            raise self.error(f"{column}={cell[:40]!r} is not an integer")
        return int(cell)

    def seconds(self, column: str) -> float:
        """Return a nonnegative time."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = nan
        if not 0.0 <= value < inf:
            raise self.error(f"{column}={self.cells[column][:40]!r} is not a number of seconds")
        return value

    def file_name(self, column: str) -> str:
        """Return a path that stays below the folder it is joined to (`is_file_name`)."""
        name = self.cells[column]
        if not is_file_name(name):
            raise self.error(f"{column}={name[:80]!r} is not a valid file name")
        return name


def read_csv(
    path: Path, columns: Sequence[str], *, header: bool = True, comment: str | None = None, unique: str | None = None
) -> Iterator[Row]:
    """Yield the rows of a CSV table; empty lines are skipped.

    Cells may be quoted, also after blanks, with quotes doubled. With a header, the separator may also be a semicolon or
    a tab, as the first line (`sep=;`, written by Excel) or the header shows; empty columns at the end are dropped, and
    column names match regardless of case.

    Args:
        path: the file, read as in `read_text`.
        columns: the required columns.
        header: whether the first row names the columns, in any order and among others. Otherwise `columns` are all
            columns in order.
        comment: prefix of lines that are skipped.
        unique: column whose cells must be distinct.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is not such a table; names the line or the column.
    """
    lines = ("\n" if comment and line.startswith(comment) else line for line in StringIO(read_text(path)))
    start, separator = _csv_start(lines, columns) if header else ([], ",")
    reader = csv.reader(chain(start, lines), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        rows = (cells for cells in reader if cells)
        names = _match_case([name.strip() for name in next(rows, [])], columns) if header else columns
        if missing := [name for name in columns if name not in names]:
            raise UnreadableError(f"{path}: no column {missing[0]!r}; columns: {', '.join(names) or 'none'}")
        if twice := [name for name, count in Counter(names).items() if count > 1 and name in columns]:
            raise UnreadableError(f"{path}: duplicate column {twice[0]!r}")
        seen: set[str] = set()
        for cells in rows:
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(names):
                count = f"{len(cells)} cell{'s'[: len(cells) != 1]}"
                raise UnreadableError(f"{path}: line {reader.line_num}: {count} for {len(names)} columns")
            row = Row(path, reader.line_num, dict(zip(names, cells, strict=True)))
            _check_unique(row, unique, seen)
            yield row
    except csv.Error as error:
        raise UnreadableError(f"{path}: line {reader.line_num}: {error}") from error


def _check_unique(row: Row, column: str | None, seen: set[str]) -> None:
    """Add the cell of a column to those seen; raise if it is among them."""
    if column is not None:
        if row[column] in seen:
            raise row.error(f"{column}={row[column]!r} appears twice")
        seen.add(row[column])


def _csv_start(lines: Iterator[str], columns: Sequence[str]) -> tuple[list[str], str]:
    """Return the lines of a table up to its header, and the separator of its cells."""
    start: list[str] = []
    for line in lines:
        if declared := SEPARATOR.fullmatch(line):
            return [*start, "\n"], declared[1]
        start.append(line)
        if line.strip():
            break
    header = start[-1] if start else ""
    wanted = {name.lower() for name in columns}
    for separator in ",;\t":
        if wanted <= {cell.strip(' "\r\n').lower() for cell in header.split(separator)}:
            return start, separator
    return start, ","


def _match_case(names: list[str], columns: Sequence[str]) -> list[str]:
    """Return the names of a header spelled as in `columns`, without empty ones at the end; ambiguous ones stay."""
    while names and not names[-1]:
        names.pop()
    lower = Counter(name.lower() for name in names)
    wanted = {name.lower(): name for name in columns if name not in names and lower[name.lower()] == 1}
    return [wanted.get(name.lower(), name) for name in names]


def read_tsv(path: Path, columns: Sequence[str], *, unique: str | None = None) -> Iterator[Row]:
    """Yield the lines of a text as rows with tabs between cells; empty lines and further cells are skipped.

    Quotes are part of the text unless the whole file shows that a program has put them around cells (`_unquoted`).

    Raises:
        UnreadableError: a line has too few cells, or the cells of the column `unique` are not distinct; names the line.
    """
    lines = {number: line for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()}
    unquoted = _unquoted(list(lines.values()), len(columns))
    if unquoted is not None:
        log.info("%s: cells are quoted; the quotes are removed", path)
    seen: set[str] = set()
    for place, (number, line) in enumerate(lines.items()):
        cells = line.split("\t") if unquoted is None else unquoted[place]
        row = Row(path, number, dict(zip(columns, (cell.strip() for cell in cells), strict=False)))
        if len(row.cells) < len(columns):
            raise row.error(f"no tab between {' and '.join(columns)}")
        _check_unique(row, unique, seen)
        yield row


def _unquoted(lines: Sequence[str], num_columns: int) -> list[list[str]] | None:
    """Return the cells of lines without the quotes that a program has put around them; None if quotes are text.

    A program has written them if every quote is around a whole cell or doubled within one, all lines then have equally
    many cells, and a rule for quoting is recognizable: all cells are quoted, or those with quotes or commas are.
    """
    if not any('"' in line for line in lines):
        return None
    rows: list[list[str]] = []
    are_all_quoted, has_doubled, has_quoted_comma, has_plain_comma = True, False, False, False
    for line in lines:
        cells, place = [], 0
        while True:
            cell = TSV_CELL.match(line, place)
            if cell is None:
                return None
            quoted, plain = cell["quoted"], cell["plain"]
            if quoted is None:
                are_all_quoted &= not plain.strip()
                has_plain_comma |= "," in plain
            else:
                has_doubled |= '""' in quoted
                has_quoted_comma |= "," in quoted
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            place = cell.end()
            if not cell["end"]:
                break
        rows.append(cells)
    is_regular = len({len(cells) for cells in rows}) == 1 and len(rows[0]) >= num_columns
    has_rule = are_all_quoted or has_doubled or (has_quoted_comma and not has_plain_comma)
    return rows if is_regular and has_rule else None


@dataclass(frozen=True, slots=True)
class JsonEntry:
    """A value in the JSON file at `path`; `place` is where, such as images[3]."""

    path: File
    place: str
    values: Any

    @classmethod
    def read(cls, path: File) -> "JsonEntry":
        """Read a file; raises as `read_text`, and UnreadableError if it is not JSON."""
        try:
            return cls(path, "", json.loads(read_text(path), object_pairs_hook=_unique_keys))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{path}: not JSON: {error}") from error

    def error(self, message: str) -> UnreadableError:
        """Return an error about this entry."""
        return UnreadableError(": ".join(filter(None, [str(self.path), self.place, message])))

    def value(self, key: str, kind: type[Value]) -> Value:
        """Return the value of a key, which must be of a type."""
        if not isinstance(self.values, dict) or key not in self.values:
            raise self.error(f"no key {key!r}")
        value = self.values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{key}={str(value)[:40]!r} is not {TYPE_NAMES[kind]}")
        return value

    def id(self, key: str) -> str:
        """Return an integer or a string that identifies an object of a list."""
        value = self.value(key, object)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.error(f"{key}={str(value)[:40]!r} is neither an integer nor a string")
        return str(value)

    def entries(self, key: str) -> Iterator["JsonEntry"]:
        """Yield the entries of a list."""
        for number, values in enumerate(self.value(key, list)):
            yield JsonEntry(self.path, f"{self.place}.{key}[{number}]".lstrip("."), values)

    def file_name(self, key: str) -> str:
        """Return a path that stays below the folder it is joined to (`is_file_name`)."""
        name = self.value(key, str)
        if not is_file_name(name):
            raise self.error(f"{key}={name[:80]!r} is not a valid file name")
        return name


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; Python's own reader silently drops the first of two equal keys."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:40]!r} appears twice in an object")
    return values
