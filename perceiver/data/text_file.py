"""Files of text: as a whole, as lines with tabs in them, as JSON; what is wrong is told with the file and the place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from perceiver.data.base import Source, UnreadableError, refuse_special
from perceiver.data.tables import Row, is_file_name

KINDS: dict[type, str] = {str: "a text", list: "a list", int: "a whole number"}
Value = TypeVar("Value")


def read_text(path: Source) -> str:
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

    path: Source
    place: str
    values: Any

    @classmethod
    def read(cls, path: Source) -> "Entry":
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
