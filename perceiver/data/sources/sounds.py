"""Labeled sounds that are listed in tables: ESC-50, FSD50K.

Each class documents the files it reads; anything in the same layout is read, too.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from perceiver.data.files import SOUNDS, UnreadableError, first_few
from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.data.text_files import Row, read_csv
from perceiver.types import Stage


class _Esc50Clip(NamedTuple):
    path: str
    recording: str
    fold: int
    target: int
    category: str


class ESC50(Source):
    """ESC-50 (Piczak 2015, ACM Multimedia): 2000 clips of 5 s in 50 classes; ESC-10 is ten of the classes.

        root/meta/esc50.csv   filename,fold,target,category,esc10,src_file,take
        root/audio/*.wav

    All takes of one recording are in one fold. The folds are meant for cross-validation: one is held out for testing,
    the others are for training. There is no validation split; a share of the training recordings can be held out. The
    classes are those in the table, ordered by target; targets may have gaps.

    Args:
        root: the folder that contains `meta` and `audio`.
        num_classes: required number of classes.
        fold: the one that is held out for testing.
        val_fraction: share of the other folds' recordings for validation; 0 for none (`HeldOut`).
        esc10: whether to read only the clips of ESC-10.
    """

    def __init__(self, *, root: str, num_classes: int, fold: int, val_fraction: float, esc10: bool) -> None:
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=0.0)
        self.root = Path(root).expanduser()
        self.table = self.root / "meta" / "esc50.csv"
        self.fold = fold
        self.esc10 = esc10

    @property
    def class_names(self) -> list[str]:
        return list(self._classes.values())

    def prepare(self) -> None:
        if not self.table.exists():
            raise FileNotFoundError(
                f"root={self.root}: no meta/esc50.csv; unpack github.com/karolpiczak/ESC-50 there, or set its folder"
            )

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        """Return the held-out fold, or the other folds with their validation clips held out; None if there are none.

        Raises:
            FileNotFoundError: there is no table.
            UnreadableError: it is damaged.
            ValueError: it has another number of classes, or not the fold, or no other fold.
        """
        labels = {target: label for label, target in enumerate(self._classes)}
        folds = sorted({clip.fold for clip in self._clips})
        if self.fold not in folds:
            raise ValueError(f"fold={self.fold}: the folds are {', '.join(map(str, folds))}")
        if len(folds) == 1:
            raise ValueError(f"fold={self.fold} is the only fold of {self.table}; there is none for training")
        clips = [clip for clip in self._clips if (clip.fold == self.fold) == (stage == "test")]
        if stage != "test":
            recordings = sorted({clip.recording for clip in clips})
            held_out = {recordings[i] for i in self.held_out.split_val(recordings)[1]}
            clips = [clip for clip in clips if (clip.recording in held_out) == (stage == "val")]
        if not clips:
            return None
        paths = [clip.path for clip in clips]
        return ItemTable.of_files(self.root, {"audio": paths}, labels=[labels[clip.target] for clip in clips])

    @cached_property
    def _clips(self) -> list[_Esc50Clip]:
        self.prepare()
        clips: list[_Esc50Clip] = []
        categories: dict[int, str] = {}
        targets: dict[str, int] = {}
        columns = ("filename", "fold", "target", "category", "esc10")
        for row in read_csv(self.table, columns, unique="filename"):
            path, fold = os.path.join("audio", row.file_name("filename")), row.integer("fold")
            target, category = row.integer("target"), row["category"]
            if row["esc10"] not in ("True", "False"):
                raise row.error(f"esc10={row['esc10']!r} is neither True nor False")
            if target < 0 or not category.strip():
                raise row.error(f"target={target}, category={category!r} is not a class")
            known = categories.setdefault(target, category), targets.setdefault(category, target)
            if known != (category, target):
                raise row.error(f"target={target}, category={category!r} contradicts {known[1]}, {known[0]!r} above")
            if not self.esc10 or row["esc10"] == "True":
                recording = row.cells.get("src_file", row["filename"])
                clips.append(_Esc50Clip(path, recording, fold, target, category))
        if not clips:
            raise UnreadableError(f"{self.table}: no clips{' of ESC-10' * self.esc10}")
        return clips

    @cached_property
    def _classes(self) -> dict[int, str]:
        """Targets in ascending order -> names."""
        found = dict(sorted({clip.target: clip.category for clip in self._clips}.items()))
        if len(found) != self.num_classes:
            classes = f"{len(found)} classes: {first_few(list(found.values()))}"
            hint = "; for ESC-10, use data=esc10" if len(found) == 10 else ""
            raise ValueError(f"num_classes={self.num_classes}, but {self.table} has {classes}{hint}")
        return found


class ClassTable:
    """The classes of a data set, by label and by the key that other tables refer to them with.

    Args:
        path: the table.
        rows: its content; labels may come in any order.
        index, key, name: the columns of the label, the key, and the name.
        num_classes: required number of classes.

    Raises:
        UnreadableError: a class is listed twice or has no name, or labels are not 0, 1, 2, …; names the line.
        ValueError: the number of classes is not `num_classes`.
    """

    def __init__(self, path: Path, rows: Iterable[Row], *, index: str, key: str, name: str, num_classes: int) -> None:
        self.path = path
        rows = list(rows)
        if len(rows) != num_classes:
            raise ValueError(f"num_classes={num_classes}, but {path} has {len(rows)} classes")
        names: dict[int, str] = {}
        self.labels: dict[str, int] = {}
        for row in rows:
            label = row.integer(index)
            if label in names or not 0 <= label < num_classes:
                raise row.error(f"{index}={label}: classes must be numbered from 0 to {num_classes - 1}")
            for column, known in ((key, self.labels.keys()), (name, names.values())):
                if not row[column].strip():
                    raise row.error(f"{column} is empty")
                if row[column] in known:
                    raise row.error(f"{column}={row[column]!r} appears twice")
            names[label] = row[name]
            self.labels[row[key]] = label
        self.names = [names[label] for label in range(num_classes)]

    def labels_in(self, row: Row, column: str) -> list[int]:
        """Return the classes in a cell, separated by commas; none if it is empty.

        Raises:
            UnreadableError: one of them is unknown; names the line.
        """
        keys = [key.strip() for key in row[column].split(",")] if row[column].strip() else []
        if unknown := [key for key in keys if key not in self.labels]:
            raise row.error(f"{column}: {unknown[0]!r} is not a class of {self.path}")
        return [self.labels[key] for key in keys]


class FSD50K(Source):
    """FSD50K (Fonseca et al. 2022, arXiv:2010.00475): 51 197 clips of 0.3 to 30 s, any number of 200 classes each.

        root/FSD50K.ground_truth/vocabulary.csv   idx,label,mid, without a header
                                 dev.csv          fname,labels,mids,split
                                 eval.csv         fname,labels,mids
        root/FSD50K.dev_audio/<fname>.wav   root/FSD50K.eval_audio/<fname>.wav

    Folders may also be named `ground_truth`, `dev_audio` and `eval_audio`; one folder `audio` may contain all clips.
    Training and validation clips are distinguished by `split`; without an eval.csv the validation clips are also those
    for testing.

    Args:
        root: the folder that contains the others.
        num_classes: required number of classes in vocabulary.csv.
    """

    dev_folders = ("FSD50K.dev_audio", "dev_audio", "audio")
    eval_folders = ("FSD50K.eval_audio", "eval_audio", "audio")

    def __init__(self, *, root: str, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()

    @property
    def class_names(self) -> list[str]:
        return list(self._classes.names)

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        eval_table = self._tables / "eval.csv"
        if stage == "test" and os.path.lexists(eval_table):
            tested = self._clips(_clip_rows(eval_table, ("fname", "labels")), self.eval_folders)
            dev = set(self._clips(self._dev_rows, self.dev_folders).ids)
            if both := [path for path in tested.ids if path in dev]:
                raise UnreadableError(f"{eval_table}: {self.root / both[0]} is also in dev.csv")
            return tested
        split = "train" if stage == "train" else "val"
        rows = [row for row in self._dev_rows if row["split"] == split]
        if stage == "train" and not rows:
            raise UnreadableError(f"{self._dev_rows[0].path}: no clips for training")
        return self._clips(rows, self.dev_folders) if rows else None

    @property
    def _tables(self) -> Path:
        return self._folder(("FSD50K.ground_truth", "ground_truth"))

    @cached_property
    def _classes(self) -> ClassTable:
        path = self._tables / "vocabulary.csv"
        rows = read_csv(path, ("idx", "label", "mid"), header=False)
        return ClassTable(path, rows, index="idx", key="label", name="label", num_classes=self.num_classes)

    @cached_property
    def _dev_rows(self) -> list[Row]:
        rows = _clip_rows(self._tables / "dev.csv", ("fname", "labels", "split"))
        for row in rows:
            if row["split"] not in ("train", "val"):
                raise row.error(f"split={row['split']!r} must be train or val")
        return rows

    def _clips(self, rows: Sequence[Row], folders: Sequence[str]) -> ItemTable:
        """Return the clips of some rows; a missing file raises when it is read."""
        folder = self._folder(folders)
        files = _sounds_in(folder)
        names = [row.file_name("fname") for row in rows]
        if not any(name in files for name in names):
            raise FileNotFoundError(f"{folder}: none of the {len(names)} clips of {rows[0].path} exists")
        paths: dict[str, None] = {}
        for row, name in zip(rows, names, strict=True):
            path = os.path.join(folder.name, files.get(name, f"{name}.wav"))
            if path in paths:
                raise row.error(f"fname={name!r} is the same file as that of another line")
            paths[path] = None
        tags = [self._classes.labels_in(row, "labels") for row in rows]
        return ItemTable.of_files(self.root, {"audio": list(paths)}, tags=tags, num_classes=self.num_classes)

    def _folder(self, names: Sequence[str]) -> Path:
        """Return the first of some folders that exists."""
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        raise FileNotFoundError(f"root={self.root}: none of the folders {', '.join(names)} exists")


def _clip_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    rows = list(read_csv(path, columns, unique="fname"))
    if not rows:
        raise UnreadableError(f"{path}: no clips are listed")
    return rows


def _sounds_in(folder: Path) -> dict[str, str]:
    """Return name with or without ending -> name of each sound in a folder; without, wav is preferred."""
    found = sorted(name for name in os.listdir(folder) if SOUNDS.has(name))
    found.sort(key=lambda name: name.lower().endswith(".wav"))
    return {os.path.splitext(name)[0]: name for name in found} | {name: name for name in found}
