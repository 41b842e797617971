"""Files in class folders, as ImageNet and most home-made data sets are stored.

Layouts (`<class>` may hold sub-folders):

    root/train/<class>/*   root/val/<class>/*   root/test/<class>/*      any of val and test may be missing
    root/<class>/*                                                       split by val_ and test_fraction

Without a test folder the validation folder is the test set, as is usual for ImageNet. Without a validation folder
`val_fraction` of the training files are kept for validation. Hidden files and folders are left alone.
"""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from perceiver.data.base import stratified_split
from perceiver.data.characters import STRAY
from perceiver.types import Stage

STAGE_FOLDERS: dict[Stage, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledFiles:
    """Files with their labels; plain strings, because a million paths fill the memory of every worker."""

    paths: list[str]
    labels: list[int]

    def subset(self, indices: Int[Tensor, " chosen"]) -> "LabelledFiles":
        chosen = indices.tolist()
        return LabelledFiles([self.paths[i] for i in chosen], [self.labels[i] for i in chosen])


class ClassFolders:
    """Class folders on disk; a class is a folder, its label the folder's place in sorted order.

    Args:
        root: the folder that holds them.
        num_classes: how many class folders there must be.
        val_fraction: share of the training files kept for validation where there is no validation folder; 0 for none.
        test_fraction: share of all files kept for testing where there are no train, val and test folders.
        extensions: endings of the files that count, in lower case; others are left out, and warned of.
        kind: what such a file is called in messages.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        val_fraction: float,
        test_fraction: float,
        extensions: Collection[str],
        kind: str,
    ) -> None:
        self.root = Path(root).expanduser()
        self.num_classes = num_classes
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
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
        return names

    def files(self, stage: Stage) -> LabelledFiles | None:
        """The files of a stage, or None if it has none.

        Raises:
            FileNotFoundError: a folder is missing, or holds no file of the kind.
            ValueError: the folders are not those of the classes, or a fraction is none.
        """
        folders = stage_folders(self.root)
        if not folders:
            everything = self._scan(self.root)
            rest, test = stratified_split(torch.tensor(everything.labels), self.test_fraction, seed=0)
            if stage == "test":
                return everything.subset(test) if len(test) else None
            return self._train_or_val(everything.subset(rest), stage)
        if stage == "test":
            folder = folders.get("test", folders.get("val"))
            return None if folder is None else self._scan(folder)
        if "val" in folders:
            return self._scan(folders[stage])
        return self._train_or_val(self._scan(folders["train"]), stage)

    def _train_or_val(self, files: LabelledFiles, stage: Stage) -> LabelledFiles | None:
        train, val = stratified_split(torch.tensor(files.labels), self.val_fraction, seed=0)
        indices = train if stage == "train" else val
        return files.subset(indices) if len(indices) else None

    def _scan(self, folder: Path) -> LabelledFiles:
        """All files below the class folders of `folder`, in sorted order; read from disk once."""
        if folder not in self._scanned:
            self._scanned[folder] = self._list(folder)
        return self._scanned[folder]

    def _list(self, folder: Path) -> LabelledFiles:
        unknown = [path.name for path in _subfolders(folder) if path.name not in self.class_names]
        if unknown:
            raise ValueError(f"{folder}: class folder {unknown[0]!r} is not among the training classes")
        files, ignored = LabelledFiles([], []), Counter[str]()
        for label, name in enumerate(self.class_names):
            for path in files_below(folder / name):
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
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder but hidden ones, in sorted order; errors as in `walk`."""
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


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


def stage_folders(root: Path) -> dict[Stage, Path]:
    """The train, val and test folders under `root`; none if it holds class folders directly.

    Raises:
        FileNotFoundError: there are folders for val or test only, and none to train on.
        ValueError: there are two for one stage.
    """
    folders = _subfolders(root)
    spelled = {
        stage: [path for path in folders if path.name.lower() in names] for stage, names in STAGE_FOLDERS.items()
    }
    found: dict[Stage, Path] = {stage: paths[0] for stage, paths in spelled.items() if paths}
    if found and "train" not in found and len(found) == len(folders):
        names = " and ".join(path.name for path in folders)
        raise FileNotFoundError(f"root={root}: a folder {names}, but none called train")
    if "train" not in found:
        return {}
    for stage, paths in spelled.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise ValueError(f"root={root}: the folders {both} are both for {stage}")
    return found


def class_folders(root: Path) -> list[str]:
    """Names of the classes under `root`, sorted.

    Raises:
        FileNotFoundError: `root` is not a folder or has no class folders.
        ValueError: the name of one cannot be written down.
    """
    root = root.expanduser()
    names = [path.name for path in _subfolders(stage_folders(root).get("train", root))]
    if strange := [name for name in names if STRAY.search(name)]:
        raise ValueError(f"root={root}: the name of the class folder {strange[0]!r} is no text in UTF-8")
    if not names:
        raise FileNotFoundError(f"root={root}: no class folders in it; each class needs a folder of its own")
    return names
