"""Synthetic recordings of sound events in sequence, to be written down in order; the time of every event is known.

Events are those of `sound_scenes`, one after another with pauses, over background noise. Which events a recording has
is a function of (seed, stage, index), and so is all else in validation and testing; in training it is drawn anew each
time. Recordings are of different lengths.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from perceiver.data.sources.base import Item, OnError
from perceiver.data.sources.generated import GeneratedSequences, Random
from perceiver.data.synthetic.aligned_texts import AlignmentFacts
from perceiver.data.synthetic.sound_scenes import (
    EVENTS,
    MAX_PAUSE,
    MIN_SAMPLE_RATE,
    background,
    synthesize,
    with_peak,
)
from perceiver.types import Box, Stage


class SoundSequences(GeneratedSequences):
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

    name = "sound_sequences"
    roles = ("audio",)
    stream = (1,)

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
        super().__init__(num_samples=num_samples, seed=seed)
        if sample_rate < MIN_SAMPLE_RATE:
            raise ValueError(f"sample_rate={sample_rate} must be at least {MIN_SAMPLE_RATE} Hz for all events")
        if not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths={list(lengths)} must be the least and the greatest, at least 1")
        if not MAX_PAUSE < event_seconds[0] <= event_seconds[1]:
            raise ValueError(f"event_seconds={list(event_seconds)} must ascend from more than {MAX_PAUSE}")
        if not 0.0 <= pause_seconds[0] <= pause_seconds[1]:
            raise ValueError(f"pause_seconds={list(pause_seconds)} must ascend from at least 0")
        if snr[0] > snr[1]:
            raise ValueError(f"snr={list(snr)} must ascend")
        self.sample_rate = sample_rate
        self.lengths = lengths
        self.event_seconds = event_seconds
        self.pause_seconds = pause_seconds
        self.snr = snr

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        return (self.text("train", index) for index in range(self.num_samples["train"]))

    def sample_length(self, stage: Stage, index: int) -> int:
        return len(self.labels(stage, index))

    def labels(self, stage: Stage, index: int) -> list[int]:
        """Return the events of a recording in order, as numbers of `EVENTS`; one may occur several times."""
        random = self.random(stage, index, 0)
        low, high = self.lengths
        return random.integers(len(EVENTS), size=int(random.integers(low, high + 1))).tolist()

    def text(self, stage: Stage, index: int) -> str:
        """Return the names of the events of a recording."""
        return " ".join(_name(label) for label in self.labels(stage, index))

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        labels, text, rate = self.labels(stage, index), self.text(stage, index), self.sample_rate
        targets: dict[str, Any] = {"caption": text, "references": [text]}
        sizes = [round(random.uniform(*self.event_seconds) * rate) for _ in labels]
        pauses = [round(random.uniform(*self.pause_seconds) * rate) for _ in range(len(labels) + 1)]
        scene = background(random, sum(sizes) + sum(pauses), rate)
        onset, boxes = 0, []
        for label, size, pause in zip(labels, sizes, pauses, strict=False):
            onset += pause
            scene[onset : onset + size] += synthesize(random, label, size, rate, self.snr)
            box = Box(label, "audio", {"time": (onset / rate, (onset + size) / rate)})
            boxes += [[box]] * len(_name(label).split())
            onset += size
        if stage != "train":
            targets["facts"] = AlignmentFacts(text, boxes)
        return Item({"audio": with_peak(random, scene)}, targets, self.sample_name(stage, index))


def _name(label: int) -> str:
    return list(EVENTS)[label].replace("_", " ")
