"""Maps made to be drawn, and what is found in the drawing."""

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.inspection.drawing.contact_sheet import GAP, TILE, TITLE_HEIGHT, Tile, tile_size
from perceiver.inspection.maps.answers import answer_rollout
from perceiver.inspection.maps.capture import Capture
from perceiver.inspection.maps.explanation import Explanation
from perceiver.types import Answer, Batch, Picture, Span
from tests.inspection.models import captured_with, grid, images_of, layer

HEIGHT = round(TILE * 5 / 7)
LUMINANCE = np.array([0.299, 0.587, 0.114])
BRIGHTEST = (253, 231, 37)
SPANS = {"image": Span(0, 35, grid(5, 7, cell=3)), "depth": Span(35, 35 + 11 * 13, grid(11, 13))}


def planted(rows: int, columns: int, row: int, column: int, weight: float = 0.7) -> np.ndarray:
    """A map whose weight lies in one cell."""
    values = np.full((rows, columns), 0.01)
    values[row, column] = weight
    return values


def square_tile(title: str, values: np.ndarray, **options) -> Tile:
    """A map as it is drawn where its cells are square."""
    rows, columns = values.shape[:2]
    return Tile(title, values, tile_size(columns, aspect=rows / columns), **options)


def tile_at(sheet: np.ndarray, number: int, height: int, *, columns: int = 8, tile: int = TILE, row_height: int = 0):
    left, top = number % columns * (tile + GAP), number // columns * row_height + TITLE_HEIGHT
    return sheet[top : top + height, left : left + tile]


def bright_place(picture: np.ndarray) -> tuple[float, float]:
    """Where the brightest pixels lie, on average, as fractions of height and width."""
    brightness = picture @ LUMINANCE
    assert brightness.max() > 190 > 100 > np.median(brightness), "nothing stands out"
    rows, columns = np.nonzero(brightness == brightness.max())
    return (rows.mean() + 0.5) / picture.shape[0], (columns.mean() + 0.5) / picture.shape[1]


def images(batch: int = 2, channels: int = 3) -> dict[str, Picture]:
    return images_of({"image": torch.zeros(batch, channels, 15, 21), "depth": torch.zeros(batch, 1, 11, 13)})


def capture_of_places(places: list[int], batch: int = 2) -> Capture:
    """Each query reads a latent of its own, which reads one token."""
    tokens = SPANS["depth"].stop
    weights = torch.full((batch, 1, len(places), tokens), 0.1 / tokens)
    for latent, place in enumerate(places):
        weights[:, :, latent, place] += 0.9
    reads = torch.eye(len(places)).expand(batch, 1, -1, -1)
    return captured_with(SPANS, cross0=layer("cross", weights), decode0=layer("decode", reads))


def explanation_of(
    captured: Capture,
    answers: list[list[Answer]] | None = None,
    *,
    own: bool = True,
    relevance: torch.Tensor | None = None,
    boxes: list | None = None,
) -> Explanation:
    """The explanation of a capture made by hand; `own`: whether classes have queries of their own.

    By default there are no answers, and relevance is the rollout.
    """
    answers = [[] for _ in range(captured.num_rows)] if answers is None else answers
    num_classes = captured.num_outputs if own else 0
    found = answer_rollout(captured, answers, num_classes=num_classes, alpha=0.5)
    return Explanation(
        batch=Batch({}, {} if boxes is None else {"boxes": boxes}, [f"s/{row}" for row in range(len(answers))]),
        record=captured,
        answers=answers,
        num_classes=num_classes,
        probability=torch.ones(found.residual.shape),
        alpha=0.5,
        rollout=found,
        relevance=found.inputs if relevance is None else relevance,
    )


def tiles_of(sheet: Image.Image, count: int) -> list[np.ndarray]:
    """The first tiles of a sheet of 5×7 cells."""
    pixels = np.asarray(sheet).astype(float)[TITLE_HEIGHT : TITLE_HEIGHT + HEIGHT]
    return [pixels[:, number * (TILE + GAP) :][:, :TILE] for number in range(count)]


def bright_cell(tile: np.ndarray) -> int:
    """The number of the brightest of 5×7 cells."""
    row, column = bright_place(tile)
    assert (row * 5 % 1, column * 7 % 1) == pytest.approx((0.5, 0.5), abs=0.1), "between cells"
    return int(row * 5) * 7 + int(column * 7)


def color_at(tile: np.ndarray, cell: int) -> tuple[float, ...]:
    """The color of one of 5×7 cells."""
    return tuple(tile[round((cell // 7 + 0.5) / 5 * HEIGHT), round((cell % 7 + 0.5) / 7 * TILE)])


def changed_tiles(sheet: Image.Image, other: Image.Image, count: int) -> list[bool]:
    """Which of the first tiles of two sheets differ."""
    return [bool((a != b).any()) for a, b in zip(tiles_of(sheet, count), tiles_of(other, count), strict=True)]
