"""Small valid trees of every data set that is read from disk, for `scripts/malformed_inputs.py` to spoil."""

import csv
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

RATE = 16000
STAGES = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}
PARTS = {"train": "development", "val": "validation", "test": "evaluation"}
CLASSES = ("cat", "dog", "eel")


@dataclass(frozen=True)
class Table:
    """A file that lists samples.

    Attributes:
        path: the file.
        kind: `csv`, `json`, `lines`, `pickle` or `tar`: which faults it may have.
        columns: what a column is for (`name`, `label`, `number`, `caption`) -> its place.
        header: whether the first row names the columns.
    """

    path: Path
    kind: str
    columns: dict[str, int] = field(default_factory=dict)
    header: bool = True


@dataclass
class Tree:
    """What was written: files of a sample each, by what they are, and the tables that list them."""

    root: Path
    images: list[Path] = field(default_factory=list)
    sounds: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def image(self, name: str, number: int) -> None:
        path = _made(self.root / name)
        image_of(number).save(path)
        self.images.append(path)

    def sound(self, name: str, number: int) -> None:
        path = _made(self.root / name)
        soundfile.write(path, wave_of(number), RATE)
        self.sounds.append(path)

    def csv(self, name: str, rows: Iterable[Sequence[object]], before: str = "", **options: Any) -> None:
        path = _made(self.root / name)
        with path.open("w", newline="") as file:
            file.write(before)
            csv.writer(file).writerows(rows)
        self.tables.append(Table(path, "csv", **options))

    def json(self, name: str, content: object) -> None:
        path = _made(self.root / name)
        path.write_text(json.dumps(content))
        self.tables.append(Table(path, "json"))

    def lines(self, file: str, lines: Iterable[str], **columns: int) -> None:
        path = _made(self.root / file)
        path.write_text("".join(f"{line}\n" for line in lines))
        self.tables.append(Table(path, "lines", columns))

    def pickle(self, name: str, content: object) -> None:
        path = _made(self.root / name)
        path.write_bytes(pickle.dumps(content, protocol=2))
        self.tables.append(Table(path, "pickle"))

    def tar(self, name: str, members: dict[str, bytes]) -> None:
        path = _made(self.root / name)
        write_tar(path, members)
        self.tables.append(Table(path, "tar"))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def image_of(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(256, size=(19, 23, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def wave_of(number: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(number).standard_normal(RATE // 5)


def encoded(number: int, kind: str) -> bytes:
    """An image as PNG or a sound as wav."""
    file = io.BytesIO()
    if kind == "png":
        image_of(number).save(file, "PNG")
    else:
        soundfile.write(file, wave_of(number), RATE, format="WAV")
    return file.getvalue()


def said(number: int, count: int = 2) -> list[str]:
    return [f"A {CLASSES[number % 3]}, number {number}, seen {nth} times." for nth in range(count)]


def _class_folders(tree: Tree, add: Callable[[str, int], None], ending: str) -> None:
    for stage, numbers in STAGES.items():
        for number in numbers:
            add(f"{stage}/{CLASSES[number % 3]}/{number}.{ending}", number)
    tree.folders = sorted({path.parent for path in (*tree.images, *tree.sounds)})


def image_folder(tree: Tree) -> None:
    _class_folders(tree, tree.image, "png")


def audio_folder(tree: Tree) -> None:
    _class_folders(tree, tree.sound, "wav")


def cifar(tree: Tree, *, hundred: bool) -> None:
    folder = "cifar-100-python" if hundred else "cifar-10-batches-py"
    key, names, classes = ("fine_labels", "fine_label_names", 100) if hundred else ("labels", "label_names", 10)
    for number, name in enumerate(("train", "test") if hundred else ("data_batch_1", "test_batch")):
        pixels = np.random.default_rng(number).integers(256, size=(2 * classes, 3072), dtype=np.uint8)
        labels = [label % classes for label in range(2 * classes)]
        files = [f"{place}.png" for place in range(2 * classes)]
        tree.pickle(f"{folder}/{name}", {"data": pixels, key: labels, "filenames": files})
    tree.pickle(f"{folder}/{'meta' if hundred else 'batches.meta'}", {names: [f"class {n}" for n in range(classes)]})


def esc50(tree: Tree) -> None:
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [(f"{n}.wav", 1 + n % 2, n % 3, CLASSES[n % 3], "True", n, "A") for n in range(12)]
    tree.csv("meta/esc50.csv", [header, *rows], columns={"name": 0, "number": 2})
    for number in range(12):
        tree.sound(f"audio/{number}.wav", number)


def fsd50k(tree: Tree) -> None:
    truth = "FSD50K.ground_truth"
    tree.csv(
        f"{truth}/vocabulary.csv", [(n, CLASSES[n], f"/m/{n}") for n in range(3)], columns={"number": 0}, header=False
    )
    for name, stages in (("dev", ("train", "val")), ("eval", ("test",))):
        header = ("fname", "labels", "mids", "split")
        rows = [(f"{n:03d}", CLASSES[n % 3], f"/m/{n % 3}", stage) for stage in stages for n in STAGES[stage]]
        tree.csv(f"{truth}/{name}.csv", [header, *rows], columns={"name": 0, "label": 1})
        for row in rows:
            tree.sound(f"FSD50K.{name}_audio/{row[0]}.wav", int(row[0]))


def audioset(tree: Tree) -> None:
    header = ("index", "mid", "display_name")
    rows = [(n, f"/m/{n}", CLASSES[n]) for n in range(3)]
    tree.csv("class_labels_indices.csv", [header, *rows], columns={"number": 0})
    for name, numbers in (("balanced_train", range(9)), ("eval", STAGES["test"])):
        listed = [(f"abcdefg{n:04d}", f"{n}.000", f"{n + 10}.000", f"/m/{n % 3}") for n in numbers]
        tree.csv(f"{name}_segments.csv", listed, "# YTID, start\n", columns={"label": 3, "number": 1}, header=False)
        for video, *_ in listed:
            tree.sound(f"audio/{video}.wav", int(video[-4:]))


def flickr8k(tree: Tree) -> None:
    rows = [(f"{n}.png", text) for n in range(12) for text in said(n)]
    tree.csv("captions.txt", [("image", "caption"), *rows], columns={"name": 0, "caption": 1})
    for number in range(12):
        tree.image(f"Images/{number}.png", number)


def flickr8k_original(tree: Tree) -> None:
    listed = [f"{n}.png#{nth}\t{text}" for n in range(12) for nth, text in enumerate(said(n))]
    tree.lines("Flickr8k_text/Flickr8k.token.txt", listed, name=0, caption=1)
    for stage, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        tree.lines(f"Flickr8k_text/Flickr_8k.{name}Images.txt", [f"{n}.png" for n in STAGES[stage]], name=0)
    for number in range(12):
        tree.image(f"Flicker8k_Dataset/{number}.png", number)


def coco_captions(tree: Tree) -> None:
    for stage, numbers in STAGES.items():
        images = [{"id": n, "file_name": f"{n}.png"} for n in numbers]
        annotations = [{"id": n, "image_id": n, "caption": text} for n in numbers for text in said(n)]
        tree.json(f"annotations/captions_{stage}.json", {"images": images, "annotations": annotations})
        for number in numbers:
            tree.image(f"images/{number}.png", number)


def karpathy(tree: Tree) -> None:
    images = [
        {"filename": f"{n}.png", "split": stage, "sentences": [{"raw": text} for text in said(n)]}
        for stage, numbers in STAGES.items()
        for n in numbers
    ]
    tree.json("dataset_flickr8k.json", {"images": images})
    for number in range(12):
        tree.image(f"Images/{number}.png", number)


def clotho(tree: Tree) -> None:
    for stage, numbers in STAGES.items():
        rows = [(f"{n}.wav", *said(n, 5)) for n in numbers]
        header = ("file_name", *(f"caption_{nth}" for nth in range(1, 6)))
        tree.csv(f"clotho_captions_{PARTS[stage]}.csv", [header, *rows], columns={"name": 0, "caption": 2})
        for number in numbers:
            tree.sound(f"{PARTS[stage]}/{number}.wav", number)


def text_pairs(tree: Tree) -> None:
    for stage, numbers in STAGES.items():
        tree.lines(f"{stage}.tsv", [f"What is number {n}?\t{said(n)[0]}" for n in numbers], caption=1)
    _user_text(tree)


def text_pairs_aligned(tree: Tree) -> None:
    for stage, numbers in STAGES.items():
        tree.lines(f"{stage}.en", [f"What is number {n}?" for n in numbers], aligned=0)
        tree.lines(f"{stage}.de", [said(n)[0] for n in numbers], aligned=0)


def _user_text(tree: Tree) -> None:
    path = tree.root / "a text.txt"
    path.write_text("What is this?\n")
    tree.texts.append(path)


def shards(tree: Tree, *, kind: str, told: Callable[[int], dict[str, bytes]]) -> None:
    for stage, numbers in STAGES.items():
        files = {n: {kind: encoded(n, kind)} | told(n) for n in numbers}
        members = {f"{n:06d}.{ending}": content for n in numbers for ending, content in files[n].items()}
        tree.tar(f"{stage}-000000.tar", members)


def class_of(number: int) -> dict[str, bytes]:
    return {"cls": str(number % 3).encode()}


def tags_of(number: int) -> dict[str, bytes]:
    return {"json": json.dumps({"tags": [number % 3]}).encode()}


def lines_of(number: int) -> dict[str, bytes]:
    return {"txt": "\n".join(said(number)).encode()}


def captions_of(number: int) -> dict[str, bytes]:
    return {"json": json.dumps({"captions": said(number)}).encode()}


SOUND = ("experiment=audio_tagging", "model.memory.num_latents=5", "model.memory.dim=16")
CAPTION = ("experiment=flickr8k", "tokenizer.min_frequency=1", "model.memory.num_latents=5", "model.memory.dim=16")
SOUND_CAPTION = (
    *CAPTION,
    *("task.monitor=loss", "+encoder@model.encoders.audio=audio_log_mel_conv", "~encoder@model.encoders.image"),
)
PAIRS = (
    *("experiment=flickr8k", "data=text_pairs", "task.monitor=loss", "task.captions_per_sample=1"),
    *("+encoder@model.encoders.text=text", "~encoder@model.encoders.image"),
)
WRITERS: dict[str, tuple[Callable[[Tree], None], tuple[str, ...]]] = {
    "image_folder": (image_folder, ("data=image_folder",)),
    "audio_folder": (audio_folder, (*SOUND, "data=audio_folder", "task.multi_label=false")),
    "cifar10": (lambda tree: cifar(tree, hundred=False), ("data=cifar10",)),
    "cifar100": (lambda tree: cifar(tree, hundred=True), ("data=cifar100",)),
    "esc50": (esc50, (*SOUND, "data=esc50", "data.source.num_classes=3", "task.multi_label=false")),
    "fsd50k": (fsd50k, (*SOUND, "data=fsd50k", "data.source.num_classes=3")),
    "audioset": (audioset, (*SOUND, "data=audioset", "data.source.num_classes=3")),
    "flickr8k": (flickr8k, (*CAPTION, "data=flickr8k")),
    "flickr8k, original": (flickr8k_original, (*CAPTION, "data=flickr8k")),
    "coco_captions": (coco_captions, (*CAPTION, "data=coco_captions")),
    "karpathy": (karpathy, (*CAPTION, "data=karpathy")),
    "clotho": (clotho, (*SOUND_CAPTION, "data=clotho")),
    "text_pairs": (text_pairs, (*PAIRS, "tokenizer=bpe")),
    "text_pairs, aligned": (text_pairs_aligned, (*PAIRS, "tokenizer=bytes", "data.source.endings=[en,de]")),
    "image_shards": (
        lambda tree: shards(tree, kind="png", told=class_of),
        ("data=image_shards", "data.source.num_classes=3"),
    ),
    "sound_shards": (
        lambda tree: shards(tree, kind="wav", told=tags_of),
        (*SOUND, "data=sound_shards", "data.source.num_classes=3"),
    ),
    "caption_shards": (lambda tree: shards(tree, kind="png", told=captions_of), (*CAPTION, "data=caption_shards")),
    "sound_caption_shards": (
        lambda tree: shards(tree, kind="wav", told=lines_of),
        (*SOUND_CAPTION, "data=sound_caption_shards"),
    ),
}
"""Data set -> what writes a tree of it, and the overrides of experiments/train.py that read one."""
