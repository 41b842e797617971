"""Writes any samples into tars that `perceiver.data.sources.shards` reads.

Files are copied unchanged. Values in memory are written without loss: images as PNG with 8 bits per channel, sounds as
WAV with 32-bit floats at their sample rate.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO

import soundfile
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from perceiver.data.dataset import Split
from perceiver.data.files import (
    IMAGES,
    SOUNDS,
    File,
    FileKind,
    FramePair,
    Joined,
    Segmented,
    UnreadableError,
    first_few,
)
from perceiver.data.sampler import fold_in
from perceiver.data.sources.base import Part
from perceiver.types import Stage

TARGETS = ("label", "tags", "references")
"""The targets that shards contain."""


@dataclass(frozen=True)
class ShardRecord:
    """A sample as it is written.

    Attributes:
        id: where it comes from.
        files: ending, without the dot -> content.
        kinds: of its files: `image`, `sound` or both.
        targets: names of the targets that are written.
        dropped: names of those that are not.
    """

    id: str
    files: dict[str, bytes]
    kinds: tuple[str, ...]
    targets: tuple[str, ...]
    dropped: tuple[str, ...]


class ShardRecords(Dataset[ShardRecord | UnreadableError]):
    """The records of a split, by index; an unreadable sample gives its error.

    Args:
        split: the samples; readers that augment and crop are used only to check them.
        sample_rate: of sounds in memory.
        check: whether files are read before they are copied.
    """

    def __init__(self, split: Split, *, sample_rate: int, check: bool) -> None:
        self.split = split
        self.sample_rate = sample_rate
        self.check = check

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> ShardRecord | UnreadableError:
        """Return a record; random values are those of the first epoch of a run with seed 0.

        Raises:
            ValueError: shards cannot contain such a sample.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_in(0, 0, index))
            try:
                return self._record(index)
            except UnreadableError as error:
                return error

    def _record(self, index: int) -> ShardRecord:
        item = self.split.items[index]
        if self.check:
            self.split.dataset.sample(item, train=self.split.train)
        files, kinds = dict[str, bytes](), list[str]()
        for role, reader in self.split.dataset.readers.items():
            if role in item.parts:
                if reader.kind not in (IMAGES, SOUNDS):
                    raise ValueError(f"{item.id}: shards contain images and sounds, not {reader.kind.name}s")
                ending, content = self._file(item.parts[role], reader.kind)
                files[ending] = content
                kinds.append(reader.kind.name)
        targets = {name: item.targets[name] for name in TARGETS if name in item.targets}
        if "label" in targets:
            files["cls"] = b"%d" % targets["label"]
        if "tags" in targets:
            files["json"] = json.dumps({"tags": targets["tags"].nonzero().flatten().tolist()}).encode()
        if "references" in targets:
            files["txt"] = "".join(f"{text}\n" for text in targets["references"]).encode()
        dropped = item.targets.keys() - {*targets, "caption"}
        return ShardRecord(item.id, files, tuple(kinds), tuple(targets), tuple(dropped))

    def _file(self, part: Part, kind: FileKind) -> tuple[str, bytes]:
        """Return the ending, without the dot, and the content of a part as a file."""
        if isinstance(part, Tensor):
            return ("png", _png(part)) if kind is IMAGES else ("wav", _wav(part, self.sample_rate))
        if isinstance(part, str):
            raise ValueError(f"{part[:40]!r}: shards contain images and sounds, not texts")
        if isinstance(part, Segmented):
            raise ValueError(f"{part.image}: shards contain images and sounds, not masks")
        if isinstance(part, FramePair):
            raise ValueError(f"{part.first}: shards contain images and sounds, not frame pairs")
        if isinstance(part, Joined):
            raise ValueError(f"{part.files[0]}: shards contain sounds in one file, not in {len(part.files)}")
        ending = os.path.splitext(str(part))[1].lower()
        if ending not in kind.endings:
            raise UnreadableError(f"{part}: its ending is not that of {'an' if kind is IMAGES else 'a'} {kind.name}")
        return ending[1:], _read(part)


def _read(file: File) -> bytes:
    try:
        with file.open("rb") as raw:
            return raw.read()
    except OSError as error:
        raise UnreadableError(f"{file}: {error.strerror}") from error


def _png(values: UInt8[Tensor, "channels height width"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _wav(values: Float[Tensor, "1 length"], sample_rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, values[0].numpy(), sample_rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


class ShardWriter:
    """Writes tars to a folder under temporary names, which `finish` replaces once all are complete.

    Args:
        out: the folder; created if it does not exist.
        samples_per_shard: largest number of samples in a tar.

    Raises:
        ValueError: the folder contains tars, or cannot be created.
    """

    def __init__(self, out: Path, *, samples_per_shard: int) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
        self.out = out
        self.samples_per_shard = samples_per_shard
        self.final_paths: dict[Path, Path] = {}
        """Temporary -> final path of each file."""
        self.counts: dict[Stage, int] = {}
        """Number of samples of each stage so far."""
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out={out}: {error.strerror}") from error
        if found := sorted([*out.glob("*.tar"), *out.glob("*/*.tar")]):
            raise ValueError(f"out={out}: already contains shards: {first_few([path.name for path in found])}")

    def write(self, stage: Stage, records: Iterable[ShardRecord]) -> None:
        """Write the tars of a stage."""
        for number, group in groupby(enumerate(records), lambda numbered: numbered[0] // self.samples_per_shard):
            with self._create(f"{stage}-{number:06d}.tar") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for index, record in group:
                        for ending, content in record.files.items():
                            entry = tarfile.TarInfo(f"{shard_key(index, record.id)}.{ending}")
                            entry.size = len(content)
                            tar.addfile(entry, io.BytesIO(content))
                        self.counts[stage] = index + 1
                _sync(file)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self._create(name) as file:
            file.write(text.encode())
            _sync(file)

    def finish(self) -> None:
        """Rename all files to their final names."""
        for temporary, path in self.final_paths.items():
            temporary.replace(path)
        self.final_paths = {}
        folder = os.open(self.out, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def abandon(self) -> None:
        """Remove all files that do not have their final names."""
        for temporary in self.final_paths:
            temporary.unlink(missing_ok=True)
        self.final_paths = {}

    def _create(self, name: str) -> IO[bytes]:
        temporary = self.out / f".{name}.part"
        self.final_paths[temporary] = self.out / name
        return temporary.open("wb")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def shard_key(index: int, id: str) -> str:
    """Return a key that is unique in its stage and contains the name of the original file."""
    stem = os.path.splitext(os.path.basename(id))[0]
    return f"{index:08d}_{re.sub('[^0-9A-Za-z]+', '-', stem).strip('-')[:40]}".rstrip("_")
