"""What sources of captions share: files, of each of which several texts say what is in it."""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perceiver.data.files import UnreadableError
from perceiver.data.sources.base import FileItems, OnError, Roles, Source
from perceiver.data.text_checks import fault_in, first_few, tidy
from perceiver.types import Stage

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


class CaptionedFiles(Source):
    """Files with captions.

    Args:
        root: the folder that everything is in.

    Attributes:
        role: of the files.
    """

    role = "image"

    def __init__(self, *, root: str) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self._captions: dict[Stage, Captions | None] = {}
        self._paths: dict[Stage, set[str]] = {}

    @abstractmethod
    def read_captions(self, stage: Stage) -> Captions | None:
        """The files of a stage, as they are listed on disk; None where they are not. Asked once."""

    def captions(self, stage: Stage) -> Captions | None:
        """The files of a stage, or None if it has none; errors as in `items`."""
        if stage not in self._captions:
            found = self.read_captions(stage)
            self._captions[stage] = found if found and found.references else None
        return self._captions[stage]

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """All captions of the training files, for a tokenizer to learn from; none of the files is opened."""
        captions = self.captions("train")
        return (text for texts in captions.references.values() for text in texts) if captions else iter(())

    def items(self, stage: Stage, roles: Roles) -> FileItems | None:
        """The files of a stage; one that is missing is found out when it is read.

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
        return FileItems(root=self.root, files={self.role: paths}, references=list(captions.references.values()))

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
