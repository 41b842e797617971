"""Images in tars, each of one class; how these are laid out is told in `perceiver.data.shard_dataset`."""

from collections.abc import Sequence
from typing import Any

from perceiver.data.base import OnError
from perceiver.data.image_augment import ImageAugment
from perceiver.data.images import EXTENSIONS, ImageDataset
from perceiver.data.shard_dataset import ShardDataset
from perceiver.data.shards import ShardSample


class ImageShards(ShardDataset, ImageDataset):
    """Images in tars.

    Args:
        root, num_classes, val_fraction, test_fraction: see `ShardDataset`.
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
    ) -> None:
        super().__init__(
            root=root,
            num_classes=num_classes,
            on_error=on_error,
            image_size=image_size,
            channels=channels,
            augment=augment,
            max_value=max_value,
            eval_crop=eval_crop,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            endings=EXTENSIONS,
            kind="image",
        )

    def labels(self, sample: ShardSample) -> Sequence[int]:
        return [self.label(sample)]

    def targets(self, sample: ShardSample) -> dict[str, Any]:
        return {"label": self.label(sample)}
