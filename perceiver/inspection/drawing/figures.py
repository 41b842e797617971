"""Maps and inputs drawn on the grid of their tokens, and contact sheets of an explanation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from perceiver.inspection.drawing.axes import Plane, cells_along, cells_at
from perceiver.inspection.drawing.contact_sheet import (
    InputImage,
    Pixels,
    Tile,
    contact_sheet,
    input_image,
    overlay,
    tile_size,
)
from perceiver.inspection.maps.explanation import Explanation, normalized
from perceiver.inspection.maps.rollout import output_rollout
from perceiver.roles import LATENTS
from perceiver.types import Box, Grid, Picture, Span

STRETCHED = (384, 128)
"""Width and height of a tile whose axes have different units, so that its cells have no natural shape."""
STRIP_HEIGHT = 40
WIDEST_STRIP = 960
"""Width in pixels of all frames of a film strip."""


@dataclass(frozen=True)
class Frame:
    """Draws the tiles of one modality on the plane of its grid.

    Attributes:
        grid: of the tokens.
        picture: the inputs; None if they cannot be drawn.
    """

    grid: Grid
    picture: Picture | None

    @cached_property
    def plane(self) -> Plane:
        """The plane of maps."""
        return Plane(self.grid)

    @cached_property
    def input_plane(self) -> Plane:
        """The plane of inputs; on a grid of one axis its rows are those of the picture."""
        return self.plane if self.picture is None else Plane(self.grid, self.picture.grid.axes[0])

    @property
    def max_columns(self) -> int:
        """Number of tiles side by side."""
        if self.plane.is_row:
            return 2
        if self.plane.num_frames > 1:
            return 1
        return 8 if self._has_aspect else 3

    @property
    def _has_aspect(self) -> bool:
        return not self.plane.is_row and self.grid.axes[-2].unit == self.grid.axes[-1].unit

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a tile in pixels."""
        if not self._has_aspect:
            return STRETCHED
        height, width = (axis.stop - axis.start for axis in self.grid.axes[-2:])
        across, down = tile_size(self.grid.shape[-1], aspect=height / width)
        frames = self.plane.num_frames
        scale = min(1.0, WIDEST_STRIP / (frames * across))
        return round(frames * across * scale), max(round(down * scale), 1)

    def map_tile(self, title: str, values: Float[np.ndarray, " tokens"], boxes: Sequence[Box] = ()) -> Tile:
        """Return the tile of a map, with boxes."""
        size = (STRETCHED[0], STRIP_HEIGHT) if self.plane.is_row else self.size
        return _tile(self.plane, Tile(title, self.plane.arrange(values), size), boxes)

    def picture_tiles(self, row: int, values: Float[np.ndarray, " tokens"] | None, boxes: Sequence[Box]) -> list[Tile]:
        """Return tiles of the input of one row of the batch: with its boxes, and below a map if there is one."""
        image = self.input_of(row)
        if image is None:
            return []
        tiles = [self.image_tile("input", image, boxes)]
        if values is not None:
            over = overlay(image.pixels, self.plane.arrange(values), self.size)
            tiles.append(_tile(self.input_plane, Tile("mean over input", over, self.size, is_map=False)))
        return tiles

    def image_tile(self, title: str, image: InputImage, boxes: Sequence[Box] = ()) -> Tile:
        """Return the tile of an input that was drawn."""
        levels = f", {image.low:.0f} to {image.high:.0f} {image.unit}" if image.unit else ""
        return _tile(self.input_plane, Tile(f"{title}{levels}", image.pixels, self.size, is_map=False), boxes)

    def input_of(self, row: int, like: InputImage | None = None) -> InputImage | None:
        """Draw the input of one row of the batch in the extent of the grid, if it can be drawn; see `input_image`."""
        if self.picture is None:
            return None
        values, own = self.picture.values[row], self.picture.grid
        strip = values.flatten(1, -3) if values.ndim > 3 else values[:, None]
        strip = rearrange(strip[:, self._frames_of(own)], "channels frames y x -> channels y (frames x)")
        image = input_image(strip, self.picture.unit, like)
        frames = np.split(image.pixels, self.plane.num_frames, axis=1)
        return replace(image, pixels=np.concatenate([self._in_grid_extent(frame, own) for frame in frames], axis=1))

    def _frames_of(self, own: Grid) -> list[int]:
        """Return the frame of the input that is at the center of each frame of the tokens."""
        chosen = np.zeros((), dtype=int)
        for axis, count, divided, num_cells in zip(
            self.grid.axes[:-2], self.grid.shape[:-2], own.axes[:-2], own.shape[:-2], strict=True
        ):
            chosen = np.add.outer(chosen * num_cells, cells_at(axis, count, divided=divided, num_cells=num_cells))
        return chosen.flatten().tolist()

    def _in_grid_extent(self, pixels: Pixels, own: Grid) -> Pixels:
        """Crop or pad a frame of the input in black to the extent of the tokens: stems pad, or ignore a border."""
        rows, columns = (
            cells_along(axis, divided=divided, num_cells=num_cells)
            for axis, divided, num_cells in zip(
                self.input_plane.frame_axes, own.axes[-2:], pixels.shape[:2], strict=True
            )
        )
        canvas = pixels[rows][:, columns]
        canvas[rows < 0], canvas[:, columns < 0] = 0, 0
        return canvas[::-1] if self.input_plane.runs_upwards else canvas


def _tile(plane: Plane, tile: Tile, boxes: Sequence[Box] = ()) -> Tile:
    """Return a tile with the ticks of a plane, and with boxes."""
    row_ticks, column_ticks = plane.ticks
    outlines = [outline for box in boxes for outline in plane.outlines(box)]
    unit = plane.frame_axes[0].unit
    return replace(tile, outlines=outlines, row_ticks=row_ticks, column_ticks=column_ticks, row_unit=unit)


def _tokens_of(span: Span, weights: Float[Tensor, "*rest keys"]) -> Float[np.ndarray, "*rest tokens"]:
    """Return the weights on one modality."""
    return weights[..., span.start : span.stop].float().cpu().numpy()


def contact_sheets(
    explanation: Explanation, pictures: Mapping[str, Picture], *, num_latents: int
) -> dict[str, list[Image.Image]]:
    """Draw all contact sheets of a batch, one per row under each name.

    Args:
        explanation: of the batch.
        pictures: modality -> its inputs; without a picture, maps are drawn alone.
        num_latents: number of latents drawn.

    Returns:
        `<modality>/<layer>` for each layer that reads the tokens: the input, the mean over latents over it and alone,
        the rollout (of each class that has a query of its own; else of all outputs), the relevance of each class, and
        the `num_latents` latents that the outputs read most. `caption/words`, if answers are words: the input, and
        the relevance of each word, or its rollout if relevance is not defined. Boxes are drawn on the input and on maps
        of answers; on that of a class, its own.
    """
    spans, answers = explanation.record.spans, explanation.answers
    frames = {modality: Frame(span.grid, pictures.get(modality)) for modality, span in spans.items()}
    sheets = _layer_sheets(explanation, frames, num_latents)
    if frames and any(answer.is_word for row in answers for answer in row):
        sheets["caption/words"] = [_word_sheet(explanation, frames, row) for row in range(len(answers))]
    return sheets


def reconstruction_sheets(
    spans: Mapping[str, Span], pictures: Mapping[str, Picture], versions: Mapping[str, Mapping[str, Picture]]
) -> dict[str, list[Image.Image]]:
    """Draw the input of each row beside what the model sees of it and predicts, by modality.

    Args:
        spans: modality -> its place among the tokens.
        pictures: modality -> its inputs.
        versions: name -> modality -> inputs.
    """
    sheets: dict[str, list[Image.Image]] = {}
    for modality, picture in pictures.items():
        frame = Frame(spans[modality].grid, picture)
        others = {name: replace(frame, picture=of[modality]) for name, of in versions.items() if modality in of}
        for row in range(len(picture.values) if others else 0):
            image = frame.input_of(row)
            tiles = [frame.image_tile("input", image)] if image else []
            for name, other in others.items():
                if (version := other.input_of(row, image)) is not None:
                    tiles.append(other.image_tile(name, version))
            sheet = contact_sheet(tiles, max_columns=max(frame.max_columns, 1))
            sheets.setdefault(f"{modality}_reconstruction", []).append(sheet)
    return sheets


def _layer_sheets(
    explanation: Explanation, frames: Mapping[str, Frame], num_latents: int
) -> dict[str, list[Image.Image]]:
    """Draw a sheet for each layer that reads the tokens, modality and row."""
    record = explanation.record
    of_answers = [
        [*_rollout_maps(explanation, row), *_relevance_maps(explanation, row)] for row in range(record.num_rows)
    ]
    sheets: dict[str, list[Image.Image]] = {}
    for name, ranking in explanation.query_rankings.items():
        layer, means = record.layers[name], explanation.mean_maps[name]
        one, several = ("latent", "latents") if layer.role.queries == LATENTS else ("query", "queries")
        for row, chosen in enumerate(ranking[:, :num_latents].tolist()):
            sample = layer.sample(row)
            latents = {
                f"{one} {number}": record.on_tokens(sample, sample.weights([number]).mean(dim=1)[0, 0])
                for number in chosen
            }
            for modality, frame in frames.items():
                span, boxes = record.spans[modality], _boxes_in(explanation.boxes[row], modality)
                mean = _tokens_of(span, means[row])
                tiles = [*frame.picture_tiles(row, mean, boxes), frame.map_tile(f"mean over {several}", mean)]
                for title, label, weights in of_answers[row]:
                    own = [box for box in boxes if label in (None, box.label)]
                    tiles.append(frame.map_tile(title, _tokens_of(span, weights), own))
                tiles += [frame.map_tile(title, _tokens_of(span, weights)) for title, weights in latents.items()]
                sheet = contact_sheet(tiles, max_columns=frame.max_columns)
                sheets.setdefault(f"{modality}/{name}", []).append(sheet)
    return sheets


def _word_sheet(explanation: Explanation, frames: Mapping[str, Frame], row: int) -> Image.Image:
    """Draw each modality's input, then the relevance of each word (or its rollout), with the boxes of its referent."""
    kind, shares = "relevance", explanation.relevance_shares
    if explanation.no_relevance:
        kind, shares = "rollout", normalized(explanation.rollout.inputs)
    maps = zip(explanation.answers[row], shares[row], strict=False)
    words = [(answer, weights) for answer, weights in maps if answer.is_word]
    tiles: list[Tile] = []
    for modality, frame in frames.items():
        span = explanation.record.spans[modality]
        tiles += frame.picture_tiles(row, None, _boxes_in(explanation.boxes[row], modality))
        for answer, weights in words:
            tiles.append(frame.map_tile(answer.name, _tokens_of(span, weights), _boxes_in(answer.boxes, modality)))
    if not words:
        tiles += [frame.map_tile("no words", np.zeros(frame.grid.num_tokens)) for frame in frames.values()]
    return contact_sheet(tiles, max_columns=max(frame.max_columns for frame in frames.values()), unit=kind)


def _relevance_maps(explanation: Explanation, row: int) -> Iterator[tuple[str, int | None, Tensor]]:
    """Yield title, label and map of the relevance of each class, if it is defined."""
    if explanation.no_relevance:
        return
    for answer, weights in zip(explanation.answers[row], explanation.relevance_shares[row], strict=False):
        if not answer.is_word:
            yield f"relevance of {answer.name}", answer.label, weights


def _rollout_maps(explanation: Explanation, row: int) -> Iterator[tuple[str, int | None, Tensor]]:
    """Yield title, label and map of the rollout of each class with its own query, of all words, or of all outputs."""
    maps = list(zip(explanation.answers[row], explanation.rollout.inputs[row], strict=False))
    own = [(answer, inputs) for answer, inputs in maps if explanation.has_own_queries(answer)]
    words = [(answer, inputs) for answer, inputs in own if answer.is_word]
    for answer, inputs in own:
        if not answer.is_word:
            yield f"rollout from {answer.name}", answer.label, normalized(inputs)
    if words:  # rollout is linear in the query weights, so the mean over queries is that of their rollouts
        total = torch.stack([inputs * len(answer.queries) for answer, inputs in words]).sum(dim=0)
        yield "rollout from caption", None, normalized(total)
    if not own:
        inputs = maps[0][1] if maps else output_rollout(explanation.record, alpha=explanation.alpha).inputs[row, 0]
        yield "rollout from output", None, normalized(inputs)


def _boxes_in(boxes: Sequence[Box], modality: str) -> list[Box]:
    return [box for box in boxes if box.modality == modality]
