"""Handwritten digits that ship with scikit-learn: 1797 grey images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998).

Real, offline and small: the default. The split is ours, fixed and balanced over classes: 20 % test, 10 % validation.
"""

from collections.abc import Sequence

import torch

from perceiver.data.base import OnError, Split, stratified_split
from perceiver.data.images import ImageArray, ImageAugment, ImageDataset
from perceiver.types import Stage

TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.125  # of what is left: 10 % of all
SPLIT_SEED = 0


class Digits(ImageDataset):
    """Arguments as in `ImageDataset`; with 3 channels the grey value is repeated."""

    def __init__(
        self,
        *,
        num_classes: int,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
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

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def split(self, stage: Stage) -> Split:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        labels = torch.from_numpy(digits.target)
        rest, test = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
        train, val = (rest[part] for part in stratified_split(labels[rest], VALIDATION_FRACTION, SPLIT_SEED))
        indices = {"train": train, "val": val, "test": test}[stage]
        images = torch.from_numpy(digits.images)[indices] * (255 / 16)
        return ImageArray(
            self,
            images.round().to(torch.uint8)[:, None].expand(-1, self.channels, -1, -1),
            labels[indices].tolist(),
            [f"digits/{index}" for index in indices.tolist()],
            train=stage == "train",
        )
