"""Captions of MS COCO (Chen et al. 2015, arXiv:1504.00325), or anything in its format.

    root/annotations/captions_{train,val}{2014,2017}.json   or captions_{train,val,test}.json; also without the folder
    root/{train,val}{2014,2017}/*.jpg                       or images/train2017/*, images/*, Images/*, root/*

The official captions for testing are not public. Without a file of them one half of the validation images, told by
their names, is for validation, the other for testing. Published scores are on the splits of
`perceiver.data.sources.karpathy`.
"""

from functools import cached_property
from pathlib import Path

from perceiver.data.sources.captions import CaptionedFiles, Captions, references_in
from perceiver.data.splits import split_by_name
from perceiver.data.text_file import Entry
from perceiver.types import Stage

TABLE_FOLDERS = ("annotations", ".")


class CocoCaptions(CaptionedFiles):
    """Images with the captions that JSON files in COCO's format hold, one for each stage.

    Args:
        root: the folder that everything is in.
        year: 2014 or 2017; None for the one that is there, 2017 before 2014, and both before files without a year.
    """

    def __init__(self, *, root: str, year: int | None) -> None:
        super().__init__(root=root)
        self.years = ("2017", "2014", "") if year is None else (str(year),)

    def read_captions(self, stage: Stage) -> Captions | None:
        halved = stage != "train" and self._table("test") is None
        source: Stage = "val" if halved else stage
        table = self._table(source)
        if table is None:
            return None
        references = references_in(table, _listed_in(table)) if not halved else self._halves[stage]
        place = f"{source}{self._year}"
        return Captions(table, references, (place, f"images/{place}", f"Images/{place}", "images", "Images", "."))

    @cached_property
    def _year(self) -> str:
        """That of the training captions, since another year's validation images may be among those."""
        names = [f"captions_train{year}.json" for year in self.years]
        for year, name in zip(self.years, names, strict=True):
            if self.find([name], TABLE_FOLDERS):
                return year
        raise self.not_found(names, TABLE_FOLDERS)

    def _table(self, stage: Stage) -> Path | None:
        return next(iter(self.find([f"captions_{stage}{self._year}.json"], TABLE_FOLDERS)), None)

    @cached_property
    def _halves(self) -> dict[Stage, dict[str, list[str]]]:
        """The validation images, for validation and for testing."""
        table = self._table("val")
        references = {} if table is None else references_in(table, _listed_in(table))
        names = sorted(references)
        val, test = ([names[index] for index in part] for part in split_by_name(names, 0.5, "test"))
        return {"val": {name: references[name] for name in val}, "test": {name: references[name] for name in test}}


def _listed_in(table: Path) -> dict[str, list[str]]:
    """Image -> its captions as they are listed."""
    content = Entry.read(table)
    names: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    for image in content.entries("images"):
        id, name = image.id("id"), image.file_name("file_name")
        if id in names:
            raise image.error(f"id={id} is there a second time")
        if name in listed:
            raise image.error(f"file_name={name!r} is there a second time")
        names[id] = name
        listed[name] = []
    for annotation in content.entries("annotations"):
        id = annotation.id("image_id")
        if id not in names:
            raise annotation.error(f"image_id={id} is the id of no image")
        listed[names[id]].append(annotation.value("caption", str))
    return listed
