"""Handwritten digits that ship with scikit-learn: 1797 grey images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998).

Real, offline and small: the default. The split is ours.
"""

from collections.abc import Sequence

import torch

from perceiver.data.base import HeldOut, OnError, Split
from perceiver.data.image_augment import ImageAugment
from perceiver.data.images import ImageArray, ImageDataset
from perceiver.types import Stage


class Digits(ImageDataset):
    """The digits; with 3 channels the grey value is repeated.

    Args:
        num_classes, on_error, image_size, channels, augment, eval_crop: see `ImageDataset`.
        val_fraction, test_fraction, fold, num_folds: see `HeldOut`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        val_fraction: float,
        test_fraction: float,
        fold: int | None,
        num_folds: int,
        eval_crop: float = 1.0,
    ) -> None:
        if num_classes != 10:
            raise ValueError(f"num_classes={num_classes}: there are 10 digits")
        super().__init__(
            num_classes=num_classes,
            on_error=on_error,
            image_size=image_size,
            channels=channels,
            augment=augment,
            eval_crop=eval_crop,
        )
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction, fold=fold, num_folds=num_folds)

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def split(self, stage: Stage) -> Split | None:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        labels = torch.from_numpy(digits.target)
        chosen = self.held_out.parts([f"digits/{index}" for index in range(len(labels))])[stage]
        if not chosen:
            return None
        indices = torch.tensor(chosen)
        images = torch.from_numpy(digits.images)[indices] * (255 / 16)
        return ImageArray(
            self,
            images.round().to(torch.uint8)[:, None].expand(-1, self.channels, -1, -1),
            labels[indices].tolist(),
            [f"digits/{index}" for index in indices.tolist()],
            train=stage == "train",
        )
