"""Random changes to training images, by torchvision."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2


class ImageAugment:
    """Random changes to a training image.

    Args:
        crop_padding: pixels of reflection around the image before a random crop of its own size; 0 for none.
        min_scale: least share of the image's area that a random resized crop keeps; 1 for no such crop.
        horizontal_flip: probability of a mirror image.
        rotation, translation, scaling: RandomAffine's degrees, share of the side, and share around 1; 0 for none.
        rand_augment_ops, rand_augment_magnitude: RandAugment's number of operations (0 for none) and their strength on
            torchvision's scale of 0 to 30; on TensorFlow's, which DeepMind's recipes have, 5 of 10 are 15 of these.
        erasing: probability that a random rectangle is blanked.
    """

    def __init__(
        self,
        *,
        crop_padding: int = 0,
        min_scale: float = 1.0,
        horizontal_flip: float = 0.0,
        rotation: float = 0.0,
        translation: float = 0.0,
        scaling: float = 0.0,
        rand_augment_ops: int = 0,
        rand_augment_magnitude: int = 9,
        erasing: float = 0.0,
    ) -> None:
        if not 0.0 < min_scale <= 1.0:
            raise ValueError(f"min_scale={min_scale} must be in (0, 1]")
        if not 0 <= rand_augment_magnitude <= 30:
            raise ValueError(f"rand_augment_magnitude={rand_augment_magnitude} must be 0 to 30")
        self.crop_padding = crop_padding
        self.min_scale = min_scale
        self.horizontal_flip = horizontal_flip
        self.affine = (rotation, translation, scaling)
        self.rand_augment = (rand_augment_ops, rand_augment_magnitude)
        self.erasing = erasing

    def transform(self, size: tuple[int, int], resize: Callable[[Tensor], Tensor]) -> v2.Transform:
        """The whole way of a training image: to `size` (by `resize`, or by a random crop), then what is random.

        Raises:
            ValueError: `crop_padding` asks for more than there is to reflect.
        """
        if self.crop_padding >= min(size):
            raise ValueError(f"crop_padding={self.crop_padding} must be less than the image's sides, {list(size)}")
        if self.min_scale < 1.0:
            steps: list[Callable[[Tensor], Tensor]] = [
                v2.RandomResizedCrop(size, scale=(self.min_scale, 1.0), antialias=True)
            ]
        else:
            steps = [resize]
        if self.crop_padding:
            steps.append(v2.RandomCrop(size, padding=self.crop_padding, padding_mode="reflect"))
        if self.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip(self.horizontal_flip))
        rotation, translation, scaling = self.affine
        if any(self.affine):
            steps.append(
                v2.RandomAffine(
                    degrees=rotation,
                    translate=(translation, translation),
                    scale=(1.0 - scaling, 1.0 + scaling),
                    interpolation=v2.InterpolationMode.BILINEAR,
                )
            )
        operations, magnitude = self.rand_augment
        if operations:
            steps.append(v2.RandAugment(operations, magnitude))
        if self.erasing:
            steps.append(v2.RandomErasing(self.erasing))
        return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
