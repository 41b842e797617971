"""Images as an input: resized, cut, and augmented in training."""

from collections.abc import Callable, Sequence
from math import ceil, inf, prod

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from perceiver.data.files import IMAGES, File
from perceiver.data.readers.base import Reader, Reading
from perceiver.data.readers.image_file import read_image


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


class ImageReader(Reader[UInt8[Tensor, "channels height width"]]):
    """Images of any size, in files or in memory, as floats in [0, 1] of one size.

    Args:
        image_size: side, or [height, width], of the images handed out. Larger and smaller ones are resized by their
            shorter side and cut at the centre.
        channels: 1 (grey) or 3 (RGB).
        augment: random changes to training images, if any.
        max_value: see `read_image`.
        eval_crop: share of the shorter side that is kept, at the centre, of images that are not augmented.
    """

    kind = IMAGES

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        max_value: float | None,
        eval_crop: float,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: images are read as grey (1) or RGB (3)")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        self.size = (height, width)
        if max_value is not None and not 0 < max_value < inf:
            raise ValueError(f"max_value={max_value} must be more than 0")
        self.channels = channels
        self.max_value = max_value
        if not 0.0 < eval_crop <= 1.0:
            raise ValueError(f"eval_crop={eval_crop} must be in (0, 1]")
        self.eval_crop = eval_crop
        self.to_float = v2.ToDtype(torch.float32, scale=True)
        self.train_transform = None if augment is None else augment.transform(self.size, self.resize)

    def read(self, part: File | UInt8[Tensor, "channels height width"], *, train: bool) -> Reading:
        if not isinstance(part, Tensor):
            image = read_image(part, self.channels, self.max_value)
        elif len(part) > self.channels:
            image = F.rgb_to_grayscale(part)
        else:
            image = part.expand(self.channels, -1, -1)
        if train and self.train_transform is not None:
            return Reading(self.train_transform(image))
        return Reading(self.to_float(self.resize(image, self.eval_crop)))

    def resize(self, image: UInt8[Tensor, "channels _ _"], crop: float = 1.0) -> UInt8[Tensor, "channels height width"]:
        """To `size`, keeping the aspect ratio: the centre, with the share `crop` of the side that fits."""
        sides = list(image.shape[-2:])
        if sides == list(self.size) and crop == 1.0:
            return image
        scale = max(target / side for target, side in zip(self.size, sides, strict=True)) / crop
        if prod(sides) * scale**2 > 16 * prod(self.size):
            # A strip so thin might not fit into memory if it were enlarged as a whole. The difference to what is kept
            # is even, so that the centre stays.
            kept = [min(side, ceil(2 * target / scale)) for target, side in zip(self.size, sides, strict=True)]
            sides = [keep + (side - keep) % 2 for keep, side in zip(kept, sides, strict=True)]
            image = F.center_crop(image, sides)
        scaled = [max(round(side * scale), target) for side, target in zip(sides, self.size, strict=True)]
        return F.center_crop(F.resize(image, scaled, antialias=True), list(self.size))
