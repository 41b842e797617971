"""Images as float tensors in [0, 1]: decoding of files, resizing, and augmentation in training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from perceiver.data.files import IMAGES, File, UnreadableError, refuse_special, warn_once
from perceiver.data.readers.base import Clips, Reader, Reading
from perceiver.data.readers.pixels import center_crop, pil_to_tensor, resize, resize_mask, to_float, to_gray
from perceiver.types import UNLABELED

if TYPE_CHECKING:
    from torchvision.transforms import v2

MAX_PIXELS = 100_000_000
"""Files that claim more are rejected before they are decoded (decompression bombs)."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats, whatever the file name. PIL supports more, and starts a program for PostScript."""
INTEGER_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
WHITE_LEVELS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Usual values of white: 1 for floating-point numbers, all bits set for integers of 8, 10, 12, 14 or 16 bits."""
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, SMAX_SAMPLE = 258, 262, 281, 339, 341
"""TIFF tags."""
SIGNED, WHITE_IS_ZERO = 2, 0
"""Values of the tags `SAMPLE_FORMAT` and `PHOTOMETRIC`."""


class Affine:
    """A random affine transform. In a mask, what comes from outside of the image is `UNLABELED`.

    Args:
        rotation: largest angle, in degrees; 0 for none.
        translation: largest shift, as a fraction of the side.
        scaling: largest change of scale around 1.
    """

    def __init__(self, *, rotation: float, translation: float, scaling: float) -> None:
        from torchvision.transforms import v2
        from torchvision.tv_tensors import Mask

        self.transforms: list[v2.Transform] = []
        if any((rotation, translation, scaling)):
            shift, scale = (translation, translation), (1.0 - scaling, 1.0 + scaling)
            bilinear, fill = v2.InterpolationMode.BILINEAR, {Mask: UNLABELED, "others": 0}
            affine = v2.RandomAffine(rotation, translate=shift, scale=scale, interpolation=bilinear, fill=fill)
            self.transforms.append(affine)


class RandAugment:
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as torchvision implements it.

    Args:
        num_ops: number of operations; 0 for none.
        magnitude: their strength, from 0 to 30; 5 of 10 on TensorFlow's scale, as in DeepMind's recipes, are 15 of 30.
    """

    def __init__(self, *, num_ops: int, magnitude: int) -> None:
        if not 0 <= magnitude <= 30:
            raise ValueError(f"magnitude={magnitude} must be 0 to 30")
        from torchvision.transforms import v2

        self.transforms: list[v2.Transform] = [v2.RandAugment(num_ops, magnitude)] if num_ops else []


class ImageAugment:
    """Random changes to a training image, and to its mask, if it has one.

    Attributes:
        changes_images_only: whether a change of shape would leave a mask as it is: RandAugment takes no masks.

    Args:
        crop_padding: pixels of reflection around the image before a random crop of its own size; 0 for none.
        min_scale: least fraction of the image's area that a random resized crop keeps; 1 for no such crop.
        horizontal_flip: probability of a mirror image.
        affine: a random affine transform, if any.
        rand_augment: RandAugment, if any.
        erasing: probability that a random rectangle is blanked.
    """

    def __init__(
        self,
        *,
        crop_padding: int = 0,
        min_scale: float = 1.0,
        horizontal_flip: float = 0.0,
        affine: Affine | None = None,
        rand_augment: RandAugment | None = None,
        erasing: float = 0.0,
    ) -> None:
        from torchvision.transforms import v2

        if not 0.0 < min_scale <= 1.0:
            raise ValueError(f"min_scale={min_scale} must be in (0, 1]")
        self.crop_padding = crop_padding
        self.min_scale = min_scale
        self.changes_images_only = rand_augment is not None and bool(rand_augment.transforms)
        self.transforms: list[v2.Transform] = [
            *([v2.RandomHorizontalFlip(horizontal_flip)] if horizontal_flip else []),
            *(affine.transforms if affine else []),
            *(rand_augment.transforms if rand_augment else []),
            *([v2.RandomErasing(erasing)] if erasing else []),
        ]

    def transform(self, size: tuple[int, int], resize: Callable[[Tensor], Tensor]) -> "v2.Transform":
        """Return the transform of a training image to `size`, by `resize` or a random resized crop, in [0, 1].

        It also takes an image and a torchvision `Mask`.

        Raises:
            ValueError: `crop_padding` is more than can be reflected.
        """
        from torchvision.transforms import v2

        if self.crop_padding >= min(size):
            raise ValueError(f"crop_padding={self.crop_padding} must be less than the image's sides, {list(size)}")
        crop = v2.RandomResizedCrop(size, scale=(self.min_scale, 1.0), antialias=True)
        steps: list[v2.Transform] = [v2.Lambda(_KeepingType(resize)) if self.min_scale == 1.0 else crop]
        if self.crop_padding:
            steps.append(v2.RandomCrop(size, padding=self.crop_padding, padding_mode="reflect"))
        return v2.Compose([*steps, *self.transforms, v2.ToDtype(torch.float32, scale=True)])


class _KeepingType:
    """Applies a function of plain tensors to an image or a torchvision `Mask`, and returns a value of the same type."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, values: Tensor) -> Tensor:
        return self.function(values.as_subclass(Tensor)).as_subclass(type(values))


class ImageReader(Reader[UInt8[Tensor, "channels height width"]]):
    """Images of any size, from files or memory, as floats in [0, 1] of one size.

    Args:
        image_size: side, or [height, width], of the output. Images are resized by their shorter side and cropped at the
            center.
        channels: 1 (gray) or 3 (RGB).
        augment: random changes to training images, if any.
        max_value: see `read_image`.
        eval_crop: fraction of the shorter side that is kept, at the center, of images that are not augmented.
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
            raise ValueError(f"channels={channels} must be 1 (gray) or 3 (RGB)")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        if max_value is not None and not 0 < max_value < inf:
            raise ValueError(f"max_value={max_value} must be more than 0")
        if not 0.0 < eval_crop <= 1.0:
            raise ValueError(f"eval_crop={eval_crop} must be in (0, 1]")
        self.size = (height, width)
        self.channels = channels
        self.max_value = max_value
        self.eval_crop = eval_crop
        self.train_transform = None if augment is None else augment.transform(self.size, self.resize)

    def read(
        self, part: File | UInt8[Tensor, "channels height width"], *, train: bool, clips: Clips | None = None
    ) -> Reading:
        image = self.decode(part)
        if train and self.train_transform is not None:
            return Reading(self.train_transform(image))
        return Reading(to_float(self.resize(image, self.eval_crop)))

    def decoded(self, part: File) -> UInt8[Tensor, "channels height width"] | None:
        return self.decode(part)

    def decode(self, part: File | UInt8[Tensor, "_ height width"]) -> UInt8[Tensor, "channels height width"]:
        """Return an image in its own size; raises as `read_image`."""
        if not isinstance(part, Tensor):
            return read_image(part, self.channels, self.max_value)
        return to_gray(part) if len(part) > self.channels else part.expand(self.channels, -1, -1)

    def resize(self, image: UInt8[Tensor, "*channels _ _"], crop: float = 1.0) -> UInt8[Tensor, "*channels _ _"]:
        """Resize to `size` with the aspect ratio kept: the center, of which the fraction `crop` of the side is kept.

        Without channels, it is a mask.
        """
        sides = list(image.shape[-2:])
        if sides == list(self.size) and crop == 1.0:
            return image
        scale = max(target / side for target, side in zip(self.size, sides, strict=True)) / crop
        if prod(sides) * scale**2 > 16 * prod(self.size):
            # A thin strip is cropped first: enlarged as a whole it might not fit into memory. The number of removed
            # pixels is even, so that the center stays.
            kept = [min(side, ceil(2 * target / scale)) for target, side in zip(self.size, sides, strict=True)]
            sides = [keep + (side - keep) % 2 for keep, side in zip(kept, sides, strict=True)]
            image = center_crop(image, sides)
        scaled = [max(round(side * scale), target) for side, target in zip(sides, self.size, strict=True)]
        return center_crop((resize_mask if image.ndim == 2 else resize)(image, scaled), self.size)


def read_image(path: File, channels: int, max_value: float | None = None) -> UInt8[Tensor, "channels height width"]:
    """Decode an image file to 8-bit gray (1 channel) or RGB (3).

    Transparent images are composed with white, EXIF rotation is applied, and the first of several pages or frames is
    read. Gray values of more than 8 bits are scaled by the white level, never by the largest value of a file: by
    `max_value`; otherwise by the range that a TIFF declares (MaxSampleValue or SMaxSampleValue, if it is one of
    `WHITE_LEVELS`) or that of its bits; in PNG, PGM and JPEG 2000 by 65535. If none is declared (TIFF of 32 bits), it
    is 255 if no value is larger, otherwise 65535 (1 or 255 for floating-point numbers), with a warning. There is a
    warning, too, for a file so dark that its values may have fewer bits. Of colors of 16 bits the upper 8 are read.

    Args:
        path: the file.
        channels: 1 or 3.
        max_value: the white level of gray files of more than 8 bits; None to read it from the file.

    Raises:
        UnreadableError: the file is missing, truncated, too large or not an image, or has values outside its range.
    """
    with open_image(path) as file:
        has_16_bits = any(";16" in str(tile.args) for tile in getattr(file, "tile", ()))  # unknown once loaded
        image = ImageOps.exif_transpose(file)
        if file.mode in (*INTEGER_MODES, "F") or _is_signed_8_bit(file):
            image = _to_8_bit(path, image, file, max_value)
        elif has_16_bits:
            _check_16_bit_colors(path, image, max_value)
        if image.has_transparency_data:  # PIL's own conversion would drop it
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))


def check_sizes(one: File | Tensor, of_one: Tensor, other: File | Tensor | None, of_other: Tensor) -> None:
    """Check that two images, or an image and its mask or flow, have the same height and width.

    Raises:
        UnreadableError: they do not.
    """
    if of_one.shape[-2:] != of_other.shape[-2:]:
        sizes = " and ".join(f"{width}×{height}" for height, width in (of_other.shape[-2:], of_one.shape[-2:]))
        names = [("a tensor" if isinstance(file, Tensor) else str(file)) for file in (other, one)]
        raise UnreadableError(f"{names[0]}: its size differs from that of {names[1]}, {sizes}")


@contextmanager
def open_image(path: File) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are decoded inside the context.

    Raises:
        UnreadableError: the file is missing, truncated, too large or not an image; or in place of any other error
            inside the context.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw, Image.open(raw, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableError(f"{path}: {file.width}×{file.height} pixels are more than {MAX_PIXELS:,}")
            yield file
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(f"{path}: not an image") from error
    except Exception as error:  # PIL raises whatever its decoders raise: OSError, SyntaxError, struct.error, …
        raise UnreadableError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _to_8_bit(path: File, image: Image.Image, file: Image.Image, max_value: float | None) -> Image.Image:
    """Scale the gray values of `image`, which was loaded from `file`, to 8 bits; PIL would clip them at 255.

    Raises:
        ValueError: values are not finite, or outside the range.
    """
    values = np.asarray(image)
    if _is_signed_8_bit(file):
        values = values.view(np.int8)
    lowest, largest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(largest)):
        raise ValueError("holds values that are not finite")
    declared = _declared_white_level(file) if max_value is None else max_value
    guesses = (1.0, 255.0) if file.mode == "F" else (255.0, 65535.0)
    white = next((guess for guess in guesses if largest <= guess), guesses[-1]) if declared is None else declared
    kind = f"{file.format} {file.mode}"
    if lowest < 0 or largest > white:
        problem = f"holds values from {lowest:g} to {largest:g}, which are not from 0 to {white:g}"
        raise ValueError(f"{problem}; set data.max_value to the value of white")
    if declared is None and largest > 0:
        problem = f"declares no range; 0 to {white:g} is assumed, as the largest value is {largest:g}"
        warn_once(f"{kind} {white:g}", f"{path}: {problem}; data.max_value=255 (1023, 4095, …) sets the value of white")
    elif max_value is None and 0 < largest < white / 4 and white > 16383:
        depth = next(level for level in WHITE_LEVELS[1:] if largest <= level)  # one warning for each
        problem = f"nearly black: its values reach {largest:g}, and white is {white:g}"
        warn_once(f"{kind} dark {depth:g}", f"{path}: {problem}; data.max_value={depth:g} sets the value of white")
    scaled = np.multiply(values, 255.0 / white, dtype=np.float32)
    if _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO:  # PIL inverts images of 8 bits only
        scaled = 255.0 - scaled
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _declared_white_level(file: Image.Image) -> float | None:
    if file.format != "TIFF":
        return None if file.mode == "F" else 65535.0  # to which PIL scales PGM and JPEG 2000 of other depths
    for tag in (MAX_SAMPLE, SMAX_SAMPLE):
        # Any other value is the largest of this file, and may differ between files.
        if (value := _tag(file, tag)) in WHITE_LEVELS[file.mode != "F" :]:
            return float(value)
    bits = _tag(file, BITS_PER_SAMPLE)
    if file.mode == "F" or bits > 16:
        return None
    return float(2 ** (bits - (_tag(file, SAMPLE_FORMAT) == SIGNED)) - 1)


def _is_signed_8_bit(file: Image.Image) -> bool:
    """Return whether values have 8 bits and a sign, which PIL ignores."""
    return file.mode == "L" and _tag(file, SAMPLE_FORMAT) == SIGNED


def _tag(file: Image.Image, tag: int) -> Any:
    """Return the (first) value of a TIFF tag, None if it is not set."""
    value = getattr(file, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _check_16_bit_colors(path: File, image: Image.Image, max_value: float | None) -> None:
    """Check that colors of 16 bits, of which the upper 8 are read, use these; warn if not.

    Raises:
        ValueError: `max_value` is not that of 16 bits.
    """
    if max_value not in (None, 65535):
        raise ValueError(f"max_value={max_value:g} cannot be applied to colors of 16 bits; save them with 8")
    brightest = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band != "A")
    if 256 * brightest < 65536 / 4:
        problem = "nearly black: its colors use only the lower of their 16 bits; save it with 8"
        warn_once("dark colors", f"{path}: {problem}")
