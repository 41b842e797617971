"""ESC-50 (Piczak 2015, ACM Multimedia): 2000 clips of 5 s in 50 classes, in five folds; ESC-10 is ten of the classes.

    root/meta/esc50.csv   filename,fold,target,category,esc10,src_file,take
    root/audio/*.wav

All takes of one recording are in one fold. The folds are meant for cross-validation: one is held out for testing, the
others are trained on. There is no validation split; a share of the recordings that are trained on can be held out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from perceiver.data.files import UnreadableError
from perceiver.data.sources.base import FileItems, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.data.tables import read_rows
from perceiver.data.text_checks import first_few
from perceiver.types import Stage

COLUMNS = ("filename", "fold", "target", "category", "esc10")
SOURCE = "github.com/karolpiczak/ESC-50"


@dataclass(frozen=True)
class _Clip:
    name: str
    recording: str
    fold: int
    target: int
    category: str
    esc10: bool


class ESC50(Source):
    """ESC-50 or ESC-10.

    The classes are those that the table has, in the order of their targets, which need not be without gaps.

    Args:
        root: the folder that holds `meta` and `audio`.
        num_classes: how many classes there must be.
        fold: the one that is held out for testing.
        val_fraction: share of the other folds' recordings that is kept for validation; 0 for none (`HeldOut`).
        esc10: whether only clips of ESC-10 count.
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
                f"root={self.root}: there is no meta/esc50.csv in it; unpack {SOURCE} there, or give its folder"
            )

    def items(self, stage: Stage, roles: Roles) -> FileItems | None:
        """The fold that is held out, or the others without or with what is for validation; None for nothing.

        Raises:
            FileNotFoundError: there is no table.
            UnreadableError: it is damaged.
            ValueError: it has another number of classes, or not the fold, or no other.
        """
        labels = {target: label for label, target in enumerate(self._classes)}
        folds = sorted({clip.fold for clip in self._table_clips})
        if self.fold not in folds:
            raise ValueError(f"fold={self.fold}: the folds are {', '.join(map(str, folds))}")
        if len(folds) == 1:
            raise ValueError(f"fold={self.fold}: the only one in {self.table}, so that there is none to train on")
        found = [clip for clip in self._table_clips if (clip.fold == self.fold) == (stage == "test")]
        if stage != "test":
            recordings = sorted({clip.recording for clip in found})
            held_out = {recordings[i] for i in self.held_out.without_test(recordings)[1]}
            found = [clip for clip in found if (clip.recording in held_out) == (stage == "val")]
        if not found:
            return None
        paths = [str(self.root / "audio" / clip.name) for clip in found]
        return FileItems(root=self.root, files={"audio": paths}, labels=[labels[clip.target] for clip in found])

    @cached_property
    def _table_clips(self) -> list[_Clip]:
        self.prepare()
        clips = [clip for clip in _clips_in(self.table) if clip.esc10 or not self.esc10]
        if not clips:
            raise UnreadableError(f"{self.table}: no clip {'of ESC-10 ' * self.esc10}in it")
        return clips

    @cached_property
    def _classes(self) -> dict[int, str]:
        """Targets, in ascending order, and their names."""
        found = dict(sorted({clip.target: clip.category for clip in self._table_clips}.items()))
        if len(found) != self.num_classes:
            classes = f"{len(found)} classes: {first_few(list(found.values()))}"
            hint = "; data=esc10 is for ESC-10" if len(found) == 10 else ""
            raise ValueError(f"num_classes={self.num_classes}, but {self.table} has {classes}{hint}")
        return found


def _clips_in(table: Path) -> Iterator[_Clip]:
    names: set[str] = set()
    categories: dict[int, str] = {}
    targets: dict[str, int] = {}
    for row in read_rows(table, COLUMNS, header=True):
        clip = _Clip(
            name=row.file_name("filename"),
            recording=row.cells.get("src_file", row["filename"]),
            fold=row.integer("fold"),
            target=row.integer("target"),
            category=row["category"],
            esc10=row["esc10"] == "True",
        )
        if row["esc10"] not in ("True", "False"):
            raise row.error(f"esc10={row['esc10']!r} is neither True nor False")
        if clip.name in names:
            raise row.error(f"filename={clip.name!r} is there a second time")
        if clip.target < 0 or not clip.category.strip():
            raise row.error(f"target={clip.target}, category={clip.category!r} is no class")
        before = categories.setdefault(clip.target, clip.category)
        if before != clip.category:
            raise row.error(f"category={clip.category!r}, but target={clip.target} was {before!r} before")
        other = targets.setdefault(clip.category, clip.target)
        if other != clip.target:
            raise row.error(f"target={clip.target}, but category={clip.category!r} was target={other} before")
        names.add(clip.name)
        yield clip
