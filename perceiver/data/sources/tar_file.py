"""Where the files in a tar lie, told from their headers alone.

Read are the formats of Unix v7, POSIX ustar and pax (IEEE Std 1003.1) and GNU tar, with long names. Python's tarfile is
not used, since it takes a damaged header for the end of the tar, and what follows for nothing.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from perceiver.data.files import UnreadableError
from perceiver.data.text_checks import is_file_name

BLOCK = 512
MOST_TOLD = 2**20
"""Bytes of a header that continues another: of a long name, say."""
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
NO_FILES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file from another tar",
}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True, slots=True)
class TarredFile:
    """A file in a tar: its content begins at byte `offset`."""

    name: str
    offset: int
    size: int


def files_in(path: Path, tar: IO[bytes]) -> Iterator[TarredFile]:
    """The files in a tar, in its order; folders are left out.

    Args:
        path: names it in errors.
        tar: the same, opened.

    Raises:
        UnreadableError: it is no tar, compressed, cut off or damaged, or holds what is neither file nor folder, or
            names that lead out of a folder or are not UTF-8.
    """
    end, place = os.fstat(tar.fileno()).st_size, 0
    told: dict[str, bytes] = {}
    while block := _block_at(tar, place):
        header = _Header.parsed(block)
        if header is None:
            raise UnreadableError(_no_tar(path, block) if place == 0 else f"{path}: damaged at byte {place}")
        place += BLOCK
        raw_name = told.get("path", header.name)
        shown = f"{path}/{raw_name.decode(errors='backslashreplace')}"
        if "GNU.sparse" in told:
            raise UnreadableError(f"{shown}: {NO_FILES[b'S']}, which is not read")
        if header.kind in (b"L", b"K", b"x", b"g"):
            if place + header.size > end or header.size > MOST_TOLD:
                raise UnreadableError(f"{path}: damaged at byte {place - BLOCK}: a name of {header.size} bytes")
            tar.seek(place)
            told |= _told(header.kind, tar.read(header.size), f"{path}: damaged at byte {place}")
            place += _padded(header.size)
            continue
        size = int(told.get("size", b"%d" % header.size))
        told = {}
        if header.kind == FOLDER or (header.kind in FILES and raw_name.endswith(b"/")):
            continue
        if header.kind not in FILES:
            kind = NO_FILES.get(header.kind, f"of the unknown kind {header.kind.decode(errors='backslashreplace')!r}")
            raise UnreadableError(f"{shown}: {kind}, which is not read")
        if place + size > end:
            raise UnreadableError(f"{shown}: ends beyond the tar, which must have been cut off")
        yield TarredFile(_name(raw_name, shown), place, size)
        place += _padded(size)
    if end == 0:
        raise UnreadableError(f"{path}: the file is empty")
    if place + BLOCK > end:
        raise UnreadableError(f"{path}: lacks the empty blocks at its end, so that it must have been cut off")
    tar.seek(place)
    while rest := tar.read(2**20):
        if rest.strip(b"\0"):
            raise UnreadableError(f"{path}: continues after its end; tars that were joined must be parted again")


@dataclass(frozen=True, slots=True)
class _Header:
    """What a header says that matters here."""

    name: bytes
    size: int
    kind: bytes

    @classmethod
    def parsed(cls, block: bytes) -> "_Header | None":
        """None where it is no header."""
        size, checksum = _number(block[124:136]), _number(block[148:156])
        if len(block) < BLOCK or size is None or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            return None
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _text(block[345:500]) + b"/" + name
        return cls(name, size, block[156:157])


def _block_at(tar: IO[bytes], place: int) -> bytes:
    """The block there; nothing where the tar ends, by an empty block or because it was cut off."""
    tar.seek(place)
    block = tar.read(BLOCK)
    return b"" if block == bytes(BLOCK) or (place and len(block) < BLOCK) else block


def _no_tar(path: Path, block: bytes) -> str:
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            return f"{path}: compressed with {name}, in which no sample can be found by its place; decompress it"
    return f"{path}: not a tar"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int | None:
    """An octal number, or where it would be too long, a binary one; None where it is not a number."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = _text(field).strip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _told(kind: bytes, content: bytes, problem: str) -> dict[str, bytes]:
    """What a header says of the next one: `path`, `size`, and whether there is anything on `GNU.sparse`."""
    if kind in (b"L", b"K"):
        return {"path": _text(content)} if kind == b"L" else {}
    told = {}
    while content.strip(b"\0"):
        record = re.match(rb"(\d{1,7}) ([^=]+)=", content)
        length = int(record[1]) if record else 0
        if record is None or not record.end() < length <= len(content) or content[length - 1 : length] != b"\n":
            raise UnreadableError(problem)
        key, value = record[2].decode(errors="replace"), content[record.end() : length - 1]
        content = content[length:]
        if key == "size" and not re.fullmatch(rb"\d{1,18}", value):
            raise UnreadableError(problem)
        key = "GNU.sparse" if key.startswith("GNU.sparse") else key
        if kind == b"g" and key in ("path", "size", "GNU.sparse"):
            raise UnreadableError(f"{problem}: one {key} for all files")
        told[key] = value
    return told


def _name(raw: bytes, shown: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{shown}: a name that is not in UTF-8") from error
    if not is_file_name(name):
        raise UnreadableError(f"{shown}: not a name of a file")
    return name
