"""Any samples -> tars that `perceiver.data.sources.shards` reads.

Files are copied as they are. What lies in memory is written without loss: images as PNG with 8 bits a channel, sounds
as WAV with floats of 32 bits at their sample rate.
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
from perceiver.data.files import IMAGES, SOUNDS, File, FileKind, UnreadableError
from perceiver.data.sampler import fold_in
from perceiver.data.sources.base import Part
from perceiver.data.text_checks import first_few
from perceiver.types import Stage

TOLD = ("label", "tags", "references")
"""Targets that shards keep."""


@dataclass(frozen=True)
class Packed:
    """A sample as it is written.

    Attributes:
        id: where it comes from.
        files: ending, without the dot -> content.
        kinds: what it is: `image`, `sound` or both.
        told: which of its targets are kept.
        not_kept: those that are not.
    """

    id: str
    files: dict[str, bytes]
    kinds: tuple[str, ...]
    told: tuple[str, ...]
    not_kept: tuple[str, ...]


class Packing(Dataset[Packed | UnreadableError]):
    """The samples of a split, by index, as they are written; what cannot be read is an error among them.

    Args:
        split: the samples; readers that augment and cut are only asked to check.
        sample_rate: of the sounds that lie in memory.
        check: whether files are read before they are copied.
    """

    def __init__(self, split: Split, *, sample_rate: int, check: bool) -> None:
        self.split = split
        self.sample_rate = sample_rate
        self.check = check

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Packed | UnreadableError:
        """What is random is as in the first epoch of a run with seed 0.

        Raises:
            ValueError: it is no sample that shards can hold.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_in(0, 0, index))
            try:
                return self._packed(index)
            except UnreadableError as error:
                return error

    def _packed(self, index: int) -> Packed:
        item = self.split.items[index]
        if self.check:
            self.split.dataset.sample(item, train=self.split.train)
        contents, kinds = dict[str, bytes](), list[str]()
        for role, reader in self.split.dataset.readers.items():
            if role in item.parts:
                if reader.kind not in (IMAGES, SOUNDS):
                    raise ValueError(f"{item.id}: shards hold images and sounds, and no {reader.kind.name}")
                ending, content = self._content(item.parts[role], reader.kind)
                contents[ending] = content
                kinds.append(reader.kind.name)
        told = {name: item.targets[name] for name in TOLD if name in item.targets}
        if "label" in told:
            contents["cls"] = b"%d" % told["label"]
        if "tags" in told:
            contents["json"] = json.dumps({"tags": told["tags"].nonzero().flatten().tolist()}).encode()
        if "references" in told:
            contents["txt"] = "".join(f"{text}\n" for text in told["references"]).encode()
        not_kept = item.targets.keys() - {*told, "caption"}
        return Packed(item.id, contents, tuple(kinds), tuple(told), tuple(not_kept))

    def _content(self, part: Part, kind: FileKind) -> tuple[str, bytes]:
        """A part as a file: its ending, without the dot, and what is in it."""
        if isinstance(part, Tensor):
            return ("png", _png(part)) if kind is IMAGES else ("wav", _wav(part, self.sample_rate))
        if isinstance(part, str):
            raise ValueError(f"{part[:40]!r}: shards hold images and sounds, and no texts")
        ending = os.path.splitext(str(part))[1].lower()
        if ending not in kind.endings:
            raise UnreadableError(f"{part}: its ending is not that of {'an' if kind is IMAGES else 'a'} {kind.name}")
        return ending[1:], _bytes_of(part)


def _bytes_of(file: File) -> bytes:
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
    """Tars in a folder, which have their names only when all are whole.

    Args:
        out: the folder; it is made where it is not there.
        samples_per_shard: most samples in one.

    Raises:
        ValueError: there are tars in it, or it cannot be made.
    """

    def __init__(self, out: Path, *, samples_per_shard: int) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
        self.out = out
        self.samples_per_shard = samples_per_shard
        self.written: dict[Path, Path] = {}
        self.counts: dict[Stage, int] = {}
        """Samples of each stage so far."""
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out={out}: {error.strerror}") from error
        if there := sorted([*out.glob("*.tar"), *out.glob("*/*.tar")]):
            raise ValueError(f"out={out}: there are shards already: {first_few([path.name for path in there])}")

    def write(self, stage: Stage, samples: Iterable[Packed]) -> None:
        """Write the tars of a stage, under other names."""
        for number, group in groupby(enumerate(samples), lambda numbered: numbered[0] // self.samples_per_shard):
            with self._file(f"{stage}-{number:06d}.tar") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for place, sample in group:
                        _add(tar, key_of(place, sample.id), sample.files)
                        self.counts[stage] = place + 1
                _sync(file)

    def write_text(self, name: str, text: str) -> None:
        """Write a file, under another name."""
        with self._file(name) as file:
            file.write(text.encode())
            _sync(file)

    def finish(self) -> None:
        """Give all files their names."""
        for written, path in self.written.items():
            written.replace(path)
        self.written = {}
        folder = os.open(self.out, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def abandon(self) -> None:
        """Remove what has no name yet."""
        for written in self.written:
            written.unlink(missing_ok=True)
        self.written = {}

    def _file(self, name: str) -> IO[bytes]:
        written = self.out / f".{name}.part"
        self.written[written] = self.out / name
        return written.open("wb")


def _add(tar: tarfile.TarFile, key: str, files: dict[str, bytes]) -> None:
    for ending, content in files.items():
        entry = tarfile.TarInfo(f"{key}.{ending}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def key_of(number: int, id: str) -> str:
    """A key that no other sample of the stage has, and that reminds of where it comes from."""
    stem = os.path.splitext(os.path.basename(id))[0]
    return f"{number:08d}_{re.sub('[^0-9A-Za-z]+', '-', stem).strip('-')[:40]}".rstrip("_")
