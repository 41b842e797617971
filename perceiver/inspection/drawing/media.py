"""The inputs of samples in the explorer's page: pictures, sounds, texts and boxes."""

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

from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.maps.capture import input_pictures, input_sounds, undisturbed
from perceiver.inspection.maps.explainer import Explainer
from perceiver.types import Batch, Box, Picture, Sound, Span

MAX_SECONDS = 30.0
"""Limit of a sound in a page."""


@dataclass(frozen=True)
class Media:
    """The raw inputs of a batch by modality, as they are drawn, played and printed.

    Attributes:
        pictures, sounds: by modality, if it can be drawn or played.
        texts: modality -> the pieces of the text of each sample, if it is text.
        versions: name -> what the model sees or predicts of some modalities (`Task.reconstructions`).
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    sounds: Mapping[str, Sound] = field(default_factory=dict)
    texts: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    versions: Mapping[str, "Media"] = field(default_factory=dict)


def page_samples(
    batch: Batch, spans: Mapping[str, Span], media: Media, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the inputs of each sample of a batch for the page.

    Args:
        batch: without windows.
        spans: modality -> its grid of tokens.
        media: the inputs.
        class_names: of the labels; may be empty.
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


def media_of(
    explainer: Explainer, batch: Batch, rows: Sequence[int], pieces: Callable[[str, Tensor], list[str] | None]
) -> Media:
    """Return the inputs of some rows of a batch as the model's encoders draw and play them; see `texts_of`."""
    inputs = {name: raw[list(rows)] for name, raw in batch.inputs.items()}
    with undisturbed(explainer.module):
        pictures, sounds = input_pictures(explainer.model, inputs), input_sounds(explainer.model, inputs)
    return Media(pictures, sounds, texts_of(replace(batch, inputs=inputs), pieces))


def texts_of(batch: Batch, pieces: Callable[[str, Tensor], list[str] | None]) -> dict[str, list[list[str]]]:
    """Return modality -> the pieces of the text of each sample (`Dataset.pieces`), for modalities that are text."""
    found = {name: [pieces(name, row) for row in raw.cpu()] for name, raw in batch.inputs.items()}
    return {name: [text for text in texts if text is not None] for name, texts in found.items() if None not in texts}


def boxes_of(frame: Frame, boxes: Sequence[Box], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return boxes as fractions of a plane, with the names of their classes, without those outside."""
    return [
        {"name": class_names[box.label] if class_names else "", "label": box.label, **asdict(outline)}
        for box in boxes
        for outline in frame.input_plane.outlines(box)
    ]


def _ground_truth(batch: Batch, row: int, class_names: Sequence[str]) -> list[str]:
    """Return the true class, tags or caption of a sample, one per line."""
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
    plane, sound = frame.input_plane, media.sounds.get(name)
    rows, columns = plane.axes
    if plane.runs_upwards:
        rows = replace(rows, start=rows.stop, stop=rows.start)
    image = frame.input_of(row)
    if sound is not None and sound.seconds > MAX_SECONDS:
        sound = None
    versions = [
        {
            "name": version,
            "picture": None if drawn is None else png_url(drawn.pixels),
            "sound": None if sound is None else flac_url(of.sounds[name].values[row], sound.sample_rate),
        }
        for version, of in media.versions.items()
        if name in of.pictures or name in of.sounds
        for drawn in [replace(frame, picture=of.pictures.get(name)).input_of(row, image)]
    ]
    return {
        "axes": [asdict(rows), asdict(columns)],
        "ticks": [[asdict(tick) for tick in ticks] for ticks in plane.ticks],
        "shape": list(plane.shape),
        "strip": [{"axis": asdict(axis), "count": count} for axis, count in plane.strip]
        if plane.num_frames > 1
        else None,
        "size": list(frame.size),
        "picture": None if image is None else png_url(image.pixels),
        "levels": None
        if image is None or not image.unit
        else {"unit": image.unit, "low": image.low, "high": image.high},
        "sound": None if sound is None else flac_url(sound.values[row], sound.sample_rate),
        "seconds": None if sound is None else sound.seconds,
        "versions": versions,
        "tokens": list(media.texts[name][row]) if name in media.texts else None,
    }


def png_url(pixels: np.ndarray) -> str:
    """Return a picture as the data URL of a PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return _data_url("image/png", content)


def flac_url(wave: Float[Tensor, " length"], sample_rate: int) -> str:
    """Return a sound as the data URL of a FLAC of 16 bits."""
    content = io.BytesIO()
    soundfile.write(content, wave.float().cpu().numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return _data_url("audio/flac", content)


def _data_url(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
