"""Labeled sounds that are listed in tables: ESC-50, FSD50K, AudioSet.

Each class documents the files it reads; anything in the same layout is read, too.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from perceiver.data.files import SOUNDS, UnreadableError, first_few
from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.sources.folders import walk
from perceiver.data.splits import HeldOut, uniform_hash
from perceiver.data.text_files import Row, read_csv
from perceiver.types import Stage

CLIP_NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)
"""File name of a clip of AudioSet without ending: the video, and where the clip begins in it."""

log = logging.getLogger(__name__)


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


class _Segment(NamedTuple):
    video: str
    path: str
    labels: list[int]


class AudioSet(Source):
    """AudioSet (Gemmeke et al. 2017): 10 s segments of YouTube videos, any number of 527 classes each.

    Lists of segments are as released: lines of `YTID, start_seconds, end_seconds, "mid,mid"` after comments. The clips
    are anywhere below the root, as <name>.wav or in another format, where <name> is one of

        <YTID>   <YTID>_<start>   <YTID>_<start>_<end>        or one of these after a Y, as downloaders name them

    with times in seconds or milliseconds. Segments without a clip are left out, since videos vanish from the web.

    Args:
        root: the folder that contains everything.
        num_classes: required number of classes in `class_labels`.
        train_segments: the list of training segments, or several of them; paths below `root`.
        eval_segments: the list of segments for testing; None for no test set.
        class_labels: the table of classes, with columns index, mid and display_name.
        val_fraction: share of the training clips for validation; 0 for none. They are chosen by a hash of the video's
            id, so that neither another list nor missing clips change the choice.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        train_segments: str | Sequence[str],
        eval_segments: str | None,
        class_labels: str,
        val_fraction: float,
    ) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()
        self.train_segments = [train_segments] if isinstance(train_segments, str) else list(train_segments)
        self.eval_segments = eval_segments
        self.class_labels = class_labels
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=0.0)

    @property
    def class_names(self) -> list[str]:
        return list(self._classes.names)

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        if stage == "test":
            found = [] if self.eval_segments is None else self._segments([self.eval_segments])
            trained_on = {clip.path for clip in self._training} if found else set()
            if both := [clip.path for clip in found if clip.path in trained_on]:
                raise UnreadableError(f"{self.root / str(self.eval_segments)}: {both[0]} is also used for training")
        else:
            found = [clip for clip in self._training if self._is_val(clip.video) == (stage == "val")]
        if not found:
            return None
        tags = [clip.labels for clip in found]
        paths = {"audio": [clip.path for clip in found]}
        return ItemTable.of_files(self.root, paths, tags=tags, num_classes=self.num_classes)

    def _is_val(self, video: str) -> bool:
        return uniform_hash(video, "val") < self.held_out.val_fraction

    @cached_property
    def _classes(self) -> ClassTable:
        path = self.root / self.class_labels
        rows = read_csv(path, ("index", "mid", "display_name"))
        return ClassTable(path, rows, index="index", key="mid", name="display_name", num_classes=self.num_classes)

    @cached_property
    def _training(self) -> list[_Segment]:
        return self._segments(self.train_segments)

    def _segments(self, lists: Sequence[str]) -> list[_Segment]:
        """Return the segments of some lists that have a file; warns of those that have none.

        Raises:
            FileNotFoundError: none has a file.
        """
        found, missing = [], []
        for row, start in self._rows(lists):
            labels = self._classes.labels_in(row, "positive_labels")
            path = self._file(row["YTID"], start)
            if path is None:
                missing.append(row["YTID"])
            else:
                found.append(_Segment(row["YTID"], path, labels))
        names, total = " and ".join(lists), len(found) + len(missing)
        if not found:
            raise FileNotFoundError(
                f"root={self.root}: none of the {total} segments of {names} exists; searched all folders for "
                f"{first_few([f'{video}.wav' for video in missing])}, other formats and other spellings"
            )
        if missing:
            log.warning("%s: %d of %d segments have no file: %s", names, len(missing), total, first_few(missing))
        return found

    def _rows(self, lists: Sequence[str]) -> Iterator[tuple[Row, float]]:
        """Yield the row of each segment of some lists, and the second of the video at which it begins."""
        seen = set()
        columns = ("YTID", "start_seconds", "end_seconds", "positive_labels")
        for row in (row for name in lists for row in read_csv(self.root / name, columns, header=False, comment="#")):
            start, end = row.seconds("start_seconds"), row.seconds("end_seconds")
            if end <= start:
                raise row.error(f"end_seconds={end:g} is not after start_seconds={start:g}")
            if (row["YTID"], start) in seen:
                raise row.error(f"YTID={row['YTID']!r} appears twice with start_seconds={start:g}")
            seen.add((row["YTID"], start))
            yield row, start

    def _file(self, video: str, start: float) -> str | None:
        """Return the file of a segment: one whose name contains its start, or else one whose name contains none."""
        without_start = None
        for begin, path in self._files.get(video, ()):
            if begin is None:
                without_start = without_start or path
            elif min(abs(begin - start), abs(begin / 1000.0 - start)) < 1.0:  # names omit fractions of a second
                return path
        return without_start

    @cached_property
    def _files(self) -> dict[str, list[tuple[float | None, str]]]:
        """Video -> paths of its sounds below the root, and where they begin if their names contain it."""
        files = defaultdict(list)
        for parent, folders, names in walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below_root = os.path.relpath(parent, self.root)
            for name in sorted(names):
                if SOUNDS.has(name):
                    path = os.path.normpath(os.path.join(below_root, name))
                    stem = os.path.splitext(name)[0]
                    begins: dict[str, float | None] = {stem: None}
                    if match := CLIP_NAME.fullmatch(stem):
                        begins[match[1]] = None if match[2] is None else float(match[2])
                    for video, begin in begins.items():
                        files[video].append((begin, path))
        return files
