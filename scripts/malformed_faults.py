"""What can be wrong with a data set or a checkpoint, and be known to be, for `scripts/malformed_inputs.py`.

Faults that nobody can know of are none of these: bytes flipped inside of a JPEG's or a wav's samples, a label that is
another one of the classes, a text that was cut off after a word.
"""

import codecs
import csv
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from scripts.malformed_trees import RATE, Table, encoded, image_of, wave_of

Spoil = Callable[[Path, Random], None]
MILLION_WORDS = "word " * 1_000_000


class Payload:
    """Unpickled as pickles usually are, it runs a program that makes the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Call:
    """Unpickled as pickles usually are, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def half(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * random.uniform(0.3, 0.7))])


def replaced(content: bytes) -> Spoil:
    return lambda path, random: (path.write_bytes(content), None)[1]


def folder_instead(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link_instead(target: str) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


ANY_FILE: dict[str, Spoil] = {
    "cut off": half,
    "emptied": replaced(b""),
    "a folder instead": folder_instead,
    "a pipe instead": pipe_instead,
    "a link to nowhere": link_instead("nowhere"),
    "a link to /dev/zero": link_instead("/dev/zero"),
}


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(width: int, height: int, *before: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of one colour, of which only the beginning is there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return png((b"IHDR", header), *before, (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))


def floats(value: float) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        pixels = np.full((11, 13), 0.5, np.float32)
        pixels[random.randrange(11), random.randrange(13)] = value
        Image.fromarray(pixels).save(path, "TIFF")

    return spoil


def sound(value: float) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        wave = wave_of(1)
        wave[random.randrange(len(wave))] = value
        soundfile.write(path, wave, RATE, format="WAV", subtype="DOUBLE")

    return spoil


def written(wave: np.ndarray, kind: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return file.getvalue()


def flipped_flac(path: Path, random: Random) -> None:
    content = bytearray(written(wave_of(1), "FLAC"))
    content[random.randrange(len(content) // 2, len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def claiming_flac(path: Path, random: Random) -> None:
    content = bytearray(written(wave_of(1), "FLAC"))
    content[21:26] = (int.from_bytes(content[21:26], "big") | 2**36 - 1).to_bytes(5, "big")
    path.write_bytes(content)


IMAGE: dict[str, Spoil] = {
    **ANY_FILE,
    "a text": replaced(b"<html>404 not found</html>"),
    "a sound": replaced(encoded(1, "wav")),
    "PostScript": replaced(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"),
    "NaN": floats(float("nan")),
    "infinity": floats(float("inf")),
    "a value of -3": floats(-3.0),
    "a value of 70000": floats(70000.0),
    "101 million pixels": replaced(png_of(10_100, 10_001)),
    "3 billion pixels": replaced(png_of(60_000, 60_000)),
    "80 MB of text in it": replaced(png_of(9, 9, (b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000))))),
    "cut off as JPEG": lambda path, random: (image_of(1).save(path, "JPEG"), half(path, random))[1],
    "cut off as GIF": lambda path, random: (image_of(1).save(path, "GIF"), half(path, random))[1],
}
SOUND: dict[str, Spoil] = {
    **ANY_FILE,
    "a text": replaced(b"no sound at all\n" * 100),
    "an image": replaced(encoded(1, "png")),
    "NaN": sound(float("nan")),
    "infinity": sound(float("-inf")),
    "a value of 1e20": sound(1e20),
    "silence": replaced(written(np.zeros(RATE), "WAV")),
    "only a header": replaced(written(np.zeros(0), "WAV")),
    "a rate of 1 Hz": replaced(written(wave_of(1), "WAV", 1)),
    "a bit flipped in a FLAC": flipped_flac,
    "a FLAC of seven weeks": claiming_flac,
    "cut off as Ogg": lambda path, random: (path.write_bytes(written(wave_of(1), "OGG")), half(path, random))[1],
}
TEXT: dict[str, Spoil] = {
    **{name: spoil for name, spoil in ANY_FILE.items() if name != "cut off"},
    "an image": replaced(encoded(1, "png")),
    "NUL": replaced(b"a \0 dog"),
    "a million words": replaced(MILLION_WORDS.encode()),
}

WHOLE_FILE: dict[str, Spoil] = {
    **{name: spoil for name, spoil in ANY_FILE.items() if name != "cut off"},
    "an image": replaced(encoded(1, "png")),
    "UTF-16": lambda path, random: (path.write_bytes(path.read_bytes().decode().encode("utf-16")), None)[1],
    "a byte that is not UTF-8": lambda path, random: (path.write_bytes(path.read_bytes() + b"\xff\n"), None)[1],
}


def rows_of(table: Table) -> list[list[str]]:
    if table.kind == "lines":
        return [line.split("\t") for line in table.path.read_text().splitlines()]
    return list(csv.reader(io.StringIO(table.path.read_text())))


def write_rows(table: Table, rows: list[list[str]]) -> None:
    if table.kind == "lines":
        table.path.write_text("".join("\t".join(row) + "\n" for row in rows))
    else:
        with table.path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def in_a_row(change: Callable[[list[str], Table], None]) -> Callable[[Table, Random], None]:
    """Change one row of a table, whichever."""

    def spoil(table: Table, random: Random) -> None:
        rows = rows_of(table)
        first = 1 if table.header and table.kind == "csv" else 0
        places = [place for place in range(first, len(rows)) if not rows[place][0].startswith("#")]
        change(rows[random.choice(places)], table)
        write_rows(table, rows)

    return spoil


def cell(column: str, value: str) -> Callable[[Table, Random], None]:
    def change(row: list[str], table: Table) -> None:
        row[table.columns[column]] = value

    return in_a_row(change)


def again(table: Table, random: Random) -> None:
    rows = rows_of(table)
    write_rows(table, [*rows, rows[-1]])


def cut_in_a_row(table: Table, random: Random) -> None:
    rows = rows_of(table)
    write_rows(table, [*rows[:-1], rows[-1][:-1]])


def other_column(table: Table, random: Random) -> None:
    rows = rows_of(table)
    rows[0][table.columns["name"]] = "something else"
    write_rows(table, rows)


def column_twice(table: Table, random: Random) -> None:
    rows = rows_of(table)
    write_rows(table, [[*row, row[table.columns["name"]]] for row in rows])


def open_quote(table: Table, random: Random) -> None:
    table.path.write_text(table.path.read_text() + '"begins and')


NAMES = {"../../victim", "/etc/hostname", "a\0b", "\x1b[2J", "x" * 300, "."}
CAPTIONS = {"a \0 dog", "a \x1b[2J dog", "a \x92 dog", MILLION_WORDS}
TABLE: dict[str, tuple[Callable[[Table], bool], Callable[[Table, Random], None]]] = {
    **{f"name {name[:9]!r}": (lambda t: "name" in t.columns, cell("name", name)) for name in sorted(NAMES)},
    "name ''": (lambda t: t.columns.keys() > {"name"}, cell("name", "")),
    **{f"caption {text[:9]!r}": (lambda t: "caption" in t.columns, cell("caption", text)) for text in sorted(CAPTIONS)},
    "a class that there is not": (lambda t: "label" in t.columns, cell("label", "nobody")),
    "number -1": (lambda t: "number" in t.columns, cell("number", "-1")),
    "number nan": (lambda t: "number" in t.columns, cell("number", "nan")),
    "number x": (lambda t: "number" in t.columns, cell("number", "x")),
    "a row twice": (
        lambda t: not {"caption", "aligned"} & set(t.columns) or ("name" in t.columns and t.kind == "lines"),
        again,
    ),
    "a row cut off": (
        lambda t: "aligned" not in t.columns and (t.kind == "csv" or "caption" in t.columns),
        cut_in_a_row,
    ),
    "another column": (lambda t: t.header and t.kind == "csv" and "name" in t.columns, other_column),
    "a column twice": (lambda t: t.header and t.kind == "csv" and "name" in t.columns, column_twice),
    "an open quote": (lambda t: t.kind == "csv", open_quote),
    "a line more": (lambda t: "aligned" in t.columns, again),
}


def in_json(change: Callable[[Any, Any, Any], Any]) -> Callable[[Table, Random], None]:
    """Change the content, one of its images, or what is said of one."""

    def spoil(table: Table, random: Random) -> None:
        content = json.loads(table.path.read_text())
        image = random.choice(content["images"])
        said = random.choice(content["annotations"] if "annotations" in content else image["sentences"])
        changed = change(content, image, said)
        table.path.write_text(json.dumps(content if changed is None else changed))

    return spoil


def name_key(image: dict[str, Any]) -> str:
    return "file_name" if "file_name" in image else "filename"


def caption_key(said: dict[str, Any]) -> str:
    return "caption" if "caption" in said else "raw"


def put(place: dict[str, Any], key: str, value: Any) -> None:
    place[key] = value


JSON: dict[str, Callable[[Table, Random], None]] = {
    **{
        f"name {str(name)[:9]!r}": in_json(lambda c, image, s, name=name: put(image, name_key(image), name))
        for name in [*sorted(NAMES), "", None, 5, "\ud800.png"]
    },
    **{
        f"caption {str(text)[:9]!r}": in_json(lambda c, i, said, text=text: put(said, caption_key(said), text))
        for text in [*sorted(CAPTIONS), "a \ud800 dog", None, ["a"], 5]
    },
    "a list": in_json(lambda content, image, said: [content]),
    "a number": in_json(lambda content, image, said: 5),
    "no images": in_json(lambda content, image, said: content.pop("images") and None),
    "an image without a name": in_json(lambda content, image, said: image.pop(name_key(image)) and None),
    "a text for a list": in_json(lambda content, image, said: put(content, "images", "none")),
    "an image twice": in_json(lambda content, image, said: content["images"].append(image)),
    "an image of null": in_json(lambda content, image, said: content["images"].append(None)),
    "cut off": lambda table, random: half(table.path, random),
    "lists without end": lambda table, random: (table.path.write_text("[" * 100_000), None)[1],
    "a key twice": lambda table, random: (
        table.path.write_text(table.path.read_text().replace('{"images"', '{"images": [], "images"')),
        None,
    )[1],
}


def in_pickle(change: Callable[[dict[str, Any]], Any]) -> Callable[[Table, Random], None]:
    def spoil(table: Table, random: Random) -> None:
        content = pickle.loads(table.path.read_bytes())
        changed = change(content)
        table.path.write_bytes(pickle.dumps(content if changed is None else changed, protocol=2))

    return spoil


def nested(depth: int, content: Any, around: Callable[[Any], Any]) -> Any:
    for _ in range(depth):
        content = around(content)
    return content


def labels(content: dict[str, Any]) -> str:
    return next(key for key in content if key.endswith(("labels", "label_names")))


PICKLE: dict[str, Callable[[Table, Random], None]] = {
    "a program": in_pickle(lambda content: put(content, "more", Payload(Path("MARKER")))),
    "a program in an array": in_pickle(lambda c: put(c, "more", np.array([Payload(Path("MARKER"))], dtype=object))),
    "a text that doubles": in_pickle(
        lambda c: put(c, "more", nested(40, b"0123456789", lambda inner: Call(codecs.encode, inner, "hex")))
    ),
    "an array of 800 GB": in_pickle(lambda c: put(c, "more", Call(np.ndarray, (10**11,), np.dtype("f8")))),
    "lists of lists": in_pickle(lambda c: put(c, labels(c), nested(9, [0], lambda inner: [inner] * 16))),
    "20 million lists": lambda table, random: (table.path.write_bytes(b"\x80\x02" + b"]" * 20_000_000 + b"."), None)[1],
    "no labels": in_pickle(lambda c: c.pop(labels(c)) and None),
    "one label less": in_pickle(lambda c: c[labels(c)].pop() and None),
    "a label of 1000": in_pickle(lambda c: put(c, labels(c), [*c[labels(c)][:-1], 1000])),
    "labels of half": in_pickle(lambda c: put(c, labels(c), [0.5] * len(c[labels(c)]))),
    "a list": in_pickle(lambda c: [c]),
    "cut off": lambda table, random: half(table.path, random),
}
