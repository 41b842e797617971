"""Scenes of overlapping sounds, made as they are asked for: twelve kinds of event over background noise.

A scene has 1 to `max_events` events at random onset, duration, level and pitch, of which onset, offset and frequency
band are known (`boxes`). Which kinds of event a scene has is a function of (seed, stage, index). All else about it is
too in validation and testing; in training it is drawn anew every time. Precedents: scaper (Salamon et al. 2017), DESED.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.data.sources.base import Item, Roles, Source, multi_hot
from perceiver.data.synthetic.sound_events import (
    EVENTS,
    LEAST_RATE,
    LONGEST_PAUSE,
    Random,
    Wave,
    background,
    band,
    faded,
)
from perceiver.types import Box, Stage

PEAK_LEVEL = (-30.0, -3.0)
"""Of a scene, in dB of full scale."""
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class SoundScenes(Source):
    """Made-up scenes; a scene is a sample with the targets `tags` and `boxes`.

    Args:
        num_classes: the first so many kinds of event, in alphabetical order.
        sample_rate: of the sounds, in Hz.
        num_samples: scenes of each stage; 0 for none.
        scene_seconds: length of a scene.
        max_events: most events in a scene.
        event_seconds: shortest and longest event.
        snr: least and greatest level of an event against the background, in dB.
        seed: of the scenes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        sample_rate: int,
        num_samples: Mapping[Stage, int],
        scene_seconds: float,
        max_events: int,
        event_seconds: tuple[float, float],
        snr: tuple[float, float],
        seed: int,
    ) -> None:
        if not 2 <= num_classes <= len(EVENTS):
            raise ValueError(f"num_classes={num_classes}: there are 2 to {len(EVENTS)} kinds of event")
        if not 1 <= max_events <= num_classes:
            raise ValueError(f"max_events={max_events} must be 1 to num_classes={num_classes}")
        if not LONGEST_PAUSE < event_seconds[0] <= event_seconds[1] <= scene_seconds:
            raise ValueError(
                f"event_seconds={list(event_seconds)} must ascend from more than {LONGEST_PAUSE} "
                f"to at most scene_seconds={scene_seconds}"
            )
        if snr[0] > snr[1]:
            raise ValueError(f"snr={list(snr)} must ascend")
        if min(num_samples.values()) < 0:
            raise ValueError(f"num_samples={dict(num_samples)} must be at least 0")
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        if sample_rate < LEAST_RATE:
            raise ValueError(f"sample_rate={sample_rate}: the events need at least {LEAST_RATE} Hz")
        super().__init__(num_classes=num_classes)
        self.sample_rate = sample_rate
        self.num_samples = num_samples
        self.scene_seconds = scene_seconds
        self.max_events = max_events
        self.event_seconds = event_seconds
        self.snr = snr
        self.seed = seed

    @property
    def class_names(self) -> list[str]:
        return [event.__name__ for event in EVENTS[: self.num_classes]]

    def items(self, stage: Stage, roles: Roles) -> "SceneItems | None":
        return SceneItems(self, stage) if self.num_samples[stage] else None


@dataclass(frozen=True)
class _Event:
    """What sounds in a scene, from which sample on."""

    label: int
    onset: int
    wave: Wave


class SceneItems:
    """The scenes of one stage."""

    roles = ("audio",)

    def __init__(self, scenes: SoundScenes, stage: Stage) -> None:
        self.scenes = scenes
        self.stage = stage

    def __len__(self) -> int:
        return self.scenes.num_samples[self.stage]

    def classes_of(self, index: int) -> Sequence[int]:
        random = self._random(index, 0)
        count = int(random.integers(1, self.scenes.max_events + 1))
        return sorted(random.choice(self.scenes.num_classes, count, replace=False).tolist())

    def name_of(self, index: int) -> str:
        return f"sound_scenes/{self.stage}/{index}"

    def __getitem__(self, index: int) -> Item:
        labels, id = self.classes_of(index), self.name_of(index)
        tags = multi_hot(labels, self.scenes.num_classes)
        if self.stage == "train":  # torch's generator is seeded by (seed, epoch, index); nothing is trained on boxes
            wave, _ = self._scene(self._random(index, 1, int(torch.randint(2**62, ()))), labels)
            return Item({"audio": wave}, {"tags": tags}, id)
        wave, events = self._scene(self._random(index, 1), labels)
        return Item({"audio": wave}, {"tags": tags, "boxes": [self._box(event) for event in events]}, id)

    def _random(self, index: int, *more: int) -> Random:
        return np.random.default_rng([self.scenes.seed, STAGES.index(self.stage), index, *more])

    def _scene(self, random: Random, labels: Sequence[int]) -> tuple[Float[Tensor, "1 length"], list[_Event]]:
        rate = self.scenes.sample_rate
        length = round(self.scenes.scene_seconds * rate)
        scene, events = background(random, length, rate), []
        for label in labels:
            low, high = self.scenes.event_seconds
            size = min(round(random.uniform(low, high) * rate), length)
            wave = faded(EVENTS[label](random, size, rate), rate)
            wave *= 10 ** (random.uniform(*self.scenes.snr) / 20) / np.sqrt(np.mean(wave**2))
            onset = int(random.integers(length - size + 1))
            scene[onset : onset + size] += wave
            events.append(_Event(label, onset, wave))
        peak = 10 ** (random.uniform(*PEAK_LEVEL) / 20)
        return torch.from_numpy((scene * (peak / np.abs(scene).max())).astype(np.float32))[None], events

    def _box(self, event: _Event) -> Box:
        rate = self.scenes.sample_rate
        times = (event.onset / rate, (event.onset + len(event.wave)) / rate)
        return Box(event.label, "audio", {"time": times, "frequency": band(event.wave, rate)})
