"""Samples with targets in tars, as WebDataset arranges them (`perceiver.data.sources.tar_index`).

    root/train-000000.tar …   root/val-000000.tar …   root/test-000000.tar …   or in folders: root/train/*.tar …
    root/classes.txt          one class per line; without it, classes are named by their numbers

Stages may be spelled as in `perceiver.data.sources.folders`. Without tars of its own, a share of the training samples
is held out for validation, and another for testing, by their names. Besides the files that are read, each sample has

    .cls    the number of its class                 .json   {"label": 3}, {"tags": [3, 5]} or {"captions": ["…", "…"]}
    .txt    one caption per line

Other files are ignored.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int64

from perceiver.data.files import UnreadableError, first_few
from perceiver.data.sources.base import Item, OnError, Roles, Source, classes_in, multi_hot
from perceiver.data.sources.folders import STAGE_WORDS
from perceiver.data.sources.tar_index import ShardSample, TarShards
from perceiver.data.splits import HeldOut, split_by_name
from perceiver.data.text_files import JsonEntry, normalize_spaces, read_text, text_problem
from perceiver.types import Stage

Target: TypeAlias = Literal["label", "tags", "references"]
TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst|lz4)|tgz)\Z", re.IGNORECASE)
"""The ending of a tar; a compressed one is not ignored but rejected when it is read."""

log = logging.getLogger(__name__)


class Shards(Source):
    """Samples in tars.

    Args:
        root: the folder that contains the tars.
        target: of a sample: its class (`label`), any number of classes (`tags`), or captions (`references`).
        num_classes: number of classes; 0 with captions.
        val_fraction, test_fraction: shares of the training samples for validation and testing, if there are no tars for
            it; 0 for none (`HeldOut`).
    """

    def __init__(
        self, *, root: str, target: Target, num_classes: int = 0, val_fraction: float, test_fraction: float
    ) -> None:
        if target not in ("label", "tags", "references"):
            raise ValueError(f"target={target!r} must be label, tags or references")
        if (num_classes == 0) != (target == "references"):
            raise ValueError(f"num_classes={num_classes} must be {'0' if num_classes else 'positive'} for {target=}")
        self.root = Path(root).expanduser()
        self.target = target
        super().__init__(num_classes=num_classes)
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)
        self._shards: dict[Stage, TarShards] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes.

        Raises:
            UnreadableError: a line of classes.txt is empty.
            ValueError: it does not have `num_classes` lines.
        """
        path = self.root / "classes.txt"
        if not self.num_classes or not path.is_file():
            return [str(label) for label in range(self.num_classes)]
        names = [normalize_spaces(line) for line in read_text(path).removesuffix("\n").split("\n")]
        if "" in names:
            raise UnreadableError(f"{path}: line {names.index('') + 1}: no class")
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes={self.num_classes}, but {path} has {len(names)} classes: {first_few(names)}")
        return names

    def items(self, stage: Stage, roles: Roles) -> "ShardItems | None":
        """Return the samples of a stage, or None if there are none.

        Raises:
            FileNotFoundError: there are no tars for training.
            UnreadableError: a tar is damaged.
        """
        indices = self._split.get(stage)
        if indices is None or not len(indices):
            return None
        return ShardItems(self, self._shards.get(stage) or self._shards["train"], indices, roles)

    @cached_property
    def _split(self) -> dict[Stage, Int64[np.ndarray, " samples"]]:
        """Stage -> indices of its samples in its tars, or else in the training tars."""
        self._shards = {stage: TarShards(paths) for stage, paths in stage_tars(self.root).items()}
        split = {stage: np.arange(len(shards)) for stage, shards in self._shards.items()}
        fractions: dict[Stage, float] = {"test": self.held_out.test_fraction, "val": self.held_out.val_fraction}
        if missing := {stage: share for stage, share in fractions.items() if stage not in split and share}:
            shards = self._shards["train"]
            names = [self.sample_name(shards[index]) for index in range(len(shards))]
            for stage, share in missing.items():
                rest, part = split_by_name([names[index] for index in split["train"]], share, stage)
                split[stage], split["train"] = split["train"][part], split["train"][rest]
        return split

    def sample_name(self, sample: ShardSample) -> str:
        """Return a name that identifies a sample wherever the tars are stored."""
        return f"{sample.tar.relative_to(self.root)}/{sample.key}"

    def targets(self, sample: ShardSample) -> dict[str, Any]:
        """Read the target of a sample: `label`, `tags` or `references`.

        Raises:
            UnreadableError: the file that contains it is missing or damaged.
        """
        if self.target == "references":
            return {"references": self.captions(sample)}
        if self.target == "tags":
            return {"tags": multi_hot(self._tags(sample), self.num_classes)}
        return {"label": self._label(sample)}

    def sample_classes(self, sample: ShardSample) -> Sequence[int]:
        """Return the classes of a sample; none if they cannot be read, which raises when the sample is read."""
        try:
            return () if self.target == "references" else classes_in(self.targets(sample))
        except UnreadableError:
            return ()

    def _label(self, sample: ShardSample) -> int:
        if member := sample.members.get("cls"):
            text = read_text(member).strip()
            if not re.fullmatch("[0-9]{1,18}", text):
                raise UnreadableError(f"{member}: {text[:40]!r} is not a class number")
            return self._in_range(int(text), sample)
        return self._in_range(self._json(sample, ".cls and no ").value("label", int), sample)

    def _tags(self, sample: ShardSample) -> list[int]:
        entry = self._json(sample)
        tags = entry.value("tags", list)
        if wrong := [tag for tag in tags if type(tag) is not int]:
            raise entry.error(f"tags: {str(wrong[0])[:40]!r} is not a class number")
        if len(set(tags)) < len(tags):
            raise entry.error("tags: a class appears twice")
        return [self._in_range(tag, sample) for tag in tags]

    def captions(self, sample: ShardSample) -> list[str]:
        """Read the captions of a sample, each on one line.

        Raises:
            UnreadableError: there are none, or the file that contains them is damaged.
        """
        if "txt" in sample.members:
            texts = [line for line in read_text(sample.members["txt"]).split("\n") if normalize_spaces(line)]
        else:
            entry = self._json(sample, ".txt and no ")
            texts = entry.value("captions", list)
            if wrong := [text for text in texts if not isinstance(text, str) or not normalize_spaces(text)]:
                raise entry.error(f"captions: {str(wrong[0])[:40]!r} is not a text")
        if not texts:
            raise sample.error("no captions")
        if problem := next(filter(None, map(text_problem, texts)), None):
            raise sample.error(f"a caption: {problem}")
        return [normalize_spaces(text) for text in texts]

    def _json(self, sample: ShardSample, also_missing: str = "") -> JsonEntry:
        if "json" not in sample.members:
            raise sample.error(f"no {also_missing}.json; files: {sample.endings}")
        return JsonEntry.read(sample.members["json"])

    def _in_range(self, label: int, sample: ShardSample) -> int:
        if not 0 <= label < self.num_classes:
            raise sample.error(f"class {label}: classes are numbered from 0 to {self.num_classes - 1}")
        return label

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Yield all captions of the training samples; unreadable ones are left out with `on_error` of `skip`."""
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
    """Samples of some shards, by their indices in them."""

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
        return self.shards[int(self.indices[index])]

    def sample_classes(self, index: int) -> Sequence[int]:
        return self.source.sample_classes(self.sample(index))

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(self.sample(index))


def stage_tars(root: Path) -> dict[Stage, list[Path]]:
    """Return the tars of each stage that has any, in the order of their names.

    Raises:
        FileNotFoundError: there are none for training.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root={root}: no such folder")
    found: dict[Stage, list[Path]] = {}
    others: list[Path] = []
    for path in sorted(root.iterdir()):
        stage = _stage(path.name)
        if path.is_dir() and stage and path.name.lower() in STAGE_WORDS[stage]:
            found.setdefault(stage, []).extend(tar for tar in sorted(path.iterdir()) if _is_tar(tar))
        elif _is_tar(path):
            (found.setdefault(stage, []) if stage else others).append(path)
    if others:
        names = first_few([path.name for path in others])
        log.warning("%s: ignored tars whose names do not begin with train, val or test: %s", root, names)
    if not found.get("train"):
        raise FileNotFoundError(f"root={root}: neither a train*.tar nor a folder train with tars")
    return {stage: tars for stage, tars in found.items() if tars}


def _is_tar(path: Path) -> bool:
    return not path.name.startswith(".") and bool(TAR.search(path.name))


def _stage(name: str) -> Stage | None:
    """Return the stage that a name begins with: `train-0.tar`, `train_0.tar` and `train`, but not `trainval-0.tar`."""
    word = re.match("[a-z]*", name.lower())
    return next((stage for stage, spellings in STAGE_WORDS.items() if word and word[0] in spellings), None)
