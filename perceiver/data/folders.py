"""Files in class folders, as ImageNet and most home-made data sets are stored.

Layouts (`<class>` may hold sub-folders):

    root/train/<class>/*   root/val/<class>/*   root/test/<class>/*      any of val and test may be missing
    root/<class>/*                                                       split by the names of the files (`HeldOut`)

The folder of a stage is one whose name has a word for it: `train`, `Training`, `seg_train`, `test_images`. `eval` is
for validation, or for testing where there is another folder for validation. Without a test folder the validation folder
is the test set, as is usual for ImageNet. Without a validation folder a share of the training files is kept for
validation. Where a folder holds nothing but one other, as unpacked archives do, that one is meant. Hidden files and
folders, and those that operating systems leave, are left alone.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from perceiver.data.base import HeldOut
from perceiver.data.characters import STRAY
from perceiver.types import Stage, writable

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


@dataclass(frozen=True)
class LabelledFiles:
    """Files with their labels; plain strings, because a million paths fill the memory of every worker."""

    paths: list[str]
    labels: list[int]


class ClassFolders:
    """Class folders on disk; a class is a folder, its label the folder's place in sorted order.

    Args:
        root: the folder that holds them.
        num_classes: how many class folders there must be.
        held_out: which files are for validation and testing where there are no folders for these.
        extensions: endings of the files that count, in lower case; others are left out, and warned of.
        kind: what such a file is called in messages.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        held_out: HeldOut,
        extensions: Collection[str],
        kind: str,
    ) -> None:
        self.root = Path(root).expanduser()
        self.num_classes = num_classes
        self.held_out = held_out
        self.extensions = extensions
        self.kind = kind
        self._scanned: dict[Path, LabelledFiles] = {}

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the class folders.

        Raises:
            FileNotFoundError: there are none.
            ValueError: there are not `num_classes` of them.
        """
        names = class_folders(self.root)
        if len(names) != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {self.root} has {len(names)} class folders: {first_few(names)}"
            )
        top = class_root(self.root)
        if self._stages:
            self._tell_of_loose(top)
        else:
            _tell_of_doubtful_classes([top / name for name in names])
        return names

    @cached_property
    def _stages(self) -> dict[Stage, Path]:
        return stage_folders(self.root)

    def _tell_of_loose(self, folder: Path) -> None:
        """Warn of files that are beside the folders in which they would count."""
        there = (path.name for path in folder.iterdir() if path.suffix.lower() in self.extensions and path.is_file())
        if loose := sorted(name for name in there if not _is_left_alone(name)):
            message = "%s: %d %s%s in no class folder, so without a label, left out: %s"
            log.warning(message, folder, len(loose), self.kind, "s"[: len(loose) != 1], writable(first_few(loose)))

    def files(self, stage: Stage) -> LabelledFiles | None:
        """The files of a stage, or None if it has none.

        Raises:
            FileNotFoundError: a folder is missing, or holds no file of the kind.
            ValueError: the folders are not those of the classes, or a fraction is none.
        """
        folders = self._stages
        if not folders:
            return self._subset(self._scan(class_root(self.root)), self._parts[stage])
        if stage == "test":
            folder = folders.get("test", folders.get("val"))
            return None if folder is None else self._scan_labelled(folder)
        if "val" in folders:
            return self._scan(folders[stage])
        files = self._scan(folders["train"])
        train, val = self.held_out.without_test(self._names(files))
        return self._subset(files, train if stage == "train" else val)

    @cached_property
    def _parts(self) -> dict[Stage, list[int]]:
        """The files of each stage, where there are no folders for stages."""
        return self.held_out.parts(self._names(self._scan(class_root(self.root))))

    def _names(self, files: LabelledFiles) -> list[str]:
        return [os.path.relpath(path, self.root) for path in files.paths]

    def _subset(self, files: LabelledFiles, indices: Sequence[int]) -> LabelledFiles | None:
        return LabelledFiles([files.paths[i] for i in indices], [files.labels[i] for i in indices]) if indices else None

    def _scan_labelled(self, folder: Path) -> LabelledFiles | None:
        """The files of a test folder, or None, with a warning, where they are in no class folders."""
        if not _subfolders(folder) and any(path.suffix.lower() in self.extensions for path in folder.iterdir()):
            log.warning("%s: %ss without class folders, so without labels; there is no test set", folder, self.kind)
            return None
        return self._scan(folder)

    def _scan(self, folder: Path) -> LabelledFiles:
        """All files below the class folders of `folder`, in sorted order; read from disk once."""
        if folder not in self._scanned:
            self._scanned[folder] = self._list(folder)
        return self._scanned[folder]

    def _list(self, folder: Path) -> LabelledFiles:
        unknown = [path.name for path in _subfolders(folder) if path.name not in self.class_names]
        if unknown:
            raise ValueError(f"{folder}: class folder {unknown[0]!r} is not among the training classes")
        self._tell_of_loose(folder)
        files, ignored = LabelledFiles([], []), Counter[str]()
        for label, name in enumerate(self.class_names):
            for path in files_below(folder / name) if (folder / name).is_dir() else ():
                suffix = os.path.splitext(path)[1].lower()
                if suffix in self.extensions:
                    files.paths.append(path)
                    files.labels.append(label)
                else:
                    ignored[suffix or os.path.basename(path)] += 1
        if ignored:
            kinds = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(5))
            log.warning("%s: ignored files that are not %ss: %s", folder, self.kind, kinds)
        if not files.paths:
            endings = " ".join(sorted(self.extensions))
            raise FileNotFoundError(f"{folder}: no {self.kind} with one of the endings {endings} in it")
        present = set(files.labels)
        empty = [name for label, name in enumerate(self.class_names) if label not in present]
        if empty:
            log.warning("%s: no %s of %s", folder, self.kind, first_few(empty))
        return files


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"root={folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_left_alone(path.name))


def _is_left_alone(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND | LEFT_BEHIND_FILES


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder in sorted order, but for those that are left alone; errors as in `walk`."""
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_alone(name))
        yield from (os.path.join(parent, name) for name in sorted(names) if not _is_left_alone(name))


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


def first_few(names: Sequence[str]) -> str:
    """Names for a message: five at most."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def class_root(folder: Path) -> Path:
    """The folder that holds class or stage folders: this one, or the only one that is in it, and so on."""
    inner = _only_folder(folder)
    words = [*EITHER, *chain(*STAGE_WORDS.values())]
    return folder if inner is None or not _subfolders(inner) or _named([inner], words) else class_root(inner)


def _only_folder(folder: Path) -> Path | None:
    """What a folder holds, if that is one folder and nothing else."""
    there = [path for path in folder.iterdir() if not _is_left_alone(path.name)] if folder.is_dir() else []
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
    folders = _subfolders(class_root(root))
    spelled = {stage: _named(folders, words) for stage, words in STAGE_WORDS.items()}
    either = [folder for folder in _named(folders, EITHER) if not any(folder in paths for paths in spelled.values())]
    if either:
        spelled["test" if spelled["val"] and not spelled["test"] else "val"] += either
    found: dict[Stage, Path] = {stage: _unpacked(paths[0]) for stage, paths in spelled.items() if paths}
    of_stages = [path for paths in spelled.values() for path in paths]
    if "train" in found and not _subfolders(found["train"]) and len(of_stages) < len(folders):
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


def _tell_of_doubtful_classes(folders: Sequence[Path]) -> None:
    """Warn where what is taken for classes may be stages, of which none is recognised as that to train on."""
    words = {*EITHER, *chain(*STAGE_WORDS.values())}
    if like_stages := [path.name for path in folders if path.name.lower() in words]:
        message = "%s: taken for classes: %s; they are stages only where one called train has class folders in it"
        log.warning(message, folders[0].parent, first_few(like_stages))
        return
    inner = [{path.name for path in _subfolders(folder)} for folder in folders]
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
    names = [path.name for path in _subfolders(top)]
    if strange := [name for name in names if STRAY.search(name)]:
        raise ValueError(f"root={root}: the name of the class folder {strange[0]!r} is no text in UTF-8")
    if not names:
        inside = "" if top == root else f" (in its folder {top.relative_to(root)})"
        raise FileNotFoundError(f"root={root}: no class folders in it{inside}; each class needs a folder of its own")
    return names
