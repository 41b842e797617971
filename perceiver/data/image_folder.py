"""Images in class folders; how these may lie on disk is told in `perceiver.data.folders`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceiver.data.base import FileSplit, HeldOut, OnError, Split
from perceiver.data.folders import ClassFolders, LabelledFiles
from perceiver.data.image_augment import ImageAugment
from perceiver.data.images import EXTENSIONS, ImageDataset
from perceiver.types import Sample, Stage


class ImageFolder(ImageDataset):
    """Class folders of images.

    Args:
        root, num_classes: see `ClassFolders`.
        val_fraction, test_fraction, fold, num_folds: see `HeldOut`; those of testing are for a root without `test`.
        on_error, image_size, channels, augment, max_value, eval_crop: see `ImageDataset`.
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
        max_value: float | None = None,
        eval_crop: float = 1.0,
        val_fraction: float,
        test_fraction: float,
        fold: int | None,
        num_folds: int,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            on_error=on_error,
            image_size=image_size,
            channels=channels,
            augment=augment,
            max_value=max_value,
            eval_crop=eval_crop,
        )
        self.folders = ClassFolders(
            root=root,
            num_classes=num_classes,
            held_out=HeldOut(val_fraction=val_fraction, test_fraction=test_fraction, fold=fold, num_folds=num_folds),
            extensions=EXTENSIONS,
            kind="image",
        )

    @property
    def class_names(self) -> list[str]:
        return self.folders.class_names

    def split(self, stage: Stage) -> Split | None:
        files = self.folders.files(stage)
        return None if files is None else _ImageFiles(self, files, train=stage == "train")


class _ImageFiles(FileSplit):
    """Images read from disk when asked for."""

    def __init__(self, dataset: ImageFolder, files: LabelledFiles, *, train: bool) -> None:
        self.dataset = dataset
        self.files = files
        self.train = train

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Sample:
        path, targets = self.file(index)
        return self.dataset.file_sample(path, targets, self.name_of(index), train=self.train)

    def file(self, index: int) -> tuple[Path, dict[str, Any]]:
        return Path(self.files.paths[index]), {"label": self.files.labels[index]}

    def classes_of(self, index: int) -> Sequence[int]:
        return [self.files.labels[index]]

    def name_of(self, index: int) -> str:
        return str(Path(self.files.paths[index]).relative_to(self.dataset.folders.root))
