"""A page of the explorer with everything its data may hold: planted maps whose brightest cell is known."""

import base64
import io
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from perceiver.inspection.colormap import COLORMAPS, DIFFERENCE, OUTLINE
from perceiver.inspection.explorer.packing import packed
from perceiver.inspection.faithfulness import judged

HEADS, LATENTS, RATE = 3, 13, 8000
KEPT = [latent for latent in range(LATENTS) if latent not in (4, 9)]
IMAGE, SOUND, WORDS = (5, 7), (11, 23), (1, 7)
SECONDS = 2.3
EVIL = 'clips/17 "quoted" </script><script>alert(1)</script> – Ünï'
CAPTION = ["a", "small", "dog", "barks"]
SENTENCE = ["the", "red", "square", "is", "left", "of", "it"]
LOOKS = 3
LACKING = (2, 1)
"""The look and the sample of which there are no maps."""


def planted(modality: str, number: int) -> tuple[int, int]:
    """Row and column of the brightest cell of a map: of latent `number` of a head, or of an answer."""
    rows, columns = {"image": IMAGE, "sound": SOUND, "text": WORDS}[modality]
    return (number + 1) % rows, (2 * number + 3) % columns


def maps_of(shapes: dict[str, tuple[int, int]], count: tuple[int, ...], shift: int, seed: int) -> dict[str, Any]:
    """Packed maps [*count, …], each of mass 1 over all modalities, with noise below its planted cells."""
    noise = np.random.default_rng(seed)
    maps = {modality: noise.uniform(0.05, 0.2, (int(np.prod(count)), *shape)) for modality, shape in shapes.items()}
    for modality, values in maps.items():
        for number, value in enumerate(values):
            row, column = planted(modality, number % count[-1] + shift)
            value[row, column] = 6.0 + number // count[-1]
    mass = sum(values.sum(axis=(1, 2), keepdims=True) for values in maps.values())
    return packed({m: (v / mass).reshape(*count, *shapes[m]) for m, v in maps.items()}, most_cells=100)


def look_of(look: int, sample: int) -> dict[str, Any]:
    """Everything of one look at one sample."""
    shapes: dict[str, tuple[int, int]] = {"text": WORDS} if sample else {"image": IMAGE, "sound": SOUND}
    noise = np.random.default_rng(look)
    names = CAPTION if sample else ["dog bark", "siren"]
    row, column = planted("image", look)
    box = {
        "left": column / IMAGE[1],
        "right": (column + 1) / IMAGE[1],
        "top": row / IMAGE[0],
        "bottom": (row + 1) / IMAGE[0],
    }
    reads = noise.uniform(0.1, 1, (len(names), LATENTS))
    reads /= reads.sum(axis=1, keepdims=True)
    return {
        "explanation": look,
        "sample": sample,
        "answers": [
            {
                "name": name,
                "detail": f"{0.9 - 0.2 * i:.3f}",
                "is_word": bool(sample),
                "boxes": {"image": [box]} if not sample and not i else {},
            }
            for i, name in enumerate(names)
        ],
        "layers": [
            {
                "name": f"cross{layer}",
                "query_kind": "latent",
                "num_queries": LATENTS,
                "queries": KEPT,
                "num_heads": HEADS,
                "rollout": reads[:, KEPT].tolist(),
                "entropy": noise.uniform(1, 3, (HEADS + 1, len(KEPT))).tolist(),
                "maps": maps_of(shapes, (HEADS, len(KEPT)), look + layer, 10 * look + layer),
            }
            for layer in range(2)
        ],
        "methods": [
            {
                "name": "rollout",
                "label": "rollout, α = 0.5",
                "unit": "share",
                "shared": False,
                "residual": [0.13] * len(names),
                "maps": maps_of(shapes, (len(names),), look, 5),
            },
            {
                "name": "relevance",
                "label": "gradient-weighted relevance (Chefer et al. 2021)",
                "unit": "relevance",
                "shared": True,
                "residual": None,
                "maps": maps_of(shapes, (len(names),), look + 1, 6),
            },
        ],
    }


def values_at(step: int, run: int) -> dict[str, float]:
    return {
        "attention/pointing_game": 0.2 + step / 100 + run / 10,
        "attention/pointing_game_chance": 0.13,
        "attention/relevance/pointing_game": 0.4 + step / 100 + run / 10,
        "attention/relevance/pointing_game_chance": 0.13,
        "attention/word_overlap": 0.84,
        "attention/energy_in_box": 0.1 + step / 200,
        "attention/energy_in_box_chance": 0.08,
        "attention/stat/cross0/entropy": 3 - step / 40 + run / 5,
        "attention/stat/cross0/head_overlap": 0.9 - step / 100,
    }


def deletion() -> dict[str, Any]:
    fractions = [0.0, 0.1, 0.2, 0.4, 0.8]
    return {
        "num_samples": 61,
        "fractions": fractions,
        "curves": {
            "rollout": [1 - 0.9 * f for f in fractions],
            "relevance": [1 - 0.52 * f for f in fractions],
            "mean_map": [1 - 0.2 * f for f in fractions],
            "random": [1 - 0.5 * f for f in fractions],
        },
        "areas": {
            name: judged(name, mean, error, 61)
            for name, mean, error in (("rollout", 0.21, 0.03), ("relevance", 0.01, 0.02), ("mean_map", -0.12, 0.04))
        },
    }


def event(step: int, look: int | None, run: int) -> dict[str, Any]:
    return {
        "name": f"step {step} · epoch {step // 10}",
        "step": step,
        "epoch": step // 10,
        "explanation": look,
        "values": values_at(step, run),
        "deletion": deletion() if look == 1 else None,
    }


def picture(shape: tuple[int, int]) -> str:
    rows, columns = np.indices((8 * shape[0], 8 * shape[1]))
    file = io.BytesIO()
    Image.fromarray(((rows * 5 + columns * 3) % 256).astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def sound() -> str:
    file = io.BytesIO()
    wave = 0.1 * np.sin(2 * np.pi * 440 * np.arange(int(RATE * SECONDS)) / RATE)
    soundfile.write(file, wave, RATE, format="FLAC")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def axis(name: str, unit: str, start: float, stop: float, scale: str = "linear") -> dict[str, Any]:
    return {"name": name, "unit": unit, "start": start, "stop": stop, "scale": scale}


def samples() -> list[dict[str, Any]]:
    plain = {
        "ticks": [[], []],
        "picture": None,
        "levels": None,
        "sound": None,
        "seconds": None,
        "tokens": None,
        "strip": None,
        "boxes": [],
    }
    siren = {"name": "siren", "left": 0.5, "right": 0.9, "top": 0.1, "bottom": 0.4}
    return [
        {
            "id": EVIL,
            "ground_truth": ["label: dog bark", 'its name holds </script> and "quotes"'],
            "modalities": {
                "image": plain
                | {
                    "axes": [axis("y", "px", 0, 40), axis("x", "px", 0, 56)],
                    "shape": list(IMAGE),
                    "size": [112, 80],
                    "picture": picture(IMAGE),
                    "boxes": [siren],
                },
                "sound": plain
                | {
                    "axes": [axis("frequency", "Hz", 4000, 50, "mel"), axis("time", "s", 0, SECONDS)],
                    "ticks": [
                        [{"place": 0.0, "label": "4k"}, {"place": 0.5, "label": "1.3k"}],
                        [{"place": 0.0, "label": "0"}, {"place": 1 / SECONDS, "label": "1"}],
                    ],
                    "shape": list(SOUND),
                    "size": [230, 88],
                    "picture": picture(SOUND),
                    "levels": {"unit": "dB", "low": -71.2, "high": 3.0},
                    "sound": sound(),
                    "seconds": SECONDS,
                },
            },
        },
        {
            "id": "texts/3",
            "ground_truth": [],
            "modalities": {
                "text": plain
                | {
                    "axes": [axis("", "", 0, 1), axis("token", "", 0, WORDS[1])],
                    "shape": list(WORDS),
                    "size": [280, 20],
                    "tokens": SENTENCE,
                }
            },
        },
    ]


def synthetic() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The page, and its maps: two runs, three looks, two samples."""
    page = {
        "title": "audio_tagging/2026-11-22 </title>",
        "colormaps": COLORMAPS,
        "difference": DIFFERENCE,
        "outline": OUTLINE,
        "runs": [
            {
                "name": "outputs/audio_tagging/first",
                "events": [event(10, None, 0), event(20, 0, 0), event(30, None, 0), event(40, 1, 0)],
            },
            {"name": "outputs/audio_tagging/second", "events": [event(20, None, 1), event(40, 2, 1)]},
        ],
        "samples": samples(),
    }
    pairs = [(look, sample) for look in range(LOOKS) for sample in range(2)]
    return page, [look_of(*pair) for pair in pairs if pair != LACKING]
