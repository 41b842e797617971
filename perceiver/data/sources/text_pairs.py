"""Pairs of texts, the second of which is predicted from the first: translations, questions and answers, summaries.

    root/{train,val,test}.tsv          source<tab>target; further columns are ignored; for quotes see `read_tsv`
    root/{train,val,test}.<language>   two files, aligned line by line (`endings`), such as those of Multi30k
    root                               one file with tabs, such as eng-fra.txt

Files may be compressed, as in `train.en.gz`. Those for validation may also be named valid or dev. Pairs for validation
and testing are held out of the training pairs if they have no file of their own.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from perceiver.data.files import UnreadableError, first_few
from perceiver.data.sources.base import Item, OnError, Roles, Source
from perceiver.data.splits import HeldOut, split_by_name
from perceiver.data.text_files import normalize_spaces, read_text, read_tsv, text_problem
from perceiver.types import Stage

NAMES: dict[Stage, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "dev"), "test": ("test",)}

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two texts and the file and line that they come from."""

    source: str
    target: str
    id: str


class TextPairs(Source):
    """Pairs of texts: an item has one part, `text`, the first of a pair; its caption is the second.

    Args:
        root: a folder or a file.
        endings: of two files that are aligned line by line (`[en, de]` for train.en and train.de); None if pairs are in
            one file.
        val_fraction: share of the training sources for validation if there is no file for it; 0 for none.
        test_fraction: share of all training sources for testing if there is no file for it; 0 for none.
        test_name: of the files for testing, such as `test_2016_flickr`.
    """

    def __init__(
        self,
        *,
        root: str,
        endings: tuple[str, str] | None,
        val_fraction: float,
        test_fraction: float,
        test_name: str = "test",
    ) -> None:
        super().__init__()
        self.names: dict[Stage, tuple[str, ...]] = NAMES | {"test": (test_name,)}
        self.root = Path(root).expanduser()
        self.endings = ["tsv"] if endings is None else list(endings)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    def items(self, stage: Stage, roles: Roles) -> "PairItems | None":
        """Return the pairs of a stage, or None if there are none.

        Raises:
            FileNotFoundError: there are no files for training, or one of two is missing.
            UnreadableError: a file is damaged, or two have different numbers of lines.
        """
        pairs = self._pairs[stage]
        return PairItems(pairs, train=stage == "train") if pairs else None

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Return sources and targets of the training pairs."""
        return (text for pair in self.text_pairs() for text in pair)

    def text_pairs(self) -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for pair in self._pairs["train"])

    @cached_property
    def _pairs(self) -> dict[Stage, list[Pair]]:
        train = self._read("train")
        if train is None:
            wanted = " and ".join(f"train.{ending}" for ending in self.endings)
            problem = f"root={self.root}: neither a file nor a folder with {wanted}"
            endings = sorted(path.suffix[1:] for path in self.root.glob("train.*"))
            hint = f"; it contains train.{{{','.join(endings)}}}: set endings to two of them" if endings[1:] else ""
            raise FileNotFoundError(problem + hint)
        test, val = self._read("test"), self._read("val")
        if test is None:
            train, test = _split_by_source(train, self.held_out.test_fraction, "test")
        if val is None:
            train, val = _split_by_source(train, self.held_out.val_fraction, "val")
        return {"train": train, "val": val, "test": test}

    def _path(self, name: str) -> Path:
        """Return the file of a name, which may be compressed."""
        path = self.root / name
        packed = self.root / f"{name}.gz"
        return packed if not os.path.lexists(path) and os.path.lexists(packed) else path

    def _read(self, stage: Stage) -> list[Pair] | None:
        """Read the pairs of a stage that has files of its own."""
        if self.root.is_file():
            if len(self.endings) == 2:
                raise ValueError(f"root={self.root} is one file, but endings={self.endings} are those of two")
            return _read_pairs(self.root) if stage == "train" else None
        for name in self.names[stage]:
            paths = [self._path(f"{name}.{ending}") for ending in self.endings]
            if any(map(os.path.lexists, paths)):
                return _read_pairs(*paths)
        if stage == "test" and self.names[stage] != NAMES[stage]:
            raise FileNotFoundError(f"test_name={self.names[stage][0]}: {self.root} has no such files")
        return None


class PairItems:
    """Pairs in memory; the references of a pair are all targets of its source, its own target first."""

    roles = ("text",)

    def __init__(self, pairs: Sequence[Pair], *, train: bool) -> None:
        self.pairs = pairs
        self.train = train
        self.references: dict[str, dict[str, None]] = {}
        for pair in pairs:
            self.references.setdefault(pair.source, {})[pair.target] = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        source, target, id = self.pairs[index]
        others = [text for text in self.references[source] if text != target]
        if self.train:
            others = [others[place] for place in torch.randperm(len(others)).tolist()]
        return Item({"text": source}, {"caption": target, "references": [target, *others]}, id)

    def sample_classes(self, index: int) -> Sequence[int]:
        return ()

    def sample_length(self, index: int) -> int:
        return len(self.pairs[index].source) + len(self.pairs[index].target)

    def sample_name(self, index: int) -> str:
        pair = self.pairs[index]
        return f"{pair.id.rpartition(':')[0]}:{pair.source}"  # line numbers change when lines are added


def _split_by_source(pairs: Sequence[Pair], fraction: float, purpose: str) -> tuple[list[Pair], list[Pair]]:
    """Split pairs by their sources, so that no source is both trained and tested on."""
    sources = list({pair.source: None for pair in pairs})
    part = {sources[index] for index in split_by_name(sources, fraction, purpose)[1]}
    return [pair for pair in pairs if pair.source not in part], [pair for pair in pairs if pair.source in part]


def _read_pairs(path: Path, aligned: Path | None = None) -> list[Pair]:
    """Read the pairs of a file with tabs, or of two aligned files; pairs that lack a text are left out.

    Raises:
        UnreadableError: a line has no tab or is not valid text, no line has both texts, or one file has more lines.
    """
    if aligned is None:
        rows = [(row.line, row["source"], row["target"]) for row in read_tsv(path, ("source", "target"))]
    else:
        sources, targets = (read_text(file).removesuffix("\n").split("\n") for file in (path, aligned))
        if len(sources) != len(targets):
            raise UnreadableError(f"{path}: {len(sources)} lines, but {aligned} has {len(targets)}")
        rows = list(zip(range(1, len(sources) + 1), sources, targets, strict=True))
    for line, *texts in rows:
        if problem := next(filter(None, map(text_problem, texts)), None):
            raise UnreadableError(f"{path}: line {line}: {problem}")
    pairs = [
        Pair(normalize_spaces(source), normalize_spaces(target), f"{path.name}:{line}") for line, source, target in rows
    ]
    complete = [pair for pair in pairs if pair.source and pair.target]
    if not complete:
        raise UnreadableError(f"{path}: no pairs")
    if len(complete) < len(pairs):
        lacking = [pair.id for pair in pairs if not (pair.source and pair.target)]
        log.warning(
            "%s: left out %d of %d pairs with an empty text: %s", path, len(lacking), len(pairs), first_few(lacking)
        )
    return complete
