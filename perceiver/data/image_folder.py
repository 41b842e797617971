"""Images in class folders, as ImageNet and most home-made data sets are stored.

Layouts (`<class>` may hold sub-folders):

    root/train/<class>/*.jpg   root/val/<class>/*.jpg   root/test/<class>/*.jpg      any of val and test may be missing
    root/<class>/*.jpg                                                                split by val_ and test_fraction

Without a test folder the validation folder is the test set, as is usual for ImageNet. Without a validation folder
`val_fraction` of the training images are kept for validation. Hidden files and folders are left alone.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from perceiver.data.base import OnError, Split, stratified_split
from perceiver.data.images import ImageAugment, ImageDataset, read_image
from perceiver.types import Sample, Stage

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
STAGE_FOLDERS: dict[Stage, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Files:
    """Image files with their labels; plain strings, because a million paths fill the memory of every worker."""

    paths: list[str]
    labels: list[int]

    def subset(self, indices: torch.Tensor) -> "_Files":
        chosen = indices.tolist()
        return _Files([self.paths[i] for i in chosen], [self.labels[i] for i in chosen])


class ImageFolder(ImageDataset):
    """Class folders on disk; a class is a folder, its label the folder's place in sorted order.

    Args:
        root: the folder that holds them.
        num_classes: how many class folders there must be.
        on_error, image_size, channels, augment: see `ImageDataset`.
        val_fraction: share of the training images kept for validation where there is no validation folder; 0 for none.
        test_fraction: share of all images kept for testing where there are no train, val and test folders.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        super().__init__(
            num_classes=num_classes, on_error=on_error, image_size=image_size, channels=channels, augment=augment
        )
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self._scanned: dict[Path, _Files] = {}

    @cached_property
    def class_names(self) -> list[str]:
        names = class_folders(self.root)
        if len(names) != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {self.root} has {len(names)} class folders: {_first_few(names)}"
            )
        return names

    def split(self, stage: Stage) -> Split | None:
        files = self._files(stage)
        return None if files is None else _FolderSplit(self, files, train=stage == "train")

    def _files(self, stage: Stage) -> _Files | None:
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

    def _train_or_val(self, files: _Files, stage: Stage) -> _Files | None:
        train, val = stratified_split(torch.tensor(files.labels), self.val_fraction, seed=0)
        indices = train if stage == "train" else val
        return files.subset(indices) if len(indices) else None

    def _scan(self, folder: Path) -> _Files:
        """All images below the class folders of `folder`, in sorted order; read from disk once."""
        if folder not in self._scanned:
            self._scanned[folder] = self._list(folder)
        return self._scanned[folder]

    def _list(self, folder: Path) -> _Files:
        unknown = [path.name for path in _subfolders(folder) if path.name not in self.class_names]
        if unknown:
            raise ValueError(f"{folder}: class folder {unknown[0]!r} is not among the training classes")
        files, ignored = _Files([], []), Counter[str]()
        for label, name in enumerate(self.class_names):
            for path in _files_below(folder / name):
                suffix = os.path.splitext(path)[1].lower()
                if suffix in EXTENSIONS:
                    files.paths.append(path)
                    files.labels.append(label)
                else:
                    ignored[suffix or os.path.basename(path)] += 1
        if ignored:
            kinds = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(5))
            log.warning("%s: ignored files that are not images: %s", folder, kinds)
        if not files.paths:
            raise FileNotFoundError(f"{folder}: no image with one of the endings {' '.join(sorted(EXTENSIONS))} in it")
        present = set(files.labels)
        empty = [name for label, name in enumerate(self.class_names) if label not in present]
        if empty:
            log.warning("%s: no image of %s", folder, _first_few(empty))
        return files


class _FolderSplit:
    """Images read from disk when asked for."""

    def __init__(self, dataset: ImageFolder, files: _Files, *, train: bool) -> None:
        self.dataset = dataset
        self.files = files
        self.train = train

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Sample:
        path = Path(self.files.paths[index])
        image = read_image(path, self.dataset.channels)
        id = str(path.relative_to(self.dataset.root))
        return self.dataset.sample(image, {"label": self.files.labels[index]}, id, train=self.train)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"root={folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files_below(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def stage_folders(root: Path) -> dict[Stage, Path]:
    """The train, val and test folders under `root`; none if it holds class folders directly.

    Raises:
        FileNotFoundError: there are folders for val or test only, and none to train on.
    """
    names = {path.name.lower(): path for path in _subfolders(root)}
    found: dict[Stage, Path] = {}
    for stage, spellings in STAGE_FOLDERS.items():
        for spelling in spellings:
            if spelling in names:
                found.setdefault(stage, names[spelling])
    if found and "train" not in found and len(found) == len(names):
        raise FileNotFoundError(f"root={root}: a folder {' and '.join(names)}, but none called train")
    return found if "train" in found else {}


def class_folders(root: Path) -> list[str]:
    """Names of the classes under `root`, sorted.

    Raises:
        FileNotFoundError: `root` is not a folder or has no class folders.
    """
    root = root.expanduser()
    names = [path.name for path in _subfolders(stage_folders(root).get("train", root))]
    if not names:
        raise FileNotFoundError(f"root={root}: no class folders in it; each class needs a folder of its own")
    return names
