"""The files that samples are read from: kinds, names, and the error for a file that cannot be read."""

import logging
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Literal, Protocol

from torch import Tensor

from perceiver.types import utf8_safe

CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters other than white space, and unpaired surrogates, which JSON can hold; not valid in any text."""
MAX_NAME, MAX_PATH = 255, 4095
"""Largest number of bytes in a file name and in a path; the file system raises for longer ones."""

log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: used in messages.
        endings: in lower case; they select the files of a folder. Whether a file is of the kind is only known when it
            is read.
    """

    name: str
    endings: frozenset[str]

    def has(self, name: str) -> bool:
        """Return whether a file name has one of the endings."""
        return PurePath(name).suffix.lower() in self.endings


IMAGES = FileKind("image", frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}))
VIDEOS = FileKind(
    "video",
    frozenset(
        {".mp4", ".m4v", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
    ),
)
SOUNDS = FileKind(
    "sound",
    frozenset(
        {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64"}
        | {".m4a", ".aac", ".mka", ".wma"}
        | VIDEOS.endings  # their sound
    ),
)
TEXTS = FileKind("text", frozenset({".txt"}))
ARRAYS = FileKind("array", frozenset({".npy"}))
LABELS = FileKind("label", frozenset())
FLOWS = FileKind("flow", frozenset({".flo", ".png"}))


def warn_once(kind: str, message: str) -> None:
    """Log a warning about a file, once per process and kind of problem: many files may share it."""
    if kind not in _warned:
        _warned.add(kind)
        log.warning("%s (further warnings of this kind are suppressed)", message)


class UnreadableError(Exception):
    """A sample cannot be read; the message names the file and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(utf8_safe(message))


class AbsentError(UnreadableError):
    """A file has nothing of the modality that is read from it, as a video without sound."""


class File(Protocol):
    """A file or a part of one, such as a member of a tar; errors name it by its `str`."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


@dataclass(frozen=True)
class Segment:
    """A part of a recording, from `start` to `stop` in seconds; a `File` of its own."""

    file: File
    start: float
    stop: float

    def __str__(self) -> str:
        return f"{self.file} {self.start:g}-{self.stop:g} s"

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        return self.file.open(mode)


@dataclass(frozen=True)
class Joined:
    """Recordings that are read as one, with silence before, between and after them, in seconds."""

    files: tuple[File, ...]
    pauses: tuple[float, ...]

    def __str__(self) -> str:
        return first_few([str(file) for file in self.files])


@dataclass(frozen=True)
class Segmented:
    """An image and its mask, the class of each pixel: files, or tensors [channels, height, width], [height, width]."""

    image: File | Tensor
    mask: File | Tensor


@dataclass(frozen=True)
class FramePair:
    """Two consecutive frames, and the flow from the first to the second, if it is known.

    Frames are image files or tensors [channels, height, width] of bytes; flow is a file or a tensor [2, height, width].
    """

    first: File | Tensor
    second: File | Tensor
    flow: File | Tensor | None = None


def following(path: Path) -> Path:
    """Return the file of the frame after another one, whose last number is one more, whether or not it exists.

    So are named those of FlyingChairs (`00001_img1.ppm`), Sintel (`frame_0001.png`), KITTI (`000000_10.png`) and
    AutoFlow (`im0.png`).

    Raises:
        UnreadableError: the name has no number.
    """
    numbers = list(re.finditer(r"[0-9]+", path.stem))
    if not numbers:
        raise UnreadableError(f"{path}: has no number in its name, by which the frame after it is found")
    start, end = numbers[-1].span()
    number = str(int(path.stem[start:end]) + 1).zfill(end - start)
    return path.with_name(path.stem[:start] + number + path.stem[end:] + path.suffix)


def refuse_special(file: File) -> None:
    """Raise if a file is a pipe or a device, from which reading might never end; opening finds all other problems.

    Raises:
        UnreadableError: it is one.
    """
    if not isinstance(file, Path):
        return
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableError(f"{file}: a pipe or a device, not a regular file")


def is_file_name(name: str) -> bool:
    """Return whether a relative path can name a file below a folder: not the folder itself, nothing outside of it."""
    path = PurePath(name)
    if path.anchor or ".." in path.parts or not path.parts or CONTROL_CHARACTERS.search(name):
        return False
    return len(name.encode()) <= MAX_PATH and all(len(part.encode()) <= MAX_NAME for part in path.parts)


def first_few(names: Sequence[str]) -> str:
    """Return at most five names for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
