"""Images: reading any file as one kind of tensor, resizing, augmentation, and the base of all image data sets."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from perceiver.data.base import FileDataset, OnError, Source, UnreadableError, refuse_special
from perceiver.types import Sample

MAX_PIXELS = 100_000_000
"""Files that claim more are refused before they are decoded (decompression bombs)."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What files may be, whatever they are called. PIL knows more, and for PostScript starts a program."""
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: Source, channels: int) -> UInt8[Tensor, "channels height width"]:
    """Any image file as 8-bit grey (1 channel) or RGB (3).

    16-bit images are scaled down, transparency is laid over white, EXIF rotation is applied.

    Raises:
        UnreadableError: missing, not an image, truncated, too large, or of values that no image has.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw, Image.open(raw, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableError(f"{path}: {file.width}×{file.height} pixels are more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(file)
            return F.pil_to_tensor(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(f"{path}: not an image") from error
    except Exception as error:  # PIL raises whatever its decoders raise: OSError, SyntaxError, struct.error, …
        raise UnreadableError(f"{path}: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """PIL's own conversion would cut 16-bit and float images at 255 and drop transparency."""
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        _check_range(values, 65535)
        return Image.fromarray((values // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        _check_range(values, 255)
        return Image.fromarray((values * (255.0 if values.max() <= 1.0 else 1.0)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _check_range(values: np.ndarray, highest: int) -> None:
    lowest, most = values.min(), values.max()
    if not (np.isfinite(lowest) and np.isfinite(most)):
        raise ValueError("holds values that are not finite")
    if lowest < 0 or most > highest:
        raise ValueError(f"holds values from {lowest:g} to {most:g}, which are not from 0 to {highest}")


class ImageAugment:
    """Random changes to a training image.

    Args:
        crop_padding: pixels of reflection around the image before a random crop of its own size; 0 for none.
        min_scale: least share of the image's area that a random resized crop keeps; 1 for no such crop.
        horizontal_flip: probability of a mirror image.
        rotation, translation, scaling: RandomAffine's degrees, share of the side, and share around 1; 0 for none.
        rand_augment_ops, rand_augment_magnitude: RandAugment's number of operations (0 for none) and strength, 0 to 30.
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


class ImageDataset(FileDataset):
    """A data set whose samples have one modality, `image`, and one target, `label`.

    Args:
        num_classes, on_error: see `Dataset`.
        image_size: side, or [height, width], of the images handed out. Larger and smaller ones are resized by their
            shorter side and cut at the centre.
        channels: 1 (grey) or 3 (RGB).
        augment: random changes to training images, if any.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
    ) -> None:
        super().__init__(num_classes=num_classes, on_error=on_error)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: images are read as grey (1) or RGB (3)")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        self.size = (height, width)
        self.channels = channels
        self.to_float = v2.ToDtype(torch.float32, scale=True)
        self.train_transform = None if augment is None else augment.transform(self.size, self.resize)

    @property
    @abstractmethod
    def class_names(self) -> list[str]: ...

    def resize(self, image: UInt8[Tensor, "channels _ _"]) -> UInt8[Tensor, "channels height width"]:
        """To `size`, keeping the aspect ratio, cut at the centre."""
        sides = list(image.shape[-2:])
        if sides == list(self.size):
            return image
        scale = max(target / side for target, side in zip(self.size, sides, strict=True))
        if prod(sides) * scale**2 > 16 * prod(self.size):
            # A strip so thin might not fit into memory if it were enlarged as a whole. The difference to what is kept
            # is even, so that the centre stays.
            kept = [min(side, ceil(2 * target / scale)) for target, side in zip(self.size, sides, strict=True)]
            sides = [keep + (side - keep) % 2 for keep, side in zip(kept, sides, strict=True)]
            image = F.center_crop(image, sides)
        scaled = [max(round(side * scale), target) for side, target in zip(sides, self.size, strict=True)]
        return F.center_crop(F.resize(image, scaled, antialias=True), list(self.size))

    def sample(self, image: UInt8[Tensor, "channels _ _"], targets: dict[str, Any], id: str, *, train: bool) -> Sample:
        """An 8-bit image as a sample: resized, augmented if `train`, as float in [0, 1]."""
        image_in: Float[Tensor, "channels height width"]
        if train and self.train_transform is not None:
            image_in = self.train_transform(image)
        else:
            image_in = self.to_float(self.resize(image))
        return Sample(inputs={"image": image_in}, targets=targets, id=id)

    def file_sample(self, source: Source, targets: dict[str, Any], id: str, *, train: bool) -> Sample:
        return self.sample(read_image(source, self.channels), targets, id, train=train)


class ImageArray:
    """A split whose images lie in memory as one array."""

    def __init__(
        self,
        dataset: ImageDataset,
        images: UInt8[Tensor, "samples channels height width"],
        labels: Sequence[int],
        ids: Sequence[str],
        *,
        train: bool,
    ) -> None:
        self.dataset = dataset
        self.images = images
        self.labels = labels
        self.ids = ids
        self.train = train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        targets = {"label": self.labels[index]}
        return self.dataset.sample(self.images[index], targets, self.ids[index], train=self.train)

    def classes_of(self, index: int) -> Sequence[int]:
        return [self.labels[index]]
