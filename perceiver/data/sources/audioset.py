"""AudioSet (Gemmeke et al. 2017): parts of YouTube videos, 10 s each, in 527 classes, any number of them each.

Lists of segments are as released: lines of `YTID, start_seconds, end_seconds, "mid,mid"` below comments. The clips lie
anywhere below the root, as <name>.wav or in another format, where <name> is one of

    <YTID>   <YTID>_<start>   <YTID>_<start>_<end>        and each with a Y in front, as downloaders write it

with times in seconds or milliseconds. Segments whose clip is not there are left out, since videos vanish from the web.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perceiver.data.files import SOUNDS, UnreadableError
from perceiver.data.sources.base import FileItems, Roles, Source
from perceiver.data.sources.folders import walk
from perceiver.data.splits import HeldOut, position_of
from perceiver.data.tables import ClassTable, Row, read_rows
from perceiver.data.text_checks import first_few
from perceiver.types import Stage

SEGMENT_COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
CLIP_NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)
"""Name of a clip's file without its ending: the video, and where in it the clip begins."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Clip:
    """A segment that is on disk."""

    video: str
    path: str
    labels: list[int]


class AudioSet(Source):
    """AudioSet, or as much of it as there is.

    Args:
        root: the folder that everything is below.
        num_classes: how many classes `class_labels` must list.
        train_segments: the list of training segments, or several of them; paths below `root`.
        eval_segments: the list of segments for testing; None for no test set.
        class_labels: the table of classes, with columns index, mid and display_name.
        val_fraction: share of the training clips kept for validation; 0 for none. Which they are is decided for each
            video by its id, so that neither another list nor clips that are missing change it.
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

    def items(self, stage: Stage, roles: Roles) -> FileItems | None:
        if stage == "test":
            found = [] if self.eval_segments is None else self._on_disk([self.eval_segments])
            trained_on = {clip.path for clip in self._training} if found else set()
            if both := [clip.path for clip in found if clip.path in trained_on]:
                raise UnreadableError(f"{self.root / str(self.eval_segments)}: {both[0]} is trained on, too")
        else:
            found = [clip for clip in self._training if self._is_for_validation(clip.video) == (stage == "val")]
        if not found:
            return None
        return FileItems(
            root=self.root,
            files={"audio": [clip.path for clip in found]},
            tags=[clip.labels for clip in found],
            num_classes=self.num_classes,
        )

    def _is_for_validation(self, video: str) -> bool:
        return position_of(video, "val") < self.held_out.val_fraction

    @cached_property
    def _classes(self) -> ClassTable:
        path = self.root / self.class_labels
        rows = read_rows(path, ("index", "mid", "display_name"), header=True)
        return ClassTable(path, rows, index="index", key="mid", name="display_name", num_classes=self.num_classes)

    @cached_property
    def _training(self) -> list[_Clip]:
        return self._on_disk(self.train_segments)

    def _on_disk(self, lists: Sequence[str]) -> list[_Clip]:
        """The segments of some lists that have a file; warns of those that have none.

        Raises:
            FileNotFoundError: none has.
        """
        found, missing = [], []
        for row, start in self._segments(lists):
            labels = self._classes.labels_in(row, "positive_labels")
            path = self._file_of(row["YTID"], start)
            if path is None:
                missing.append(row["YTID"])
            else:
                found.append(_Clip(row["YTID"], path, labels))
        names, total = " and ".join(lists), len(found) + len(missing)
        if not found:
            raise FileNotFoundError(
                f"root={self.root}: of the {total} segments in {names} none is there; looked in every folder below for "
                f"{first_few([f'{video}.wav' for video in missing])}, and for other formats and spellings"
            )
        if missing:
            log.warning("%s: %d of %d segments have no file: %s", names, len(missing), total, first_few(missing))
        return found

    def _segments(self, lists: Sequence[str]) -> Iterator[tuple[Row, float]]:
        """Each segment of some lists, and the second of the video where it begins."""
        seen = set()
        for name in lists:
            path = self.root / name
            for row in read_rows(path, SEGMENT_COLUMNS, header=False, comment="#"):
                start, end = row.seconds("start_seconds"), row.seconds("end_seconds")
                if end <= start:
                    raise row.error(f"end_seconds={end:g} is not after start_seconds={start:g}")
                if (row["YTID"], start) in seen:
                    raise row.error(f"YTID={row['YTID']!r} from {start:g} s on is there a second time")
                seen.add((row["YTID"], start))
                yield row, start

    def _file_of(self, video: str, start: float) -> str | None:
        """The file of a segment: one whose name says where it begins, or else one whose name does not."""
        unclear = None
        for begins, path in self._files.get(video, ()):
            if begins is None:
                unclear = unclear or path
            elif min(abs(begins - start), abs(begins / 1000.0 - start)) < 1.0:  # names cut off fractions of a second
                return path
        return unclear

    @cached_property
    def _files(self) -> dict[str, list[tuple[float | None, str]]]:
        """Video -> the sounds below the root that are named after it, and where they begin if their names say so."""
        files = defaultdict(list)
        for parent, folders, names in walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if SOUNDS.has(name):
                    for video, begins in _meanings(os.path.splitext(name)[0]).items():
                        files[video].append((begins, os.path.join(parent, name)))
        return files


def _meanings(stem: str) -> dict[str, float | None]:
    """Which video the name of a file may speak of, and from where on; None where it does not say."""
    meanings: dict[str, float | None] = {stem: None}
    if match := CLIP_NAME.fullmatch(stem):
        video, begins = match.groups()
        meanings[video] = None if begins is None else float(begins)
    return meanings
