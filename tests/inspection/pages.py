"""A page of the explorer with two runs, three explanations and two samples, in whose maps single cells are planted."""

import json
from dataclasses import asdict
from typing import Any
from unittest import mock

import numpy as np
import torch

from perceiver.decoders.base import LOGITS
from perceiver.inspection.drawing.axes import Plane
from perceiver.inspection.drawing.media import Media, page_samples
from perceiver.inspection.evaluation.faithfulness import FRACTIONS, FaithfulnessCurves
from perceiver.inspection.evaluation.verdicts import summarize
from perceiver.inspection.explorer import page as page_module
from perceiver.inspection.explorer.events import SCORE
from perceiver.inspection.explorer.page import Event, explorer_page, page_event
from perceiver.inspection.maps.sinks import Sink, SinkCriterion, Sinks, sink_arrays
from perceiver.types import Answer, Axis, Batch, Box, Grid, Picture, Sound, Span

HEADS, LATENTS, RATE, SECONDS = 3, 13, 8000, 2.3
KEPT = [latent for latent in range(LATENTS) if latent not in (4, 9)]
TIME = Axis("time", "s", 0.0, SECONDS)
GRIDS = {
    "image": Grid((5, 7), (Axis("y", "px", 0.0, 40.0), Axis("x", "px", 0.0, 56.0))),
    "sound": Grid((11, 23), (Axis("frequency", "Hz", 50.0, 4000.0, scale="mel"), TIME)),
    "text": Grid((7,), (Axis("token", "", 0.0, 7.0),)),
}
POOLED = {"image": 1, "sound": 2, "text": 1}
"""Tokens per cell of the page, along each axis."""
SINKS = {"image": (2, 5), "text": (0, 5)}
"""Places of the tokens that are attention sinks at the second explanation."""
EVIL = 'clips/17 "quoted" </script><script>alert(1)</script> – Ünï'
TITLE = "audio_tagging/2026-11-22 </title>"
IDS = (EVIL, "texts/3")
CLASSES = ("dog bark", "siren")
CAPTION = ("a", "small", "dog", "barks")
BALANCE = 0.7
"""Share of the evidence for each answer in that of both."""
SENTENCE = ["the", "red", "square", "is", "left", "of", "it"]


def spans() -> dict[str, Span]:
    ends = np.cumsum([grid.num_tokens for grid in GRIDS.values()]).tolist()
    return {name: Span(end - grid.num_tokens, end, grid) for (name, grid), end in zip(GRIDS.items(), ends, strict=True)}


def plane_shape(modality: str) -> tuple[int, int]:
    return (1, *GRIDS[modality].shape)[-2:]


def planted(modality: str, index: int) -> tuple[int, int]:
    """Row and column, from the top left, of the largest value of a map: of the query or answer of that index."""
    rows, columns = plane_shape(modality)
    return (index + 1) % rows, (2 * index + 3) % columns


def planted_maps(*count: int, shift: int, seed: int) -> np.ndarray:
    """Maps [*count, tokens] of mass 1, with noise below their planted cells; `shift` is the index of the first."""
    noise = np.random.default_rng(seed)
    values = noise.uniform(0.05, 0.2, (*count, spans()["text"].stop))
    for modality, span in spans().items():
        for place in np.ndindex(*count):
            row, column = planted(modality, place[-1] + shift)
            rows, columns = plane_shape(modality)
            row = rows - 1 - row if Plane(span.grid).runs_upwards else row
            values[(*place, span.start + row * columns + column)] = 6.0 + sum(place[:-1])
    return (values / values.sum(axis=-1, keepdims=True)).astype(np.float16)


def answers(explanation: int) -> list[list[Answer]]:
    """Classes of the first sample with their boxes, words of the second."""
    own = [tuple(box for box in boxes(explanation)[0] if box.label == label) for label in range(len(CLASSES))]
    classes = [Answer(name, (label,), LOGITS, label=label, boxes=own[label]) for label, name in enumerate(CLASSES)]
    return [classes, [Answer(word, (place,), LOGITS, ids=(place,)) for place, word in enumerate(CAPTION)]]


def boxes(explanation: int) -> list[list[Box]]:
    """The first class of the first sample at its peak of the rollout, and the second in the sound."""
    row, column = planted("image", explanation)
    cell = {"y": (8.0 * row, 8.0 * (row + 1)), "x": (8.0 * column, 8.0 * (column + 1))}
    return [[Box(0, "image", cell), Box(1, "sound", {"time": (1.2, 2.1)})], []]


def arrays_at(explanation: int, kind: str = "latent") -> dict[str, np.ndarray]:
    """The arrays of an event, as `event_arrays` returns them: two layers with queries of a kind, and both methods."""
    noise = np.random.default_rng(explanation)
    reads = noise.dirichlet(np.ones(LATENTS), (2, len(CAPTION))).astype(np.float16)
    arrays = {
        "ids": np.array(IDS),
        "answers": np.array(json.dumps([[asdict(answer) for answer in row] for row in answers(explanation)])),
        "answers/probability": np.tile([0.9, 0.7, 0.5, 0.3], (2, 1)),
        "boxes": np.array(json.dumps([[asdict(box) for box in row] for row in boxes(explanation)])),
        "rollout/inputs": planted_maps(2, len(CAPTION), shift=explanation, seed=5),
        "rollout/residual": np.full((2, len(CAPTION)), 0.13),
        "rollout/alpha": np.array(0.5),
        "relevance/inputs": planted_maps(2, len(CAPTION), shift=explanation + 2, seed=6),
        "relevance/against": planted_maps(2, len(CAPTION), shift=explanation + 4, seed=7),
        "relevance/balance": np.full((2, len(CAPTION)), BALANCE),
    }
    foils = [
        [[{"name": foil, "probability": 0.1} for foil in names if foil != name] for name in names]
        for names in (CLASSES, CAPTION)
    ]
    shape = (2, len(CAPTION), len(CAPTION) - 1)
    arrays |= {
        "contrast/foils": np.array(json.dumps(foils)),
        "contrast/inputs": planted_maps(*shape, shift=explanation + 3, seed=8),
        "contrast/against": planted_maps(*shape, shift=explanation + 5, seed=9),
        "contrast/balance": np.full(shape, BALANCE),
    }
    changes = np.zeros((2, len(CAPTION), LATENTS), dtype=np.float32)
    changes[0, :, 7], changes[0, 1, 2], changes[1, :, 2] = -0.6, 0.25, -0.9
    arrays |= {"knockout/latents/parts": np.array([*map(str, range(LATENTS))]), "knockout/latents/change": changes}
    heads = [f"cross{layer}/{head}" for layer in range(2) for head in range(HEADS)]
    by_head = np.linspace(-0.5, 0, len(heads), dtype=np.float32)
    arrays |= {"knockout/heads/parts": np.array(heads)}
    arrays |= {"knockout/heads/change": np.broadcast_to(by_head, (2, len(CAPTION), len(heads)))}
    if explanation == 1:
        numbers = {modality: places[0] * plane_shape(modality)[1] + places[1] for modality, places in SINKS.items()}
        found = [Sink("cross0", modality, number, 0.75, 0.2) for modality, number in numbers.items()]
        arrays |= sink_arrays(Sinks(SinkCriterion(), 8, found, {"cross0": len(found)}, {"cross0": 0.4}))
    for name, span in spans().items():
        arrays[f"grid/{name}"] = np.array(span.grid.shape)
        arrays[f"span/{name}"] = np.array([span.start, span.stop])
        arrays[f"axes/{name}"] = np.array(json.dumps([asdict(axis) for axis in span.grid.axes]))
    for layer in range(2):
        maps = planted_maps(2, HEADS, len(KEPT), shift=explanation + layer, seed=10 * explanation + layer)
        arrays |= {
            f"cross{layer}/query_kind": np.array(kind),
            f"cross{layer}/weights": maps,
            f"cross{layer}/latents": np.tile(KEPT, (2, 1)),
            f"cross{layer}/reads": reads,
            f"cross{layer}/log_weight": np.log(maps.astype(np.float32)).mean(axis=-1),
        }
    return arrays


def values_at(step: int, run: int) -> dict[str, float]:
    return {
        "pointing_game": 0.2 + step / 100 + run / 10,
        "pointing_game_chance": 0.13,
        "relevance/pointing_game": 0.4 + step / 100 + run / 10,
        "relevance/pointing_game_chance": 0.13,
        "word_overlap": 0.84,
        "energy_in_box": 0.1 + step / 200,
        "energy_in_box_chance": 0.08,
        "stat/cross0/entropy": 3 - step / 40 + run / 5,
        "stat/cross0/head_redundancy": 0.9 - step / 100,
    }


def faithfulness() -> dict[str, Any]:
    """A test in which rollout is better than the nulls, relevance as good, and the mean attention worse."""
    fractions, noise = torch.tensor(FRACTIONS), torch.linspace(-0.1, 0.1, 61)[:, None]
    slopes = {"rollout": 0.9, "relevance": 0.5, "mean_map": 0.2}
    slopes |= dict.fromkeys(("random", "center", *(f"other/{name}" for name in slopes)), 0.5)
    deletion = {name: 1 - (slope + (slope != 0.5) * noise) * fractions for name, slope in slopes.items()}
    for name in ("relevance", "other/relevance"):
        deletion[name] = deletion[name] - (name == "relevance") * noise * fractions
    insertion = {name: 1.0 - curve.flip(1) / 2 for name, curve in deletion.items()}
    stages = {"rollout": torch.stack([noise[:, 0] + 0.5, noise[:, 0]]), "relevance": (noise + 0.7).T.expand(2, -1)}
    return summarize(FaithfulnessCurves(deletion, insertion), stages=stages)


def event(step: int, run: int, explanation: int | None = None, **options) -> Event:
    """An event, with maps if it has an explanation; the last explanation lacks the second sample."""
    arrays = {"ids": np.array([])} if explanation is None else arrays_at(explanation, **options)
    if explanation == 2:
        arrays["ids"] = np.array(IDS[:1])
    if explanation == 1:
        arrays["faithfulness"] = np.array(json.dumps(faithfulness()))
    arrays |= {"step": np.array(step), "epoch": np.array(step // 10)}
    arrays |= {f"{SCORE}{name}": np.array(value) for name, value in values_at(step, run).items()}
    with mock.patch.object(page_module, "CELLS", (100,)):
        return page_event(arrays, max_values=10**6)


def samples() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    image, sound = GRIDS["image"], GRIDS["sound"]
    references = [["label: dog bark", ""], [""]]
    batch = Batch({}, {"boxes": boxes(1), "references": references}, list(IDS))
    media = Media(
        {
            "image": Picture(torch.rand(2, 3, 40, 56, generator=generator), Grid((40, 56), image.axes), ""),
            "sound": Picture(torch.randn(2, 1, 88, 230, generator=generator), Grid((88, 230), sound.axes), "dB"),
        },
        {"sound": Sound(0.1 * torch.randn(2, int(RATE * SECONDS), generator=generator), RATE)},
        {"text": [SENTENCE, SENTENCE]},
    )
    return page_samples(batch, spans(), media, CLASSES)


def runs(**options) -> dict[str, list[Event]]:
    return {
        "outputs/audio_tagging/first": [event(10, 0), event(20, 0, 0), event(30, 0), event(40, 0, 1, **options)],
        "outputs/audio_tagging/second": [event(20, 1), event(40, 1, 2)],
    }


def planted_page(**options) -> str:
    """The page; the options are those of the arrays at its first event."""
    return explorer_page(TITLE, samples(), runs(**options))
