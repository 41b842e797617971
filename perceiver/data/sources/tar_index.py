"""The samples in tar files, as WebDataset arranges them: files with the same name up to the first dot are one sample.

    train-000000.tar   000000.jpg  000000.cls  000001.jpg  000001.cls  …

Any sample is read by its offset in the tar, so that the order of samples is as free as that of files on disk. The
offsets are found once, and stored beside each tar as `<tar>.index.npz`: arrays, because a million samples as objects
would fill the memory of every worker. An index is rebuilt if it is damaged or the tar has another size or time.

The headers of Unix v7, POSIX ustar and pax (IEEE Std 1003.1) and GNU tar are read, with long names. Python's tarfile is
not used, since it takes a damaged header for the end of the tar.
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from perceiver.data.files import UnreadableError, first_few, is_file_name, refuse_special
from perceiver.data.sources.base import Roles

MAX_BYTES = 2**30
"""Largest member that is read, since it is read into memory as a whole."""
MAX_ENDINGS = 64
"""Largest number of endings in a tar; more of them indicate dots in the keys."""
BLOCK = 512
MAX_EXTENSION = 2**20
"""Largest number of bytes of an extended header, such as a long name."""
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
UNSUPPORTED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file of another tar",
}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
ARRAYS = ("keys", "key_ends", "offsets", "sizes")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TarredFile:
    """A file in a tar; its content begins at byte `offset`."""

    name: str
    offset: int
    size: int


def files_in(path: Path, tar: IO[bytes]) -> Iterator[TarredFile]:
    """Yield the files in a tar in order, without folders.

    Args:
        path: names it in errors.
        tar: the same, opened.

    Raises:
        UnreadableError: it is not a tar, compressed, truncated or damaged, or contains something other than files and
            folders, or names that lead out of a folder or are not UTF-8.
    """
    end, place = os.fstat(tar.fileno()).st_size, 0
    extended: dict[str, bytes] = {}
    while block := _block(tar, place):
        header = _Header.parse(block)
        if header is None:
            raise UnreadableError(_not_a_tar(path, block) if place == 0 else f"{path}: damaged at byte {place}")
        place += BLOCK
        raw_name = extended.get("path", header.name)
        shown = f"{path}/{raw_name.decode(errors='backslashreplace')}"
        if "GNU.sparse" in extended:
            raise UnreadableError(f"{shown}: {UNSUPPORTED[b'S']}, which is not supported")
        if header.kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            if place + header.size > end or header.size > MAX_EXTENSION:
                raise UnreadableError(f"{path}: damaged at byte {place - BLOCK}: a name of {header.size} bytes")
            tar.seek(place)
            extended |= _extended(header.kind, tar.read(header.size), f"{path}: damaged at byte {place}")
            place += _padded(header.size)
            continue
        size = int(extended.get("size", b"%d" % header.size))
        extended = {}
        if header.kind == FOLDER or (header.kind in FILES and raw_name.endswith(b"/")):
            continue
        if header.kind not in FILES:
            unknown = f"of unknown type {header.kind.decode(errors='backslashreplace')!r}"
            raise UnreadableError(f"{shown}: {UNSUPPORTED.get(header.kind, unknown)}, which is not supported")
        if place + size > end:
            raise UnreadableError(f"{shown}: extends beyond the end of the tar, which is truncated")
        yield TarredFile(_decoded(raw_name, shown), place, size)
        place += _padded(size)
    if end == 0:
        raise UnreadableError(f"{path}: the file is empty")
    if place + BLOCK > end:
        raise UnreadableError(f"{path}: truncated: the empty blocks at its end are missing")
    tar.seek(place)
    while rest := tar.read(2**20):
        if rest.strip(b"\0"):
            raise UnreadableError(f"{path}: continues after its end; concatenated tars are not supported")


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields of a header that are used."""

    name: bytes
    size: int
    kind: bytes

    @classmethod
    def parse(cls, block: bytes) -> "_Header | None":
        """Parse a block; None if it is not a header."""
        size, checksum = _number(block[124:136]), _number(block[148:156])
        if len(block) < BLOCK or size is None or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            return None
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _text(block[345:500]) + b"/" + name
        return cls(name, size, block[156:157])


def _block(tar: IO[bytes], place: int) -> bytes:
    """Return the block at a byte; nothing at the end of the tar, marked by an empty block or truncated."""
    tar.seek(place)
    block = tar.read(BLOCK)
    return b"" if block == bytes(BLOCK) or (place and len(block) < BLOCK) else block


def _not_a_tar(path: Path, block: bytes) -> str:
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            return f"{path}: compressed with {name}, which prevents reading by offset; decompress it"
    return f"{path}: not a tar"


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int | None:
    """Parse an octal number or, if too long for that, a binary one; None if it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = _text(field).strip(b" ")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _extended(kind: bytes, content: bytes, problem: str) -> dict[str, bytes]:
    """Parse an extended header: `path`, `size` and `GNU.sparse` (if any of its keys exists) of the next file."""
    if kind in (LONG_NAME, LONG_LINK):
        return {"path": _text(content)} if kind == LONG_NAME else {}
    records = {}
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
        if kind == PAX_GLOBAL and key in ("path", "size", "GNU.sparse"):
            raise UnreadableError(f"{problem}: one {key} for all files")
        records[key] = value
    return records


def _decoded(raw: bytes, shown: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{shown}: the name is not UTF-8") from error
    if not is_file_name(name):
        raise UnreadableError(f"{shown}: not a valid file name")
    return name


@dataclass(frozen=True)
class Member:
    """A file in a tar, which is open only while it is read; its content is kept in memory."""

    tar: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> BytesIO:
        """Return the content as a file in memory.

        Raises:
            UnreadableError: it is too large or no longer exists.
        """
        return BytesIO(self._content)

    @cached_property
    def _content(self) -> bytes:
        if self.size > MAX_BYTES:
            raise UnreadableError(f"{self}: {self.size:,} bytes are more than {MAX_BYTES:,}")
        try:
            with self.tar.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), self.size, self.offset)
        except FileNotFoundError as error:
            raise UnreadableError(f"{self}: no such file") from error
        except OSError as error:
            raise UnreadableError(f"{self}: {error.strerror}") from error
        if len(content) < self.size:
            raise UnreadableError(f"{self}: the tar was truncated after it was indexed")
        return content


@dataclass(frozen=True)
class ShardSample:
    """The files of one sample, by their endings in lower case."""

    tar: Path
    key: str
    members: dict[str, Member]

    def error(self, message: str) -> UnreadableError:
        """Return an error about this sample."""
        return UnreadableError(f"{self.tar}/{self.key}: {message}")

    def parts(self, roles: Roles) -> dict[str, Member]:
        """Return the file of each role; of several roles, all but one may be missing.

        A sound of its own is preferred to that of the video.

        Raises:
            UnreadableError: no role has a file, or one has several.
        """
        matches = {}
        for role, kind in roles.items():
            endings = [ending for ending in self.members if f".{ending}" in kind.endings]
            alone = [ending for ending in endings if sum(f".{ending}" in one.endings for one in roles.values()) == 1]
            matches[role] = members = [self.members[ending] for ending in alone or endings]
            if len(members) > 1:
                raise self.error(f"{len(members)} {roles[role].name}s; files: {self.endings}")
        if not any(matches.values()):
            raise self.error(f"no {' or '.join(kind.name for kind in roles.values())}; files: {self.endings}")
        return {role: members[0] for role, members in matches.items() if members}

    @property
    def endings(self) -> str:
        """The endings of its files, for a message."""
        return first_few([f".{ending}" for ending in self.members])


@dataclass(frozen=True)
class ShardIndex:
    """The offsets of the samples of one tar.

    Attributes:
        keys: all keys concatenated, in UTF-8.
        key_ends: where each ends.
        endings: of the files, without the dot.
        offsets, sizes: of each sample's file with each ending; -1 without such a file.
    """

    keys: UInt8[np.ndarray, " bytes"]
    key_ends: Int64[np.ndarray, " samples"]
    endings: tuple[str, ...]
    offsets: Int64[np.ndarray, "samples endings"]
    sizes: Int64[np.ndarray, "samples endings"]

    def __len__(self) -> int:
        return len(self.key_ends)

    def sample(self, tar: Path, row: int) -> ShardSample:
        start = int(self.key_ends[row - 1]) if row else 0
        key = self.keys[start : self.key_ends[row]].tobytes().decode()
        places = zip(self.endings, self.offsets[row].tolist(), self.sizes[row].tolist(), strict=True)
        return ShardSample(
            tar, key, {ending: Member(tar, at, size, f"{key}.{ending}") for ending, at, size in places if at >= 0}
        )

    def is_consistent(self, num_bytes: int) -> bool:
        """Return whether it can be the index of a tar of so many bytes."""
        shape, exists = (len(self.key_ends), len(self.endings)), self.offsets >= 0
        starts = np.concatenate([np.zeros(1, np.int64), self.key_ends[:-1]])
        return bool(
            [array.dtype for array in (self.keys, self.key_ends, self.offsets, self.sizes)]
            == [np.uint8, np.int64, np.int64, np.int64]
            and self.keys.ndim == self.key_ends.ndim == 1
            and self.offsets.shape == self.sizes.shape == shape
            and min(shape) > 0
            and (self.key_ends > starts).all()
            and self.key_ends[-1] == len(self.keys)
            and (self.keys[starts] & 0xC0 != 0x80).all()  # keys begin at the first byte of a character
            and self.keys.tobytes().decode()
            and exists.any(axis=1).all()
            and ((self.offsets >= BLOCK) == exists).all()
            and ((self.sizes >= 0) == exists).all()
            and (self.sizes[exists] <= num_bytes - self.offsets[exists]).all()
        )

    @classmethod
    def scan(cls, tar: Path) -> "ShardIndex":
        """Make the index from the headers of a tar.

        Raises:
            UnreadableError: see `files_in`; or a name appears twice, or there are no samples.
        """
        rows: dict[str, int] = {}
        columns: dict[str, int] = {}
        places: dict[tuple[int, int], tuple[int, int]] = {}
        nameless = []
        with tar.open("rb") as raw:
            for file in files_in(tar, raw):
                path = PurePosixPath(file.name)
                stem, _, ending = path.name.partition(".")
                if not stem or not ending:
                    nameless.append(file.name)
                    continue
                row = rows.setdefault(str(path.with_name(stem)), len(rows))
                cell = row, columns.setdefault(ending.lower(), len(columns))
                if cell in places:
                    raise UnreadableError(f"{tar}/{file.name}: appears twice")
                if len(columns) > MAX_ENDINGS:
                    many = f"more than {MAX_ENDINGS} different endings: {first_few(list(columns))}"
                    raise UnreadableError(f"{tar}: {many}; do the keys contain dots?")
                places[cell] = file.offset, file.size
        if not rows:
            raise UnreadableError(f"{tar}: no samples")
        if nameless:
            log.warning("%s: ignored files without a key or an ending: %s", tar, first_few(nameless))
        keys = [key.encode() for key in rows]
        table = np.full((2, len(rows), len(columns)), -1, np.int64)
        table[(slice(None), *np.array(list(places)).T)] = np.array(list(places.values())).T
        blob, ends = np.frombuffer(b"".join(keys), np.uint8), np.cumsum([len(key) for key in keys], dtype=np.int64)
        return cls(blob, ends, tuple(columns), *table)

    @classmethod
    def load(cls, path: Path, tar: os.stat_result) -> "ShardIndex | None":
        """Read an index; None if it does not exist, is damaged, or is that of another tar."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if arrays["tar"].tolist() != [tar.st_size, tar.st_mtime_ns]:
                    return None
                endings = json.loads(arrays["endings"].tobytes())
                index = cls(endings=tuple(map(str, endings)), **{name: arrays[name] for name in ARRAYS})
            return index if index.is_consistent(tar.st_size) else None
        except Exception:  # a damaged file raises almost any exception
            return None

    def save(self, path: Path, tar: os.stat_result) -> None:
        """Write the index, completely or not at all."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        arrays["endings"] = np.frombuffer(json.dumps(self.endings).encode(), np.uint8)
        arrays["tar"] = np.array([tar.st_size, tar.st_mtime_ns])
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                np.savez(file, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class TarShards:
    """The samples of some tars, one tar after the other.

    Args:
        tars: their paths.

    Raises:
        UnreadableError: one of them is damaged, or contains no samples.
    """

    def __init__(self, tars: Sequence[Path]) -> None:
        self.tars = list(tars)
        unsaved: list[OSError] = []
        self.indices = [_index(tar, unsaved) for tar in self.tars]
        self.ends = np.cumsum([len(index) for index in self.indices])
        if unsaved:
            reason = f"cannot be stored ({unsaved[0].strerror}); every process rebuilds them"
            log.warning("%s: the indices of %d of %d tars %s", tars[0].parent, len(unsaved), len(tars), reason)

    @property
    def endings(self) -> set[str]:
        """The endings of all files."""
        return {f".{ending}" for index in self.indices for ending in index.endings}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> ShardSample:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return self.indices[shard].sample(self.tars[shard], index - int(self.ends[shard]) + len(self.indices[shard]))


def _index(tar: Path, unsaved: list[OSError]) -> ShardIndex:
    """Load the index beside a tar, or make it and store it there; errors of storing it are added to `unsaved`."""
    refuse_special(tar)
    path = tar.with_name(f"{tar.name}.index.npz")
    try:
        found = tar.stat()
        stored = ShardIndex.load(path, found)
        if stored is not None:
            return stored
        index = ShardIndex.scan(tar)
    except OSError as error:
        raise UnreadableError(f"{tar}: {error.strerror}") from error
    try:
        index.save(path, found)
    except OSError as error:
        unsaved.append(error)
    return index
