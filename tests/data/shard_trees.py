"""Small tars of samples, written with Python's tarfile."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from tests.data.caption_trees import COUNTS, captions_of, lines, numbers

RATE = 2003


def tar(path: Path, files: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of files, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def png(number: int = 0, size: tuple[int, int] = (17, 13)) -> bytes:
    """An image, each another."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(number: int = 0, seconds: float = 0.31) -> bytes:
    """A sound, each another."""
    file = io.BytesIO()
    wave = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * RATE))
    soundfile.write(file, wave, RATE, format="WAV")
    return file.getvalue()


def shard_tree(root: Path, content: str, told: str, *, num_classes: int = 3, stages=tuple(COUNTS)) -> Path:
    """Two tars a stage of `image` or `sound`, of each of which is told `cls`, `label`, `tags`, `txt` or `captions`."""
    for stage in stages:
        for part in range(2):
            files = {}
            for number in numbers(stage)[part::2]:
                files[f"{number:06d}.{'png' if content == 'image' else 'wav'}"] = (png, wav)[content == "sound"](number)
                ending, text = said(number, told, num_classes)
                files[f"{number:06d}.{ending}"] = text.encode()
            tar(root / f"{stage}-{part:06d}.tar", files)
    if told in ("cls", "label", "tags"):
        lines(root / "classes.txt", (f"class {label}" for label in range(num_classes)))
    return root


def said(number: int, told: str, num_classes: int) -> tuple[str, str]:
    """What is true of the sample of a number: the ending of the file that says so, and what is in it."""
    label, captions = number % num_classes, captions_of(number)
    return {
        "cls": ("cls", f"{label}\n"),
        "label": ("json", json.dumps({"label": label})),
        "tags": ("json", json.dumps({"tags": sorted({label, (label + 1) % num_classes})})),
        "txt": ("txt", "\n".join(captions)),
        "captions": ("json", json.dumps({"captions": captions})),
    }[told]
