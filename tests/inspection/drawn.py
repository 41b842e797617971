"""Maps made to be drawn, and what is found in the drawing."""

import io

import numpy as np
from PIL import Image

from perceiver.inspection.sheets import GAP, TILE, TITLE_HEIGHT, Tile, tile_size

LUMINANCE = np.array([0.299, 0.587, 0.114])
BRIGHTEST = (253, 231, 37)


def planted(rows: int, columns: int, row: int, column: int, weight: float = 0.7) -> np.ndarray:
    """A map whose weight lies in one cell."""
    values = np.full((rows, columns), 0.01)
    values[row, column] = weight
    return values


def square_tile(title: str, values: np.ndarray, **options) -> Tile:
    """A map as it is drawn where its cells are square."""
    rows, columns = values.shape[:2]
    return Tile(title, values, tile_size(columns, aspect=rows / columns), **options)


def decoded(sheet: Image.Image) -> np.ndarray:
    """What is left of a sheet after it was written and read."""
    written = io.BytesIO()
    sheet.save(written, format="png")
    return np.asarray(Image.open(written).convert("RGB")).astype(float)


def tile_at(sheet: np.ndarray, number: int, height: int, *, columns: int = 8, tile: int = TILE, row_height: int = 0):
    left, top = number % columns * (tile + GAP), number // columns * row_height + TITLE_HEIGHT
    return sheet[top : top + height, left : left + tile]


def bright_place(picture: np.ndarray) -> tuple[float, float]:
    """Where the brightest pixels lie, on average, as fractions of height and width."""
    brightness = picture @ LUMINANCE
    assert brightness.max() > 190 > 100 > np.median(brightness), "nothing stands out"
    rows, columns = np.nonzero(brightness == brightness.max())
    return (rows.mean() + 0.5) / picture.shape[0], (columns.mean() + 0.5) / picture.shape[1]
