"""Recordings of speech with transcripts: LibriSpeech, LJSpeech, and spoken digits that are joined to strings.

Each class documents the files it reads; anything in the same layout is read, too.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from perceiver.data.files import Joined, first_few
from perceiver.data.sources.base import Item, OnError, Roles
from perceiver.data.sources.captions import CaptionedFiles, Captions, clean_captions
from perceiver.data.sources.generated import GeneratedSequences, Random, SequenceItems
from perceiver.data.splits import HeldOut
from perceiver.data.text_files import Row, read_text
from perceiver.types import STAGES, Stage

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDING = re.compile(r"(?P<digit>[0-9])_(?P<speaker>.+)_(?P<index>[0-9]+)\.wav")


class LibriSpeech(CaptionedFiles):
    """LibriSpeech (Panayotov et al. 2015): a thousand hours of read English, in subsets.

        root/<subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt   lines of "<file> <TRANSCRIPT>"
                                          <file>.flac                     also below root/LibriSpeech

    Args:
        root: the folder that contains the subsets.
        subsets: those of each stage; none for a stage without samples.
    """

    role = "audio"
    folders = (".", "LibriSpeech")

    def __init__(self, *, root: str, subsets: Mapping[Stage, Sequence[str]]) -> None:
        super().__init__(root=root)
        self.subsets = subsets

    def read_captions(self, stage: Stage) -> Captions | None:
        listed: dict[str, list[str]] = {}
        for subset in self.subsets[stage]:
            folder = self.find_one([subset], self.folders)
            for table in sorted(folder.glob("*/*/*.trans.txt")):
                for row in _lines(table, " ", 2):
                    path = table.parent / f"{row.file_name('0')}.flac"
                    listed[str(path.relative_to(folder.parent))] = [row["1"]]
        return Captions(folder, clean_captions(folder, listed), self.folders) if self.subsets[stage] else None


class LJSpeech(CaptionedFiles):
    """LJSpeech 1.1 (Ito & Johnson 2017): 13 100 sentences read by one speaker, without splits of its own.

        root/metadata.csv    lines of <file>|<transcript>|<the same with numbers and abbreviations as words>
        root/wavs/<file>.wav

    Args:
        root: the folder that contains both.
        held_out: the samples for validation and testing.
    """

    role = "audio"

    def __init__(self, *, root: str, held_out: HeldOut) -> None:
        super().__init__(root=root)
        self.held_out = held_out

    def read_captions(self, stage: Stage) -> Captions:
        return Captions(self.root / "metadata.csv", self._split[stage], ("wavs", "."))

    @cached_property
    def _split(self) -> dict[Stage, dict[str, list[str]]]:
        table = self.root / "metadata.csv"
        listed = {
            f"{row.file_name('0')}.wav": [row.cells.get("2", "").strip() or row["1"]] for row in _lines(table, "|", 2)
        }
        references = clean_captions(table, listed)
        names = sorted(references)
        split = self.held_out.split(names)
        return {stage: {names[index]: references[names[index]] for index in split[stage]} for stage in STAGES}


def _lines(table: Path, separator: str, num_cells: int) -> Iterator[Row]:
    """Yield the lines of a file whose cells `0`, `1`, … are separated without quotes; the first is unique.

    Raises:
        UnreadableError: a line has fewer cells, or its first is that of another one.
    """
    seen: set[str] = set()
    for number, line in enumerate(read_text(table).split("\n"), start=1):
        if line.strip():
            cells = line.split(separator, 1 if separator == " " else -1)
            row = Row(table, number, {str(place): cell for place, cell in enumerate(cells)})
            if len(cells) < num_cells or not cells[0]:
                raise row.error(f"{line[:80]!r} is not a file name and a text with {separator!r} between them")
            if cells[0] in seen:
                raise row.error(f"{cells[0]!r} appears twice")
            seen.add(cells[0])
            yield row


class DigitStrings(GeneratedSequences):
    """Strings of spoken digits, joined from the recordings of the Free Spoken Digit Dataset (Jackson et al. 2018).

        root/<digit>_<speaker>_<index>.wav     or in root/recordings

    All digits of a string are by one speaker. Strings for training are drawn anew in each epoch; those for validation
    and testing are a function of (seed, stage, index). Targets are `caption` and `references`, the digits in words.

    Args:
        root: the folder of the recordings.
        num_samples: strings of each stage; 0 for none.
        lengths: least and greatest number of digits.
        pause_seconds: shortest and longest silence before, between and after digits.
        val_indices, test_indices: recordings of each digit and speaker that are only validated and only tested on.
        test_speakers: the only speakers who are tested, with all their recordings, and not trained on; None for all.
        seed: of the strings.

    Raises:
        ValueError: a value is out of range, or an index is used for both validation and testing.
    """

    name = "digit_strings"
    roles = ("audio",)
    stream = (1,)

    def __init__(
        self,
        *,
        root: str,
        num_samples: Mapping[Stage, int],
        lengths: tuple[int, int],
        pause_seconds: tuple[float, float],
        val_indices: Sequence[int],
        test_indices: Sequence[int],
        test_speakers: Sequence[str] | None,
        seed: int,
    ) -> None:
        super().__init__(num_samples=num_samples, seed=seed)
        if not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths={list(lengths)} must be the least and the greatest, at least 1")
        if not 0.0 <= pause_seconds[0] <= pause_seconds[1]:
            raise ValueError(f"pause_seconds={list(pause_seconds)} must ascend from at least 0")
        if both := sorted({*val_indices} & {*test_indices}):
            raise ValueError(f"val_indices={list(val_indices)}: {both[0]} is also one of test_indices")
        self.root = Path(root).expanduser()
        self.lengths = lengths
        self.pause_seconds = pause_seconds
        self.indices: dict[Stage, frozenset[int]] = {"val": frozenset(val_indices), "test": frozenset(test_indices)}
        self.test_speakers = test_speakers
        self.speakers: dict[Stage, dict[str, list[list[Path]]]] = {}

    def items(self, stage: Stage, roles: Roles) -> "SequenceItems | None":
        """Return the strings of a stage.

        Raises:
            FileNotFoundError: there are no recordings.
            ValueError: a speaker lacks a digit among the recordings of the stage, or there is no speaker.
        """
        if self.num_samples[stage]:
            self.speakers[stage] = self._find_speakers(stage)
        return super().items(stage, roles)

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Return the longest string of each digit alone."""
        return (" ".join([name] * self.lengths[1]) for name in DIGITS)

    @cached_property
    def _recordings(self) -> list[tuple[Path, re.Match[str]]]:
        folder = self.root / "recordings" if (self.root / "recordings").is_dir() else self.root
        found = [(path, RECORDING.fullmatch(path.name)) for path in sorted(folder.glob("*.wav"))]
        matched = [(path, match) for path, match in found if match is not None]
        if not matched:
            raise FileNotFoundError(f"root={self.root}: no recordings named <digit>_<speaker>_<index>.wav")
        return matched

    def _find_speakers(self, stage: Stage) -> dict[str, list[list[Path]]]:
        """Return speaker -> recordings of each digit in a stage; raises as `items`."""
        speakers = sorted({match["speaker"] for _, match in self._recordings})
        tested = speakers if self.test_speakers is None else list(self.test_speakers)
        if unknown := [name for name in tested if name not in speakers]:
            raise ValueError(f"test_speakers: no recordings by {unknown[0]!r}; there are {first_few(speakers)}")
        found: dict[str, list[list[Path]]] = {}
        for path, match in self._recordings:
            speaker, index = match["speaker"], int(match["index"])
            kept = next((name for name, indices in self.indices.items() if index in indices), "train")
            if self.test_speakers is None:
                is_in = kept == stage
            elif speaker in tested:
                is_in = stage == "test"
            else:  # recordings that would be tested are free
                is_in = stage == ("val" if kept == "val" else "train")
            if is_in:
                found.setdefault(speaker, [[] for _ in DIGITS])[int(match["digit"])].append(path)
        if not found:
            raise ValueError(
                f"root={self.root}: no recordings for {stage}: set val_indices, test_indices or test_speakers"
            )
        for speaker, by_digit in found.items():
            if lacking := [str(digit) for digit, paths in enumerate(by_digit) if not paths]:
                raise ValueError(f"root={self.root}: no recordings by {speaker} for {stage} of {first_few(lacking)}")
        return found

    def sample_length(self, stage: Stage, index: int) -> int:
        return int(self.random(stage, index, 0).integers(self.lengths[0], self.lengths[1] + 1))

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        length = self.sample_length(stage, index)
        by_digit = list(self.speakers[stage].values())[random.integers(len(self.speakers[stage]))]
        digits = random.integers(len(DIGITS), size=length).tolist()
        files = [by_digit[digit][random.integers(len(by_digit[digit]))] for digit in digits]
        pauses = random.uniform(*self.pause_seconds, size=length + 1).tolist()
        text = " ".join(DIGITS[digit] for digit in digits)
        parts = {"audio": Joined(tuple(files), tuple(pauses))}
        return Item(parts, {"caption": text, "references": [text]}, self.sample_name(stage, index))
