"""Passages of plain text, without targets: what a model of texts is trained on by hiding words.

root    a text file, or a folder with any number of `*.txt` at any depth; files may be compressed (`.txt.gz`)
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from perceiver.data.files import UnreadableError
from perceiver.data.sources.base import Item, OnError, Roles, Source
from perceiver.data.splits import HeldOut
from perceiver.data.text_files import read_text, text_problem
from perceiver.types import Stage

Unit: TypeAlias = Literal["line", "paragraph"]
SEPARATORS: dict[Unit, re.Pattern[str]] = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n\s*\n")}


class Passage(NamedTuple):
    """Words on one line, and the file and the number of the passage in it."""

    text: str
    id: str


class Texts(Source):
    """Passages of texts: an item has one part, `text`, and no target.

    A passage is a line or a paragraph, which ends at an empty line; one with more than `max_words` words is several.
    Equal passages are not divided between training, validation and testing.

    Args:
        root: a file or a folder.
        unit: what a passage is.
        max_words: most words, separated by white space, of a passage.
        held_out: the passages for validation and testing.

    Raises:
        ValueError: the unit is unknown, or `max_words` less than 1.
    """

    def __init__(self, *, root: str, unit: Unit, max_words: int, held_out: HeldOut) -> None:
        super().__init__()
        if unit not in SEPARATORS:
            raise ValueError(f"unit={unit!r} must be line or paragraph")
        if max_words < 1:
            raise ValueError(f"max_words={max_words} must be at least 1")
        self.root = Path(root).expanduser()
        self.unit: Unit = unit
        self.max_words = max_words
        self.held_out = held_out

    def items(self, stage: Stage, roles: Roles) -> "PassageItems | None":
        """Return the passages of a stage, or None if there are none.

        Raises:
            FileNotFoundError: there is no such file, or none in the folder.
            UnreadableError: a file is damaged, or there is no text in it.
        """
        return PassageItems(passages) if (passages := self._stage(stage)) else None

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        return (passage.text for passage in self._stage("train"))

    def _stage(self, stage: Stage) -> list[Passage]:
        return [self._passages[index] for index in self._split[stage]]

    @cached_property
    def _split(self) -> dict[Stage, list[int]]:
        return self.held_out.split([passage.text for passage in self._passages])

    @cached_property
    def _passages(self) -> list[Passage]:
        paths = [self.root]
        if self.root.is_dir():
            paths = sorted(path for ending in ("txt", "txt.gz") for path in self.root.rglob(f"*.{ending}"))
            if not paths:
                raise FileNotFoundError(f"root={self.root}: the folder has no files *.txt")
        return [passage for path in paths for passage in self._read(path)]

    def _read(self, path: Path) -> list[Passage]:
        found = []
        for text in SEPARATORS[self.unit].split(read_text(path)):
            words = text.split()
            found += [" ".join(words[start : start + self.max_words]) for start in range(0, len(words), self.max_words)]
        if not found:
            raise UnreadableError(f"{path}: there is no text in it")
        name = path.name if path == self.root else str(path.relative_to(self.root))
        passages = [Passage(text, f"{name}:{number}") for number, text in enumerate(found, start=1)]
        for passage in passages:
            if problem := text_problem(passage.text):
                raise UnreadableError(f"{path}: {self.unit} {passage.id.rpartition(':')[2]}: {problem}")
        return passages


class PassageItems:
    """Passages in memory."""

    roles = ("text",)

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, index: int) -> Item:
        text, id = self.passages[index]
        return Item({"text": text}, {}, id)

    def sample_length(self, index: int) -> int:
        return len(self.passages[index].text)

    def sample_name(self, index: int) -> str:
        return self.passages[index].text  # numbers of passages change when text is added
