"""FSD50K (Fonseca et al. 2022, arXiv:2010.00475): 51 197 clips of 0.3 to 30 s in 200 classes, any number of them each.

    root/FSD50K.ground_truth/vocabulary.csv   idx,label,mid, without a first line of names
                             dev.csv          fname,labels,mids,split
                             eval.csv         fname,labels,mids
    root/FSD50K.dev_audio/<fname>.wav   root/FSD50K.eval_audio/<fname>.wav

Folders may also be called `ground_truth`, `dev_audio` and `eval_audio`; one folder `audio` may hold all clips. Training
and validation are told apart by `split`; without an eval.csv the validation clips are those for testing.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from perceiver.data.files import SOUNDS, UnreadableError
from perceiver.data.sources.base import FileItems, Roles, Source
from perceiver.data.tables import ClassTable, Row, read_rows
from perceiver.types import Stage

GROUND_TRUTH = ("FSD50K.ground_truth", "ground_truth")
DEV_AUDIO = ("FSD50K.dev_audio", "dev_audio", "audio")
EVAL_AUDIO = ("FSD50K.eval_audio", "eval_audio", "audio")


class FSD50K(Source):
    """FSD50K, or anything that is laid out like it.

    Args:
        root: the folder that holds the others.
        num_classes: how many classes vocabulary.csv must have.
    """

    def __init__(self, *, root: str, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()

    @property
    def class_names(self) -> list[str]:
        return list(self._classes.names)

    def items(self, stage: Stage, roles: Roles) -> FileItems | None:
        evaluation = self._folder(GROUND_TRUTH) / "eval.csv"
        if stage == "test" and os.path.lexists(evaluation):
            tested = self._clip_files(_clips_in(evaluation, ("fname", "labels")), EVAL_AUDIO)
            developed = set(self._clip_files(self._development, DEV_AUDIO).files["audio"])
            if both := [path for path in tested.files["audio"] if path in developed]:
                raise UnreadableError(f"{evaluation}: {both[0]} is in dev.csv, too")
            return tested
        part = "train" if stage == "train" else "val"
        rows = [row for row in self._development if row["split"] == part]
        if stage == "train" and not rows:
            raise UnreadableError(f"{self._development[0].path}: there is no clip to train on in it")
        return self._clip_files(rows, DEV_AUDIO) if rows else None

    @cached_property
    def _classes(self) -> ClassTable:
        path = self._folder(GROUND_TRUTH) / "vocabulary.csv"
        rows = read_rows(path, ("idx", "label", "mid"), header=False)
        return ClassTable(path, rows, index="idx", key="label", name="label", num_classes=self.num_classes)

    @cached_property
    def _development(self) -> list[Row]:
        rows = _clips_in(self._folder(GROUND_TRUTH) / "dev.csv", ("fname", "labels", "split"))
        for row in rows:
            if row["split"] not in ("train", "val"):
                raise row.error(f"split={row['split']!r} must be train or val")
        return rows

    def _clip_files(self, rows: Sequence[Row], folders: Sequence[str]) -> FileItems:
        """The clips of some rows; one without a file is found out when it is read."""
        folder = self._folder(folders)
        there = _sounds_in(folder)
        names = [row.file_name("fname") for row in rows]
        if not any(name in there for name in names):
            raise FileNotFoundError(f"{folder}: none of the {len(names)} clips of {rows[0].path} is in it")
        paths = {str(folder / there.get(row["fname"], f"{row['fname']}.wav")): row for row in reversed(rows)}
        if len(paths) < len(rows):
            twice = next(row for row in reversed(rows) if row not in paths.values())
            raise twice.error(f"fname={twice['fname']!r} is the file of another line")
        return FileItems(
            root=self.root,
            files={"audio": list(reversed(paths))},
            tags=[self._classes.labels_in(row, "labels") for row in rows],
            num_classes=self.num_classes,
        )

    def _folder(self, names: Sequence[str]) -> Path:
        """The first of some folders that is there."""
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        raise FileNotFoundError(f"root={self.root}: none of the folders {', '.join(names)} is in it")


def _clips_in(path: Path, columns: Sequence[str]) -> list[Row]:
    rows: dict[str, Row] = {}
    for row in read_rows(path, columns, header=True):
        if row["fname"] in rows:
            raise row.error(f"fname={row['fname']!r} is there a second time")
        rows[row["fname"]] = row
    if not rows:
        raise UnreadableError(f"{path}: there is no clip in it")
    return list(rows.values())


def _sounds_in(folder: Path) -> dict[str, str]:
    """Names of the sounds in a folder, also by the name without its ending; then wav goes before other formats."""
    found = sorted(name for name in os.listdir(folder) if SOUNDS.has(name))
    found.sort(key=lambda name: name.lower().endswith(".wav"))
    return {os.path.splitext(name)[0]: name for name in found} | {name: name for name in found}
