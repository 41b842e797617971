"""What data sets of captions share: files, of each of which several texts say what is in it."""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perceiver.data.base import FileDataset, FileSplit, OnError, Split, UnreadableError
from perceiver.data.characters import fault_in
from perceiver.data.folders import first_few
from perceiver.data.image_augment import ImageAugment
from perceiver.data.images import ImageDataset
from perceiver.types import Sample, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """The files of a split and what is said of each.

    Attributes:
        table: the file that lists them.
        references: name of a file -> its captions (see `references_in`).
        folders: those below the root that the files may be in; it is the first one that has any of them.
    """

    table: Path
    references: Mapping[str, Sequence[str]]
    folders: Sequence[str]


class CaptionDataset(FileDataset):
    """Files with captions; a base that comes before the one for what is in the files.

    Args:
        root: the folder that everything is in.
        options: keywords of the other base.
    """

    def __init__(self, *, root: str, **options: Any) -> None:
        super().__init__(num_classes=0, **options)
        self.root = Path(root).expanduser()
        self._captions: dict[Stage, Captions | None] = {}
        self._paths: dict[Stage, set[str]] = {}

    @property
    def class_names(self) -> list[str]:
        return []

    @abstractmethod
    def read_captions(self, stage: Stage) -> Captions | None:
        """The files of a stage, as they are listed on disk; None where they are not. Asked once."""

    def captions(self, stage: Stage) -> Captions | None:
        """The files of a stage, or None if it has none; errors as in `split`."""
        if stage not in self._captions:
            found = self.read_captions(stage)
            self._captions[stage] = found if found and found.references else None
        return self._captions[stage]

    def texts(self) -> Iterator[str]:
        """All captions of the training files, for a tokenizer to learn from; none of the files is opened."""
        captions = self.captions("train")
        return (text for texts in captions.references.values() for text in texts) if captions else iter(())

    def split(self, stage: Stage) -> Split | None:
        """The files of a stage, or None if it has none; one that is missing is found out when it is read.

        Raises:
            FileNotFoundError: what lists them is missing, or all of them are.
            UnreadableError: what lists them is damaged, or lists one that another stage has, too.
        """
        captions = self.captions(stage)
        if captions is None:
            return None
        folder = self._folder_of(captions)
        paths = [os.path.join(folder, name) for name in captions.references]
        for other, there in self._paths.items():
            if other != stage and (both := [path for path in paths if path in there]):
                raise UnreadableError(f"{captions.table}: {both[0]} is for {stage}, but it is for {other}, too")
        self._paths[stage] = set(paths)
        return CaptionedFiles(self, paths, list(captions.references.values()), train=stage == "train")

    def find(self, names: Sequence[str], folders: Sequence[str]) -> list[Path]:
        """The files of some names that are there, each in the first of some folders that has it."""
        places = [[self.root / folder / name for folder in folders] for name in names]
        return [found for paths in places if (found := next(filter(os.path.lexists, paths), None))]

    def not_found(self, names: Sequence[str], folders: Sequence[str]) -> FileNotFoundError:
        """That none of them is there, to be raised."""
        below = ", ".join(folder for folder in folders if folder != ".")
        return FileNotFoundError(f"root={self.root}: there is no {' or '.join(names)} in it, nor in {below}")

    def _folder_of(self, captions: Captions) -> Path:
        names = captions.references.keys()
        parents = {os.path.dirname(name) for name in names}
        for folder in (self.root / folder for folder in captions.folders):
            listed = ((parent, os.listdir(folder / parent)) for parent in parents if (folder / parent).is_dir())
            if any(os.path.join(parent, name) in names for parent, found in listed for name in found):
                return folder
        missing = f"none of the {len(names)} files of {captions.table} is in it"
        raise FileNotFoundError(f"root={self.root}: {missing}; looked in {', '.join(captions.folders)}")


class ImageCaptions(CaptionDataset, ImageDataset):
    """Images with captions: the base of all data sets of them.

    Args:
        root: the folder that everything is in.
        on_error, image_size, channels, augment, max_value: see `ImageDataset`.
    """

    def __init__(
        self,
        *,
        root: str,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        max_value: float | None = None,
    ) -> None:
        super().__init__(
            root=root, on_error=on_error, image_size=image_size, channels=channels, augment=augment, max_value=max_value
        )


class CaptionedFiles(FileSplit):
    """A split of files on disk. In training the captions of a file come in random order; the first is learned."""

    def __init__(
        self, dataset: CaptionDataset, paths: Sequence[str], references: Sequence[Sequence[str]], *, train: bool
    ) -> None:
        self.dataset = dataset
        self.paths = paths
        self.references = references
        self.train = train

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path, targets = self.file(index)
        targets = with_caption(targets, train=self.train)
        return self.dataset.file_sample(path, targets, self.name_of(index), train=self.train)

    def file(self, index: int) -> tuple[Path, dict[str, Any]]:
        return Path(self.paths[index]), {"references": list(self.references[index])}

    def classes_of(self, index: int) -> Sequence[int]:
        return ()

    def name_of(self, index: int) -> str:
        return str(Path(self.paths[index]).relative_to(self.dataset.root))


def with_caption(targets: dict[str, Any], *, train: bool) -> dict[str, Any]:
    """Targets with their references, in training in random order, and the first of them as the caption."""
    texts = targets["references"]
    if train:
        texts = [texts[place] for place in torch.randperm(len(texts)).tolist()]
    return {**targets, "caption": texts[0], "references": texts}


def references_in(table: Path, listed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Files and their captions, tidied; those without any are left out, and warned of.

    Raises:
        UnreadableError: none has any, or one is no text.
    """
    if not listed:
        raise UnreadableError(f"{table}: there is no file in it")
    for name, texts in listed.items():
        if fault := next(filter(None, map(fault_in, texts)), None):
            raise UnreadableError(f"{table}: a caption of {name}: {fault}")
    tidied = {name: [text for text in map(tidy, texts) if text] for name, texts in listed.items()}
    without = [name for name, texts in tidied.items() if not texts]
    if without and len(without) == len(tidied):
        raise UnreadableError(f"{table}: there is no caption of any file in it: {first_few(without)}")
    if without:
        log.warning("%s: left out %d of %d without a caption: %s", table, len(without), len(tidied), first_few(without))
    return {name: texts for name, texts in tidied.items() if texts}


def tidy(text: str) -> str:
    """A text in one line, with single spaces."""
    return " ".join(text.split())
