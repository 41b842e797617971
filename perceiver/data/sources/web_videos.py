"""Labeled segments of web videos, whose files are named after the video: AudioSet, VGGSound."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from perceiver.data.files import SOUNDS, VIDEOS, UnreadableError, first_few
from perceiver.data.sources.base import ItemTable, Roles, Source
from perceiver.data.sources.folders import walk
from perceiver.data.sources.sounds import ClassTable
from perceiver.data.splits import HeldOut, uniform_hash
from perceiver.data.text_files import Row, read_csv
from perceiver.types import Stage

CLIP_NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)
"""File name of a clip without ending: the video, and where the clip begins in it."""

log = logging.getLogger(__name__)


class Clip(NamedTuple):
    """A segment of a web video that has a file.

    Attributes:
        video: id of the video.
        paths: role -> file below the root, or an empty string; a video may be read for frames and for sound.
        labels: classes.
    """

    video: str
    paths: Mapping[str, str]
    labels: Sequence[int]

    @property
    def name(self) -> str:
        """The first of its files."""
        return next(filter(None, self.paths.values()))


class WebVideos(Source):
    """Segments of web videos; those without a file are left out, since videos vanish from the web.

    The files are anywhere below the root, as sounds or videos of any format, and named by one of

        <video>   <video>_<start>   <video>_<start>_<end>     or one of these after a Y, as downloaders name them

    with times in seconds or milliseconds.

    Args:
        root: the folder that contains everything.
        num_classes: number of classes.
        val_fraction: share of the training clips for validation; 0 for none. They are chosen by a hash of the video's
            id, so that neither another list nor missing clips change the choice.
    """

    def __init__(self, *, root: str, num_classes: int, val_fraction: float) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=0.0)

    def of_stage(self, clips: Iterable[Clip], stage: Stage) -> list[Clip]:
        """Return those of the training clips that are for training or validation."""
        val = stage == "val"
        return [clip for clip in clips if (uniform_hash(clip.video, "val") < self.held_out.val_fraction) == val]

    def table(
        self, clips: Sequence[Clip], roles: Roles, **targets: Sequence[int] | Sequence[Sequence[int]]
    ) -> ItemTable:
        """Return clips as items; see `ItemTable` for the targets."""
        names = {role: [clip.paths[role] for clip in clips] for role in roles}
        return ItemTable.of_files(self.root, names, num_classes=self.num_classes, **targets)

    def clips(self, segments: Iterable[tuple[str, float, Sequence[int]]], roles: Roles, origin: str) -> list[Clip]:
        """Return the segments that have a file; warns of those that have none.

        Args:
            segments: video, start in seconds and classes of each.
            roles: for which files are searched.
            origin: the lists of the segments, for messages.

        Raises:
            FileNotFoundError: none has a file.
        """
        found, missing = [], []
        for video, start, labels in segments:
            paths = {role: self._file(video, start, role, roles) or "" for role in roles}
            if any(paths.values()):
                found.append(Clip(video, paths, labels))
            else:
                missing.append(video)
        total = len(found) + len(missing)
        if not found:
            ending = ".mp4" if VIDEOS in roles.values() else ".wav"
            raise FileNotFoundError(
                f"root={self.root}: none of the {total} segments of {origin} exists; searched all folders for "
                f"{first_few([video + ending for video in missing])}, other formats and other spellings"
            )
        if missing:
            log.warning("%s: %d of %d segments have no file: %s", origin, len(missing), total, first_few(missing))
        return found

    def _file(self, video: str, start: float, role: str, roles: Roles) -> str | None:
        """Return the file of a segment: one whose name contains its start, or else one whose name contains none."""
        without_start = None
        for begin, path in self._files.get(video, ()):
            if not roles[role].has(path):
                continue
            if begin is None:
                without_start = without_start or path
            elif min(abs(begin - start), abs(begin / 1000.0 - start)) < 1.0:  # names omit fractions of a second
                return path
        return without_start

    @cached_property
    def _files(self) -> dict[str, list[tuple[float | None, str]]]:
        """Video -> paths of its files below the root, sounds first, and where they begin if their names contain it."""
        files = defaultdict(list)
        for parent, folders, names in walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below_root = os.path.relpath(parent, self.root)
            for name in sorted(names):
                if SOUNDS.has(name) or VIDEOS.has(name):
                    path = os.path.normpath(os.path.join(below_root, name))
                    stem = os.path.splitext(name)[0]
                    begins: dict[str, float | None] = {stem: None}
                    if match := CLIP_NAME.fullmatch(stem):
                        begins[match[1]] = None if match[2] is None else float(match[2])
                    for video, begin in begins.items():
                        files[video].append((begin, path))
        return {video: sorted(found, key=lambda file: VIDEOS.has(file[1])) for video, found in files.items()}


class AudioSet(WebVideos):
    """AudioSet (Gemmeke et al. 2017): 10 s segments of YouTube videos, any number of 527 classes each.

    Lists of segments are as released: lines of `YTID, start_seconds, end_seconds, "mid,mid"` after comments. For their
    files see `WebVideos`.

    Args:
        root, num_classes, val_fraction: see `WebVideos`; `class_labels` must have this number of classes.
        train_segments: the list of training segments, or several of them; paths below `root`.
        eval_segments: the list of segments for testing; None for no test set.
        class_labels: the table of classes, with columns index, mid and display_name.
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
        super().__init__(root=root, num_classes=num_classes, val_fraction=val_fraction)
        self.train_segments = [train_segments] if isinstance(train_segments, str) else list(train_segments)
        self.eval_segments = eval_segments
        self.class_labels = class_labels
        self._training: list[Clip] = []

    @property
    def class_names(self) -> list[str]:
        return list(self._classes.names)

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        self._training = self._training or self._clips(self.train_segments, roles)
        if stage == "test":
            found = [] if self.eval_segments is None else self._clips([self.eval_segments], roles)
            trained_on = {clip.name for clip in self._training} if found else set()
            if both := [clip.name for clip in found if clip.name in trained_on]:
                raise UnreadableError(f"{self.root / str(self.eval_segments)}: {both[0]} is also used for training")
        else:
            found = self.of_stage(self._training, stage)
        return self.table(found, roles, tags=[clip.labels for clip in found]) if found else None

    def _clips(self, lists: Sequence[str], roles: Roles) -> list[Clip]:
        rows = self._rows(lists)
        segments = ((row["YTID"], start, self._classes.labels_in(row, "positive_labels")) for row, start in rows)
        return self.clips(segments, roles, " and ".join(lists))

    @cached_property
    def _classes(self) -> ClassTable:
        path = self.root / self.class_labels
        rows = read_csv(path, ("index", "mid", "display_name"))
        return ClassTable(path, rows, index="index", key="mid", name="display_name", num_classes=self.num_classes)

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


class VGGSound(WebVideos):
    """VGGSound (Chen et al. 2020, arXiv:2004.14368): 10 s segments of YouTube videos, one of 309 classes each.

        root/vggsound.csv     YouTube ID,start seconds,label,train or test; without a header

    For their files see `WebVideos`. The classes are those of the list in sorted order.

    Args:
        root, num_classes, val_fraction: see `WebVideos`; the list must have this number of classes.
    """

    columns = ("video", "start", "label", "split")

    @cached_property
    def class_names(self) -> list[str]:
        names = sorted({row["label"] for row in self._rows})
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {self._list} has {len(names)}: {first_few(names)}")
        return names

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        split = "test" if stage == "test" else "train"
        labels = {name: label for label, name in enumerate(self.class_names)}
        rows = [row for row in self._rows if row["split"] == split]
        segments = ((row["video"], row.seconds("start"), [labels[row["label"]]]) for row in rows)
        found = self.clips(segments, roles, self._list.name) if rows else []
        if stage != "test":
            found = self.of_stage(found, stage)
        return self.table(found, roles, labels=[clip.labels[0] for clip in found]) if found else None

    @property
    def _list(self) -> Path:
        return self.root / "vggsound.csv"

    @cached_property
    def _rows(self) -> list[Row]:
        rows = list(read_csv(self._list, self.columns, header=False))
        for row in rows:
            if row["split"] not in ("train", "test"):
                raise row.error(f"split={row['split']!r} must be train or test")
            if not row["label"].strip():
                raise row.error("label is empty")
        return rows
