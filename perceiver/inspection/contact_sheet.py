"""Tiles -> a contact sheet: all maps on one colour scale, in the units of the weights; ticks along axes with units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perceiver.inspection.axes import Tick
from perceiver.inspection.colormap import OUTLINE, colorize

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


TILE, MAX_TILE = 120, 256
"""Width in pixels of a tile: wider than the first only for maps of more columns, up to the second."""
TITLE_HEIGHT = 16
TITLE_SIZE, LABEL_SIZE = 12, 11
GAP = 4
MIN_BAR_HEIGHT = 40
BAR_WIDTH = 64
ROW_TICKS_WIDTH, COLUMN_TICKS_HEIGHT = 28, 15
"""What ticks and their labels take up at the left of a sheet and below each tile."""
TICK = 3

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        title: stands above it, cut off where it is wider.
        values: a map to be coloured, or RGB to be shown as it is.
        size: width and height in pixels.
        is_map: which of the two.
        outlines: rectangles drawn over it.
        row_ticks, column_ticks: along its height, from the top, and along its width.
        row_unit: of the row ticks.
    """

    title: str
    values: Float[np.ndarray, "rows columns"] | UInt8[np.ndarray, "rows columns 3"]
    size: tuple[int, int]
    is_map: bool = True
    outlines: Sequence[Outline] = ()
    row_ticks: Sequence[Tick] = ()
    column_ticks: Sequence[Tick] = ()
    row_unit: str = ""


def tile_size(columns: int, *, aspect: float) -> tuple[int, int]:
    """Width and height of a tile that keeps the shape of what it shows: `aspect` is height / width."""
    width = min(max(TILE, columns), MAX_TILE)
    return width, max(round(width * aspect), 1)


def contact_sheet(tiles: Sequence[Tile], *, max_columns: int = 8, unit: str = "weight") -> Image.Image:
    """Tiles in even rows under their titles, all maps on one colour scale, whose bar stands at the right.

    Columns are as wide as the widest tile, rows as high as their highest. Cells are enlarged without smoothing. Labels
    of row ticks stand at the left of the sheet, once a row.
    """
    maps = [tile.values for tile in tiles if tile.is_map]
    low, high = color_range(np.concatenate([values.ravel() for values in maps]))
    clipped = any(values.max() > high for values in maps)
    num_rows = -(-len(tiles) // max_columns)
    num_columns = -(-len(tiles) // num_rows)
    rows = [tiles[start : start + num_columns] for start in range(0, len(tiles), num_columns)]
    heights = [max(MIN_BAR_HEIGHT, *(tile.size[1] for tile in row)) for row in rows]
    width = max(tile.size[0] for tile in tiles)
    margin = ROW_TICKS_WIDTH if any(tile.row_ticks for tile in tiles) else 0
    below = COLUMN_TICKS_HEIGHT if any(tile.column_ticks for tile in tiles) else 0
    tops = [0, *accumulate(height + TITLE_HEIGHT + GAP + below for height in heights)]
    right = margin + num_columns * (width + GAP)
    sheet = Image.new("RGB", (right + BAR_WIDTH, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, font = (ImageFont.load_default(size=size) for size in (TITLE_SIZE, LABEL_SIZE))
    for row, top in zip(rows, tops, strict=False):
        for column, tile in enumerate(row):
            left = margin + column * (width + GAP)
            colours = colorize(tile.values, low, high) if tile.is_map else np.asarray(tile.values, dtype=np.uint8)
            title = _shortened(tile.title, title_font, tile.size[0])
            draw.text((left + 1, top), title, fill="black", font=title_font)
            sheet.paste(outlined(resized(colours, tile.size), tile.outlines), (left, top + TITLE_HEIGHT))
            _draw_column_ticks(draw, font, tile, left, top + TITLE_HEIGHT + tile.size[1])
            _draw_row_ticks(draw, font, tile, left, top + TITLE_HEIGHT, labelled=column == 0)
    labels = (f"{'> ' * clipped}{high:.2g}", f"{(low + high) / 2:.2g}", f"{low:.2g}")
    _draw_bar(draw, font, sheet, right, unit, labels, height=heights[0])
    return sheet


def _shortened(title: str, font: Font, width: int) -> str:
    """A title that is no wider than its tile."""
    if font.getlength(title) <= width:
        return title
    lengths = range(len(title) - 1, 0, -1)
    return next((cut for n in lengths if font.getlength(cut := f"{title[:n].rstrip()}…") <= width), "…")


def _draw_row_ticks(draw: ImageDraw.ImageDraw, font: Font, tile: Tile, left: int, top: int, *, labelled: bool) -> None:
    height = tile.size[1]
    for tick in tile.row_ticks:
        y = top + round(tick.place * (height - 1))
        draw.line((left - TICK, y, left - 1, y), fill="black")
        if labelled:
            middle = min(max(y, top + 5), top + height - 5)
            draw.text((left - TICK - 2, middle), tick.label, fill="black", font=font, anchor="rm")
    if tile.row_ticks and labelled:
        draw.text((left - TICK - 2, top - TITLE_HEIGHT), tile.row_unit, fill="black", font=font, anchor="ra")


def _draw_column_ticks(draw: ImageDraw.ImageDraw, font: Font, tile: Tile, left: int, top: int) -> None:
    width = tile.size[0]
    for tick in tile.column_ticks:
        x = left + round(tick.place * (width - 1))
        half = font.getlength(tick.label) / 2
        draw.line((x, top, x, top + TICK - 1), fill="black")
        middle = min(max(x, left + half), left + width - half)
        draw.text((middle, top + TICK), tick.label, fill="black", font=font, anchor="ma")


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    font: Font,
    sheet: Image.Image,
    left: int,
    unit: str,
    labels: tuple[str, str, str],
    *,
    height: int,
) -> None:
    ramp = colorize(np.linspace(1, 0, height)[:, None].repeat(10, axis=1), 0, 1)
    sheet.paste(Image.fromarray(ramp), (left, TITLE_HEIGHT))
    draw.text((left, 0), unit, fill="black", font=font)
    for label, y in zip(labels, (0, height // 2 - 6, height - 13), strict=True):
        draw.text((left + 14, TITLE_HEIGHT + y), label, fill="black", font=font)


SIZE = (512, 24)
MAX_TICKS = 5


def timeline(scores: Mapping[str, Sequence[float]], windows: Sequence[str]) -> Image.Image:
    """One strip an answer, whose cells are the windows in order, all on one colour scale.

    Args:
        scores: answer -> its score in each window.
        windows: their names, some of which stand below the last strip.
    """
    shown = range(0, len(windows), -(-len(windows) // MAX_TICKS))
    ticks = [Tick((number + 0.5) / len(windows), windows[number]) for number in shown]
    tiles = [Tile(f"{name}, up to {max(values):.3f}", np.array([values]), SIZE) for name, values in scores.items()]
    return contact_sheet([*tiles[:-1], replace(tiles[-1], column_ticks=ticks)], max_columns=1, unit="score")
