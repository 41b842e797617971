"""Small data sets of tagged sounds on disk, in the layouts of FSD50K and AudioSet."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 2003
SECONDS = 0.31


def noise(path: Path) -> Path:
    """A sound, each another, in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.name.encode()))
    soundfile.write(path, 0.1 * random.standard_normal(round(SECONDS * RATE)), RATE)
    return path


def table(path: Path, rows: Sequence[Sequence[object]], before: str = "") -> Path:
    """A csv file, quoted where it must be, behind some lines that stand as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(before)
        csv.writer(file).writerows(rows)
    return path


def fsd50k_tree(root: Path, *, num_classes: int = 3, names: str = "FSD50K.{}") -> Path:
    """Five training clips, three for validation and two for testing; their folders are called as `names` says.

    Clip n has the classes n and n + 1, modulo their number; the vocabulary lists them backwards.
    """

    def tags(number: int) -> str:
        return ",".join(f"class_{(number + more) % num_classes}" for more in (0, 1))

    truth = root / names.format("ground_truth")
    vocabulary = [(label, f"class_{label}", f"/m/{label}") for label in reversed(range(num_classes))]
    table(truth / "vocabulary.csv", vocabulary)
    development = [(100 + n, tags(n), "/m/x", "val" if n % 3 == 2 else "train") for n in range(8)]
    table(truth / "dev.csv", [("fname", "labels", "mids", "split"), *development])
    table(truth / "eval.csv", [("fname", "labels", "mids"), *((200 + n, tags(n), "/m/x") for n in range(2))])
    for n in range(8):
        noise(root / names.format("dev_audio") / f"{100 + n}.wav")
    for n in range(2):
        noise(root / names.format("eval_audio") / f"{200 + n}.wav")
    return root


SEGMENT_COMMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=2, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
"""


def segments(path: Path, rows: Sequence[tuple[str, float, Sequence[str]]]) -> Path:
    """A list of segments as it is released: video, second where it begins, mids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f'{video}, {start:.3f}, {start + 10:.3f}, "{",".join(mids)}"\n' for video, start, mids in rows)
    path.write_text(SEGMENT_COMMENTS + "".join(lines))
    return path


def video(number: int) -> str:
    """An id of eleven characters, among them those that names seldom begin with."""
    return f"{'-_Ya'[number % 4]}{number:09d}-"


def audioset_tree(root: Path, *, num_classes: int = 3, num_train: int = 23, num_test: int = 5) -> Path:
    """All segments on disk, under their bare ids; segment n has the classes n and n + 1, modulo their number."""
    classes = [(label, f"/m/{label}", f"Class {label}, so to say") for label in range(num_classes)]
    table(root / "class_labels_indices.csv", [("index", "mid", "display_name"), *classes])
    for name, first, count in (("balanced_train", 0, num_train), ("eval", 1000, num_test)):
        rows = [
            (video(n), float(n), [f"/m/{n % num_classes}", f"/m/{(n + 1) % num_classes}"])
            for n in range(first, first + count)
        ]
        segments(root / f"{name}_segments.csv", rows)
        for id, _, _ in rows:
            noise(root / "audio" / f"{name}_segments" / f"{id}.wav")
    return root
