"""Any samples -> tars that `perceiver.data.shards` reads.

Samples that are files are copied as they are. Others are written without loss, as they are without what is random in
training: images as PNG with 8 bits a channel, sounds as WAV with floats of 32 bits at their sample rate.
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
from typing import IO, Any

import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from perceiver.data.base import FileSplit, Split, UnreadableError
from perceiver.data.folders import first_few
from perceiver.data.images import EXTENSIONS
from perceiver.data.sampler import mix
from perceiver.data.sound_file import SOUND_EXTENSIONS
from perceiver.types import Stage

TOLD = ("label", "tags", "references")
"""Targets that shards keep."""


@dataclass(frozen=True)
class Packed:
    """A sample as it is written.

    Attributes:
        id: where it comes from.
        files: ending, without the dot -> content.
        modality: what it is: `image` or `audio`.
        told: which of its targets are kept.
        not_kept: those that are not.
    """

    id: str
    files: dict[str, bytes]
    modality: str
    told: tuple[str, ...]
    not_kept: tuple[str, ...]


class Packing(Dataset[Packed | UnreadableError]):
    """The samples of a split, by index, as they are written; what cannot be read is an error among them.

    Args:
        split: of a data set that augments nothing, and cuts nothing out of its sounds.
        sample_rate: of the sounds that are made.
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
            torch.default_generator.manual_seed(mix(0, 0, index))
            try:
                return self._file(self.split, index) if isinstance(self.split, FileSplit) else self._made(index)
            except UnreadableError as error:
                return error

    def _file(self, split: FileSplit, index: int) -> Packed:
        source, targets = split.file(index)
        ending = os.path.splitext(str(source))[1].lower()
        if ending not in EXTENSIONS | SOUND_EXTENSIONS:
            raise UnreadableError(f"{source}: its ending is neither that of an image nor that of a sound")
        if self.check:
            self.split[index]
        try:
            with source.open("rb") as file:
                content = file.read()
        except OSError as error:
            raise UnreadableError(f"{source}: {error.strerror}") from error
        modality = "image" if ending in EXTENSIONS else "audio"
        return _packed(str(source), {ending[1:]: content}, modality, targets)

    def _made(self, index: int) -> Packed:
        sample = self.split[index]
        (modality, values), *more = sample.inputs.items()
        if more or sample.views or modality not in ("image", "audio"):
            there = ", ".join(sample.inputs)
            raise ValueError(f"{sample.id}: shards hold one image or one sound a sample, and this is {there}")
        if modality == "image":
            return _packed(sample.id, {"png": _png(values)}, modality, sample.targets)
        return _packed(sample.id, {"wav": _wav(values, self.sample_rate)}, modality, sample.targets)


def _packed(id: str, files: dict[str, bytes], modality: str, targets: dict[str, Any]) -> Packed:
    told = {name: targets[name] for name in TOLD if name in targets}
    if "label" in told:
        files["cls"] = b"%d" % told["label"]
    if "tags" in told:
        files["json"] = json.dumps({"tags": told["tags"].nonzero().flatten().tolist()}).encode()
    if "references" in told:
        files["txt"] = "".join(f"{text}\n" for text in told["references"]).encode()
    return Packed(id, files, modality, tuple(told), tuple(targets.keys() - {*told, "caption"}))


def _png(values: Tensor) -> bytes:
    pixels = (255.0 * values).round().byte()
    file = io.BytesIO()
    Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _wav(values: Tensor, sample_rate: int) -> bytes:
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
