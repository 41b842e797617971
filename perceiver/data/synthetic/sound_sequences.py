"""Synthetic recordings of sound events in sequence, to be written down in order; the time of every event is known.

Events are those of `sound_scenes`, one after another with pauses, over background noise. Which events a recording has
is a function of (seed, stage, index), and so is all else in validation and testing; in training it is drawn anew each
time. Recordings are of different lengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from perceiver.data.sources.base import Item, OnError, Roles, Source
from perceiver.data.synthetic.aligned_texts import AlignmentFacts
from perceiver.data.synthetic.sound_scenes import (
    EVENTS,
    MAX_PAUSE,
    MIN_SAMPLE_RATE,
    Random,
    background,
    synthesize,
    with_peak,
)
from perceiver.types import STAGES, Box, Stage


class SoundSequences(Source):
    """Recordings with the targets `caption`, `references` and, except in training, `facts`: the names of the events.

    Args:
        sample_rate: in Hz.
        num_samples: recordings of each stage; 0 for none.
        lengths: least and greatest number of events.
        event_seconds: shortest and longest event.
        pause_seconds: shortest and longest pause before, between and after events.
        snr: least and greatest level of an event relative to the background, in dB.
        seed: of the recordings.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        num_samples: Mapping[Stage, int],
        lengths: tuple[int, int],
        event_seconds: tuple[float, float],
        pause_seconds: tuple[float, float],
        snr: tuple[float, float],
        seed: int,
    ) -> None:
        super().__init__()
        if sample_rate < MIN_SAMPLE_RATE:
            raise ValueError(f"sample_rate={sample_rate} must be at least {MIN_SAMPLE_RATE} Hz for all events")
        if min(num_samples.values()) < 0:
            raise ValueError(f"num_samples={dict(num_samples)} must be at least 0")
        if not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths={list(lengths)} must be the least and the greatest, at least 1")
        if not MAX_PAUSE < event_seconds[0] <= event_seconds[1]:
            raise ValueError(f"event_seconds={list(event_seconds)} must ascend from more than {MAX_PAUSE}")
        if not 0.0 <= pause_seconds[0] <= pause_seconds[1]:
            raise ValueError(f"pause_seconds={list(pause_seconds)} must ascend from at least 0")
        if snr[0] > snr[1]:
            raise ValueError(f"snr={list(snr)} must ascend")
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        self.sample_rate = sample_rate
        self.num_samples = num_samples
        self.lengths = lengths
        self.event_seconds = event_seconds
        self.pause_seconds = pause_seconds
        self.snr = snr
        self.seed = seed

    def items(self, stage: Stage, roles: Roles) -> "SequenceItems | None":
        return SequenceItems(self, stage) if self.num_samples[stage] else None

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        train = SequenceItems(self, "train")
        return (train.text(index) for index in range(len(train)))


class SequenceItems:
    """The recordings of one stage."""

    roles = ("audio",)

    def __init__(self, source: SoundSequences, stage: Stage) -> None:
        self.source = source
        self.stage: Stage = stage

    def __len__(self) -> int:
        return self.source.num_samples[self.stage]

    def sample_classes(self, index: int) -> Sequence[int]:
        return ()

    def sample_length(self, index: int) -> int:
        return len(self.labels(index))

    def sample_name(self, index: int) -> str:
        return f"sound_sequences/{self.stage}/{index}"

    def labels(self, index: int) -> list[int]:
        """Return the events of a recording in order, as numbers of `EVENTS`; one may occur several times."""
        random = self._random(index, 0)
        low, high = self.source.lengths
        return random.integers(len(EVENTS), size=int(random.integers(low, high + 1))).tolist()

    def text(self, index: int) -> str:
        """Return the names of the events of a recording."""
        return " ".join(_name(label) for label in self.labels(index))

    def __getitem__(self, index: int) -> Item:
        labels, text = self.labels(index), self.text(index)
        targets: dict[str, Any] = {"caption": text, "references": [text]}
        # torch's generator is seeded by (seed, epoch, index).
        drawn = [int(torch.randint(2**62, ()))] if self.stage == "train" else []
        random, rate = self._random(index, 1, *drawn), self.source.sample_rate
        sizes = [round(random.uniform(*self.source.event_seconds) * rate) for _ in labels]
        pauses = [round(random.uniform(*self.source.pause_seconds) * rate) for _ in range(len(labels) + 1)]
        scene = background(random, sum(sizes) + sum(pauses), rate)
        onset, boxes = 0, []
        for label, size, pause in zip(labels, sizes, pauses, strict=False):
            onset += pause
            scene[onset : onset + size] += synthesize(random, label, size, rate, self.source.snr)
            box = Box(label, "audio", {"time": (onset / rate, (onset + size) / rate)})
            boxes += [[box]] * len(_name(label).split())
            onset += size
        if self.stage != "train":
            targets["facts"] = AlignmentFacts(text, boxes)
        return Item({"audio": with_peak(random, scene)}, targets, self.sample_name(index))

    def _random(self, index: int, *more: int) -> Random:
        return np.random.default_rng([self.source.seed, STAGES.index(self.stage), index, *more])


def _name(label: int) -> str:
    return list(EVENTS)[label].replace("_", " ")
