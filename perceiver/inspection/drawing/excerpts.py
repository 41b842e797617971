"""Excerpts of inputs around single tokens, small enough for hundreds of them in a page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any

import numpy as np

from perceiver.inspection.drawing.axes import Outline, axis_label
from perceiver.inspection.drawing.contact_sheet import Pixels, resize
from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.media import Media, flac_url, png_url
from perceiver.types import Axis, Sound

WINDOW_CELLS, WINDOW_SHARE = 7, 0.25
"""Cells along each axis of an excerpt, and the least share of the axis; pixels alone would show nothing."""
LONGEST, SHORTEST = 72, 20
"""Sides of a picture in pixels."""
MIN_SECONDS = 0.25
"""Least duration of a sound."""


@dataclass(frozen=True)
class Excerpt:
    """The input around one token.

    Attributes:
        place: the center of the token in the units of its grid.
        picture: data URL; None where the input cannot be drawn.
        outline: of the token in the picture.
        words: for a text, the pieces before the token, the token's own, and those after it.
        sound: data URL of the sound around it; None for an input without sound.
    """

    place: str
    picture: str | None = None
    outline: Outline | None = None
    words: tuple[str, str, str] | None = None
    sound: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The fields by name, for a page."""
        return asdict(self)

    @property
    def size(self) -> int:
        """Characters of its picture and sound."""
        return len(self.picture or "") + len(self.sound or "")


def excerpts(frame: Frame, modality: str, row: int, media: Media, tokens: Sequence[int]) -> list[Excerpt]:
    """Return the excerpts of some tokens of a modality of one sample.

    Args:
        frame: of the modality.
        modality: its name.
        row: of the sample in `media`.
        media: the inputs.
        tokens: numbers on the modality's grid.
    """
    if not tokens:
        return []
    image, grid, sound = frame.input_of(row), frame.grid, media.sounds.get(modality)
    texts = media.texts.get(modality)
    found = []
    for token in tokens:
        cells = np.unravel_index(token, grid.shape)
        windows = [_window(int(cell), count) for cell, count in zip(cells, grid.shape, strict=True)]
        picture, outline = (None, None) if image is None else _picture(frame, image.pixels, token)
        found.append(
            Excerpt(
                place=" · ".join(
                    axis_label(axis, (cell + 0.5) / count)
                    for axis, cell, count in zip(grid.axes, cells, grid.shape, strict=True)
                ),
                picture=picture,
                outline=outline,
                words=None if texts is None else _words(texts[row], token, windows[-1]),
                sound=None if sound is None else _sound(sound, row, grid.axes, grid.shape, windows),
            )
        )
    return found


def _window(cell: int, count: int) -> tuple[int, int]:
    """Return start and stop of the cells around one, within an axis of `count` cells."""
    length = min(max(WINDOW_CELLS, ceil(WINDOW_SHARE * count)), count)
    start = min(max(cell - length // 2, 0), count - length)
    return start, start + length


def _picture(frame: Frame, pixels: Pixels, token: int) -> tuple[str, Outline]:
    """Draw the cells around a token, in its own frame only."""
    plane = frame.plane
    rows, columns = plane.shape
    numbers = plane.arrange(np.arange(frame.grid.num_tokens))
    row, column = (int(index[0]) for index in np.nonzero(numbers == token))
    per_frame = columns // plane.num_frames
    top, bottom = _window(row, rows)
    left, right = (column // per_frame * per_frame + place for place in _window(column % per_frame, per_frame))
    height, width = (size / count for size, count in zip(pixels.shape, (rows, columns), strict=False))
    part = pixels[round(top * height) : ceil(bottom * height), round(left * width) : ceil(right * width)]
    scale = LONGEST / max(part.shape[:2])
    scale = floor(scale) if scale > 1 else scale  # all pixels equally large
    sizes = tuple(max(round(side * scale), SHORTEST) for side in (part.shape[1], part.shape[0]))
    across, down = right - left, bottom - top
    outline = Outline(
        (column - left) / across, (row - top) / down, (column + 1 - left) / across, (row + 1 - top) / down
    )
    return png_url(np.asarray(resize(np.ascontiguousarray(part), (sizes[0], sizes[1])))), outline


def _words(pieces: Sequence[str], token: int, window: tuple[int, int]) -> tuple[str, str, str]:
    start, stop = window
    return "".join(pieces[start:token]), "".join(pieces[token : token + 1]), "".join(pieces[token + 1 : stop])


def _sound(
    sound: Sound, row: int, axes: Sequence[Axis], shape: Sequence[int], windows: Sequence[tuple[int, int]]
) -> str | None:
    """Return the sound around a token; None if no axis of its grid is in seconds."""
    for axis, count, (start, stop) in zip(axes, shape, windows, strict=True):
        if axis.unit == "s":
            begin, end = axis.value(start / count), axis.value(stop / count)
            margin = max(MIN_SECONDS - (end - begin), 0.0) / 2
            first, last = (round(time * sound.sample_rate) for time in (begin - margin, end + margin))
            clip = sound.values[row, max(first, 0) : max(last, 1)]
            return flac_url(clip, sound.sample_rate) if len(clip) else None
    return None
