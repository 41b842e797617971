"""The splits of Karpathy and Fei-Fei (2015, arXiv:1412.2306) on which captioning is usually scored.

    root/dataset_{coco,flickr8k,flickr30k}.json   images: filename, filepath (COCO), split, sentences: raw
    root/{train,val}2014/*                        or in images/, or all in one folder: see `IMAGE_FOLDERS`

`restval` are the validation images of COCO 2014 that are neither validated nor tested on: 113 287 training images with
them, 82 783 without.
"""

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

from perceiver.data.sources.captions import CaptionedFiles, Captions, references_in
from perceiver.data.sources.flickr8k import IMAGE_FOLDERS
from perceiver.data.text_file import Entry
from perceiver.types import Stage

TABLES = ("dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json")
TABLE_FOLDERS = (".", "annotations", "caption_datasets", "karpathy")
SPLITS = ("train", "restval", "val", "test")


class Karpathy(CaptionedFiles):
    """Images with the captions that a JSON file in Karpathy's format holds.

    Args:
        root: the folder that everything is in.
        table: the file, as a path below `root`; None for the one of the usual names that is there.
        restval: whether the images of this split are trained on, too.
    """

    def __init__(self, *, root: str, table: str | None, restval: bool) -> None:
        super().__init__(root=root)
        self.table = table
        self.restval = restval

    def read_captions(self, stage: Stage) -> Captions | None:
        splits = ("train", "restval") if stage == "train" and self.restval else (stage,)
        listed = {name: texts for split in splits for name, texts in self._splits[split].items()}
        if not listed and stage != "train":
            return None
        return Captions(self._path, references_in(self._path, listed), IMAGE_FOLDERS)

    @cached_property
    def _path(self) -> Path:
        if self.table is not None:
            return self.root / self.table
        found = self.find(TABLES, TABLE_FOLDERS)
        if not found:
            raise self.not_found(TABLES, TABLE_FOLDERS)
        if len(found) > 1:
            names = " and ".join(str(path.relative_to(self.root)) for path in found)
            raise ValueError(f"root={self.root} has {names}: say with table= which of them is meant")
        return found[0]

    @cached_property
    def _splits(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Split -> image -> its captions as they are listed."""
        splits: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
        seen: set[str] = set()
        is_there = cache(self._has_folder)
        for image in Entry.read(self._path).entries("images"):
            name, split = image.file_name("filename"), image.value("split", str)
            if "filepath" in image.values and is_there(folder := image.file_name("filepath")):
                name = f"{folder}/{name}"
            if split not in splits:
                raise image.error(f"split={split!r} must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
            if name in seen:
                raise image.error(f"filename={name!r} is there a second time")
            seen.add(name)
            splits[split][name] = [sentence.value("raw", str) for sentence in image.entries("sentences")]
        return splits

    def _has_folder(self, name: str) -> bool:
        """Whether images may be in a folder as their `filepath` says, and not all in one."""
        return any((self.root / folder / name).is_dir() for folder in IMAGE_FOLDERS)
