"""Files in class folders, as ImageNet and many other data sets are stored.

    root/train/<class>/*   root/val/<class>/*   root/test/<class>/*      val and test are optional
    root/<class>/*                                                       split by the names of the files (`HeldOut`)

Folders in a class folder belong to it. The folder of a stage is one whose name contains a word for it: `train`,
`Training`, `seg_train`, `test_images`. `eval` is validation, or testing if there is another folder for validation. A
folder that contains nothing but one other folder, as unpacked archives do, stands for that one. Hidden files and
folders and those of operating systems are ignored.

Without a test folder the validation folder is the test set, as is usual for ImageNet. Without a validation folder a
share of the training files is held out. If files of several kinds are read, those of one sample have the same name but
for the ending (`7.png` and `7.wav`), and any of them may be missing; a video may be one for frames and for sound.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from perceiver.data.files import CONTROL_CHARACTERS, first_few
from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.types import Stage, utf8_safe

STAGE_WORDS: dict[Stage, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
EVAL_WORDS = ("eval", "evaluation")
"""Words for validation or testing, whichever lacks a folder."""
ALL_WORDS = frozenset({*EVAL_WORDS, *chain(*STAGE_WORDS.values())})
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "__pycache__"),
        *("thumbs.db", "desktop.ini"),
    }
)
"""Files and folders that operating systems and archives create, in lower case."""

log = logging.getLogger(__name__)


class ClassFolders(Source):
    """Class folders on disk; the label of a class is the index of its folder in sorted order.

    Args:
        root: the folder that contains them.
        num_classes: required number of class folders.
        val_fraction, test_fraction, fold, num_folds: see `HeldOut`; for stages without a folder.
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
        self._tables: dict[Path, ItemTable] = {}

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the class folders.

        Raises:
            FileNotFoundError: there are none.
            ValueError: their number is not `num_classes`.
        """
        names = find_classes(self.root)
        if len(names) != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {self.root} has {len(names)} class folders: {first_few(names)}"
            )
        if not self._stage_folders:
            _warn_of_stages([class_root(self.root) / name for name in names])
        return names

    @cached_property
    def _stage_folders(self) -> dict[Stage, Path]:
        return stage_folders(self.root)

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        folders = self._stage_folders
        if not folders:
            files = self._scan(class_root(self.root), roles)
            return files.subset(self.held_out.split(files.ids)[stage])
        if not self._tables:
            _warn_of_loose_files(class_root(self.root), roles)
        if stage == "test":
            folder = folders.get("test", folders.get("val"))
            return None if folder is None or self._lacks_labels(folder, roles) else self._scan(folder, roles)
        if "val" in folders:
            return self._scan(folders[stage], roles)
        files = self._scan(folders["train"], roles)
        train, val = self.held_out.split_val(files.ids)
        return files.subset(train if stage == "train" else val)

    def _lacks_labels(self, folder: Path, roles: Roles) -> bool:
        """Return whether a test folder contains files but no class folders, and warn if it does."""
        if subfolders(folder) or not any(_roles(path.name, roles) for path in folder.iterdir()):
            return False
        log.warning("%s: %s without class folders, so without labels; not used for testing", folder, _plural(roles))
        return True

    def _scan(self, folder: Path, roles: Roles) -> ItemTable:
        """Return all files below the class folders of `folder` in sorted order; the disk is read once."""
        if folder not in self._tables:
            self._tables[folder] = self._list(folder, roles)
        return self._tables[folder]

    def _list(self, folder: Path, roles: Roles) -> ItemTable:
        unknown = [path.name for path in subfolders(folder) if path.name not in self.class_names]
        if unknown:
            raise ValueError(f"{folder}: class folder {unknown[0]!r} is not among the training classes")
        _warn_of_loose_files(folder, roles)
        kinds = " or ".join(kind.name for kind in roles.values())
        names: dict[str, list[str]] = {role: [] for role in roles}
        labels, ignored = list[int](), Counter[str]()
        for label, name in enumerate(self.class_names):
            paths, top = [], folder / name
            for path in files_below(top) if top.is_dir() else ():
                if _roles(path, roles):
                    paths.append(path)
                else:
                    ignored[os.path.splitext(path)[1].lower() or os.path.basename(path)] += 1
            below_root = str(top.relative_to(self.root))
            for sample in _samples(paths, roles):
                labels.append(label)
                for role, path in sample.items():
                    names[role].append(path and below_root + path.removeprefix(str(top)))
        if ignored:
            counts = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(5))
            log.warning("%s: ignored files that are not %s: %s", folder, _plural(roles), counts)
        if not labels:
            endings = " ".join(sorted(ending for kind in roles.values() for ending in kind.endings))
            raise FileNotFoundError(f"{folder}: no {kinds} with one of the endings {endings}")
        present = set(labels)
        if empty := [name for label, name in enumerate(self.class_names) if label not in present]:
            log.warning("%s: no %s of %s", folder, kinds, first_few(empty))
        return ItemTable.of_files(self.root, names, labels=labels)


def _warn_of_loose_files(folder: Path, roles: Roles) -> None:
    """Warn of files next to the class folders, which are not used."""
    found = (path.name for path in folder.iterdir() if _roles(path.name, roles) and path.is_file())
    if loose := sorted(name for name in found if not is_ignored(name)):
        kinds = _plural(roles) if len(loose) != 1 else " or ".join(kind.name for kind in roles.values())
        message = "%s: %d %s outside of class folders, so without a label, not used: %s"
        log.warning(message, folder, len(loose), kinds, utf8_safe(first_few(loose)))


def _plural(roles: Roles) -> str:
    return " or ".join(f"{kind.name}s" for kind in roles.values())


def _roles(path: str, roles: Roles) -> list[str]:
    """Return the roles of a file by its ending: a video may be read for its frames and for its sound."""
    return [role for role, kind in roles.items() if kind.has(path)]


def _samples(paths: Collection[str], roles: Roles) -> Iterator[dict[str, str]]:
    """Yield the file of each role, or an empty string, for each sample.

    Raises:
        ValueError: a sample has two files of one role.
    """
    if len(roles) == 1:  # each file is a sample
        yield from ({role: path} for role in roles for path in paths)
        return
    samples: dict[str, dict[str, str]] = defaultdict(lambda: dict.fromkeys(roles, ""))
    # Files of one role come first: a sound of its own is preferred to that of the video.
    for path in sorted(paths, key=lambda path: len(_roles(path, roles))):
        of_file, sample = _roles(path, roles), samples[os.path.splitext(path)[0]]
        if all(sample[role] for role in of_file):
            role = of_file[0]
            raise ValueError(f"{path}: {sample[role]} has the same name; both would be the {role} of one sample")
        for role in of_file:
            sample[role] = sample[role] or path
    yield from (samples[name] for name in dict.fromkeys(os.path.splitext(path)[0] for path in paths))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without ignored ones.

    Raises:
        FileNotFoundError: it is not a folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"root={folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name))


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden or created by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder in sorted order, without ignored ones; raises as `walk`."""
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        yield from (os.path.join(parent, name) for name in sorted(names) if not is_ignored(name))


def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as `os.walk`, following links.

    Raises:
        PermissionError: a folder is not readable.
        ValueError: a link leads to a folder that contains it.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(top, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        for link in (path for name in folders if os.path.islink(path := os.path.join(parent, name))):
            target = os.path.realpath(link)
            if os.path.commonpath([real, target]) == target:
                raise ValueError(f"{link}: a link to a folder that contains it")
        yield parent, folders, names


def class_root(folder: Path) -> Path:
    """Return the folder with the class or stage folders: this one, or the only folder in it, and so on."""
    inner = _only_folder(folder)
    return folder if inner is None or not subfolders(inner) or _named([inner], ALL_WORDS) else class_root(inner)


def _only_folder(folder: Path) -> Path | None:
    """Return the folder in a folder that contains nothing else."""
    found = [path for path in folder.iterdir() if not is_ignored(path.name)] if folder.is_dir() else []
    return found[0] if len(found) == 1 and found[0].is_dir() and not found[0].is_symlink() else None


def stage_folders(root: Path) -> dict[Stage, Path]:
    """Return the train, val and test folders under `root`; none if it contains class folders directly.

    Raises:
        FileNotFoundError: there are folders for val or test only, and none for training.
        ValueError: there are two for one stage.
    """
    folders = subfolders(class_root(root))
    matches = {stage: _named(folders, words) for stage, words in STAGE_WORDS.items()}
    matched = [folder for paths in matches.values() for folder in paths]
    if evals := [folder for folder in _named(folders, EVAL_WORDS) if folder not in matched]:
        matches["test" if matches["val"] and not matches["test"] else "val"] += evals
        matched += evals
    if not matches["train"]:
        if matched and len(matched) == len(folders):
            names = " and ".join(path.name for path in folders)
            raise FileNotFoundError(f"root={root}: a folder {names}, but none named train")
        return {}
    found: dict[Stage, Path] = {}
    for stage, paths in matches.items():
        for path in paths[:1]:
            inner = _only_folder(path)  # archives are often unpacked into a folder of the same name
            found[stage] = inner if inner is not None and inner.name == path.name else path
    if not subfolders(found["train"]) and len(matched) < len(folders):
        return {}  # the name of a class
    for stage, paths in matches.items():
        if len(paths) > 1:
            raise ValueError(f"root={root}: the folders {' and '.join(path.name for path in paths)} are both {stage}")
    if others := [path.name for path in folders if path not in matched]:
        log.warning("%s: ignored folders other than those of train, val and test: %s", root, first_few(others))
    return found


def _warn_of_stages(folders: Sequence[Path]) -> None:
    """Warn if class folders may be those of stages, none of which is recognized as the training data."""
    root = folders[0].parent
    if stages := [path.name for path in folders if path.name.lower() in ALL_WORDS]:
        message = "%s: used as classes: %s; they are stages only if a folder named train contains class folders"
        log.warning(message, root, first_few(stages))
        return
    inner = [{path.name for path in subfolders(folder)} for folder in folders]
    if len(inner) > 1 and inner[0] and all(names == inner[0] for names in inner):
        message = (
            "%s: used as classes: %s; each contains the folders %s: if these are the classes, rename the others %s"
        )
        names = first_few([path.name for path in folders]), first_few(sorted(inner[0]))
        log.warning(message, root, *names, "train, val and test")


def _named(folders: Sequence[Path], words: Collection[str]) -> list[Path]:
    """Return the folders whose names are one of the words or, if there are none, contain one."""
    exact = [path for path in folders if path.name.lower() in words]
    return exact or [path for path in folders if set(re.split("[^a-z]+", path.name.lower())) & set(words)]


def find_classes(root: Path) -> list[str]:
    """Return the names of the class folders under `root`, sorted.

    Raises:
        FileNotFoundError: `root` is not a folder or has no class folders.
        ValueError: a name is not UTF-8.
    """
    root = root.expanduser()
    top = stage_folders(root).get("train") or class_root(root)
    names = [path.name for path in subfolders(top)]
    if strange := [name for name in names if CONTROL_CHARACTERS.search(name)]:
        raise ValueError(f"root={root}: the name of the class folder {strange[0]!r} is not UTF-8 text")
    if not names:
        inside = "" if top == root else f" (in its folder {top.relative_to(root)})"
        raise FileNotFoundError(f"root={root}: no class folders{inside}; each class needs a folder of its own")
    return names
