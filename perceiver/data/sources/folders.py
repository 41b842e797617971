"""Folders of files: walking through them, and which of them are for training, validation and testing.

The folder of a stage is one whose name has a word for it: `train`, `Training`, `seg_train`, `test_images`. `eval` is
for validation, or for testing where there is another folder for validation. Where a folder holds nothing but one other,
as unpacked archives do, that one is meant. Hidden files and folders, and those that operating systems leave, are left
alone.
"""

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

from perceiver.data.text_checks import STRAY, first_few
from perceiver.types import Stage

STAGE_WORDS: dict[Stage, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
EITHER = ("eval", "evaluation")
"""Words for validation or testing, whichever lacks a folder."""
LEFT_BEHIND = frozenset(
    {"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "__pycache__"}
)
"""Folders that operating systems and archives leave, in lower case."""
LEFT_BEHIND_FILES = frozenset({"thumbs.db", "desktop.ini"})

log = logging.getLogger(__name__)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but for those that are left alone.

    Raises:
        FileNotFoundError: it is not a folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"root={folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_left_alone(path.name))


def is_left_alone(name: str) -> bool:
    """Whether a file or folder is hidden, or left by an operating system."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND | LEFT_BEHIND_FILES


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder in sorted order, but for those that are left alone; errors as in `walk`."""
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not is_left_alone(name))
        yield from (os.path.join(parent, name) for name in sorted(names) if not is_left_alone(name))


def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` into links, too.

    Raises:
        PermissionError: a folder may not be read.
        ValueError: a link leads back to a folder that it is in, below which there is no end.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(top, followlinks=True, onerror=fail):
        links = (path for name in folders if os.path.islink(path := os.path.join(parent, name)))
        if link := next((path for path in links if _is_below(parent, os.path.realpath(path))), None):
            raise ValueError(f"{link}: a link to a folder that it is in itself")
        yield parent, folders, names


def _is_below(path: str, top: str) -> bool:
    whole = os.path.realpath(path)
    return os.path.commonpath([whole, top]) == top


def class_root(folder: Path) -> Path:
    """The folder that holds class or stage folders: this one, or the only one that is in it, and so on."""
    inner = _only_folder(folder)
    words = [*EITHER, *chain(*STAGE_WORDS.values())]
    return folder if inner is None or not subfolders(inner) or _named([inner], words) else class_root(inner)


def _only_folder(folder: Path) -> Path | None:
    """What a folder holds, if that is one folder and nothing else."""
    there = [path for path in folder.iterdir() if not is_left_alone(path.name)] if folder.is_dir() else []
    return there[0] if len(there) == 1 and there[0].is_dir() and not there[0].is_symlink() else None


def _unpacked(folder: Path) -> Path:
    """The folder of a stage, or the only one in it where that is called alike."""
    inner = _only_folder(folder)
    return inner if inner is not None and inner.name == folder.name else folder


def stage_folders(root: Path) -> dict[Stage, Path]:
    """The train, val and test folders under `root`; none if it holds class folders directly.

    Raises:
        FileNotFoundError: there are folders for val or test only, and none to train on.
        ValueError: there are two for one stage.
    """
    folders = subfolders(class_root(root))
    spelled = {stage: _named(folders, words) for stage, words in STAGE_WORDS.items()}
    either = [folder for folder in _named(folders, EITHER) if not any(folder in paths for paths in spelled.values())]
    if either:
        spelled["test" if spelled["val"] and not spelled["test"] else "val"] += either
    found: dict[Stage, Path] = {stage: _unpacked(paths[0]) for stage, paths in spelled.items() if paths}
    of_stages = [path for paths in spelled.values() for path in paths]
    if "train" in found and not subfolders(found["train"]) and len(of_stages) < len(folders):
        return {}  # it is a class that is called so
    if found and "train" not in found and len(of_stages) == len(folders):
        names = " and ".join(path.name for path in folders)
        raise FileNotFoundError(f"root={root}: a folder {names}, but none called train")
    if "train" not in found:
        return {}
    for stage, paths in spelled.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise ValueError(f"root={root}: the folders {both} are both for {stage}")
    if others := [path.name for path in folders if path not in of_stages]:
        log.warning("%s: left alone beside the folders of train, val and test: %s", root, first_few(others))
    return found


def tell_of_doubtful_classes(folders: Sequence[Path]) -> None:
    """Warn where what is taken for classes may be stages, of which none is recognised as that to train on."""
    words = {*EITHER, *chain(*STAGE_WORDS.values())}
    if like_stages := [path.name for path in folders if path.name.lower() in words]:
        message = "%s: taken for classes: %s; they are stages only where one called train has class folders in it"
        log.warning(message, folders[0].parent, first_few(like_stages))
        return
    inner = [{path.name for path in subfolders(folder)} for folder in folders]
    if len(inner) > 1 and inner[0] and all(names == inner[0] for names in inner):
        message = "%s: taken for classes: %s; each has the folders %s: if these are the classes, call the others %s"
        both = first_few([path.name for path in folders]), first_few(sorted(inner[0]))
        log.warning(message, folders[0].parent, *both, "train, val and test")


def _named(folders: Sequence[Path], words: Collection[str]) -> list[Path]:
    """The folders whose names are one of the words or, if there are none, have one of them in it."""
    exact = [path for path in folders if path.name.lower() in words]
    return exact or [path for path in folders if set(re.split("[^a-z]+", path.name.lower())) & set(words)]


def class_folders(root: Path) -> list[str]:
    """Names of the classes under `root`, sorted.

    Raises:
        FileNotFoundError: `root` is not a folder or has no class folders.
        ValueError: the name of one cannot be written down.
    """
    root = root.expanduser()
    top = stage_folders(root).get("train") or class_root(root)
    names = [path.name for path in subfolders(top)]
    if strange := [name for name in names if STRAY.search(name)]:
        raise ValueError(f"root={root}: the name of the class folder {strange[0]!r} is no text in UTF-8")
    if not names:
        inside = "" if top == root else f" (in its folder {top.relative_to(root)})"
        raise FileNotFoundError(f"root={root}: no class folders in it{inside}; each class needs a folder of its own")
    return names
