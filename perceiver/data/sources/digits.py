"""Handwritten digits that are part of scikit-learn: 1797 gray images of 8×8 pixels (UCI, Alpaydin & Kaynak 1998).

They are real, small and available offline, hence the default. The split is ours.
"""

import torch

from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.types import Stage


class Digits(Source):
    """The digits.

    Args:
        num_classes: 10.
        val_fraction, test_fraction, fold, num_folds: see `HeldOut`.
    """

    def __init__(
        self, *, num_classes: int, val_fraction: float, test_fraction: float, fold: int | None, num_folds: int
    ) -> None:
        if num_classes != 10:
            raise ValueError(f"num_classes={num_classes}: there are 10 digits")
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction, fold=fold, num_folds=num_folds)

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[:, None]
        ids = [f"digits/{index}" for index in range(len(images))]
        table = ItemTable(ids=ids, parts={"image": images}, labels=digits.target.tolist())
        return table.subset(self.held_out.split(ids)[stage])
