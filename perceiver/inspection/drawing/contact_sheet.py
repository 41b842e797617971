"""Contact sheets: tiles in rows, all maps on one color scale in the units of the weights, with ticks along axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perceiver.inspection.drawing.axes import Outline, Tick
from perceiver.inspection.drawing.colormap import OUTLINE, colorize

CLIP_QUANTILE = 0.995
"""Weights above this quantile of a sheet share the brightest color: single peaks would leave the rest black."""
DYNAMIC_RANGE = 80.0
"""Range below the maximum of decibels that is drawn: the gray ramp does not resolve more."""
FLOOR_QUANTILE = 0.01
"""Levels below this quantile are black: noise has deep notches without meaning."""
TILE, MAX_TILE = 120, 256
"""Width of a tile in pixels, and its limit for maps of more columns."""
TITLE_HEIGHT = 16
TITLE_SIZE, LABEL_SIZE = 12, 11
GAP = 4
MIN_BAR_HEIGHT = 40
BAR_WIDTH = 64
ROW_TICKS_WIDTH, COLUMN_TICKS_HEIGHT = 28, 15
"""Size of ticks and labels at the left of a sheet and below each tile."""
TICK = 3
TIMELINE_SIZE, MAX_TIMELINE_TICKS = (512, 24), 5

Pixels: TypeAlias = UInt8[np.ndarray, "rows columns 3"]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class InputImage:
    """A drawn input; `low` and `high` are the values of black and white in `unit`, unless that is empty."""

    pixels: Pixels
    unit: str = ""
    low: float = 0.0
    high: float = 1.0


def input_image(
    values: Float[Tensor, "channels rows columns"], unit: str = "", like: InputImage | None = None
) -> InputImage:
    """Draw an image in [0, 1] as RGB, or values with a unit in gray.

    One channel becomes gray; of more than three the first three are drawn. Values with a unit range from
    `FLOOR_QUANTILE` to the maximum, decibels over at most `DYNAMIC_RANGE`; or as in `like`, if it is given.
    """
    values, low, high = values.detach().float().cpu(), 0.0, 1.0
    if like is not None:
        low, high = like.low, like.high
    elif unit:
        low, high = float(np.quantile(values[0].numpy(), FLOOR_QUANTILE)), float(values[0].max())
        if unit == "dB":
            low = max(low, high - DYNAMIC_RANGE)
    if unit:
        values = (values[:1] - low) / max(high - low, 1e-12)
    channels = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    pixels = (channels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return InputImage(pixels, unit, low, high)


def color_range(values: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Return the values of the darkest and the brightest color."""
    low, high = float(values.min()), float(np.quantile(values, CLIP_QUANTILE, method="higher"))
    return low, high if high > low else float(values.max())


def resize(picture: Pixels, size: tuple[int, int]) -> Image.Image:
    """Resize a picture to (width, height): enlarged without smoothing, averaged where it shrinks."""
    width, height = size
    image = Image.fromarray(picture)
    across = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.BOX
    down = Image.Resampling.NEAREST if image.height <= height else Image.Resampling.BOX
    return image.resize((width, image.height), across).resize(size, down)


def overlay(
    picture: Pixels, values: Float[np.ndarray, "rows columns"], size: tuple[int, int], *, strength: float = 0.6
) -> Pixels:
    """Blend a picture with a heat map of the same extent, both resized to (width, height)."""
    colors = Image.fromarray(colorize(values, *color_range(values))).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(resize(picture, size), colors, strength))


def draw_outlines(picture: Image.Image, outlines: Sequence[Outline]) -> Image.Image:
    """Return the picture with rectangles: thin lines that contrast with dark and bright pixels."""
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    width, height = picture.width - 1, picture.height - 1
    corners = [
        (round(one.left * width), round(one.top * height), round(one.right * width), round(one.bottom * height))
        for one in outlines
    ]
    for left, top, right, bottom in corners:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black")
    for corner in corners:  # after all dark lines, so that none crosses them
        draw.rectangle(corner, outline=OUTLINE)
    return drawn


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        title: above the picture, shortened to its width.
        values: a map to be colored, or RGB pixels.
        size: width and height in pixels.
        is_map: which of the two `values` are.
        outlines: rectangles drawn over it.
        row_ticks, column_ticks: along its height, from the top, and along its width.
        row_unit: of the row ticks.
    """

    title: str
    values: Float[np.ndarray, "rows columns"] | Pixels
    size: tuple[int, int]
    is_map: bool = True
    outlines: Sequence[Outline] = ()
    row_ticks: Sequence[Tick] = ()
    column_ticks: Sequence[Tick] = ()
    row_unit: str = ""


def tile_size(columns: int, *, aspect: float) -> tuple[int, int]:
    """Return width and height of a tile of the given `aspect`, height / width."""
    width = min(max(TILE, columns), MAX_TILE)
    return width, max(round(width * aspect), 1)


def contact_sheet(tiles: Sequence[Tile], *, max_columns: int = 8, unit: str = "weight") -> Image.Image:
    """Draw tiles in even rows below their titles, all maps on one color scale, with a color bar at the right if any.

    Columns are as wide as the widest tile, rows as high as their highest. Cells are enlarged without smoothing. Row
    ticks are labeled at the left of each row of the sheet.
    """
    maps = [tile.values for tile in tiles if tile.is_map]
    low, high = color_range(np.concatenate([values.ravel() for values in maps])) if maps else (0.0, 1.0)
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
    sheet = Image.new("RGB", (right + (BAR_WIDTH if maps else 0), tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, font = (ImageFont.load_default(size=size) for size in (TITLE_SIZE, LABEL_SIZE))
    for row, top in zip(rows, tops, strict=False):
        for column, tile in enumerate(row):
            left = margin + column * (width + GAP)
            colors = colorize(tile.values, low, high) if tile.is_map else np.asarray(tile.values, dtype=np.uint8)
            title = _shorten(tile.title, title_font, tile.size[0])
            draw.text((left + 1, top), title, fill="black", font=title_font)
            sheet.paste(draw_outlines(resize(colors, tile.size), tile.outlines), (left, top + TITLE_HEIGHT))
            _draw_column_ticks(draw, font, tile, left, top + TITLE_HEIGHT + tile.size[1])
            _draw_row_ticks(draw, font, tile, left, top + TITLE_HEIGHT, with_labels=column == 0)
    if not maps:
        return sheet
    ramp = colorize(np.linspace(1, 0, heights[0])[:, None].repeat(10, axis=1), 0, 1)
    sheet.paste(Image.fromarray(ramp), (right, TITLE_HEIGHT))
    draw.text((right, 0), unit, fill="black", font=font)
    labels = (f"{'> ' * clipped}{high:.2g}", f"{(low + high) / 2:.2g}", f"{low:.2g}")
    for label, y in zip(labels, (0, heights[0] // 2 - 6, heights[0] - 13), strict=True):
        draw.text((right + 14, TITLE_HEIGHT + y), label, fill="black", font=font)
    return sheet


def _shorten(title: str, font: Font, width: int) -> str:
    """Shorten a title to the width of its tile."""
    if font.getlength(title) <= width:
        return title
    lengths = range(len(title) - 1, 0, -1)
    return next((cut for n in lengths if font.getlength(cut := f"{title[:n].rstrip()}…") <= width), "…")


def _draw_row_ticks(
    draw: ImageDraw.ImageDraw, font: Font, tile: Tile, left: int, top: int, *, with_labels: bool
) -> None:
    height = tile.size[1]
    for tick in tile.row_ticks:
        y = top + round(tick.place * (height - 1))
        draw.line((left - TICK, y, left - 1, y), fill="black")
        if with_labels:
            middle = min(max(y, top + 5), top + height - 5)
            draw.text((left - TICK - 2, middle), tick.label, fill="black", font=font, anchor="rm")
    if tile.row_ticks and with_labels:
        draw.text((left - TICK - 2, top - TITLE_HEIGHT), tile.row_unit, fill="black", font=font, anchor="ra")


def _draw_column_ticks(draw: ImageDraw.ImageDraw, font: Font, tile: Tile, left: int, top: int) -> None:
    width = tile.size[0]
    for tick in tile.column_ticks:
        x = left + round(tick.place * (width - 1))
        half = font.getlength(tick.label) / 2
        draw.line((x, top, x, top + TICK - 1), fill="black")
        middle = min(max(x, left + half), left + width - half)
        draw.text((middle, top + TICK), tick.label, fill="black", font=font, anchor="ma")


def timeline(scores: Mapping[str, Sequence[float]], windows: Sequence[str]) -> Image.Image:
    """Draw one strip per answer, whose cells are the windows in order, all on one color scale.

    Args:
        scores: answer -> its score in each window.
        windows: their names, some of which are written below the last strip.
    """
    labeled = range(0, len(windows), -(-len(windows) // MAX_TIMELINE_TICKS))
    ticks = [Tick((number + 0.5) / len(windows), windows[number]) for number in labeled]
    tiles = [
        Tile(f"{name}, up to {max(values):.3f}", np.array([values]), TIMELINE_SIZE) for name, values in scores.items()
    ]
    return contact_sheet([*tiles[:-1], replace(tiles[-1], column_ticks=ticks)], max_columns=1, unit="score")
