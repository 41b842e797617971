"""Files that are listed in tables with their classes or texts: any CSV table, and the lists of UCF101."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from perceiver.data.files import Segment, UnreadableError, first_few, is_file_name
from perceiver.data.sources.base import Item, Items, ItemTable, OnError, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.data.text_files import Row, normalize_spaces, read_csv, read_text, text_problem
from perceiver.types import STAGES, Stage


class FileTable(Source):
    """Base of files that are listed in a table with what is true of them.

        root/<table>    columns `path` and the target's, and optionally `start` and `stop`, `split`, and others

    Each line is a sample: a file below the root, which is read for every modality of whose kind it is. A column named
    like a modality has its file instead; an empty cell means that the sample lacks it. With `start` and `stop` a sample
    is that part of a recording, in seconds. `split` is train, val or test; without it samples are held out by name.

    Args:
        root: the folder of the files.
        table: the table, a path below the root.
        num_classes: required number of classes, 0 for none.
        group_column: column whose groups of samples are not divided between training, validation and testing, such as
            clips of one video; None for none.
        held_out: the samples for validation and testing, without a column `split`.

    Attributes:
        target_column: the column of the target.
    """

    target_column: ClassVar[str]

    def __init__(self, *, root: str, table: str, num_classes: int, group_column: str | None, held_out: HeldOut) -> None:
        super().__init__(num_classes=num_classes)
        self.root = Path(root).expanduser()
        self.table = self.root / table
        self.group_column = group_column
        self.held_out = held_out

    def items(self, stage: Stage, roles: Roles) -> Items | None:
        return [self._item(self._rows[index], roles) for index in self._split[stage]] or None

    @abstractmethod
    def targets(self, row: Row) -> dict[str, Any]:
        """Return the targets of a sample."""

    def _item(self, row: Row, roles: Roles) -> Item:
        names = {role: row["path"] for role, kind in roles.items() if kind.has(row.cells.get("path", ""))}
        names |= {role: row[role] for role in roles if role in row.cells}
        parts: dict[str, Path | Segment] = {}
        for role, name in names.items():
            if name:
                if not is_file_name(name):
                    raise row.error(f"{name[:80]!r} is not a valid file name")
                parts[role] = self.root / name
        if not parts:
            if not {"path", *roles} & row.cells.keys():
                raise UnreadableError(f"{self.table}: no column 'path'; columns: {', '.join(row.cells)}")
            kinds = " nor ".join(kind.name for kind in roles.values())
            neither = "neither" if len(roles) > 1 else "not"
            raise row.error(f"{row.cells.get('path', '')!r} is {neither} {kinds} by its ending")
        id = next(iter(names.values()))
        if "start" in row.cells and "stop" in row.cells:
            start, stop = row.seconds("start"), row.seconds("stop")
            if stop <= start:
                raise row.error(f"stop={stop:g} is not after start={start:g}")
            parts = {role: Segment(path, start, stop) for role, path in parts.items() if isinstance(path, Path)}
            id = f"{id} {start:g}-{stop:g} s"
        return Item(parts, self.targets(row), id)

    @cached_property
    def _rows(self) -> list[Row]:
        columns = [self.target_column, *([] if self.group_column is None else [self.group_column])]
        rows = list(read_csv(self.table, columns))
        if not rows:
            raise UnreadableError(f"{self.table}: no files are listed")
        for row in rows:
            if not row[self.target_column].strip():
                raise row.error(f"{self.target_column} is empty")
            if row.cells.get("split", "train") not in STAGES:
                raise row.error(f"split={row['split']!r} must be {', '.join(STAGES)}")
        return rows

    @cached_property
    def _split(self) -> dict[Stage, list[int]]:
        """Stage -> numbers of its rows."""
        if "split" in self._rows[0].cells:
            return {stage: [i for i, row in enumerate(self._rows) if row["split"] == stage] for stage in STAGES}
        groups = [row[self.group_column] if self.group_column else self._name(row) for row in self._rows]
        distinct = sorted(set(groups))
        chosen = {stage: {distinct[i] for i in indices} for stage, indices in self.held_out.split(distinct).items()}
        return {stage: [i for i, group in enumerate(groups) if group in chosen[stage]] for stage in STAGES}

    def _name(self, row: Row) -> str:
        """Return what identifies a row: everything but the target."""
        return "/".join(cell for column, cell in row.cells.items() if column != self.target_column)


class ListedFiles(FileTable):
    """Files with one class each, the column `label`. Classes are the distinct labels in sorted order.

    Args: see `FileTable`.
    """

    target_column = "label"

    @cached_property
    def class_names(self) -> list[str]:
        names = sorted({row["label"] for row in self._rows})
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {self.table} has {len(names)}: {first_few(names)}")
        return names

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def targets(self, row: Row) -> dict[str, Any]:
        return {"label": self._labels[row["label"]]}


class ListedTexts(FileTable):
    """Files with one text each, such as a transcript: the column `text`.

    Args:
        root, table, group_column, held_out: see `FileTable`.
    """

    target_column = "text"

    def __init__(self, *, root: str, table: str, group_column: str | None, held_out: HeldOut) -> None:
        super().__init__(root=root, table=table, num_classes=0, group_column=group_column, held_out=held_out)

    def targets(self, row: Row) -> dict[str, Any]:
        if problem := text_problem(row["text"]):
            raise row.error(f"text: {problem}")
        return {"references": [normalize_spaces(row["text"])]}

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        return (text for index in self._split["train"] for text in self.targets(self._rows[index])["references"])


class UCF101(Source):
    """UCF101 (Soomro et al. 2012, arXiv:1212.0402): 13 320 videos in 101 classes, with three official splits.

        root/UCF-101/<class>/v_<class>_g01_c01.avi          the folders of the classes may also be in the root
        root/ucfTrainTestlist/classInd.txt                  lines of "1 ApplyEyeMakeup"
                              trainlist01.txt testlist01.txt …

    Videos of one group (`g01`) are parts of the same recording; validation holds out whole groups.

    Args:
        root: the folder that contains both.
        num_classes: required number of classes in classInd.txt.
        split: 1, 2 or 3.
        val_fraction: share of the training groups for validation; 0 for none (`HeldOut`).
    """

    def __init__(self, *, root: str, num_classes: int, split: int, val_fraction: float) -> None:
        super().__init__(num_classes=num_classes)
        if split not in (1, 2, 3):
            raise ValueError(f"split={split} must be 1, 2 or 3")
        self.root = Path(root).expanduser()
        self.lists = self.root / "ucfTrainTestlist"
        self.split = split
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=0.0)

    @cached_property
    def class_names(self) -> list[str]:
        lines = self._lines("classInd.txt", r"(?P<number>\d+) (?P<name>\S+)")
        names = [line["name"] for line in lines]
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {self.lists}/classInd.txt has {len(names)}")
        return names

    def items(self, stage: Stage, roles: Roles) -> ItemTable | None:
        labels = {name: label for label, name in enumerate(self.class_names)}
        kind = "test" if stage == "test" else "train"
        name = f"{kind}list{self.split:02d}.txt"
        lines = self._lines(name, r"(?P<path>(?P<name>[^/ ]+)/\S+_(?P<group>g\d+)_c\d+\.\w+)( \d+)?")
        if unknown := [line["name"] for line in lines if line["name"] not in labels]:
            raise UnreadableError(f"{self.lists / name}: {unknown[0]!r} is not a class of classInd.txt")
        if stage != "test":
            groups = sorted({f"{line['name']}/{line['group']}" for line in lines})
            val = {groups[index] for index in self.held_out.split_val(groups)[1]}
            lines = [line for line in lines if (f"{line['name']}/{line['group']}" in val) == (stage == "val")]
        if not lines:
            return None
        folder = self.root / "UCF-101" if (self.root / "UCF-101").is_dir() else self.root
        paths = [line["path"] for line in lines]
        return ItemTable.of_files(folder, dict.fromkeys(roles, paths), labels=[labels[line["name"]] for line in lines])

    def _lines(self, name: str, pattern: str) -> Sequence[re.Match[str]]:
        """Return the lines of a list, each of which must match a pattern.

        Raises:
            UnreadableError: one does not; names the line.
        """
        found = []
        for number, line in enumerate(read_text(self.lists / name).splitlines(), start=1):
            if line.strip():
                match = re.fullmatch(pattern, line.strip())
                if match is None:
                    raise UnreadableError(f"{self.lists / name}: line {number}: {line[:80]!r} is not an entry")
                found.append(match)
        return found
