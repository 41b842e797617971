"""The detectable faults of files, tables, archives, folders and checkpoints, for `scripts/malformed_inputs.py`.

Undetectable faults are not included: bytes flipped within a JPEG's or a wav's samples, a label that is another valid
class, a text that is truncated after a word.
"""

import codecs
import csv
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from scripts.data_trees import RATE, STAGES, Table, Tree, image_of, png_of, wav_of, wave_of, write_csv, write_tar

Spoil = Callable[[Path, Random], object]
SpoilTable = Callable[[Table, Random], object]
MARKER = "MARKER"
"""The file that a payload creates in the working directory."""
MILLION_WORDS = "word " * 1_000_000
NAMES = sorted(["../../victim", "/etc/hostname", "a\0b", "\x1b[2J", "x" * 300, "."])
CAPTIONS = sorted(["a \0 dog", "a \x1b[2J dog", "a \x92 dog", MILLION_WORDS])


class Call:
    """Unpickled as usual, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


PAYLOAD = Call(os.system, f"touch {MARKER}")


def put(values: Any, key: Any, value: Any) -> None:
    values[key] = value


def remove(values: Any, key: Any) -> None:
    del values[key]


# Files


def half(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * random.uniform(0.3, 0.7))])


def replaced(content: bytes) -> Spoil:
    return lambda path, random: path.write_bytes(content)


def changed(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda path, random: path.write_bytes(change(path.read_bytes()))


ANY_FILE: dict[str, Spoil] = {
    "truncated": half,
    "empty": replaced(b""),
    "a folder": lambda path, random: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, random: (path.unlink(), os.mkfifo(path)),
    "a dangling link": lambda path, random: (path.unlink(), path.symlink_to("nowhere")),
    "a link to /dev/zero": lambda path, random: (path.unlink(), path.symlink_to("/dev/zero")),
}
ANY_WHOLE_FILE = {name: spoil for name, spoil in ANY_FILE.items() if name != "truncated"}


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a gray PNG of which only the beginning of the pixels exists."""
    header = b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (header, *chunks, (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(value: float) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        pixels = np.full((11, 13), 0.5, np.float32)
        pixels[random.randrange(11), random.randrange(13)] = value
        Image.fromarray(pixels).save(path, "TIFF")

    return spoil


def sound(wave: np.ndarray, format: str = "WAV", rate: int = RATE, **options: Any) -> bytes:
    soundfile.write(file := io.BytesIO(), wave, rate, format=format, **options)
    return file.getvalue()


def wave_with(value: float) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        wave = wave_of(1)
        wave[random.randrange(len(wave))] = value
        path.write_bytes(sound(wave, subtype="DOUBLE"))

    return spoil


def flipped_flac(path: Path, random: Random) -> None:
    content = bytearray(sound(wave_of(1), "FLAC"))
    content[random.randrange(len(content) // 2, len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def long_flac(path: Path, random: Random) -> None:
    content = bytearray(sound(wave_of(1), "FLAC"))
    content[21:26] = (int.from_bytes(content[21:26], "big") | 2**36 - 1).to_bytes(5, "big")
    path.write_bytes(content)


IMAGE: dict[str, Spoil] = {
    **ANY_FILE,
    "a text": replaced(b"<html>404 not found</html>"),
    "a sound": replaced(wav_of(1)),
    "PostScript": replaced(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"),
    **{f"a value of {value}": tiff(value) for value in (float("nan"), float("inf"), -3.0, 70000.0)},
    "101 million pixels": replaced(png(10_100, 10_001)),
    "3 billion pixels": replaced(png(60_000, 60_000)),
    "80 MB of text": replaced(png(9, 9, (b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000))))),
    "a truncated JPEG": lambda path, random: (image_of(1).save(path, "JPEG"), half(path, random)),
    "a truncated GIF": lambda path, random: (image_of(1).save(path, "GIF"), half(path, random)),
}
SOUND: dict[str, Spoil] = {
    **ANY_FILE,
    "a text": replaced(b"not a sound\n" * 100),
    "an image": replaced(png_of(1)),
    **{f"a value of {value}": wave_with(value) for value in (float("nan"), float("-inf"), 1e20)},
    "silence": replaced(sound(np.zeros(RATE))),
    "only a header": replaced(sound(np.zeros(0))),
    "a rate of 1 Hz": replaced(sound(wave_of(1), rate=1)),
    "a bit flipped in a FLAC": flipped_flac,
    "a FLAC that claims seven weeks": long_flac,
    "a truncated Ogg": lambda path, random: (path.write_bytes(sound(wave_of(1), "OGG")), half(path, random)),
}
FLOW: dict[str, Spoil] = {
    # A folder, a pipe or a link to nowhere is no flow of a pair, so that the pair is not listed.
    **{name: ANY_FILE[name] for name in ("truncated", "empty", "a link to /dev/zero")},
    "a text": replaced(b"<html>404 not found</html>"),
    "an image": replaced(png_of(1)),
    "another size": changed(lambda content: content[:4] + struct.pack("<ii", 13, 5) + content[12:]),
    "a negative size": changed(lambda content: content[:4] + struct.pack("<ii", -1, -1) + content[12:]),
    "a size of gigabytes": changed(lambda content: content[:4] + struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
    "more than its size": changed(lambda content: content + bytes(8)),
}
TEXT: dict[str, Spoil] = {
    **ANY_WHOLE_FILE,
    "an image": replaced(png_of(1)),
    "NUL": replaced(b"a \0 dog"),
    "a million words": replaced(MILLION_WORDS.encode()),
}

# Tables


def in_rows(change: Callable[[list[list[str]], Table, Random], object]) -> SpoilTable:
    """Return a fault that changes the rows of a table."""

    def spoil(table: Table, random: Random) -> None:
        text = table.path.read_text()
        if table.kind == "lines":
            rows = [line.split("\t") for line in text.splitlines()]
            change(rows, table, random)
            table.path.write_text("".join("\t".join(row) + "\n" for row in rows))
        else:
            rows = list(csv.reader(io.StringIO(text)))
            change(rows, table, random)
            write_csv(table.path, rows)

    return spoil


def cell(column: str, value: str) -> SpoilTable:
    def change(rows: list[list[str]], table: Table, random: Random) -> None:
        first = 1 if table.header and table.kind == "csv" else 0
        random.choice([row for row in rows[first:] if not row[0].startswith("#")])[table.columns[column]] = value

    return in_rows(change)


def double_column(rows: list[list[str]], table: Table, random: Random) -> None:
    for row in rows:
        row.append(row[table.columns["name"]])


def has(*columns: str) -> Callable[[Table], bool]:
    return lambda table: table.columns.keys() >= set(columns)


def has_named_header(table: Table) -> bool:
    return table.header and table.kind == "csv" and "name" in table.columns


WHOLE_TABLE: dict[str, Spoil] = {
    **ANY_WHOLE_FILE,
    "an image": replaced(png_of(1)),
    "UTF-16": changed(lambda content: content.decode().encode("utf-16")),
    "a byte that is not UTF-8": changed(lambda content: content + b"\xff\n"),
}
TABLE: dict[str, tuple[Callable[[Table], bool], SpoilTable]] = {
    **{f"name {name[:9]!r}": (has("name"), cell("name", name)) for name in NAMES},
    "name ''": (lambda table: table.columns.keys() > {"name"}, cell("name", "")),
    **{f"caption {text[:9]!r}": (has("caption"), cell("caption", text)) for text in CAPTIONS},
    "an unknown class": (has("label"), cell("label", "nobody")),
    **{f"number {value}": (has("number"), cell("number", value)) for value in ("-1", "nan", "x")},
    "a repeated row": (
        lambda t: not {"caption", "aligned"} & set(t.columns) or ("name" in t.columns and t.kind == "lines"),
        in_rows(lambda rows, table, random: rows.append(rows[-1])),
    ),
    "a truncated row": (
        lambda t: "aligned" not in t.columns and (t.kind == "csv" or "caption" in t.columns),
        in_rows(lambda rows, table, random: rows[-1].pop()),
    ),
    "a renamed column": (
        has_named_header,
        in_rows(lambda rows, table, random: put(rows[0], table.columns["name"], "something else")),
    ),
    "a repeated column": (has_named_header, in_rows(double_column)),
    "an open quote": (
        lambda t: t.kind == "csv",
        lambda t, random: changed(lambda c: c + b'"begins and')(t.path, random),
    ),
    "an additional line": (has("aligned"), in_rows(lambda rows, table, random: rows.append(rows[-1]))),
}


def in_json(change: Callable[[Any, Any, Any], Any]) -> SpoilTable:
    """Return a fault that changes or replaces the content, one of its images, or one of its captions."""

    def spoil(table: Table, random: Random) -> None:
        content = json.loads(table.path.read_text())
        image = random.choice(content["images"])
        caption = random.choice(content["annotations"] if "annotations" in content else image["sentences"])
        new = change(content, image, caption)
        table.path.write_text(json.dumps(content if new is None else new))

    return spoil


def key_of(values: dict[str, Any], *keys: str) -> str:
    return next(key for key in keys if key in values)


def with_name(name: Any) -> SpoilTable:
    return in_json(lambda content, image, caption: put(image, key_of(image, "file_name", "filename"), name))


def with_caption(text: Any) -> SpoilTable:
    return in_json(lambda content, image, caption: put(caption, key_of(caption, "caption", "raw"), text))


def on_path(spoil: Spoil) -> SpoilTable:
    return lambda table, random: spoil(table.path, random)


JSON: dict[str, SpoilTable] = {
    **{f"name {str(name)[:9]!r}": with_name(name) for name in [*NAMES, "", None, 5, "\ud800.png"]},
    **{f"caption {str(text)[:9]!r}": with_caption(text) for text in [*CAPTIONS, "a \ud800 dog", None, ["a"], 5]},
    "a list": in_json(lambda content, image, caption: [content]),
    "a number": in_json(lambda content, image, caption: 5),
    "no images": in_json(lambda content, image, caption: remove(content, "images")),
    "an image without a name": in_json(
        lambda content, image, caption: remove(image, key_of(image, "file_name", "filename"))
    ),
    "a string instead of a list": in_json(lambda content, image, caption: put(content, "images", "none")),
    "a repeated image": in_json(lambda content, image, caption: content["images"].append(image)),
    "a null image": in_json(lambda content, image, caption: content["images"].append(None)),
    "truncated": on_path(half),
    "nested lists": on_path(replaced(b"[" * 100_000)),
    "a repeated key": on_path(changed(lambda content: content.replace(b'{"images"', b'{"images": [], "images"'))),
}


def in_pickle(change: Callable[[dict[str, Any], str], Any]) -> SpoilTable:
    """Return a fault that changes or replaces the content of a pickle, given the key of its labels or names."""

    def spoil(table: Table, random: Random) -> None:
        content = pickle.loads(table.path.read_bytes())
        new = change(content, next(key for key in content if key.endswith(("labels", "label_names"))))
        table.path.write_bytes(pickle.dumps(content if new is None else new, protocol=2))

    return spoil


def nested(depth: int, content: Any, around: Callable[[Any], Any]) -> Any:
    for _ in range(depth):
        content = around(content)
    return content


def added(value: Any) -> SpoilTable:
    return in_pickle(lambda content, key: put(content, "more", value))


PICKLE: dict[str, SpoilTable] = {
    "a program": added(PAYLOAD),
    "a program in an array": added(np.array([PAYLOAD], dtype=object)),
    "a text that doubles": added(nested(40, b"0123456789", lambda inner: Call(codecs.encode, inner, "hex"))),
    "an array of 800 GB": added(Call(np.ndarray, (10**11,), np.dtype("f8"))),
    "lists of lists": in_pickle(lambda content, key: put(content, key, nested(9, [0], lambda inner: [inner] * 16))),
    "20 million lists": on_path(replaced(b"\x80\x02" + b"]" * 20_000_000 + b".")),
    "no labels": in_pickle(remove),
    "one label less": in_pickle(lambda content, key: put(content, key, content[key][:-1])),
    "a label of 1000": in_pickle(lambda content, key: put(content, key, [*content[key][:-1], 1000])),
    "fractional labels": in_pickle(lambda content, key: put(content, key, [0.5] * len(content[key]))),
    "a list": in_pickle(lambda content, key: [content]),
    "truncated": on_path(half),
}

# Archives


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def in_sample(change: Callable[[dict[str, bytes], str, str], object]) -> SpoilTable:
    """Return a fault that changes the members of a sample, given the names of its file and of its target."""

    def spoil(table: Table, random: Random) -> None:
        members = members_of(table.path)
        key = random.choice(sorted(members)).partition(".")[0]
        names = [name for name in members if name.startswith(f"{key}.")]
        file = next(name for name in names if name.endswith((".png", ".wav")))
        change(members, file, next(name for name in names if name != file))
        write_tar(table.path, members)

    return spoil


def with_target(classes: bytes, tags: object, captions: object, lines: bytes) -> SpoilTable:
    """Return a fault that replaces the target of a sample by the value of its kind."""

    def change(members: dict[str, bytes], file: str, target: str) -> None:
        values = {"tags": tags} if b"tags" in members[target] else {"captions": captions}
        ending = target.split(".")[1]
        members[target] = {"cls": classes, "txt": lines, "json": json.dumps(values).encode()}[ending]

    return in_sample(change)


def appended(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> SpoilTable:
    def spoil(table: Table, random: Random) -> None:
        info = tarfile.TarInfo(name or next(iter(members_of(table.path))))
        info.type, info.linkname, info.size = kind, link, int(kind == tarfile.REGTYPE)
        with tarfile.open(table.path, "a") as archive:
            archive.addfile(info, io.BytesIO(b"x"))

    return spoil


TAR_SAMPLE: dict[str, SpoilTable] = {
    "a text": in_sample(lambda members, file, target: put(members, file, b"neither an image nor a sound")),
    "an empty file": in_sample(lambda members, file, target: put(members, file, b"")),
    "a truncated file": in_sample(lambda members, file, target: put(members, file, members[file][:50])),
    "no file": in_sample(lambda members, file, target: remove(members, file)),
    "no target": in_sample(lambda members, file, target: remove(members, target)),
    "a class out of range": with_target(b"3", [3], ["a \0 dog"], b"a \0 dog"),
    "a negative class": with_target(b"-1", [-1], ["a \ud800 dog"], b"a \x1b dog"),
    "no class": with_target(b"cat", ["cat"], [5], b"\xff\xfe"),
    "an empty class": with_target(b"", 7, [], b""),
    "a fractional class": with_target(b"0.5", [0.5], [MILLION_WORDS], MILLION_WORDS.encode()),
}
TAR_WHOLE: dict[str, SpoilTable] = {
    **{name: on_path(spoil) for name, spoil in ANY_FILE.items()},
    "an image": on_path(replaced(png_of(1))),
    "a name outside of the folder": appended("../victim.png"),
    "an absolute name": appended("/tmp/victim.png"),
    "a link": appended("999999.png", tarfile.SYMTYPE, "/etc/hostname"),
    "a hard link": appended("999999.png", tarfile.LNKTYPE, "000000.png"),
    "a device": appended("999999.png", tarfile.CHRTYPE),
    "a repeated name": appended(""),
    "compressed": on_path(changed(gzip.compress)),
    "concatenated": on_path(changed(lambda content: content * 2)),
    "a damaged header": on_path(changed(lambda content: bytes([*content[:124], content[124] ^ 1, *content[125:]]))),
}

# Folders


def link_back(tree: Tree, random: Random) -> Path:
    link = random.choice(sorted({path.parent for path in (*tree.images, *tree.sounds)})) / "back"
    link.symlink_to(tree.root)
    return link


def second_spelling(tree: Tree, random: Random) -> Path:
    (tree.root / "valid").mkdir()
    return tree.root


def class_not_utf8(tree: Tree, random: Random) -> Path:
    for stage in STAGES:
        os.rename(tree.root / stage / "cat", os.fsencode(tree.root / stage) + b"/\xff")
    return tree.root


def unknown_class(tree: Tree, random: Random) -> Path:
    folder = tree.root / random.choice(("val", "test"))
    (folder / "cat").rename(folder / "fly")
    return folder


def without_files(tree: Tree, random: Random) -> Path:
    folder = tree.root / random.choice(list(STAGES))
    for path in (*tree.images, *tree.sounds):
        if path.is_relative_to(folder):
            path.unlink()
    return folder


FOLDER: dict[str, Callable[[Tree, Random], Path]] = {
    "a link back": link_back,
    "two folders for validation": second_spelling,
    "a class that is not UTF-8": class_not_utf8,
    "a class that training lacks": unknown_class,
    "no files": without_files,
}

# Checkpoints


def saved(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(path: Path, random: Random) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return spoil


def flipped_weights(path: Path, random: Random) -> None:
    """Flip a bit of the largest record, which contains weights, but not of its header, whose padding has no meaning."""
    with zipfile.ZipFile(path) as archive:
        weights = archive.read(max(archive.infolist(), key=lambda info: info.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(weights) + random.randrange(len(weights))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def with_config(key: str, change: Callable[[Any], object]) -> Spoil:
    return saved(lambda content: put(content["description"]["config"], key, change(content["description"]["config"])))


def of_fives(keys: Iterable[str]) -> dict[str, Spoil]:
    return {f"{key} of 5": saved(lambda content, key=key: put(content["description"], key, 5)) for key in keys}


CHECKPOINT: dict[str, Spoil] = {
    **ANY_FILE,
    "a text": replaced(b"not a checkpoint"),
    "a flipped bit": flipped_weights,
    "a program": saved(lambda content: put(content, "more", PAYLOAD)),
    "only a program": lambda path, random: torch.save(PAYLOAD, path),
    "a config that names os.system": with_config(
        "model", lambda config: {"_target_": "os.system", "command": f"touch {MARKER}"}
    ),
    "a config that names torch.hub.load": with_config(
        "model", lambda config: config["model"] | {"_target_": "torch.hub.load"}
    ),
    "a config that names a function of perceiver": with_config(
        "data", lambda config: config["data"] | {"_target_": "perceiver.data.sources.cifar.read_pickle"}
    ),
    "a config that contains itself": saved(
        lambda content: put(content["description"]["config"]["model"], "more", content["description"]["config"])
    ),
    "no description": saved(lambda content: remove(content, "description")),
    "no step": saved(lambda content: remove(content, "global_step")),
    "only weights": lambda path, random: torch.save(torch.load(path, weights_only=True)["state_dict"], path),
    "weights of 5": saved(lambda content: put(content, "state_dict", 5)),
    **of_fives(("config", "class_names", "vocabulary")),
}
