"""Files of images: any of them as one kind of tensor."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from perceiver.data.files import File, UnreadableError, refuse_special, warn_once

MAX_PIXELS = 100_000_000
"""Files that claim more are refused before they are decoded (decompression bombs)."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What files may be, whatever they are called. PIL knows more, and for PostScript starts a program."""
INTEGER_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""What may stand for white: 1 in numbers with a point, all bits set in whole ones of 8, 10, 12, 14 or 16."""
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, SMAX_SAMPLE = 258, 262, 281, 339, 341
"""Tags of TIFF."""
SIGNED, WHITE_IS_ZERO = 2, 0
"""Values of `SAMPLE_FORMAT` and of `PHOTOMETRIC`."""
WHAT_IS_WHITE = "data.max_value=255 (1023, 4095, …) says what stands for white"


def read_image(path: File, channels: int, max_value: float | None = None) -> UInt8[Tensor, "channels height width"]:
    """Any image file as 8-bit grey (1 channel) or RGB (3).

    Transparency is laid over white, EXIF rotation is applied, and of several pages or frames the first is read. Grey
    values of more than 8 bits are scaled by the value that stands for white, the same for all files of a kind and
    never the largest of a file: `max_value`; otherwise the range that a TIFF declares (MaxSampleValue or
    SMaxSampleValue, where it is 1 or 255, 1023, …, 65535) or that of its bits; in PNG, PGM and JPEG 2000, 65535. Where
    none is declared (TIFF with 32 bits), it is 255 if no value is larger, otherwise 65535; of floating-point numbers, 1
    or 255; this is warned of. So is a file so dark that its values may be of fewer bits than it has. Colours of 16 bits
    are read by their upper 8.

    Args:
        path: the file.
        channels: 1 or 3.
        max_value: what stands for white in grey files of more than 8 bits; None where they declare it.

    Raises:
        UnreadableError: missing, not an image, truncated, too large, or of values that no image has.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw, Image.open(raw, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableError(f"{path}: {file.width}×{file.height} pixels are more than {MAX_PIXELS:,}")
            has_16_bits = any(";16" in str(tile.args) for tile in getattr(file, "tile", ()))  # forgotten when loaded
            image = ImageOps.exif_transpose(file)
            if file.mode in (*INTEGER_MODES, "F") or _is_signed(file):
                image = _eight_bit(path, image, file, max_value)
            elif has_16_bits:
                _check_colours(path, image, max_value)
            return F.pil_to_tensor(_opaque(image).convert("L" if channels == 1 else "RGB"))
    except UnreadableError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableError(f"{path}: not an image") from error
    except Exception as error:  # PIL raises whatever its decoders raise: OSError, SyntaxError, struct.error, …
        raise UnreadableError(f"{path}: {error}") from error


def _is_signed(file: Image.Image) -> bool:
    """Whether it has 8 bits with a sign, which PIL takes for one without."""
    return file.mode == "L" and _tag(file, SAMPLE_FORMAT) == SIGNED


def _eight_bit(path: File, image: Image.Image, file: Image.Image, max_value: float | None) -> Image.Image:
    """Grey values scaled to 8 bits; PIL's own conversion would cut them at 255.

    Args:
        path: of the file.
        image: the values.
        file: what it is an image of, for what is declared.
        max_value: what stands for white, if it is known.

    Raises:
        ValueError: values are not finite, or not in the range.
    """
    values = np.asarray(image)
    if _is_signed(file):
        values = values.view(np.int8)
    lowest, largest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(largest)):
        raise ValueError("holds values that are not finite")
    declared = _declared_white(file) if max_value is None else max_value
    white = _likely_white(file, largest) if declared is None else declared
    if lowest < 0 or largest > white:
        problem = f"holds values from {lowest:g} to {largest:g}, which are not from 0 to {white:g}"
        raise ValueError(f"{problem}; data.max_value says what stands for white")
    if declared is None and largest > 0:
        problem = f"declares no range; it is taken to be from 0 to {white:g}, as the largest value is {largest:g}"
        warn_once(f"{file.format} {file.mode} {white:g}", f"{path}: {problem}; {WHAT_IS_WHITE}")
    elif max_value is None and 0 < largest < white / 4 and white > 16383:
        # Files of other depths ask for another value, and so for a word of their own.
        likely = next(value for value in WHITES[1:] if largest <= value)
        problem = f"nearly black: its values go to {largest:g}, where white is {white:g}"
        warn_once(
            f"{file.format} {file.mode} dark {likely:g}",
            f"{path}: {problem}; data.max_value={likely:g} says that this is white",
        )
    scaled = np.multiply(values, 255.0 / white, dtype=np.float32)
    if _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO:  # PIL turns 8 bits round, and no others
        scaled = 255.0 - scaled
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _declared_white(file: Image.Image) -> float | None:
    """The value that stands for white, as far as a file says it."""
    if file.format != "TIFF":
        return None if file.mode == "F" else 65535.0  # to which PIL scales PGM and JPEG 2000 of other depths
    for tag in (MAX_SAMPLE, SMAX_SAMPLE):
        # Others are what happens to be the largest, and may differ from file to file.
        if (value := _tag(file, tag)) in WHITES[file.mode != "F" :]:
            return float(value)
    bits = _tag(file, BITS_PER_SAMPLE)
    if file.mode == "F" or bits > 16:
        return None
    return float(2 ** (bits - (_tag(file, SAMPLE_FORMAT) == SIGNED)) - 1)


def _likely_white(file: Image.Image, largest: float) -> float:
    """The value that stands for white where nothing is declared, from the largest there is."""
    usual = (1.0, 255.0) if file.mode == "F" else (255.0, 65535.0)
    return next((white for white in usual if largest <= white), usual[-1])


def _tag(file: Image.Image, tag: int) -> Any:
    """The value of a TIFF's tag, or the first of several; None where there is none."""
    value = getattr(file, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _check_colours(path: File, image: Image.Image, max_value: float | None) -> None:
    """Colours that are read by the upper 8 of their 16 bits must use these.

    Raises:
        ValueError: the value that stands for white says that they do not.
    """
    if max_value not in (None, 65535):
        raise ValueError(f"max_value={max_value:g} cannot be applied to colours of 16 bits; save them with 8")
    brightest = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band != "A")
    if 256 * brightest < 65536 / 4:
        problem = "nearly black: its colours use the lower of their 16 bits only; save it with 8"
        warn_once("dark colours", f"{path}: {problem}")


def _opaque(image: Image.Image) -> Image.Image:
    """PIL's own conversion would drop transparency."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
