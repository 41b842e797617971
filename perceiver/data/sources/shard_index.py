"""Samples in tar files, as WebDataset lays them out: files that are called alike up to the first dot belong together.

    train-000000.tar   000000.jpg  000000.cls  000001.jpg  000001.cls  …

Any sample is read by itself, by its place in the tar, so that their order is as free as that of files on disk. Where
everything lies is found out once, and kept beside each tar as `<tar>.index.npz`: arrays, because a million samples as
objects fill the memory of every worker. It is made anew where it is damaged, or the tar has another size or time.
"""

import json
import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from perceiver.data.files import UnreadableError, refuse_special
from perceiver.data.sources.base import Roles
from perceiver.data.sources.tar_file import BLOCK, files_in
from perceiver.data.text_checks import first_few

MOST_BYTES = 2**30
"""What is larger is not read: it would have to be in memory as a whole."""
MOST_ENDINGS = 64
"""In one tar. Where there are more, it is the keys that have dots in them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A file in a tar, which is open only while it is read; read once, it stays in memory."""

    tar: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> BytesIO:
        """Its content as a file in memory.

        Raises:
            UnreadableError: it is too large, or no longer there.
        """
        return BytesIO(self._content)

    @cached_property
    def _content(self) -> bytes:
        if self.size > MOST_BYTES:
            raise UnreadableError(f"{self}: {self.size:,} bytes are too much to be read at once")
        try:
            with self.tar.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), self.size, self.offset)
        except FileNotFoundError as error:
            raise UnreadableError(f"{self}: no such file") from error
        except OSError as error:
            raise UnreadableError(f"{self}: {error.strerror}") from error
        if len(content) < self.size:
            raise UnreadableError(f"{self}: the tar ends before; it was changed while it was read")
        return content


@dataclass(frozen=True)
class ShardSample:
    """The files of one sample, by their endings in lower case."""

    tar: Path
    key: str
    members: dict[str, Member]

    def error(self, message: str) -> UnreadableError:
        """What is wrong with it, to be raised."""
        return UnreadableError(f"{self.tar}/{self.key}: {message}")

    def parts(self, roles: Roles) -> dict[str, Member]:
        """The file of each role; of several roles, any but one may be missing.

        Raises:
            UnreadableError: there is none, or there are several of one role.
        """
        found = {
            role: [member for ending, member in self.members.items() if f".{ending}" in kind.endings]
            for role, kind in roles.items()
        }
        there = first_few([f".{ending}" for ending in self.members])
        for role, members in found.items():
            if len(members) > 1:
                raise self.error(f"{len(members)} {roles[role].name}s in it; there are: {there}")
        if not any(found.values()):
            raise self.error(f"no {' or '.join(kind.name for kind in roles.values())} in it; there are: {there}")
        return {role: members[0] for role, members in found.items() if members}


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one tar lie.

    Attributes:
        keys: all of them concatenated, in UTF-8.
        key_ends: where each ends.
        endings: of the files, without the dot.
        offsets, sizes: of each sample's file with each ending; -1 where it has none.
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

    def fits(self, num_bytes: int) -> bool:
        """Whether it can be that of a tar of so many bytes."""
        shape, there = (len(self.key_ends), len(self.endings)), self.offsets >= 0
        starts = np.concatenate([np.zeros(1, np.int64), self.key_ends[:-1]])
        return bool(
            [array.dtype for array in (self.keys, self.key_ends, self.offsets, self.sizes)]
            == [np.uint8, np.int64, np.int64, np.int64]
            and self.keys.ndim == self.key_ends.ndim == 1
            and self.offsets.shape == self.sizes.shape == shape
            and min(shape) > 0
            and (self.key_ends > starts).all()
            and self.key_ends[-1] == len(self.keys)
            and (self.keys[starts] & 0xC0 != 0x80).all()  # keys begin where a letter begins
            and self.keys.tobytes().decode()
            and there.any(axis=1).all()
            and ((self.offsets >= BLOCK) == there).all()
            and ((self.sizes >= 0) == there).all()
            and (self.sizes[there] <= num_bytes - self.offsets[there]).all()
        )

    @classmethod
    def scanned(cls, tar: Path) -> "ShardIndex":
        """Made from the headers of a tar.

        Raises:
            UnreadableError: see `files_in`; or a name is there twice, or there is no sample.
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
                    raise UnreadableError(f"{tar}/{file.name}: is there a second time")
                if len(columns) > MOST_ENDINGS:
                    many = f"more than {MOST_ENDINGS} different endings: {first_few(list(columns))}"
                    raise UnreadableError(f"{tar}: {many}; are there dots in the keys?")
                places[cell] = file.offset, file.size
        if not rows:
            raise UnreadableError(f"{tar}: there is no sample in it")
        if nameless:
            log.warning("%s: ignored files without a key or an ending: %s", tar, first_few(nameless))
        keys = [key.encode() for key in rows]
        table = np.full((2, len(rows), len(columns)), -1, np.int64)
        table[(slice(None), *np.array(list(places)).T)] = np.array(list(places.values())).T
        blob, ends = np.frombuffer(b"".join(keys), np.uint8), np.cumsum([len(key) for key in keys], dtype=np.int64)
        return cls(blob, ends, tuple(columns), *table)


class TarShards:
    """The samples of some tars, one tar after the other.

    Args:
        tars: those.

    Raises:
        UnreadableError: one of them is damaged, or holds no sample.
    """

    def __init__(self, tars: Sequence[Path]) -> None:
        self.tars = list(tars)
        unkept: list[OSError] = []
        self.indices = [_index_of(tar, unkept) for tar in self.tars]
        self.ends = np.cumsum([len(index) for index in self.indices])
        if unkept:
            reason = f"cannot be kept there ({unkept[0].strerror}); they are made anew by each process"
            log.warning("%s: the indices of %d of %d tars %s", tars[0].parent, len(unkept), len(tars), reason)

    @property
    def endings(self) -> set[str]:
        """Of all files in them."""
        return {f".{ending}" for index in self.indices for ending in index.endings}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> ShardSample:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return self.indices[shard].sample(self.tars[shard], index - int(self.ends[shard]) + len(self.indices[shard]))


def _index_of(tar: Path, unkept: list[OSError]) -> ShardIndex:
    """The index beside a tar; made where there is none that fits."""
    refuse_special(tar)
    path = tar.with_name(f"{tar.name}.index.npz")
    try:
        found = tar.stat()
        kept = _kept(path, found)
        if kept is not None:
            return kept
        index = ShardIndex.scanned(tar)
    except OSError as error:
        raise UnreadableError(f"{tar}: {error.strerror}") from error
    try:
        _keep(index, path, found)
    except OSError as error:
        unkept.append(error)
    return index


def _kept(path: Path, tar: os.stat_result) -> ShardIndex | None:
    """The index in a file; None where there is none, or it is damaged, or that of another tar."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if arrays["tar"].tolist() != [tar.st_size, tar.st_mtime_ns]:
                return None
            endings = json.loads(arrays["endings"].tobytes())
            index = ShardIndex(endings=tuple(map(str, endings)), **{name: arrays[name] for name in ARRAYS})
        return index if index.fits(tar.st_size) else None
    except Exception:  # a damaged file raises nearly anything
        return None


ARRAYS = ("keys", "key_ends", "offsets", "sizes")


def _keep(index: ShardIndex, path: Path, tar: os.stat_result) -> None:
    """Write an index for all processes to find: whole, or not at all."""
    arrays: dict[str, Any] = {name: getattr(index, name) for name in ARRAYS}
    arrays["endings"] = np.frombuffer(json.dumps(index.endings).encode(), np.uint8)
    arrays["tar"] = np.array([tar.st_size, tar.st_mtime_ns])
    written = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with written.open("xb") as file:
            np.savez(file, **arrays)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
