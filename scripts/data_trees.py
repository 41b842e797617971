"""Small data sets on disk in every layout that is read, for tests and for `scripts/malformed_inputs.py`.

Sample n is an image or a sound of noise with seed n, of class n modulo the number of classes.
"""

import csv
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

RATE = 2003
SECONDS = 0.31
STAGES = {"train": range(11), "val": range(11, 16), "test": range(16, 19)}
NUMBERS = [number for numbers in STAGES.values() for number in numbers]
CLOTHO_SPLITS = {"train": "development", "val": "validation", "test": "evaluation"}
CLASSES = ("cat", "dog", "eel")


@dataclass(frozen=True)
class Table:
    """A file that lists samples.

    Attributes:
        path: the file.
        kind: `csv`, `json`, `lines`, `pickle` or `tar`.
        columns: meaning of a column (`name`, `label`, `number`, `caption`, `aligned`) -> its index.
        header: whether the first row names the columns.
    """

    path: Path
    kind: str
    columns: dict[str, int] = field(default_factory=dict)
    header: bool = True


@dataclass
class Tree:
    """The files of a data set below a root: those of one sample each, by kind, and the tables that list them."""

    root: Path
    images: list[Path] = field(default_factory=list)
    sounds: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    flows: list[Path] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, name: str, number: int) -> None:
        self.images.append(self.path(name))
        image_of(number).save(self.images[-1])

    def sound(self, name: str, number: int) -> None:
        self.sounds.append(write_sound(self.path(name), number))

    def csv(self, name: str, rows: Iterable[Sequence[object]], comment: str = "", **options: Any) -> None:
        self.tables.append(Table(write_csv(self.path(name), rows, comment), "csv", **options))

    def json(self, name: str, content: object) -> None:
        self.path(name).write_text(json.dumps(content))
        self.tables.append(Table(self.path(name), "json"))

    def lines(self, file: str, lines: Iterable[str], **columns: int) -> None:
        self.tables.append(Table(write_lines(self.path(file), lines), "lines", columns))

    def pickle(self, name: str, content: object) -> None:
        self.path(name).write_bytes(pickle.dumps(content, protocol=2))
        self.tables.append(Table(self.path(name), "pickle"))

    def tar(self, name: str, members: Mapping[str, bytes]) -> None:
        self.tables.append(Table(write_tar(self.path(name), members), "tar"))


def write_csv(path: Path, rows: Iterable[Sequence[object]], comment: str = "") -> Path:
    with path.open("w", newline="") as file:
        file.write(comment)
        csv.writer(file).writerows(rows)
    return path


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_sound(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_of(number), RATE)
    return path


def image_of(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(256, size=(13, 17, 3), dtype=np.uint8))


def wave_of(number: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(number).standard_normal(round(SECONDS * RATE))


def png_of(number: int = 0) -> bytes:
    image_of(number).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def wav_of(number: int = 0) -> bytes:
    soundfile.write(file := io.BytesIO(), wave_of(number), RATE, format="WAV")
    return file.getvalue()


def captions_of(number: int, count: int = 2) -> list[str]:
    """Return captions with commas and quotes."""
    return [f'A "{CLASSES[number % 3]}" one , number {number} , seen {nth} times .' for nth in range(count)]


def class_folders(root: Path, kind: str = "image") -> Tree:
    tree = Tree(root)
    for stage, numbers in STAGES.items():
        for number in numbers:
            name = f"{stage}/{CLASSES[number % 3]}/{number}"
            tree.image(f"{name}.png", number) if kind == "image" else tree.sound(f"{name}.wav", number)
    return tree


def cifar(root: Path, variant: str = "cifar10", files: Sequence[str] | None = None, **changes: Any) -> Tree:
    """Write batches of 5 images per class; `changes` replace entries of all of them."""
    tree = Tree(root)
    folder, key, names, meta, all_files, classes = {
        "cifar10": (
            *("cifar-10-batches-py", "labels", "label_names", "batches.meta"),
            *([*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"], 10),
        ),
        "cifar100": ("cifar-100-python", "fine_labels", "fine_label_names", "meta", ["train", "test"], 100),
    }[variant]
    for name in all_files if files is None else files:
        pixels = np.random.default_rng(list(name.encode())).integers(256, size=(5 * classes, 3072), dtype=np.uint8)
        labels = np.random.default_rng(0).permutation(np.arange(5 * classes) % classes).tolist()
        batch = {"data": pixels, key: labels, "filenames": [f"{index}.png" for index in range(5 * classes)]}
        tree.pickle(f"{folder}/{name}", batch | changes)
    tree.pickle(f"{folder}/{meta}", {names: [f"class {label}" for label in range(classes)]})
    return tree


def esc50(root: Path, targets: Sequence[int] = range(3), folds: int = 2, takes: int = 2) -> Tree:
    """Write clips of each target in each fold, which are of ESC-10 for targets below 10."""
    tree = Tree(root)
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [
        (f"{fold}-{take}-{target}.wav", fold, target, f"class {target}", target < 10, f"{fold}{take}{target}", "A")
        for fold in range(1, folds + 1)
        for take in range(takes)
        for target in targets
    ]
    tree.csv("meta/esc50.csv", [header, *rows], columns={"name": 0, "number": 2})
    for number, (name, *_) in enumerate(rows):
        tree.sound(f"audio/{name}", number)
    return tree


def fsd50k(root: Path, num_classes: int = 3, names: str = "FSD50K.{}") -> Tree:
    """Write clips with the classes n and n + 1; `names` is the pattern of the folder names."""
    tree, truth = Tree(root), names.format("ground_truth")
    vocabulary = [(label, f"class {label}", f"/m/{label}") for label in reversed(range(num_classes))]
    tree.csv(f"{truth}/vocabulary.csv", vocabulary, columns={"number": 0}, header=False)
    for name, stages in (("dev", ("train", "val")), ("eval", ("test",))):
        labels = [",".join(f"class {(number + more) % num_classes}" for more in (0, 1)) for number in NUMBERS]
        rows = [(f"{n:03d}", labels[n], "/m/x", stage) for stage in stages for n in STAGES[stage]]
        tree.csv(f"{truth}/{name}.csv", [("fname", "labels", "mids", "split"), *rows], columns={"name": 0, "label": 1})
        for file_name, *_ in rows:
            tree.sound(f"{names.format(f'{name}_audio')}/{file_name}.wav", int(file_name))
    return tree


def video(number: int) -> str:
    """Return an id of eleven characters, which may begin with any of those that are unusual in names."""
    return f"{'-_Ya'[number % 4]}{number:09d}-"


def audioset(root: Path, num_classes: int = 3) -> Tree:
    """Write clips under their bare ids, with the classes n and n + 1."""
    tree = Tree(root)
    classes = [(label, f"/m/{label}", f"Class {label}, quoted") for label in range(num_classes)]
    tree.csv("class_labels_indices.csv", [("index", "mid", "display_name"), *classes], columns={"number": 0})
    for name, numbers in (("balanced_train", range(16)), ("eval", STAGES["test"])):
        segments(tree, name, [(video(n), float(n), (n % num_classes, (n + 1) % num_classes)) for n in numbers])
        for number in numbers:
            tree.sound(f"audio/{video(number)}.wav", number)
    return tree


def segments(tree: Tree, name: str, listed: Iterable[tuple[str, float, Sequence[int]]]) -> None:
    """Write a list of segments: video, start, labels."""
    rows = [
        (id, f"{start:.3f}", f"{start + 10:.3f}", ",".join(f"/m/{label}" for label in labels))
        for id, start, labels in listed
    ]
    options = {"columns": {"label": 3, "number": 1}, "header": False}
    tree.csv(f"{name}_segments.csv", rows, "# num_ytids=3\n# YTID, start_seconds\n", **options)


def flickr8k(root: Path, *, original: bool = False, lists: bool = True) -> Tree:
    """Write the form of Kaggle or the original one, with or without lists of the splits."""
    tree = Tree(root)
    rows = [(f"{number}.png", text) for number in NUMBERS for text in captions_of(number)]
    if original:
        lines = (f"{name}#{nth % 2}\t{text}" for nth, (name, text) in enumerate(rows))
        tree.lines("Flickr8k_text/Flickr8k.token.txt", lines, name=0, caption=1)
    else:
        tree.csv("captions.txt", [("image", "caption"), *rows], columns={"name": 0, "caption": 1})
    for stage, name in (("train", "train"), ("val", "dev"), ("test", "test")) if lists else ():
        folder = "Flickr8k_text/" if original else ""
        tree.lines(f"{folder}Flickr_8k.{name}Images.txt", (f"{number}.png" for number in STAGES[stage]), name=0)
    for number in NUMBERS:
        tree.image(f"{'Flicker8k_Dataset' if original else 'Images'}/{number}.png", number)
    return tree


def coco_json(numbers: Iterable[int]) -> dict[str, list[dict[str, Any]]]:
    images = [{"id": number, "file_name": f"{number}.png", "width": 17} for number in numbers]
    texts = [(image["id"], text) for image in images for text in captions_of(image["id"])]
    annotations = [{"id": id, "image_id": number, "caption": text} for id, (number, text) in enumerate(texts)]
    return {"images": images, "annotations": annotations}


def coco(
    root: Path, year: str = "2017", images: str = "{stage}{year}", stages: Sequence[str] = ("train", "val")
) -> Tree:
    """Write COCO's layout; `images` is the pattern of the folder of a stage."""
    tree = Tree(root)
    for stage in stages:
        tree.json(f"annotations/captions_{stage}{year}.json", coco_json(STAGES[stage]))
        for number in STAGES[stage]:
            tree.image(f"{images.format(stage=stage, year=year)}/{number}.png", number)
    return tree


def karpathy(root: Path, name: str = "coco", restval: Sequence[int] = (23, 29)) -> Tree:
    """Write COCO in folders as the images state, or another data set in one folder; `restval` are further images."""
    tree, images = Tree(root), []
    splits = [(stage, number) for stage, numbers in STAGES.items() for number in numbers]
    for split, number in splits + [("restval", number) for number in restval]:
        folder = "train2014" if split == "train" else "val2014"
        sentences = [{"raw": text, "tokens": text.lower().split()} for text in captions_of(number)]
        image = {"filename": f"{number}.png", "split": split, "sentences": sentences}
        images.append(image | ({"filepath": folder} if name == "coco" else {}))
        tree.image(f"{folder if name == 'coco' else 'Images'}/{number}.png", number)
    tree.json(f"dataset_{name}.json", {"images": images, "dataset": name})
    return tree


def clotho(root: Path, audio: str = "{}") -> Tree:
    """Write Clotho's layout; `audio` is the pattern of the folder of a split."""
    tree = Tree(root)
    header = ("file_name", *(f"caption_{nth}" for nth in range(1, 6)))
    for stage, numbers in STAGES.items():
        split = CLOTHO_SPLITS[stage]
        rows = [(f"{number}.wav", *captions_of(number, 5)) for number in numbers]
        tree.csv(f"clotho_captions_{split}.csv", [header, *rows], columns={"name": 0, "caption": 2})
        for number in numbers:
            tree.sound(f"{audio.format(split)}/{number}.wav", number)
    return tree


def text_pairs(root: Path, *, aligned: bool = False) -> Tree:
    """Write questions with one or two answers each, in one file per stage or in two aligned ones; and a user's file."""
    tree = Tree(root)
    for stage, numbers in STAGES.items():
        pairs = [(f"What is number {n}?", f"It is a {name}.") for n in numbers for name in CLASSES[: 1 + n % 2]]
        if aligned:
            tree.lines(f"{stage}.en", (source for source, _ in pairs), aligned=0)
            tree.lines(f"{stage}.de", (target for _, target in pairs), aligned=0)
        else:
            tree.lines(f"{stage}.tsv", map("\t".join, pairs), caption=1)
    tree.texts.append(write_lines(tree.path("a text.txt"), ["What is this?"]))
    return tree


def shards(root: Path, kind: str, target: str, *, num_classes: int = 3, stages: Sequence[str] = tuple(STAGES)) -> Tree:
    """Write two tars per stage of files of a kind (png, wav) and a target (cls, label, tags, txt, captions)."""
    tree = Tree(root)
    for stage in stages:
        for part in range(2):
            members = {}
            for number in STAGES[stage][part::2]:
                members[f"{number:06d}.{kind}"] = (png_of if kind == "png" else wav_of)(number)
                ending, content = target_file(number, target, num_classes)
                members[f"{number:06d}.{ending}"] = content.encode()
            tree.tar(f"{stage}-{part:06d}.tar", members)
    if target in ("cls", "label", "tags"):
        write_lines(tree.path("classes.txt"), (f"class {label}" for label in range(num_classes)))
    return tree


def target_file(number: int, target: str, num_classes: int) -> tuple[str, str]:
    """Return ending and content of the file with the target of a sample."""
    label, texts = number % num_classes, captions_of(number)
    return {
        "cls": ("cls", f"{label}\n"),
        "label": ("json", json.dumps({"label": label})),
        "tags": ("json", json.dumps({"tags": sorted({label, (label + 1) % num_classes})})),
        "txt": ("txt", "\n".join(texts)),
        "captions": ("json", json.dumps({"captions": texts})),
    }[target]


SMALL = ("model.memory.num_latents=5", "model.memory.dim=16")
SOUNDS = ("experiment=audio_tagging", *SMALL, "data.source.num_classes=3")
CAPTIONS = ("experiment=flickr8k", "tokenizer.min_frequency=1", *SMALL)
MASKS = ("task=segmentation", "decoder@model.decoder=dense", "data=image_masks", "data.source.num_classes=3", *SMALL)
SOUND_CAPTIONS = (
    *CAPTIONS,
    *("task.monitor=loss", "+encoder@model.encoders.audio=audio_log_mel_conv", "~encoder@model.encoders.image"),
)
PAIRS = (
    *("experiment=flickr8k", "data=text_pairs", "task.monitor=loss", "task.captions_per_sample=1"),
    *("+encoder@model.encoders.text=text", "~encoder@model.encoders.image"),
)

FLOW = (
    *("experiment=optical_flow", "data=flow_pairs", "data.source.val_fraction=0.3", "data.source.test_fraction=0.3"),
    *("data.readers.video.image_size=12", "model.memory.num_latents=5", "model.memory.dim=40"),
)


def image_masks(root: Path) -> Tree:
    """Write images, and masks of three classes and pixels without one."""
    tree = Tree(root)
    for stage, numbers in STAGES.items():
        for number in numbers:
            tree.image(f"{stage}/images/{number}.png", number)
            tree.images.append(tree.path(f"{stage}/masks/{number}.png"))
            Image.fromarray(np.random.default_rng(number).choice([0, 1, 2, 255], (13, 17)).astype(np.uint8)).save(
                tree.images[-1]
            )
    return tree


def flow_pairs(root: Path) -> Tree:
    """Write pairs of frames with their flow, as FlyingChairs."""
    tree = Tree(root)
    for number in range(17):
        for frame in (1, 2):
            tree.image(f"{number:05d}_img{frame}.ppm", number + frame)
        tree.flows.append(tree.path(f"{number:05d}_flow.flo"))
        width, height = image_of(number).size
        flow = np.random.default_rng(number).normal(size=(height, width, 2)).astype("<f4")
        tree.flows[-1].write_bytes(struct.pack("<4sii", b"PIEH", width, height) + flow.tobytes())
    return tree


DATA_SETS: dict[str, tuple[Callable[[Path], Tree], tuple[str, ...]]] = {
    "image_folder": (class_folders, ("data=image_folder",)),
    "audio_folder": (
        lambda root: class_folders(root, "sound"),
        (*SOUNDS, "data=audio_folder", "task.multi_label=false"),
    ),
    **{
        name: (lambda root, name=name, files=files: cifar(root, name, files), (f"data={name}",))
        for name, files in (("cifar10", ("data_batch_1", "test_batch")), ("cifar100", ("train", "test")))
    },
    "image_masks": (image_masks, MASKS),
    "flow_pairs": (flow_pairs, FLOW),
    "esc50": (esc50, (*SOUNDS, "data=esc50", "task.multi_label=false")),
    "fsd50k": (fsd50k, (*SOUNDS, "data=fsd50k")),
    "audioset": (audioset, (*SOUNDS, "data=audioset")),
    "flickr8k": (lambda root: flickr8k(root, lists=False), (*CAPTIONS, "data=flickr8k")),
    "flickr8k, original": (lambda root: flickr8k(root, original=True), (*CAPTIONS, "data=flickr8k")),
    "coco_captions": (lambda root: coco(root, "", "images", list(STAGES)), (*CAPTIONS, "data=coco_captions")),
    "karpathy": (lambda root: karpathy(root, "flickr8k"), (*CAPTIONS, "data=karpathy")),
    "clotho": (clotho, (*SOUND_CAPTIONS, "data=clotho")),
    "text_pairs": (text_pairs, (*PAIRS, "tokenizer=bpe")),
    "text_pairs, aligned": (
        lambda root: text_pairs(root, aligned=True),
        (*PAIRS, "tokenizer=bytes", "data.source.endings=[en,de]"),
    ),
    **{
        name: (
            lambda root, kind=kind, target=target: shards(root, kind, target),
            (*overrides, f"data={name}"),
        )
        for name, kind, target, overrides in (
            ("image_shards", "png", "cls", ("data.source.num_classes=3",)),
            ("sound_shards", "wav", "tags", SOUNDS),
            ("caption_shards", "png", "captions", CAPTIONS),
            ("sound_caption_shards", "wav", "txt", SOUND_CAPTIONS),
        )
    },
}
"""Data set -> the function that writes it, and the overrides of experiments/train.py that read it."""
