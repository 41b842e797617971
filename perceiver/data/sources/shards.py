"""Samples in tars, as WebDataset lays them out (`perceiver.data.sources.shard_index`), with what is true of them.

    root/train-000000.tar …   root/val-000000.tar …   root/test-000000.tar …   or in folders: root/train/*.tar …
    root/classes.txt          a class a line; without it they are called as they are numbered

Of each stage the spellings of `perceiver.data.sources.folders` count. Without tars of its own a share of the training
samples is for validation, and another for testing, by their names. Next to what is read, each sample has one of

    .cls    the number of its class                 .json   {"label": 3}, {"tags": [3, 5]} or {"captions": ["…", "…"]}
    .txt    a caption a line

All else in it is left alone.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int64

from perceiver.data.files import UnreadableError
from perceiver.data.sources.base import Item, OnError, Roles, Source, multi_hot
from perceiver.data.sources.folders import STAGE_WORDS
from perceiver.data.sources.shard_index import ShardSample, TarShards
from perceiver.data.splits import HeldOut, split_by_name
from perceiver.data.text_checks import fault_in, first_few, tidy
from perceiver.data.text_file import Entry, read_text
from perceiver.types import Stage

Target: TypeAlias = Literal["label", "tags", "references"]
TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst|lz4)|tgz)\Z", re.IGNORECASE)
"""The ending of a tar; one that is compressed is refused later, not overlooked."""

log = logging.getLogger(__name__)


class Shards(Source):
    """Samples in tars.

    Args:
        root: the folder that the tars are in.
        target: what is true of a sample: its class (`label`), any number of classes (`tags`), or captions
            (`references`).
        num_classes: how many classes there are; 0 with captions.
        val_fraction, test_fraction: share of the training samples kept for validation and for testing, where there are
            no tars for it; 0 for none (`HeldOut`).
    """

    def __init__(
        self, *, root: str, target: Target, num_classes: int = 0, val_fraction: float, test_fraction: float
    ) -> None:
        if target not in ("label", "tags", "references"):
            raise ValueError(f"target={target!r} must be label, tags or references")
        if (num_classes == 0) != (target == "references"):
            raise ValueError(f"num_classes={num_classes} with target={target}: captions have 0, others more")
        self.root = Path(root).expanduser()
        self.target = target
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)
        self._shards: dict[Stage, TarShards] = {}

    def labels(self, sample: ShardSample) -> Sequence[int]:
        """The classes of a sample.

        Raises:
            UnreadableError: what says so is missing or makes no sense.
        """
        if self.target == "references":
            return ()
        return self.tags(sample) if self.target == "tags" else [self.label(sample)]

    def targets(self, sample: ShardSample) -> dict[str, Any]:
        """What is true of a sample: `label`, `tags` or `references`; errors as in `labels`."""
        if self.target == "references":
            return {"references": self.captions(sample)}
        return (
            {"tags": multi_hot(self.tags(sample), self.num_classes)}
            if self.target == "tags"
            else {"label": self.label(sample)}
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes.

        Raises:
            UnreadableError: a line of classes.txt is empty.
            ValueError: it has not `num_classes` lines.
        """
        path = self.root / "classes.txt"
        if not self.num_classes or not path.is_file():
            return [str(label) for label in range(self.num_classes)]
        names = [tidy(line) for line in read_text(path).removesuffix("\n").split("\n")]
        if "" in names:
            raise UnreadableError(f"{path}: line {names.index('') + 1}: there is no class in it")
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {path} has {len(names)} classes: {first_few(names)}")
        return names

    def items(self, stage: Stage, roles: Roles) -> "ShardItems | None":
        """The samples of a stage, or None if it has none.

        Raises:
            FileNotFoundError: there are no tars to train on.
            UnreadableError: a tar is damaged.
        """
        indices = self._parts.get(stage)
        if indices is None or not len(indices):
            return None
        return ShardItems(self, self._shards.get(stage) or self._shards["train"], indices, roles)

    @cached_property
    def _parts(self) -> dict[Stage, Int64[np.ndarray, " samples"]]:
        """The numbers of each stage's samples among those in its tars, or else in those for training."""
        tars = stage_tars(self.root)
        self._shards = {stage: TarShards(paths) for stage, paths in tars.items()}
        parts = {stage: np.arange(len(shards)) for stage, shards in self._shards.items()}
        fractions: dict[Stage, float] = {
            "test": self.held_out.test_fraction,
            "val": self.held_out.val_fraction,
        }
        if missing := {stage: share for stage, share in fractions.items() if stage not in parts and share}:
            shards = self._shards["train"]
            names = [self.name_of(shards[index]) for index in range(len(shards))]
            for stage, share in missing.items():
                rest, part = split_by_name([names[index] for index in parts["train"]], share, stage)
                parts[stage], parts["train"] = parts["train"][part], parts["train"][rest]
        return parts

    def name_of(self, sample: ShardSample) -> str:
        """What a sample is called wherever the tars lie."""
        return f"{sample.tar.relative_to(self.root)}/{sample.key}"

    def classes_of(self, sample: ShardSample) -> Sequence[int]:
        """The classes of a sample; none where it does not say so as it should, which is told when it is read."""
        try:
            return self.labels(sample)
        except UnreadableError:
            return ()

    def label(self, sample: ShardSample) -> int:
        """The one class of a sample; errors as in `labels`."""
        if member := sample.members.get("cls"):
            text = read_text(member).strip()
            if not re.fullmatch("[0-9]{1,18}", text):
                raise UnreadableError(f"{member}: {text[:40]!r} is not the number of a class")
            return self._checked(int(text), sample)
        return self._checked(self._json(sample, ".cls and no ").value("label", int), sample)

    def tags(self, sample: ShardSample) -> list[int]:
        """All classes of a sample; errors as in `labels`."""
        entry = self._json(sample)
        tags = entry.value("tags", list)
        if wrong := [tag for tag in tags if type(tag) is not int]:
            raise entry.error(f"tags: {str(wrong[0])[:40]!r} is not the number of a class")
        if len(set(tags)) < len(tags):
            raise entry.error("tags: a class is there twice")
        return sorted(self._checked(tag, sample) for tag in tags)

    def captions(self, sample: ShardSample) -> list[str]:
        """What is said of a sample, tidied.

        Raises:
            UnreadableError: nothing is, or what says it is damaged.
        """
        if "txt" in sample.members:
            texts = [line for line in read_text(sample.members["txt"]).split("\n") if tidy(line)]
        else:
            entry = self._json(sample, ".txt and no ")
            texts = entry.value("captions", list)
            if wrong := [text for text in texts if not isinstance(text, str) or not tidy(text)]:
                raise entry.error(f"captions: {str(wrong[0])[:40]!r} is not a text")
        if not texts:
            raise sample.error("there is no caption in it")
        if fault := next(filter(None, map(fault_in, texts)), None):
            raise sample.error(f"a caption: {fault}")
        return [tidy(text) for text in texts]

    def _json(self, sample: ShardSample, without: str = "") -> Entry:
        if "json" not in sample.members:
            there = first_few([f".{ending}" for ending in sample.members])
            raise sample.error(f"no {without}.json in it; there are: {there}")
        return Entry.read(sample.members["json"])

    def _checked(self, label: int, sample: ShardSample) -> int:
        if not 0 <= label < self.num_classes:
            raise sample.error(f"class {label}: they are numbered from 0 to {self.num_classes - 1}")
        return label

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """All captions of the training samples; what is unreadable is left out where `on_error` is `skip`."""
        if self.target != "references":
            yield from super().texts(on_error=on_error)
        items = self.items("train", {})
        for sample in (items.sample(index) for index in range(len(items))) if items else ():
            try:
                yield from self.captions(sample)
            except UnreadableError:
                if on_error == "raise":
                    raise


class ShardItems:
    """Samples of some shards, by their numbers in these."""

    def __init__(self, source: Shards, shards: TarShards, indices: Int64[np.ndarray, " samples"], roles: Roles) -> None:
        self.source = source
        self.shards = shards
        self.indices = indices
        self.kinds = roles

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        sample = self.sample(index)
        parts = sample.parts(self.kinds)
        names = [member.name for member in parts.values()]
        id = names[0] if len(names) == 1 else sample.key
        return Item(parts, self.source.targets(sample), f"{sample.tar.relative_to(self.source.root)}/{id}")

    @cached_property
    def roles(self) -> list[str]:
        """Those of which any sample of the shards has a file."""
        return [role for role, kind in self.kinds.items() if self.shards.endings & kind.endings]

    def sample(self, index: int) -> ShardSample:
        """The files of a sample."""
        return self.shards[int(self.indices[index])]

    def classes_of(self, index: int) -> Sequence[int]:
        return self.source.classes_of(self.sample(index))

    def name_of(self, index: int) -> str:
        return self.source.name_of(self.sample(index))


def stage_tars(root: Path) -> dict[Stage, list[Path]]:
    """The tars of each stage that has any, in the order of their names.

    Raises:
        FileNotFoundError: there are none to train on.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root={root}: no such folder")
    found: dict[Stage, list[Path]] = {}
    others: list[Path] = []
    for path in sorted(root.iterdir()):
        stage = _stage_of(path.name)
        if path.is_dir() and stage and path.name.lower() in STAGE_WORDS[stage]:
            found.setdefault(stage, []).extend(tar for tar in sorted(path.iterdir()) if _is_tar(tar))
        elif _is_tar(path):
            (found.setdefault(stage, []) if stage else others).append(path)
    if others:
        names = first_few([path.name for path in others])
        log.warning("%s: ignored tars whose names begin with none of train, val and test: %s", root, names)
    if not found.get("train"):
        raise FileNotFoundError(f"root={root}: neither a train*.tar nor a folder train with tars in it")
    return {stage: tars for stage, tars in found.items() if tars}


def _is_tar(path: Path) -> bool:
    return not path.name.startswith(".") and bool(TAR.search(path.name))


def _stage_of(name: str) -> Stage | None:
    """The stage that a name begins with: `train-0.tar`, `train_0.tar` and `train`, but not `trainval-0.tar`."""
    word = re.match("[a-z]*", name.lower())
    for stage, spellings in STAGE_WORDS.items():
        if word and word[0] in spellings:
            return stage
    return None
