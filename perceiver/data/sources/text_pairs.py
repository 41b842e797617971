"""Pairs of texts, of which the second is to be told from the first: translations, questions and answers, summaries.

    root/{train,val,test}.tsv          source<tab>target; further columns are ignored; for quotes see `read_lines`
    root/{train,val,test}.<language>   two files, line by line (`endings`)
    root                               one file with tabs, as eng-fra.txt

Validation may also be called valid or dev. Pairs for it and for testing are split off from those for training where
they have no file of their own.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from perceiver.data.files import UnreadableError
from perceiver.data.sources.base import Item, OnError, Roles, Source
from perceiver.data.splits import HeldOut, split_by_name
from perceiver.data.text_checks import fault_in, first_few, tidy
from perceiver.data.text_file import read_lines, read_text
from perceiver.types import Stage

NAMES: dict[Stage, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "dev"), "test": ("test",)}

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A line: its texts, and where it stands."""

    source: str
    target: str
    id: str


class TextPairs(Source):
    """Pairs of texts; an item has one part, `text`, which is the first of a pair, and the second as its caption.

    Args:
        root: a folder, or a file.
        endings: of two files that are aligned line by line (`[en, de]` for train.en and train.de); None where pairs are
            in one file.
        val_fraction: share of the training sources kept for validation where there is no file for it; 0 for none.
        test_fraction: share of all training sources kept for testing where there is no file for it; 0 for none.
    """

    def __init__(
        self, *, root: str, endings: tuple[str, str] | None, val_fraction: float, test_fraction: float
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.endings = ["tsv"] if endings is None else list(endings)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    def items(self, stage: Stage, roles: Roles) -> "_Pairs | None":
        """The pairs of a stage, or None if it has none.

        Raises:
            FileNotFoundError: there are no files to train on, or one of two is missing.
            UnreadableError: a file is damaged, or two have not as many lines.
        """
        pairs = self._pairs[stage]
        return _Pairs(pairs, train=stage == "train") if pairs else None

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Sources and targets of the training pairs."""
        return (text for pair in self._pairs["train"] for text in (pair.source, pair.target))

    @cached_property
    def _pairs(self) -> dict[Stage, list[Pair]]:
        train = self._read("train")
        if train is None:
            wanted = " and ".join(f"train.{ending}" for ending in self.endings)
            problem = f"root={self.root}: neither a file nor a folder with {wanted} in it"
            endings = sorted(path.suffix[1:] for path in self.root.glob("train.*"))
            there = f"; there are train.{{{','.join(endings)}}}: two of them may be endings=" if endings[1:] else ""
            raise FileNotFoundError(problem + there)
        test, val = self._read("test"), self._read("val")
        if test is None:
            train, test = _split_by_source(train, self.held_out.test_fraction, "test")
        if val is None:
            train, val = _split_by_source(train, self.held_out.val_fraction, "val")
        return {"train": train, "val": val, "test": test}

    def _read(self, stage: Stage) -> list[Pair] | None:
        """The pairs of a stage that are in files of its own."""
        if self.root.is_file():
            if len(self.endings) == 2:
                raise ValueError(f"root={self.root} is one file, but endings={self.endings} are those of two")
            return _pairs_in(self.root) if stage == "train" else None
        for name in NAMES[stage]:
            paths = [self.root / f"{name}.{ending}" for ending in self.endings]
            if any(map(os.path.lexists, paths)):
                return _pairs_in(*paths)
        return None


class _Pairs:
    """Pairs in memory."""

    roles = ("text",)

    def __init__(self, pairs: Sequence[Pair], *, train: bool) -> None:
        self.pairs = pairs
        self.train = train
        self.references: dict[str, list[str]] = {}
        for pair in pairs:
            there = self.references.setdefault(pair.source, [])
            if pair.target not in there:
                there.append(pair.target)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        source, target, id = self.pairs[index]
        others = [text for text in self.references[source] if text != target]
        if self.train:
            others = [others[place] for place in torch.randperm(len(others)).tolist()]
        return Item({"text": source}, {"caption": target, "references": [target, *others]}, id)

    def classes_of(self, index: int) -> Sequence[int]:
        return ()

    def name_of(self, index: int) -> str:
        pair = self.pairs[index]
        return f"{pair.id.rpartition(':')[0]}:{pair.source}"  # lines move


def _split_by_source(pairs: Sequence[Pair], fraction: float, purpose: str) -> tuple[list[Pair], list[Pair]]:
    """The pairs without those of some of the sources, and those; or a source trained on might be tested on as well."""
    sources = list({pair.source: None for pair in pairs})
    part = {sources[index] for index in split_by_name(sources, fraction, purpose)[1]}
    return [pair for pair in pairs if pair.source not in part], [pair for pair in pairs if pair.source in part]


def _pairs_in(path: Path, aligned: Path | None = None) -> list[Pair]:
    """The pairs in a file with tabs, or in two whose lines belong together; those that lack a text are left out.

    Raises:
        UnreadableError: a line has no tab or holds no text, no line has both texts, or one file has more lines.
    """
    if aligned is None:
        rows = [(row.line, row["source"], row["target"]) for row in read_lines(path, ("source", "target"))]
    else:
        sources, targets = (read_text(file).removesuffix("\n").split("\n") for file in (path, aligned))
        if len(sources) != len(targets):
            raise UnreadableError(f"{path}: {len(sources)} lines, but {aligned} has {len(targets)}")
        rows = list(zip(range(1, len(sources) + 1), sources, targets, strict=True))
    for line, *texts in rows:
        if fault := next(filter(None, map(fault_in, texts)), None):
            raise UnreadableError(f"{path}: line {line}: {fault}")
    pairs = [Pair(tidy(source), tidy(target), f"{path.name}:{line}") for line, source, target in rows]
    whole = [pair for pair in pairs if pair.source and pair.target]
    if not whole:
        raise UnreadableError(f"{path}: there is no pair in it")
    if len(whole) < len(pairs):
        lacking = [pair.id for pair in pairs if not (pair.source and pair.target)]
        log.warning("%s: left out %d of %d that lack a text: %s", path, len(lacking), len(pairs), first_few(lacking))
    return whole
