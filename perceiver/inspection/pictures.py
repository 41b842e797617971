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
TILE = 144
TITLE_HEIGHT = 16
GAP = 4
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


def contact_sheet(tiles: Sequence[Tile], *, columns: int = 8, unit: str = "weight") -> Image.Image:
    """Tiles in rows under their titles, all maps on one colour scale, whose bar stands at the right.

    A tile is as wide as the others; its height follows the shape of its picture. Cells are enlarged without smoothing.
    """
    maps = np.concatenate([tile.values.ravel() for tile in tiles if tile.is_map])
    low, high = float(maps.min()), float(np.quantile(maps, CLIP_QUANTILE))
    if high <= low:
        high = float(maps.max())
    pictures = [
        _fit(colourize(tile.values, low, high) if tile.is_map else np.asarray(tile.values, dtype=np.uint8))
        for tile in tiles
    ]
    columns = min(columns, len(tiles))
    row_height = max(picture.height for picture in pictures) + TITLE_HEIGHT + GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (TILE + GAP) + BAR_WIDTH, rows * row_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        left, top = number % columns * (TILE + GAP), number // columns * row_height
        draw.text((left + 1, top), tile.title, fill="black", font=font)
        sheet.paste(picture, (left, top + TITLE_HEIGHT))
    _draw_bar(draw, font, sheet, columns * (TILE + GAP), low, high, unit, height=pictures[0].height)
    return sheet


def _fit(picture: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    height, width = picture.shape[:2]
    return Image.fromarray(picture).resize((TILE, max(round(TILE * height / width), 1)), Image.Resampling.NEAREST)


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    sheet: Image.Image,
    left: int,
    low: float,
    high: float,
    unit: str,
    *,
    height: int,
) -> None:
    ramp = colourize(np.linspace(high, low, height)[:, None].repeat(10, axis=1), low, high)
    sheet.paste(Image.fromarray(ramp), (left, TITLE_HEIGHT))
    draw.text((left, 0), unit, fill="black", font=font)
    for value, y in (
        (high, TITLE_HEIGHT),
        ((low + high) / 2, TITLE_HEIGHT + height // 2 - 6),
        (low, TITLE_HEIGHT + height - 13),
    ):
        draw.text((left + 14, y), f"{value:.2g}", fill="black", font=font)


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], values: Float[np.ndarray, "rows columns"], *, strength: float = 0.6
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with a map laid over it; both at least a tile large."""
    base = _fit(picture)
    high = float(np.quantile(values, CLIP_QUANTILE))
    colours = Image.fromarray(colourize(values, float(values.min()), high)).resize(base.size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(base, colours, strength))
