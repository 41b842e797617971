"""Images with masks: both are cropped, resized and augmented together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from perceiver.data.files import File, Segmented, UnreadableError, first_few
from perceiver.data.readers.base import Clips, Reading
from perceiver.data.readers.image import ImageAugment, ImageReader, check_sizes, open_image
from perceiver.data.readers.pixels import to_float
from perceiver.types import UNLABELED

MODES = ("1", "L", "P")
"""Modes of PIL whose values are numbers of classes: of one bit, of a byte, of a palette."""


class SegmentedImageReader(ImageReader):
    """Images, and the target `mask` of those that have one: [height, width] of classes or `UNLABELED`.

    Masks are palette or gray images of 8 bits, whose values are the numbers of classes. They are resized to the nearest
    pixel. Images of a user, without a mask, are read as by `ImageReader`.

    Args:
        num_classes: the values 0 to num_classes - 1 are classes.
        ignore_label: the value of pixels that belong to no class; null if there are none.
        image_size, channels, augment, max_value, eval_crop: see `ImageReader`.

    Raises:
        ValueError: there are more classes than a mask can have, or the augmentation does not apply to masks.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_label: int | None,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        max_value: float | None,
        eval_crop: float,
    ) -> None:
        super().__init__(
            image_size=image_size, channels=channels, augment=augment, max_value=max_value, eval_crop=eval_crop
        )
        if num_classes > UNLABELED:
            raise ValueError(f"num_classes={num_classes}: masks have at most {UNLABELED}")
        if ignore_label is not None and not num_classes <= ignore_label <= UNLABELED:
            raise ValueError(f"ignore_label={ignore_label} must be from num_classes={num_classes} to {UNLABELED}")
        if augment is not None and augment.changes_images_only:
            raise ValueError("augment.rand_augment.num_ops must be 0: it would not change the mask with the image")
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    def read(
        self,
        part: File | Segmented | UInt8[Tensor, "channels height width"],
        *,
        train: bool,
        clips: Clips | None = None,
    ) -> Reading:
        """Read an image, and its mask.

        Raises:
            UnreadableError: one of the files is missing or damaged, they differ in size, or the mask has a value that
                is no class.
        """
        if not isinstance(part, Segmented):
            return super().read(part, train=train)
        image, mask = self._decode_both(part)
        if train and self.train_transform is not None:
            from torchvision.tv_tensors import Mask

            values, changed = self.train_transform(image, Mask(mask))
            changed = changed.as_subclass(Tensor)
        else:
            values, changed = (self.resize(one, self.eval_crop) for one in (image, mask))
            values = to_float(values)
        return Reading(values, targets={"mask": changed.long()})

    def decoded(self, part: File | Segmented) -> Any:
        if not isinstance(part, Segmented):
            return super().decoded(part)
        return Segmented(*self._decode_both(part))

    def _decode_both(
        self, part: Segmented
    ) -> tuple[UInt8[Tensor, "channels height width"], UInt8[Tensor, "height width"]]:
        image, mask = self.decode(part.image), part.mask
        if not isinstance(mask, Tensor):
            mask = read_mask(mask, self.num_classes, self.ignore_label)
        check_sizes(part.image, image, part.mask, mask)
        return image, mask


def read_mask(path: File, num_classes: int, ignore_label: int | None) -> UInt8[Tensor, "height width"]:
    """Read the class of each pixel from an image file; `ignore_label` becomes `UNLABELED`.

    Raises:
        UnreadableError: the file is missing or damaged, is a color image, or has a value that is no class.
    """
    with open_image(path) as file:
        if file.mode not in MODES:
            problem = f"an image of mode {file.mode}, not one of class numbers (gray or palette of 8 bits)"
            raise UnreadableError(f"{path}: {problem}")
        values = np.array(file, dtype=np.uint8)
    if ignore_label is not None:
        values[values == ignore_label] = UNLABELED
    unknown = [int(value) for value in np.unique(values) if value >= num_classes]
    if ignore_label is not None and unknown[-1:] == [UNLABELED]:
        unknown.pop()
    if unknown:
        names = first_few([str(value) for value in unknown])
        problem = f"has the values {names}; classes are 0 to {num_classes - 1}, and ignore_label={ignore_label}"
        raise UnreadableError(f"{path}: {problem}")
    return torch.from_numpy(values)
