"""Clotho (Drossos et al. 2020, arXiv:1910.09387): sounds of 15 to 30 s with five captions each.

    root/clotho_captions_{development,validation,evaluation}.csv   file_name,caption_1,…,caption_5
    root/development/*.wav   or clotho_audio_development/*, clotho_audio_files/development/*, audio/*, root/*

Version 1 has no validation split.
"""

from pathlib import Path

from perceiver.data.sources.captions import CaptionedFiles, Captions, references_in
from perceiver.data.tables import read_rows
from perceiver.types import Stage

PARTS: dict[Stage, str] = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTIONS = [f"caption_{number}" for number in range(1, 6)]
TABLE_FOLDERS = (".", "clotho_csv_files", "annotations", "csv")
AUDIO_FOLDERS = (
    *("{}", "clotho_audio_{}", "clotho_audio_{}/{}", "clotho_audio_files/{}", "audio/{}", "audio"),
    *("clotho_audio_files", "."),
)


class Clotho(CaptionedFiles):
    """Clotho, or anything that is laid out like it.

    Args:
        root: the folder that everything is in.
    """

    role = "audio"

    def read_captions(self, stage: Stage) -> Captions | None:
        tables = [f"clotho_captions_{PARTS[stage]}.csv"]
        found = self.find(tables, TABLE_FOLDERS)
        if not found:
            if stage == "train":
                raise self.not_found(tables, TABLE_FOLDERS)
            return None
        folders = [folder.replace("{}", PARTS[stage]) for folder in AUDIO_FOLDERS]
        return Captions(found[0], references_in(found[0], _listed_in(found[0])), folders)


def _listed_in(table: Path) -> dict[str, list[str]]:
    """Sound -> its captions as they are listed."""
    listed: dict[str, list[str]] = {}
    for row in read_rows(table, ("file_name", *CAPTIONS), header=True):
        name = row.file_name("file_name")
        if name in listed:
            raise row.error(f"file_name={name!r} is there a second time")
        listed[name] = [row[column] for column in CAPTIONS]
    return listed
