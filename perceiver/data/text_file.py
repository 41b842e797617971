"""Files of text: as a whole, as lines with tabs in them, as JSON; what is wrong is told with the file and the place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from perceiver.data.base import UnreadableError
from perceiver.data.tables import Row, is_file_name

KINDS: dict[type, str] = {str: "a text", list: "a list"}
Value = TypeVar("Value")


def read_text(path: Path) -> str:
    """A file in UTF-8, with or without a byte order mark, whatever its lines end with.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path}: not text in UTF-8") from error
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error


def read_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The lines of a text as rows, with tabs between cells; empty lines and further cells are left out.

    Raises:
        UnreadableError: a line has too few cells; names it.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = Row(path, number, dict(zip(columns, (cell.strip() for cell in line.split("\t")), strict=False)))
            if len(row.cells) < len(columns):
                raise row.error(f"no tab between {' and '.join(columns)}")
            yield row


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in the JSON file at `path`, at `place` in it."""

    path: Path
    place: str
    values: Any

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """What a file holds; errors as in `read_text`."""
        try:
            return cls(path, "", json.loads(read_text(path)))
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
        if not isinstance(value, kind):
            raise self.error(f"{key}={str(value)[:40]!r} is not {KINDS[kind]}")
        return value

    def entries(self, key: str) -> Iterator["Entry"]:
        """The objects in a list."""
        for number, values in enumerate(self.value(key, list)):
            yield Entry(self.path, f"{self.place}.{key}[{number}]".lstrip("."), values)

    def file_name(self, key: str) -> str:
        """See `Row.file_name`."""
        name = self.value(key, str)
        if not is_file_name(name):
            raise self.error(f"{key}={name!r} is not a name of a file")
        return name
