"""What there is to see, hear and read of samples, for the explorer's page."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from perceiver.inspection.axes import num_frames, plane, runs_upwards, strip
from perceiver.inspection.figures import Frame
from perceiver.types import Axis, Batch, Box, Picture, Sound, Span

MOST_SECONDS = 30.0
"""Of a sound in a page."""


@dataclass(frozen=True)
class Media:
    """Raw inputs by modality, as a person would take them in.

    Attributes:
        pictures, sounds: where there is something to see or to hear.
        texts: for each sample what the places of its input stand for, where that is text.
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    texts: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)


def samples_of(
    batch: Batch, spans: Mapping[str, Span], media: Media, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """What a page shows of each sample of a batch.

    Args:
        batch: without windows.
        spans: modality name -> its grid of tokens.
        media: what is known of the inputs.
        class_names: of the labels, if there are any.
    """
    all_boxes = batch.targets.get("boxes", [None] * len(batch))
    frames = {name: Frame(span.grid, media.pictures.get(name)) for name, span in spans.items()}
    return [
        {
            "id": id,
            "ground_truth": _ground_truth(batch, row, class_names),
            "modalities": {
                name: _modality(name, frame, row, media)
                | {"boxes": boxes_of(frame, [box for box in all_boxes[row] or () if box.modality == name], class_names)}
                for name, frame in frames.items()
            },
        }
        for row, id in enumerate(batch.ids)
    ]


def texts_of(batch: Batch, pieces: Callable[[str, Tensor], list[str] | None]) -> dict[str, list[list[str]]]:
    """Modality -> for each sample what the places of its input stand for, of those that are text (`Dataset.pieces`)."""
    found = {name: [pieces(name, row) for row in raw.cpu()] for name, raw in batch.inputs.items()}
    return {name: [text for text in texts if text is not None] for name, texts in found.items() if None not in texts}


def boxes_of(frame: Frame, boxes: Sequence[Box], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as fractions of a plane, with the names of their classes; those beyond it are left out."""
    return [
        {"name": class_names[box.label] if class_names else "", "label": box.label, **asdict(outline)}
        for box in boxes
        for outline in frame.outlines(box)
    ]


def _ground_truth(batch: Batch, row: int, class_names: Sequence[str]) -> list[str]:
    """What is true of a sample, one thing a line."""
    facts = []
    label, tags, references = (batch.targets.get(name) for name in ("label", "tags", "references"))
    if label is not None and class_names:
        facts.append(class_names[int(label[row])])
    if tags is not None:
        facts.append(", ".join(name for name, tag in zip(class_names, tags[row].tolist(), strict=True) if tag > 0.5))
    if references is not None:
        facts += references[row][:1]
    return [fact for fact in facts if fact]


def _modality(name: str, frame: Frame, row: int, media: Media) -> dict[str, Any]:
    rows, columns = frame.axes
    sound = media.sounds.get(name)
    row_ticks, column_ticks = frame.ticks
    shown = frame.input_of(row)
    if sound is not None and sound.seconds > MOST_SECONDS:
        sound = None
    return {
        "axes": [asdict(_upwards(rows)), asdict(columns)],
        "ticks": [[asdict(tick) for tick in row_ticks], [asdict(tick) for tick in column_ticks]],
        "shape": list(plane(frame.grid).shape),
        "strip": [{"axis": asdict(axis), "count": count} for axis, count in strip(frame.grid)]
        if num_frames(frame.grid) > 1
        else None,
        "size": list(frame.size),
        "picture": None if shown is None else _png(shown.pixels),
        "levels": None
        if shown is None or not shown.unit
        else {"unit": shown.unit, "low": shown.low, "high": shown.high},
        "sound": None if sound is None else _flac(sound.values[row], sound.sample_rate),
        "seconds": None if sound is None else sound.seconds,
        "tokens": list(media.texts[name][row]) if name in media.texts else None,
    }


def _upwards(axis: Axis) -> Axis:
    """The axis from the top down."""
    return replace(axis, start=axis.stop, stop=axis.start) if runs_upwards(axis) else axis


def _png(pixels: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return _data_url("image/png", content)


def _flac(wave: Float[Tensor, " length"], sample_rate: int) -> str:
    content = io.BytesIO()
    soundfile.write(content, wave.float().cpu().numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return _data_url("audio/flac", content)


def _data_url(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
