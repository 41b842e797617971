"""Attention weights and raw inputs -> 8-bit RGB, and what is drawn over it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from perceiver.inspection.colormaps import OUTLINE, colorize

CLIP_QUANTILE = 0.995
"""Weights above this quantile of a sheet share the brightest colour: single spikes would leave the rest black."""
DYNAMIC_RANGE = 80.0
"""How many dB below the loudest are told apart: in less of the grey ramp, the rest would drown."""
FLOOR_QUANTILE = 0.01
"""Levels below it are black: noise has deep notches, which say nothing."""


@dataclass(frozen=True)
class Outline:
    """A rectangle on a picture, as fractions of its width and height from the upper left."""

    left: float
    top: float
    right: float
    bottom: float


def color_range(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for."""
    low, high = float(values.min()), float(np.quantile(values, CLIP_QUANTILE, method="higher"))
    return low, high if high > low else float(values.max())


def image_picture(image: Float[Tensor, "channels rows columns"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """An image in [0, 1] as RGB; one channel becomes grey, of more than three the first three are shown."""
    channels = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return (channels.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def level_picture(
    levels: Float[Tensor, "1 rows columns"], unit: str
) -> tuple[UInt8[np.ndarray, "rows columns 3"], tuple[float, float]]:
    """Measured values in grey, the highest white, and what black and white stand for.

    Decibels are shown down to `DYNAMIC_RANGE` below the highest, and nothing below `FLOOR_QUANTILE`.
    """
    values = levels[0].detach().float().cpu()
    low, high = float(np.quantile(values.numpy(), FLOOR_QUANTILE)), float(values.max())
    if unit == "dB":
        low = max(low, high - DYNAMIC_RANGE)
    grey = (values - low) / max(high - low, 1e-12)
    return image_picture(grey[None]), (low, high)


def resized(picture: UInt8[np.ndarray, "rows columns 3"], size: tuple[int, int]) -> Image.Image:
    """A picture in another size, (width, height), without smoothing."""
    width, height = size
    image = Image.fromarray(picture)
    # A cell that is left out when shrinking would be a cell not shown.
    across = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX
    down = Image.Resampling.NEAREST if image.height <= height else Image.Resampling.BOX
    return image.resize((width, image.height), across).resize(size, down)


def overlay(
    picture: UInt8[np.ndarray, "height width 3"],
    values: Float[np.ndarray, "rows columns"],
    size: tuple[int, int],
    *,
    strength: float = 0.6,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A picture with a map stretched over it, both in a new size, (width, height)."""
    colours = Image.fromarray(colorize(values, *color_range(values))).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(resized(picture, size), colours, strength))


def outlined(picture: Image.Image, outlines: Sequence[Outline]) -> Image.Image:
    """A picture with rectangles drawn into it, each a thin line that stands out from dark and bright."""
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    corners = [
        (
            round(outline.left * (picture.width - 1)),
            round(outline.top * (picture.height - 1)),
            round(outline.right * (picture.width - 1)),
            round(outline.bottom * (picture.height - 1)),
        )
        for outline in outlines
    ]
    for left, top, right, bottom in corners:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black")
    for corner in corners:  # last, so that no dark line crosses the line of another
        draw.rectangle(corner, outline=OUTLINE)
    return drawn
