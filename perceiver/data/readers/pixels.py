"""Pixels of images and videos with torch alone, as torchvision has them.

The import of torchvision takes longer than that of torch (its `ops` import torch's compiler), and is only needed to
augment images.
"""

import platform
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def pil_to_tensor(image: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Return the pixels of an image of mode L or RGB."""
    values = torch.from_numpy(np.array(image))
    return values.view(image.height, image.width, -1).permute(2, 0, 1)


def to_float(image: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 8-bit values in [0, 1]."""
    return image.float().mul_(1.0 / 255.0)


def to_gray(image: Shaped[Tensor, "3 height width"]) -> Shaped[Tensor, "1 height width"]:
    """Return the luma of an RGB image (ITU-R BT.601), of the same type."""
    red, green, blue = image.unbind(dim=-3)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[None].to(image.dtype)


def resize(
    images: Shaped[Tensor, "*images channels _ _"],
    size: Sequence[int],
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Shaped[Tensor, "*images channels height width"]:
    """Return images of another height and width, interpolated with antialiasing; 8-bit values stay such."""
    if list(images.shape[-2:]) == list(size):
        return images
    rows = images.reshape(-1, *images.shape[-3:])
    casts = images.dtype == torch.uint8 and mode == "bilinear" and not _resizes_bytes()
    resized = F.interpolate(
        rows.float() if casts else rows, size=list(size), mode=mode, align_corners=False, antialias=True
    )
    if casts:
        resized = resized.round_().to(images.dtype)
    return resized.reshape(*images.shape[:-2], *size)


def _resizes_bytes() -> bool:
    """Return whether torch interpolates 8-bit values bilinearly without a detour through floats on this machine."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def resize_mask(mask: UInt8[Tensor, "_ _"], size: Sequence[int]) -> UInt8[Tensor, "height width"]:
    """Return a mask of another height and width, each value that of the nearest pixel."""
    return mask if list(mask.shape) == list(size) else F.interpolate(mask[None, None], size=list(size))[0, 0]


def center_crop(images: Shaped[Tensor, "*rest _ _"], size: Sequence[int]) -> Shaped[Tensor, "*rest height width"]:
    """Return the center of images that are at least as large as it."""
    top, left = (round((side - kept) / 2.0) for side, kept in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]
