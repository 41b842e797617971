"""The files that samples are read from: what they are, and the error of one that cannot be read."""

import logging
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Literal, Protocol

from perceiver.types import utf8_safe

log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: what one is called in messages.
        endings: by which such files are found in a folder, in lower case; whether they are of the kind, their content
            tells when they are read.
    """

    name: str
    endings: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether a file is called like one of the kind."""
        return PurePath(name).suffix.lower() in self.endings


IMAGES = FileKind("image", frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}))
SOUNDS = FileKind(
    "sound",
    frozenset(
        {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64"}
    ),
)
TEXTS = FileKind("text", frozenset({".txt"}))
ARRAYS = FileKind("array", frozenset({".npy"}))


def warn_once(kind: str, message: str) -> None:
    """Warn of a file, once in this process for each kind of fault: many files of a data set may have the same."""
    if kind not in _told:
        _told.add(kind)
        log.warning("%s (said once; others may be of its kind)", message)


class UnreadableError(Exception):
    """A sample cannot be read; the message names the file and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(utf8_safe(message))


class File(Protocol):
    """A file, or a part of one, such as a member of a tar; errors name it by its `str`."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


def refuse_special(file: File) -> None:
    """Refuse pipes and devices, on which reading might wait or go on for ever; whatever else is wrong, opening tells.

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
        raise UnreadableError(f"{file}: a pipe or a device, and no file")
