"""Folders of images and their masks, as most data sets for segmentation are stored.

    root/images/*   root/masks/*                                 split by the names of the images (`HeldOut`)
    root/train/images/*   root/train/masks/*   root/val/…        val and test are optional

An image and its mask have the same name but for the ending, and the same folder below `images` and `masks`. `root/
classes.txt` names the classes, one a line; without it, they are called by their numbers.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perceiver.data.files import IMAGES, Segmented, UnreadableError, first_few
from perceiver.data.sources.base import Item, Roles, Source
from perceiver.data.sources.folders import files_below, stage_folders, subfolders
from perceiver.data.splits import HeldOut
from perceiver.data.text_files import read_text
from perceiver.types import Stage

IMAGE_FOLDER, MASK_FOLDER, CLASS_FILE = "images", "masks", "classes.txt"

log = logging.getLogger(__name__)


class ImageMasks(Source):
    """Images with masks, as parts of the role `image`.

    Args:
        root: the folder that contains everything.
        num_classes: number of classes.
        val_fraction, test_fraction: see `HeldOut`; for stages without a folder.
    """

    def __init__(self, *, root: str, num_classes: int, val_fraction: float, test_fraction: float) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    @cached_property
    def class_names(self) -> list[str]:
        path = self.root / CLASS_FILE
        if not path.exists():
            return [str(label) for label in range(self.num_classes)]
        names = [name for line in read_text(path).splitlines() if (name := line.strip())]
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {path} names {len(names)}: {first_few(names)}")
        if len(set(names)) < len(names):
            raise UnreadableError(f"{path}: names a class twice")
        return names

    def items(self, stage: Stage, roles: Roles) -> "MaskItems | None":
        """Return the pairs of a stage; a missing mask raises when its image is read.

        Raises:
            FileNotFoundError: there is no folder of images or masks, or no image in it.
        """
        if (self.root / IMAGE_FOLDER).is_dir() or IMAGE_FOLDER in [path.name for path in subfolders(self.root)]:
            found = self._list(self.root)
            return found.subset(self.held_out.split(found.names)[stage])
        folders = stage_folders(self.root)
        if not folders:
            raise FileNotFoundError(f"root={self.root}: no folder {IMAGE_FOLDER}, nor train/{IMAGE_FOLDER}")
        if stage == "test":
            folder = folders.get("test", folders.get("val"))
            return None if folder is None else self._list(folder)
        if "val" in folders:
            return self._list(folders[stage])
        found = self._list(folders["train"])
        train, val = self.held_out.split_val(found.names)
        return found.subset(train if stage == "train" else val)

    def _list(self, folder: Path) -> "MaskItems":
        images, masks = (self._files(folder / name) for name in (IMAGE_FOLDER, MASK_FOLDER))
        if not images:
            raise FileNotFoundError(f"{folder / IMAGE_FOLDER}: no image")
        if alone := [str(path) for name, path in masks.items() if name not in images]:
            log.warning("%s: %d masks without an image, not used: %s", folder, len(alone), first_few(alone))
        names = sorted(images)
        default = {name: folder / MASK_FOLDER / f"{name}.png" for name in names}
        below = str(folder.relative_to(self.root))
        return MaskItems(
            [name if below == "." else f"{below}/{name}" for name in names],
            [images[name] for name in names],
            [masks.get(name, default[name]) for name in names],
        )

    def _files(self, folder: Path) -> dict[str, Path]:
        """Return the images below a folder by their path without ending.

        Raises:
            FileNotFoundError: it is not a folder.
            ValueError: two have the same name.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"root={self.root}: no folder {folder}")
        found: dict[str, Path] = {}
        for path in files_below(folder):
            if IMAGES.has(path):
                name = os.path.splitext(os.path.relpath(path, folder))[0]
                if name in found:
                    raise ValueError(f"{path}: {found[name]} has the same name")
                found[name] = Path(path)
        return found


@dataclass(frozen=True)
class MaskItems:
    """Pairs of an image and a mask."""

    names: Sequence[str]
    images: Sequence[Path]
    masks: Sequence[Path]

    roles = ("image",)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        return Item({"image": Segmented(self.images[index], self.masks[index])}, {}, self.names[index])

    def sample_classes(self, index: int) -> Sequence[int]:
        return ()

    def sample_name(self, index: int) -> str:
        return self.names[index]

    def subset(self, indices: Sequence[int]) -> "MaskItems | None":
        """Return some of the pairs, or None if there are no indices."""
        if not indices:
            return None
        return MaskItems(
            [self.names[index] for index in indices],
            [self.images[index] for index in indices],
            [self.masks[index] for index in indices],
        )
