"""Files in class folders, as ImageNet and most home-made data sets are stored.

Layouts (`<class>` may hold sub-folders):

    root/train/<class>/*   root/val/<class>/*   root/test/<class>/*      any of val and test may be missing
    root/<class>/*                                                       split by the names of the files (`HeldOut`)

What the folders of the stages may be called is told in `perceiver.data.sources.folders`. Without a test folder the
validation folder is the test set, as is usual for ImageNet. Without a validation folder a share of the training files
is kept for validation.

Where files of several kinds are read, those of one sample are called alike but for their endings (`7.png` and `7.wav`),
and any of them may be missing.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from perceiver.data.sources.base import FileItems, Roles, Source
from perceiver.data.sources.folders import (
    class_folders,
    class_root,
    files_below,
    is_left_alone,
    stage_folders,
    subfolders,
    tell_of_doubtful_classes,
)
from perceiver.data.splits import HeldOut
from perceiver.data.text_checks import first_few
from perceiver.types import Stage, utf8_safe

log = logging.getLogger(__name__)


class ClassFolders(Source):
    """Class folders on disk; a class is a folder, its label the folder's place in sorted order.

    Args:
        root: the folder that holds them.
        num_classes: how many class folders there must be.
        val_fraction, test_fraction, fold, num_folds: which files are for validation and testing where there are no
            folders for these, see `HeldOut`.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        val_fraction: float,
        test_fraction: float,
        fold: int | None,
        num_folds: int,
    ) -> None:
        self.root = Path(root).expanduser()
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction, fold=fold, num_folds=num_folds)
        self._scanned: dict[Path, FileItems] = {}
        self._parts: dict[Stage, list[int]] = {}

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
        if not self._stages:
            top = class_root(self.root)
            tell_of_doubtful_classes([top / name for name in names])
        return names

    @cached_property
    def _stages(self) -> dict[Stage, Path]:
        return stage_folders(self.root)

    def items(self, stage: Stage, roles: Roles) -> FileItems | None:
        folders = self._stages
        if folders and not self._scanned:
            _tell_of_loose(class_root(self.root), roles)
        if not folders:
            files = self._scan(class_root(self.root), roles)
            self._parts = self._parts or self.held_out.parts(_names(files))
            return _chosen(files, self._parts[stage])
        if stage == "test":
            folder = folders.get("test", folders.get("val"))
            return None if folder is None else self._scan_labelled(folder, roles)
        if "val" in folders:
            return self._scan(folders[stage], roles)
        files = self._scan(folders["train"], roles)
        train, val = self.held_out.without_test(_names(files))
        return _chosen(files, train if stage == "train" else val)

    def _scan_labelled(self, folder: Path, roles: Roles) -> FileItems | None:
        """The files of a test folder, or None, with a warning, where they are in no class folders."""
        if not subfolders(folder) and any(_role_of(path.name, roles) for path in folder.iterdir()):
            problem = "%s: %s without class folders, so without labels; there is no test set"
            log.warning(problem, folder, _plural(roles))
            return None
        return self._scan(folder, roles)

    def _scan(self, folder: Path, roles: Roles) -> FileItems:
        """All files below the class folders of `folder`, in sorted order; read from disk once."""
        if folder not in self._scanned:
            self._scanned[folder] = self._list(folder, roles)
        return self._scanned[folder]

    def _list(self, folder: Path, roles: Roles) -> FileItems:
        unknown = [path.name for path in subfolders(folder) if path.name not in self.class_names]
        if unknown:
            raise ValueError(f"{folder}: class folder {unknown[0]!r} is not among the training classes")
        _tell_of_loose(folder, roles)
        kinds = " or ".join(kind.name for kind in roles.values())
        files: dict[str, list[str]] = {role: [] for role in roles}
        labels, ignored = list[int](), Counter[str]()
        for label, name in enumerate(self.class_names):
            paths = []
            for path in files_below(folder / name) if (folder / name).is_dir() else ():
                if _role_of(path, roles):
                    paths.append(path)
                else:
                    ignored[os.path.splitext(path)[1].lower() or os.path.basename(path)] += 1
            for of_sample in _samples(paths, roles):
                labels.append(label)
                for role, path in of_sample.items():
                    files[role].append(path)
        if ignored:
            counts = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(5))
            log.warning("%s: ignored files that are not %s: %s", folder, _plural(roles), counts)
        if not labels:
            endings = " ".join(sorted(ending for kind in roles.values() for ending in kind.endings))
            raise FileNotFoundError(f"{folder}: no {kinds} with one of the endings {endings} in it")
        present = set(labels)
        empty = [name for label, name in enumerate(self.class_names) if label not in present]
        if empty:
            log.warning("%s: no %s of %s", folder, kinds, first_few(empty))
        return FileItems(root=self.root, files=files, labels=labels)


def _tell_of_loose(folder: Path, roles: Roles) -> None:
    """Warn of files that are beside the folders in which they would count."""
    there = (path.name for path in folder.iterdir() if _role_of(path.name, roles) and path.is_file())
    if loose := sorted(name for name in there if not is_left_alone(name)):
        kinds = _plural(roles) if len(loose) != 1 else " or ".join(kind.name for kind in roles.values())
        message = "%s: %d %s in no class folder, so without a label, left out: %s"
        log.warning(message, folder, len(loose), kinds, utf8_safe(first_few(loose)))


def _plural(roles: Roles) -> str:
    return " or ".join(f"{kind.name}s" for kind in roles.values())


def _role_of(path: str, roles: Roles) -> str | None:
    """The role of which a file is, by its ending."""
    return next((role for role, kind in roles.items() if kind.has(path)), None)


def _samples(paths: Collection[str], roles: Roles) -> Iterator[dict[str, str]]:
    """The files of each sample by role, empty where it has none of it.

    Raises:
        ValueError: a sample has two of one role.
    """
    if len(roles) == 1:  # each file is one
        yield from ({role: path} for role in roles for path in paths)
        return
    samples: dict[str, dict[str, str]] = defaultdict(lambda: dict.fromkeys(roles, ""))
    for path in paths:
        role, of_sample = _role_of(path, roles), samples[os.path.splitext(path)[0]]
        assert role is not None
        if of_sample[role]:
            raise ValueError(f"{path}: {of_sample[role]} is called alike, and both are {role} of one sample")
        of_sample[role] = path
    yield from samples.values()


def _names(files: FileItems) -> list[str]:
    return [files.name_of(index) for index in range(len(files))]


def _chosen(files: FileItems, indices: Sequence[int]) -> FileItems | None:
    """Some of the files, or None of none."""
    if not indices:
        return None
    assert files.labels is not None
    paths = {role: [of_role[i] for i in indices] for role, of_role in files.files.items()}
    return replace(files, files=paths, labels=[files.labels[i] for i in indices])
