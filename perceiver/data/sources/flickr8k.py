"""Flickr8k (Hodosh et al. 2013): 8000 photographs with five captions each, in any of the forms in which it goes round.

    captions   captions.txt                                 image,caption   as csv, with this first line
               Flickr8k.token.txt, results_20130124.token   <image>#<number><tab><caption>
    splits     Flickr_8k.{train,dev,test}Images.txt         an image a line
    images     Images/*, Flicker8k_Dataset/*, …             see `IMAGE_FOLDERS`

Without any list of splits, shares of the images are held out for validation and testing, by their names; scores then
are not comparable to published ones. Flickr30k (Young et al. 2014) is read alike; its usual splits are those of
`perceiver.data.sources.karpathy`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from perceiver.data.sources.captions import CaptionedFiles, Captions, references_in
from perceiver.data.splits import HeldOut
from perceiver.data.tables import Row, read_rows
from perceiver.data.text_checks import fault_in
from perceiver.data.text_file import read_lines
from perceiver.types import Stage

TABLES = ("captions.txt", "Flickr8k.token.txt", "results_20130124.token")
LISTS: dict[Stage, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
TEXT_FOLDERS = (".", "Flickr8k_text", "Flickr8k_Text", "annotations", "text")
IMAGE_FOLDERS = (
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "."),
)


class Flickr8k(CaptionedFiles):
    """Flickr8k, or anything that is laid out like it.

    Args:
        root: the folder that everything is in.
        val_fraction, test_fraction: see `HeldOut`; for a root without lists of splits.
    """

    def __init__(self, *, root: str, val_fraction: float, test_fraction: float) -> None:
        super().__init__(root=root)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    def read_captions(self, stage: Stage) -> Captions | None:
        if not self.find(list(LISTS.values()), TEXT_FOLDERS):
            return Captions(self._table, self._own_parts[stage], IMAGE_FOLDERS)
        found = self.find([LISTS[stage]], TEXT_FOLDERS)
        if not found:
            if stage == "train":
                raise self.not_found([LISTS[stage]], TEXT_FOLDERS)
            return None
        names = _names_in(found[0])
        listed = {name: self._listed.get(name, ()) for name in names}
        return Captions(found[0], references_in(found[0], listed), IMAGE_FOLDERS)

    @cached_property
    def _table(self) -> Path:
        found = self.find(TABLES, TEXT_FOLDERS)
        if not found:
            raise self.not_found(TABLES, TEXT_FOLDERS)
        return found[0]

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Image -> its captions as they are listed."""
        listed: dict[str, list[str]] = {}
        for row in _rows_in(self._table):
            if fault := fault_in(row["caption"]):
                raise row.error(f"the caption: {fault}")
            listed.setdefault(row.file_name("image"), []).append(row["caption"])
        return listed

    @cached_property
    def _own_parts(self) -> dict[Stage, Mapping[str, Sequence[str]]]:
        references = references_in(self._table, self._listed)
        names = sorted(references)
        parts = self.held_out.parts(names)
        return {stage: {names[i]: references[names[i]] for i in indices} for stage, indices in parts.items()}


def _rows_in(table: Path) -> Iterator[Row]:
    """Image and caption of each line."""
    seen = set()
    if table.name == "captions.txt":
        yield from read_rows(table, ("image", "caption"), header=True)
        return
    for row in read_lines(table, ("image", "caption")):
        name, mark, number = row["image"].rpartition("#")
        if not (mark and number.isdecimal()):
            raise row.error(f"image={row['image']!r} has no number after a #")
        if row["image"] in seen:
            raise row.error(f"image={row['image']!r} is there a second time")
        seen.add(row["image"])
        yield replace(row, cells=row.cells | {"image": name})


def _names_in(table: Path) -> list[str]:
    names: dict[str, None] = {}
    for row in read_lines(table, ("image",)):
        name = row.file_name("image")
        if name in names:
            raise row.error(f"image={name!r} is there a second time")
        names[name] = None
    return list(names)
