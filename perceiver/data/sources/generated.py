"""Sources whose samples are generated: each is a function of (seed, stage, index), in training drawn anew each time."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import torch

from perceiver.data.sources.base import Item, Roles, Source
from perceiver.types import STAGES, Stage

Random: TypeAlias = np.random.Generator


class GeneratedSource(Source):
    """Base of sources that generate their samples.

    Args:
        num_samples: samples of each stage; 0 for none.
        seed: of the samples.
        num_classes: see `Source`.
        redrawn: whether training samples are drawn anew in each epoch.
    """

    name: ClassVar[str]
    """First part of the ids of samples."""
    roles: ClassVar[Sequence[str]]
    """Parts of every sample."""
    stream: ClassVar[Sequence[int]] = ()
    """Distinguishes the random numbers of `item` from others that the source draws for the same sample."""

    def __init__(
        self, *, num_samples: Mapping[Stage, int], seed: int, num_classes: int = 0, redrawn: bool = True
    ) -> None:
        super().__init__(num_classes=num_classes)
        if min(num_samples.values()) < 0:
            raise ValueError(f"num_samples={dict(num_samples)} must be at least 0")
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        self.num_samples = num_samples
        self.seed = seed
        self.redrawn = redrawn

    def items(self, stage: Stage, roles: Roles) -> "GeneratedItems | None":
        return GeneratedItems(self, stage) if self.num_samples[stage] else None

    def random(self, stage: Stage, index: int, *more: int) -> Random:
        return np.random.default_rng([self.seed, STAGES.index(stage), index, *more])

    @abstractmethod
    def item(self, stage: Stage, index: int, random: Random) -> Item:
        """Draw a sample."""

    def sample_classes(self, stage: Stage, index: int) -> Sequence[int]:
        """Return the classes of a sample without drawing it."""
        return ()

    def sample_name(self, stage: Stage, index: int) -> str:
        return f"{self.name}/{stage}/{index}"


class GeneratedSequences(GeneratedSource):
    """Base of sources whose samples differ in length, which is known without drawing them."""

    def items(self, stage: Stage, roles: Roles) -> "SequenceItems | None":
        return SequenceItems(self, stage) if self.num_samples[stage] else None

    @abstractmethod
    def sample_length(self, stage: Stage, index: int) -> int:
        """Return the length of a sample, in any unit."""


class GeneratedItems:
    """The samples of one stage.

    Attributes:
        redrawn: whether a sample differs each time, by torch's generator, which is seeded by (seed, epoch, index).
    """

    def __init__(self, source: GeneratedSource, stage: Stage) -> None:
        self.source = source
        self.stage = stage
        self.roles = source.roles
        self.redrawn = stage == "train" and source.redrawn

    def __len__(self) -> int:
        return self.source.num_samples[self.stage]

    def sample_classes(self, index: int) -> Sequence[int]:
        return self.source.sample_classes(self.stage, index)

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(self.stage, index)

    def __getitem__(self, index: int) -> Item:
        anew = [int(torch.randint(2**62, ()))] if self.redrawn else []
        return self.source.item(self.stage, index, self.source.random(self.stage, index, *self.source.stream, *anew))


class SequenceItems(GeneratedItems):
    """The samples of one stage, with their lengths."""

    def __init__(self, source: GeneratedSequences, stage: Stage) -> None:
        super().__init__(source, stage)
        self.sequences = source

    def sample_length(self, index: int) -> int:
        return self.sequences.sample_length(self.stage, index)
