"""Small data sets of captions on disk, in the layouts that they have where people keep them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from perceiver.data.dataset import Split
from perceiver.types import Sample
from tests.data.tagged_trees import noise, table

COUNTS = {"train": 11, "val": 5, "test": 3}
COLOURS = ("red", "green", "blue")


def photo(path: Path) -> Path:
    """An image, of the colour that its captions say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (17, 13), COLOURS[int(path.stem) % len(COLOURS)]).save(path)
    return path


def captions_of(number: int, count: int = 2) -> list[str]:
    """What is said of the image or sound of a number: texts with commas and quotes, each another."""
    return [f'A "{COLOURS[number % len(COLOURS)]}" one , number {number} , seen {nth} times .' for nth in range(count)]


def numbers(stage: str) -> range:
    """The numbers of a stage's files."""
    first = {"train": 0, "val": COUNTS["train"], "test": COUNTS["train"] + COUNTS["val"]}[stage]
    return range(first, first + COUNTS[stage])


def lines(path: Path, texts: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def flickr8k_tree(root: Path, *, original: bool = False, lists: bool = True) -> Path:
    """As on Kaggle, or in the original form; with or without lists of the splits."""
    all_numbers = [number for stage in COUNTS for number in numbers(stage)]
    rows = [(f"{number}.jpg", text) for number in all_numbers for text in captions_of(number)]
    if original:
        tokens = (f"{name}#{nth % 2}\t{text}" for nth, (name, text) in enumerate(rows))
        lines(root / "Flickr8k_text" / "Flickr8k.token.txt", tokens)
    else:
        table(root / "captions.txt", [("image", "caption"), *rows])
    for stage, name in (("train", "train"), ("val", "dev"), ("test", "test")) if lists else ():
        folder = root / "Flickr8k_text" if original else root
        lines(folder / f"Flickr_8k.{name}Images.txt", (f"{number}.jpg" for number in numbers(stage)))
    for number in all_numbers:
        photo(root / ("Flicker8k_Dataset" if original else "Images") / f"{number}.jpg")
    return root


def coco_json(files: Iterable[tuple[int, str]]) -> dict[str, list[dict[str, object]]]:
    """Numbers and names of images, with their captions, as COCO's tables hold them."""
    listed = list(files)
    texts = [(number, text) for number, _ in listed for text in captions_of(number)]
    return {
        "images": [{"id": number, "file_name": name, "width": 17, "height": 13} for number, name in listed],
        "annotations": [{"id": id, "image_id": number, "caption": text} for id, (number, text) in enumerate(texts)],
    }


def coco_tree(root: Path, *, year: str = "2017", images: str = "{stage}{year}") -> Path:
    """Without captions for testing, as officially released; the images of a stage are in a folder named so."""
    for stage in ("train", "val"):
        files = [(number, f"{number:012d}.jpg") for number in numbers(stage)]
        write_json(root / "annotations" / f"captions_{stage}{year}.json", coco_json(files))
        for _, name in files:
            photo(root / images.format(stage=stage, year=year) / name)
    return root


def karpathy_tree(root: Path, *, name: str = "coco", restval: Sequence[int] = (23, 29)) -> Path:
    """COCO in folders as the images say, or one of the others, all in one; `restval` are more images to train on."""
    images = []
    splits = [(stage, number) for stage in COUNTS for number in numbers(stage)]
    for split, number in splits + [("restval", number) for number in restval]:
        folder = "train2014" if split == "train" else "val2014"
        sentences = [{"raw": text, "tokens": text.lower().split()} for text in captions_of(number)]
        image = {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences}
        images.append(image | ({"filepath": folder, "cocoid": number} if name == "coco" else {}))
        photo(root / (folder if name == "coco" else "Images") / f"{number}.jpg")
    write_json(root / f"dataset_{name}.json", {"images": images, "dataset": name})
    return root


def clotho_tree(root: Path, *, audio: str = "{}") -> Path:
    """Sounds with five captions each; the folder of a split is called as `audio` says."""
    for stage, part in (("train", "development"), ("val", "validation"), ("test", "evaluation")):
        header = ("file_name", *(f"caption_{nth}" for nth in range(1, 6)))
        rows = [(f"{number}.wav", *captions_of(number, 5)) for number in numbers(stage)]
        table(root / f"clotho_captions_{part}.csv", [header, *rows])
        for number in numbers(stage):
            noise(root / audio.format(part) / f"{number}.wav")
    return root


def text_pairs_tree(root: Path) -> Path:
    """Questions with one or two answers, in a file for each stage."""
    for stage in COUNTS:
        pairs = [
            (f"What is number {number}?", f"It is {colour}.")
            for number in numbers(stage)
            for colour in COLOURS[: 1 + number % 2]
        ]
        lines(root / f"{stage}.tsv", ("\t".join(pair) for pair in pairs))
    return root


def samples(split: Split) -> list[Sample]:
    return [split[index] for index in range(len(split))]


def references(split: Split) -> dict[str, list[str]]:
    """Name of a file, without folders -> what is said of it, as it is listed; samples have it in some order."""
    listed = {}
    for index, sample in enumerate(samples(split)):
        listed[Path(sample.id).name] = split.items[index].targets["references"]
        assert sorted(sample.targets["references"]) == sorted(listed[Path(sample.id).name])
    return listed
