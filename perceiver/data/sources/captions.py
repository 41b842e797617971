"""Images and sounds with captions: Flickr8k, MS COCO, the splits of Karpathy and Fei-Fei, Clotho.

Each class documents the files it reads; anything in the same layout is read, too.
"""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from perceiver.data.files import UnreadableError, first_few
from perceiver.data.sources.base import ItemTable, OnError, Roles, Source
from perceiver.data.splits import HeldOut, split_by_name
from perceiver.data.text_files import JsonEntry, Row, normalize_spaces, read_csv, read_tsv, text_problem
from perceiver.types import Stage

IMAGE_FOLDERS = (
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "."),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """The files of a split and their captions.

    Attributes:
        table: the file that lists them.
        references: file name -> its captions (`clean_captions`).
        folders: below the root; the files are in the first one that contains any of them.
    """

    table: Path
    references: Mapping[str, Sequence[str]]
    folders: Sequence[str]


class CaptionedFiles(Source):
    """Files with captions.

    Args:
        root: the folder that contains everything.

    Attributes:
        role: of the files.
    """

    role = "image"

    def __init__(self, *, root: str) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self._captions: dict[Stage, Captions | None] = {}
        self._paths: dict[Stage, set[str]] = {}

    @abstractmethod
    def read_captions(self, stage: Stage) -> Captions | None:
        """Read the captions of a stage from disk; None if there are none. Called once per stage."""

    def captions(self, stage: Stage) -> Captions | None:
        """Return the captions of a stage, or None if there are none; raises as `items`."""
        if stage not in self._captions:
            found = self.read_captions(stage)
            self._captions[stage] = found if found and found.references else None
        return self._captions[stage]

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Return all captions of the training files, none of which is opened."""
        captions = self.captions("train")
        return (text for texts in captions.references.values() for text in texts) if captions else iter(())

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        """Return the files of a stage; a missing one raises when it is read.

        Raises:
            FileNotFoundError: the file that lists them does not exist, or none of the listed files does.
            UnreadableError: the file that lists them is damaged, or lists a file of another stage.
        """
        captions = self.captions(stage)
        if captions is None:
            return None
        folder = self._folder(captions)
        paths = [os.path.normpath(os.path.join(folder, name)) for name in captions.references]
        for other, others in self._paths.items():
            if other != stage and (both := [path for path in paths if path in others]):
                raise UnreadableError(f"{captions.table}: {self.root / both[0]} is in both {stage} and {other}")
        self._paths[stage] = set(paths)
        return ItemTable.of_files(self.root, {self.role: paths}, references=list(captions.references.values()))

    def find(self, names: Sequence[str], folders: Sequence[str]) -> list[Path]:
        """Return the existing files among some names, each in the first folder that contains it."""
        candidates = [[self.root / folder / name for folder in folders] for name in names]
        return [found for paths in candidates if (found := next(filter(os.path.lexists, paths), None))]

    def find_one(self, names: Sequence[str], folders: Sequence[str]) -> Path:
        """Return the first of the existing files among some names.

        Raises:
            FileNotFoundError: none exists.
        """
        found = self.find(names, folders)
        if not found:
            raise FileNotFoundError(f"root={self.root}: no {' or '.join(names)}; searched {', '.join(folders)}")
        return found[0]

    def _folder(self, captions: Captions) -> str:
        """Return the first folder that contains any of the files."""
        names = captions.references.keys()
        parents = {os.path.dirname(name) for name in names}
        for folder in captions.folders:
            top = self.root / folder
            listed = ((parent, os.listdir(top / parent)) for parent in parents if (top / parent).is_dir())
            if any(os.path.join(parent, name) in names for parent, found in listed for name in found):
                return folder
        problem = f"none of the {len(names)} files of {captions.table} exists: {first_few(list(names))}"
        raise FileNotFoundError(f"root={self.root}: {problem}; searched {', '.join(captions.folders)}")


def clean_captions(table: Path, listed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return file name -> captions on one line each; files without any are left out with a warning.

    Raises:
        UnreadableError: no file has a caption, or a caption is not valid text.
    """
    if not listed:
        raise UnreadableError(f"{table}: no files are listed")
    for name, texts in listed.items():
        if problem := next(filter(None, map(text_problem, texts)), None):
            raise UnreadableError(f"{table}: a caption of {name}: {problem}")
    cleaned = {name: [text for text in map(normalize_spaces, texts) if text] for name, texts in listed.items()}
    without = [name for name, texts in cleaned.items() if not texts]
    if without and len(without) == len(cleaned):
        raise UnreadableError(f"{table}: no file has a caption: {first_few(without)}")
    if without:
        log.warning(
            "%s: left out %d of %d files, without captions: %s", table, len(without), len(cleaned), first_few(without)
        )
    return {name: texts for name, texts in cleaned.items() if texts}


class Flickr8k(CaptionedFiles):
    """Flickr8k (Hodosh et al. 2013): 8000 photographs with five captions each, in any of its common forms.

        captions   captions.txt                                 image,caption   as CSV with this header
                   Flickr8k.token.txt, results_20130124.token   <image>#<number><tab><caption>
        splits     Flickr_8k.{train,dev,test}Images.txt         one image per line
        images     Images/*, Flicker8k_Dataset/*, …             see `IMAGE_FOLDERS`

    Without lists of splits, shares of the images are held out by their names; scores are then not comparable to
    published ones. Flickr30k (Young et al. 2014) is read in the same way; its usual splits are those of `Karpathy`.

    Args:
        root: the folder that contains everything.
        val_fraction, test_fraction: see `HeldOut`; for a root without lists of splits.
    """

    tables = ("captions.txt", "Flickr8k.token.txt", "results_20130124.token")
    lists: Mapping[Stage, str] = {
        "train": "Flickr_8k.trainImages.txt",
        "val": "Flickr_8k.devImages.txt",
        "test": "Flickr_8k.testImages.txt",
    }
    text_folders = (".", "Flickr8k_text", "Flickr8k_Text", "annotations", "text")

    def __init__(self, *, root: str, val_fraction: float, test_fraction: float) -> None:
        super().__init__(root=root)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    def read_captions(self, stage: Stage) -> Captions | None:
        if not self.find(list(self.lists.values()), self.text_folders):
            return Captions(self._table, self._split[stage], IMAGE_FOLDERS)
        if stage != "train" and not self.find([self.lists[stage]], self.text_folders):
            return None
        path = self.find_one([self.lists[stage]], self.text_folders)
        names = [row.file_name("image") for row in read_tsv(path, ("image",), unique="image")]
        listed = {name: self._listed.get(name, ()) for name in names}
        return Captions(path, clean_captions(path, listed), IMAGE_FOLDERS)

    @cached_property
    def _table(self) -> Path:
        return self.find_one(self.tables, self.text_folders)

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Image -> its captions as listed."""
        listed: dict[str, list[str]] = {}
        is_csv = self._table.name == "captions.txt"
        for row in read_csv(self._table, ("image", "caption")) if is_csv else _token_rows(self._table):
            if problem := text_problem(row["caption"]):
                raise row.error(f"caption: {problem}")
            listed.setdefault(row.file_name("image"), []).append(row["caption"])
        return listed

    @cached_property
    def _split(self) -> dict[Stage, dict[str, list[str]]]:
        references = clean_captions(self._table, self._listed)
        names = sorted(references)
        return {stage: _select(references, names, part) for stage, part in self.held_out.split(names).items()}


def _token_rows(table: Path) -> Iterator[Row]:
    """Yield image and caption of each line of a token file, whose first cell is <image>#<number>."""
    for row in read_tsv(table, ("image", "caption"), unique="image"):
        name, mark, number = row["image"].rpartition("#")
        if not (mark and number.isdecimal()):
            raise row.error(f"image={row['image']!r} does not end with # and a number")
        yield replace(row, cells=row.cells | {"image": name})


def _select(references: Mapping[str, list[str]], names: Sequence[str], part: Sequence[int]) -> dict[str, list[str]]:
    return {names[index]: references[names[index]] for index in part}


class CocoCaptions(CaptionedFiles):
    """Captions of MS COCO (Chen et al. 2015, arXiv:1504.00325), or anything in its format.

        root/annotations/captions_{train,val}{2014,2017}.json   or captions_{train,val,test}.json; also in the root
        root/{train,val}{2014,2017}/*.jpg                       or images/train2017/*, images/*, Images/*, root/*

    The official captions for testing are not public. Without a file of them, one half of the validation images, chosen
    by their names, is used for testing. Published scores use the splits of `Karpathy`.

    Args:
        root: the folder that contains everything.
        year: 2014 or 2017; None for the one that exists, 2017 before 2014, and both before files without a year.
    """

    table_folders = ("annotations", ".")

    def __init__(self, *, root: str, year: int | None) -> None:
        super().__init__(root=root)
        self.years = ("2017", "2014", "") if year is None else (str(year),)

    def read_captions(self, stage: Stage) -> Captions | None:
        is_half = stage != "train" and self._table("test") is None
        source: Stage = "val" if is_half else stage
        table = self._table(source)
        if table is None:
            return None
        references = self._halves[stage] if is_half else clean_captions(table, _coco_captions(table))
        name = f"{source}{self._year}"
        return Captions(table, references, (name, f"images/{name}", f"Images/{name}", "images", "Images", "."))

    @cached_property
    def _year(self) -> str:
        """The year of the training captions, since the validation images of another year may be among those."""
        names = {f"captions_train{year}.json": year for year in self.years}
        return names[self.find_one(list(names), self.table_folders).name]

    def _table(self, stage: Stage) -> Path | None:
        return next(iter(self.find([f"captions_{stage}{self._year}.json"], self.table_folders)), None)

    @cached_property
    def _halves(self) -> dict[Stage, dict[str, list[str]]]:
        """The two halves of the validation images."""
        table = self._table("val")
        assert table is not None
        references = clean_captions(table, _coco_captions(table))
        names = sorted(references)
        val, test = split_by_name(names, 0.5, "test")
        return {"val": _select(references, names, val), "test": _select(references, names, test)}


def _coco_captions(table: Path) -> dict[str, list[str]]:
    """Return image -> its captions as listed."""
    content = JsonEntry.read(table)
    names: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for image in content.entries("images"):
        id, name = image.id("id"), image.file_name("file_name")
        if id in names:
            raise image.error(f"id={id} appears twice")
        if name in listed:
            raise image.error(f"file_name={name!r} appears twice")
        names[id] = name
        listed[name] = []
    for annotation in content.entries("annotations"):
        id = annotation.id("image_id")
        if id not in names:
            raise annotation.error(f"image_id={id} is not the id of an image")
        listed[names[id]].append(annotation.value("caption", str))
    return listed


class Karpathy(CaptionedFiles):
    """The splits of Karpathy and Fei-Fei (2015, arXiv:1412.2306), on which captioning is usually evaluated.

        root/dataset_{coco,flickr8k,flickr30k}.json   images: filename, filepath (COCO), split, sentences: raw
        root/{train,val}2014/*                        or in images/, or all in one folder: see `IMAGE_FOLDERS`

    `restval` are the validation images of COCO 2014 that are not used for validation or testing: 113 287 training
    images with them, 82 783 without.

    Args:
        root: the folder that contains everything.
        table: the file, as a path below `root`; None for the one of the usual names that exists.
        restval: whether the images of this split are used for training.
    """

    tables = ("dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json")
    table_folders = (".", "annotations", "caption_datasets", "karpathy")
    split_names = ("train", "restval", "val", "test")

    def __init__(self, *, root: str, table: str | None, restval: bool) -> None:
        super().__init__(root=root)
        self.table = table
        self.restval = restval

    def read_captions(self, stage: Stage) -> Captions | None:
        splits = ("train", "restval") if stage == "train" and self.restval else (stage,)
        listed = {name: texts for split in splits for name, texts in self._splits[split].items()}
        if not listed and stage != "train":
            return None
        return Captions(self._path, clean_captions(self._path, listed), IMAGE_FOLDERS)

    @cached_property
    def _path(self) -> Path:
        if self.table is not None:
            return self.root / self.table
        found = self.find(self.tables, self.table_folders)
        if len(found) > 1:
            names = " and ".join(str(path.relative_to(self.root)) for path in found)
            raise ValueError(f"root={self.root} contains {names}: select one with table=")
        return self.find_one(self.tables, self.table_folders)

    @cached_property
    def _splits(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Split -> image -> its captions as listed."""
        splits: dict[str, dict[str, list[str]]] = {split: {} for split in self.split_names}
        seen: set[str] = set()
        has_folder = cache(lambda name: any((self.root / folder / name).is_dir() for folder in IMAGE_FOLDERS))
        for image in JsonEntry.read(self._path).entries("images"):
            name, split = image.file_name("filename"), image.value("split", str)
            if "filepath" in image.values and has_folder(folder := image.file_name("filepath")):
                name = f"{folder}/{name}"
            if split not in splits:
                raise image.error(f"split={split!r} must be {', '.join(self.split_names[:-1])} or test")
            if name in seen:
                raise image.error(f"filename={name!r} appears twice")
            seen.add(name)
            splits[split][name] = [sentence.value("raw", str) for sentence in image.entries("sentences")]
        return splits


class Clotho(CaptionedFiles):
    """Clotho (Drossos et al. 2020, arXiv:1910.09387): sounds of 15 to 30 s with five captions each.

        root/clotho_captions_{development,validation,evaluation}.csv   file_name,caption_1,…,caption_5
        root/development/*.wav   or clotho_audio_development/*, clotho_audio_files/development/*, audio/*, root/*

    Version 1 has no validation split.

    Args:
        root: the folder that contains everything.
    """

    role = "audio"
    splits: Mapping[Stage, str] = {"train": "development", "val": "validation", "test": "evaluation"}
    table_folders = (".", "clotho_csv_files", "annotations", "csv")
    audio_folders = (
        *("{}", "clotho_audio_{}", "clotho_audio_{}/{}", "clotho_audio_files/{}", "audio/{}", "audio"),
        *("clotho_audio_files", "."),
    )

    def read_captions(self, stage: Stage) -> Captions | None:
        split = self.splits[stage]
        name = f"clotho_captions_{split}.csv"
        if stage != "train" and not self.find([name], self.table_folders):
            return None
        table = self.find_one([name], self.table_folders)
        columns = [f"caption_{number}" for number in range(1, 6)]
        rows = read_csv(table, ("file_name", *columns), unique="file_name")
        listed = {row.file_name("file_name"): [row[column] for column in columns] for row in rows}
        folders = [folder.replace("{}", split) for folder in self.audio_folders]
        return Captions(table, clean_captions(table, listed), folders)
