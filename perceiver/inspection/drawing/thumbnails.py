"""Whole inputs of samples with their maps, small enough for hundreds of them in a page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from perceiver.inspection.drawing.axes import axis_label
from perceiver.inspection.drawing.colormap import colorize
from perceiver.inspection.drawing.contact_sheet import color_range, resize
from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.media import Media, png_url

WIDEST, HIGHEST, SHORTEST = 164, 112, 28
"""Sides of a picture in pixels."""
MAX_CELLS = 32
"""Cells of a map along each axis; of more, each is the mean of several."""
MAX_WORDS = 48
"""Pieces of a text."""

Maps = Mapping[str, Float[np.ndarray, " tokens"]]
"""Kind of map -> its values on the tokens of a modality."""


@dataclass(frozen=True)
class Thumbnail:
    """The input of one modality of a sample, and its maps.

    Attributes:
        size: width and height in pixels as displayed.
        place: of several frames, the one that is drawn: the one with the largest share of the first map.
        picture: data URL; None where the input cannot be drawn.
        maps: kind -> data URL of a picture with a pixel for each cell.
        words: of a text, its first pieces.
        weights: kind of map -> weight of each piece, relative to the largest.
    """

    size: tuple[int, int]
    place: str = ""
    picture: str | None = None
    maps: dict[str, str] = field(default_factory=dict)
    words: list[str] | None = None
    weights: dict[str, list[float]] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The fields by name, for a page."""
        return asdict(self)


def thumbnail(
    frame: Frame, modality: str, row: int, media: Media, maps: Maps, real: Bool[np.ndarray, " tokens"]
) -> Thumbnail:
    """Return the thumbnail of a modality of one sample.

    Args:
        frame: of the modality.
        modality: its name.
        row: of the sample in `media`.
        media: the inputs.
        maps: of the sample; may be empty.
        real: True for real tokens, so that the padding of a text is not shown.
    """
    if modality in media.texts:
        pieces = media.texts[modality][row]
        places = [place for place in np.nonzero(real)[0].tolist() if place < len(pieces)][:MAX_WORDS]
        words = [pieces[place] for place in places]
        weights = {kind: _relative(values[places]) for kind, values in maps.items()}
        return Thumbnail((0, 0), words=words, weights=weights)
    plane, image = frame.plane, frame.input_of(row)
    planes = {kind: plane.arrange(values) for kind, values in maps.items()}
    width, height = frame.size
    pixels, place, count = None if image is None else image.pixels, "", plane.num_frames
    if count > 1:
        totals = [part.sum() for part in np.split(next(iter(planes.values()), np.zeros((1, count))), count, axis=1)]
        chosen = int(np.argmax(totals))
        planes = {kind: np.split(values, count, axis=1)[chosen] for kind, values in planes.items()}
        pixels = None if pixels is None else np.split(pixels, count, axis=1)[chosen]
        width, place = ceil(width / count), _frame_label(frame, chosen)
    size = displayed(width, height)
    picture = None if pixels is None else png_url(np.asarray(resize(np.ascontiguousarray(pixels), size)))
    return Thumbnail(size, place, picture, {kind: map_url(values) for kind, values in planes.items()})


def displayed(width: int, height: int) -> tuple[int, int]:
    """Return the size of a picture that is scaled to the largest one of a page."""
    scale = min(WIDEST / width, HIGHEST / height)
    return max(round(width * scale), SHORTEST), max(round(height * scale), SHORTEST)


def map_url(values: Float[np.ndarray, "rows columns"]) -> str:
    """Return a map as the data URL of a picture with a pixel for each cell, from its least to its largest color."""
    rows, columns = (min(size, MAX_CELLS) for size in values.shape)
    if (rows, columns) != values.shape:
        pooled = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        values = np.asarray(pooled.resize((columns, rows), Image.Resampling.BOX))
    return png_url(colorize(values, *color_range(values)))


def _frame_label(frame: Frame, number: int) -> str:
    """Return the place of a frame along the axes before those of its rows and columns."""
    shape, axes = frame.grid.shape[:-2], frame.grid.axes[:-2]
    cells = np.unravel_index(number, shape)
    return " · ".join(
        axis_label(axis, (int(cell) + 0.5) / size) for axis, cell, size in zip(axes, cells, shape, strict=True)
    )


def _relative(values: Float[np.ndarray, " words"]) -> list[float]:
    largest = max(float(values.max(initial=0.0)), 1e-12)
    return [round(max(float(value), 0.0) / largest, 3) for value in values]
