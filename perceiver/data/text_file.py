"""Files of text: as a whole, as lines with tabs in them, as JSON; what is wrong is told with the file and the place."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from perceiver.data.files import File, UnreadableError, refuse_special
from perceiver.data.tables import Row
from perceiver.data.text_checks import is_file_name

CELL = re.compile(r'(?: *"(?P<quoted>(?:[^"]|"")*)" *|(?P<plain>[^\t"]*))(?P<end>\t|$)')
"""A cell and the tab after it, quoted or without any quote."""
KINDS: dict[type, str] = {str: "a text", list: "a list", int: "a whole number"}
Value = TypeVar("Value")

log = logging.getLogger(__name__)


def read_text(path: File) -> str:
    """A file in UTF-8, with or without a byte order mark, whatever its lines end with.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no text.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: not text in UTF-8") from error
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error


def read_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The lines of a text as rows, with tabs between cells; empty lines and further cells are left out.

    Quotes are part of the text, unless the whole file shows that a program has put them around cells (`_unquoted`).

    Raises:
        UnreadableError: a line has too few cells; names it.
    """
    lines = {number: line for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()}
    unquoted = _unquoted(list(lines.values()), len(columns))
    if unquoted is not None:
        log.info("%s: its cells are quoted; the quotes around them are no part of the texts", path)
    for place, (number, line) in enumerate(lines.items()):
        cells = line.split("\t") if unquoted is None else unquoted[place]
        row = Row(path, number, dict(zip(columns, (cell.strip() for cell in cells), strict=False)))
        if len(row.cells) < len(columns):
            raise row.error(f"no tab between {' and '.join(columns)}")
        yield row


def _unquoted(lines: Sequence[str], num_columns: int) -> list[list[str]] | None:
    """The cells of lines without the quotes that a program has put around them; None where these are of the texts.

    It was a program if no quote stands elsewhere than around a whole cell or doubled in such a one, all lines have as
    many cells then, and it can be seen when cells are quoted: always, or where there is a quote or a comma in them, of
    which then none stands in a cell without.
    """
    if not any('"' in line for line in lines):
        return None
    rows: list[list[str]] = []
    are_all_quoted, has_doubled, has_quoted_comma, has_plain_comma = True, False, False, False
    for line in lines:
        cells, place = [], 0
        while True:
            cell = CELL.match(line, place)
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
    shows_when = are_all_quoted or has_doubled or (has_quoted_comma and not has_plain_comma)
    return rows if is_regular and shows_when else None


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in the JSON file at `path`, at `place` in it."""

    path: File
    place: str
    values: Any

    @classmethod
    def read(cls, path: File) -> "Entry":
        """What a file holds; errors as in `read_text`."""
        try:
            return cls(path, "", json.loads(read_text(path), object_pairs_hook=_object))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"{path}: not JSON: {error}") from error

    def error(self, message: str) -> UnreadableError:
        """What is wrong with it, to be raised."""
        return UnreadableError(": ".join(filter(None, [str(self.path), self.place, message])))

    def value(self, key: str, kind: type[Value]) -> Value:
        """What stands under a key, which must be of a kind."""
        if not isinstance(self.values, dict) or key not in self.values:
            raise self.error(f"there is no {key!r}")
        value = self.values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{key}={str(value)[:40]!r} is not {KINDS[kind]}")
        return value

    def id(self, key: str) -> str:
        """A whole number or a text that stands under a key and tells the objects of a list apart."""
        value = self.value(key, object)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.error(f"{key}={str(value)[:40]!r} is neither a whole number nor a text")
        return str(value)

    def entries(self, key: str) -> Iterator["Entry"]:
        """The objects in a list."""
        for number, values in enumerate(self.value(key, list)):
            yield Entry(self.path, f"{self.place}.{key}[{number}]".lstrip("."), values)

    def file_name(self, key: str) -> str:
        """See `Row.file_name`."""
        name = self.value(key, str)
        if not is_file_name(name):
            raise self.error(f"{key}={name[:80]!r} is not a name of a file")
        return name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python's own reader forgets what stands under a key that comes again."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"the key {twice[:40]!r} is there a second time in one object")
    return values
