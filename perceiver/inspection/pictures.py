"""Attention weights -> pictures: 8-bit RGB with one colour scale a sheet, in the units of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
"""Anchors of the perceptually even, colour-blind-safe map; values between them are interpolated."""
CLIP_QUANTILE = 0.995
"""Weights above this quantile of a sheet share the brightest colour: single spikes would leave the rest black."""
TILE, MAX_TILE = 144, 256
"""Width of a tile in pixels: wider than the first only for maps of more columns, up to the second."""
TITLE_HEIGHT = 16
GAP = 4
MIN_BAR_HEIGHT = 40
BAR_WIDTH = 64

Picture = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: a map to be coloured, or an image to be shown as it is."""

    title: str
    values: Float[np.ndarray, "rows columns"] | Picture
    is_map: bool = True


def colourize(
    values: Float[np.ndarray, "rows columns"], low: float, high: float
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Viridis over [low, high]."""
    anchors = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in VIRIDIS.split()], dtype=np.float64)
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(anchors) - 1)
    channels = [np.interp(place, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def image_picture(image: Float[Tensor, "channels height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """An image in [0, 1] as RGB; one channel becomes grey, of more than three the first three are shown."""
    channels = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return (channels.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def contact_sheet(tiles: Sequence[Tile], *, max_columns: int = 8, unit: str = "weight") -> Image.Image:
    """Tiles in even rows under their titles, all maps on one colour scale, whose bar stands at the right.

    A tile is as wide as the others; its height follows the shape of its picture. Cells are enlarged without smoothing.
    """
    maps = [tile.values for tile in tiles if tile.is_map]
    low, high = colour_range(np.concatenate([values.ravel() for values in maps]))
    clipped = any(values.max() > high for values in maps)
    width = _tile_width(max(values.shape[1] for values in maps))
    pictures = [
        _fit(colourize(tile.values, low, high) if tile.is_map else np.asarray(tile.values, dtype=np.uint8), width)
        for tile in tiles
    ]
    rows = -(-len(tiles) // max_columns)
    columns = -(-len(tiles) // rows)
    height = max(MIN_BAR_HEIGHT, *(picture.height for picture in pictures))
    row_height = height + TITLE_HEIGHT + GAP
    sheet = Image.new("RGB", (columns * (width + GAP) + BAR_WIDTH, rows * row_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        left, top = number % columns * (width + GAP), number // columns * row_height
        draw.text((left + 1, top), tile.title, fill="black", font=font)
        sheet.paste(picture, (left, top + TITLE_HEIGHT))
    labels = (f"{'> ' * clipped}{high:.2g}", f"{(low + high) / 2:.2g}", f"{low:.2g}")
    _draw_bar(draw, font, sheet, columns * (width + GAP), unit, labels, height=height)
    return sheet


def colour_range(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for."""
    low, high = float(values.min()), float(np.quantile(values, CLIP_QUANTILE))
    return low, high if high > low else float(values.max())


def _tile_width(columns: int) -> int:
    return min(max(TILE, columns), MAX_TILE)


def _fit(picture: UInt8[np.ndarray, "height width 3"], tile_width: int) -> Image.Image:
    height, width = picture.shape[:2]
    size = (tile_width, max(round(tile_width * height / width), 1))
    # Enlarged without smoothing; but a cell that is left out when shrinking would be a cell not shown.
    return Image.fromarray(picture).resize(
        size, Image.Resampling.NEAREST if width <= tile_width else Image.Resampling.BOX
    )


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    sheet: Image.Image,
    left: int,
    unit: str,
    labels: tuple[str, str, str],
    *,
    height: int,
) -> None:
    ramp = colourize(np.linspace(1, 0, height)[:, None].repeat(10, axis=1), 0, 1)
    sheet.paste(Image.fromarray(ramp), (left, TITLE_HEIGHT))
    draw.text((left, 0), unit, fill="black", font=font)
    for label, y in zip(labels, (0, height // 2 - 6, height - 13), strict=True):
        draw.text((left + 14, TITLE_HEIGHT + y), label, fill="black", font=font)


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], values: Float[np.ndarray, "rows columns"], *, strength: float = 0.6
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with a map laid over it; both at least a tile large."""
    base = _fit(picture, _tile_width(values.shape[1]))
    colours = Image.fromarray(colourize(values, *colour_range(values))).resize(base.size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(base, colours, strength))
