"""Maps of a sound with their weight in chosen cells, and boxes around cells."""

from collections.abc import Sequence

import torch

from perceiver.inspection.capture import Capture
from perceiver.inspection.explanation import Explanation
from perceiver.types import Answer, Axis, Box, Grid, Span
from tests.inspection.drawn import explanation_of
from tests.inspection.models import captured_with, layer, of_class

ROWS, COLUMNS = 5, 7
SOUND = Grid(
    (ROWS, COLUMNS), (Axis("frequency", "Hz", 50.0, 8000.0, scale="mel"), Axis("time", "s", 0.0, COLUMNS * 0.5))
)


def cells(row: tuple[float, float], column: tuple[float, float], label: int = 0, modality: str = "audio") -> Box:
    """A box that covers cells of `SOUND` from one number to another."""
    frequency, time = SOUND.axes
    return Box(
        label,
        modality,
        {
            "frequency": (frequency.value(row[0] / ROWS), frequency.value(row[1] / ROWS)),
            "time": (time.value(column[0] / COLUMNS), time.value(column[1] / COLUMNS)),
        },
    )


def one_hot(row: int, column: int) -> torch.Tensor:
    values = torch.zeros(1, ROWS, COLUMNS)
    values[0, row, column] = 0.3
    return values.flatten(1)


def capture_of(maps: torch.Tensor, mask: torch.Tensor | None = None) -> Capture:
    """A model whose rollout from each query is a map, [batch, queries, tokens]: one latent for each.

    `mask` is True where a token is real.
    """
    batch, queries, tokens = maps.shape
    reads = torch.eye(queries).expand(batch, 1, -1, -1)
    return captured_with(
        {"audio": Span(0, tokens, SOUND)}, cross0=layer("cross", maps[:, None], mask), decode0=layer("decode", reads)
    )


def planted_maps(places: list[list[tuple[int, int]]]) -> torch.Tensor:
    """For each sample and query a map with its weight in one cell."""
    return torch.stack([torch.cat([one_hot(*place) / 0.3 for place in row]) for row in places])


def sample_classes(boxes: Sequence[Sequence[Box] | None]) -> list[list[Answer]]:
    """For each sample the classes that apply to it, as answers."""
    return [
        [
            of_class(label, *(box for box in row or () if box.label == label), name=str(label))
            for label in sorted(labels)
        ]
        for row in boxes
        for labels in [{box.label for box in row or ()}]
    ]


def explanation_of_maps(
    maps: torch.Tensor,
    boxes: Sequence[Sequence[Box] | None] | None = None,
    answers: list[list[Answer]] | None = None,
    mask: torch.Tensor | None = None,
    **options,
) -> Explanation:
    """The explanation of a model whose rollout from each query is a map, [batch, queries, tokens].

    Args:
        maps: of each query.
        boxes: of the samples.
        answers: what was said; the classes that the samples truly have unless told otherwise.
        mask: True where a token is real.
        options: see `look_of`.
    """
    boxes = [None] * len(maps) if boxes is None else boxes
    answers = sample_classes(boxes) if answers is None else answers
    return explanation_of(capture_of(maps, mask), answers, boxes=list(boxes), **options)
