"""Base of synthetic pairs of texts with known alignment: which word of a target comes from which words of its input.

A pair is a function of (seed, stage, index). Inputs for validation and testing do not occur in training.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

from perceiver.data.sources.base import Item, OnError
from perceiver.data.sources.generated import GeneratedSequences, Random
from perceiver.tokenizer import split_words
from perceiver.types import Box, Mention, Stage

MODALITY = "text"


class AlignedPair(NamedTuple):
    """An input text and its target.

    Attributes:
        source, target: the texts.
        links: for each word of the target (`split_words` with elision), the numbers of the input's words that it
            comes from.
        group: see `perceiver.types.Sample`.
    """

    source: str
    target: str
    links: Sequence[Sequence[int]]
    group: str = ""

    @property
    def facts(self) -> "AlignmentFacts":
        """The links as boxes along the words of the input."""
        return AlignmentFacts(
            self.target,
            [[Box(0, MODALITY, {"word": (float(link), link + 1.0)}) for link in links] for links in self.links],
        )


class AlignmentFacts:
    """Where in an input the words of its target come from; a `perceiver.types.Facts`.

    A word with one box is surely linked to it, one with several possibly to each (Och & Ney 2003).

    Args:
        target: the text.
        boxes: of each of its words (`split_words` with elision).
    """

    def __init__(self, target: str, boxes: Sequence[Sequence[Box]]) -> None:
        self.words = split_words(target, elision=True)
        self.boxes = boxes

    def scores(self, text: str) -> dict[str, float]:
        return {}

    def mentions(self, text: str) -> list[Mention]:
        """Return the words of the text up to the first one that differs from the target."""
        found = []
        for number, (word, true) in enumerate(zip(split_words(text, elision=True), self.words, strict=False)):
            if word.lower() != true.lower():
                break
            found.append(Mention(number, "", list(self.boxes[number])))
        return found


class AlignedTexts(GeneratedSequences):
    """Pairs with the targets `caption`, `references`, `group`, and, except in training, `facts`.

    Args:
        num_samples: pairs of each stage; 0 for none.
        seed: of the pairs.

    Raises:
        ValueError: a number is negative.
    """

    roles = (MODALITY,)

    def __init__(self, *, num_samples: Mapping[Stage, int], seed: int) -> None:
        super().__init__(num_samples=num_samples, seed=seed, redrawn=False)

    @abstractmethod
    def draw(self, random: Random, stage: Stage) -> AlignedPair:
        """Draw a pair."""

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        return (text for pair in self.text_pairs() for text in pair)

    def text_pairs(self) -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for pair in self.training_pairs)

    @cached_property
    def training_pairs(self) -> list[AlignedPair]:
        return [self.draw(self.random("train", index, 0), "train") for index in range(self.num_samples["train"])]

    @cached_property
    def _trained(self) -> set[str]:
        return {pair.source for pair in self.training_pairs}

    def pair(self, stage: Stage, index: int) -> AlignedPair:
        """Return a pair."""
        if stage == "train":
            return self.training_pairs[index]
        pairs = (self.draw(self.random(stage, index, attempt), stage) for attempt in count())
        return next(pair for pair in pairs if pair.source not in self._trained)

    def sample_length(self, stage: Stage, index: int) -> int:
        pair = self.pair(stage, index)
        return len(pair.source) + len(pair.target)

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        pair = self.pair(stage, index)
        targets: dict[str, Any] = {"caption": pair.target, "references": [pair.target], "group": pair.group}
        if stage != "train":
            targets["facts"] = pair.facts
        return Item({MODALITY: pair.source}, targets, self.sample_name(stage, index))
