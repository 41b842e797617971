"""Videos of bouncing shapes, one of which is heard: each of its bounces makes a sound. Which one?

Only the times of sounds and bounces relate the two modalities, so that neither answers the question by itself: all
shapes bounce equally often, any two of them at the same time in at most half of their bounces, and the one that is
heard is chosen after the bounces, so that the video does not depend on it. There are further sounds of the same timbre
while the shape does not bounce (decoys), which never complete the bounces of another shape, and sounds of another
timbre (distractors). With `cue="either"`, one modality suffices: only the heard shape moves, and its pitch depends on
its color.

The color that is heard is a function of (seed, stage, index), and so is the whole scene in validation and testing; in
training all else is drawn anew each time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from perceiver.data.sources.base import Item
from perceiver.data.sources.generated import GeneratedSource, Random
from perceiver.data.synthetic.noise import normal
from perceiver.types import Box, Stage

COLORS = {
    "red": (0.90, 0.20, 0.20),
    "green": (0.20, 0.80, 0.25),
    "blue": (0.25, 0.40, 1.00),
    "yellow": (0.95, 0.85, 0.20),
    "magenta": (0.85, 0.30, 0.90),
    "cyan": (0.20, 0.85, 0.90),
}
Norm: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
NORMS: dict[str, Norm] = {
    "disc": lambda x, y: np.sqrt(x * x + y * y),  # in a third of the time of np.hypot
    "square": np.maximum,
    "diamond": np.add,
}
"""Name of a shape -> the norm of which it is the unit ball, as a function of absolute values."""
RADIUS = 0.11
"""Radius of a shape as a fraction of the image's side."""
ONSET = (0.05, 0.25)
"""Range of the onset of a sound after the start of its frame, as a fraction of the frame's duration."""
MAX_DECAYS = 25.0
"""Length of a sound in times of its decay to 1/e: at its end it is below the rounding of float32."""
BLOCK = 128
"""Samples of a tone that are computed at a time."""
GAPS = (3, 5)
"""Least and greatest number of frames from one bounce of a shape to the next."""
Vector: TypeAlias = Float[np.ndarray, " strokes"]
Cue: TypeAlias = Literal["timing", "either"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Sizes of a video and its sound.

    Attributes:
        seconds: length.
        frames_per_second, image_size: of the video, with square frames.
        sample_rate: of the sound, in Hz.
    """

    seconds: float
    frames_per_second: float
    image_size: int
    sample_rate: int

    def __post_init__(self) -> None:
        if self.frames_per_second <= 0:
            raise ValueError(f"frames_per_second={self.frames_per_second} must be more than 0")
        if self.num_frames <= GAPS[1]:
            frames = f"{self.num_frames} frames, of which more than {GAPS[1]} are needed"
            raise ValueError(f"seconds={self.seconds} at frames_per_second={self.frames_per_second} are {frames}")
        for name, least in (("image_size", 8), ("sample_rate", 4000)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.frames_per_second)

    @property
    def frame_length(self) -> int:
        """Samples of sound per frame."""
        return round(self.sample_rate / self.frames_per_second)


@dataclass(frozen=True, kw_only=True)
class SoundTrack:
    """What is heard besides the bounces, and when.

    Attributes:
        num_decoys: sounds of the timbre of the heard shape without a bounce of it.
        num_distractors: sounds of another timbre.
        delay: of all sounds, in frames: with any, times no longer tell which shape is heard.
    """

    num_decoys: int
    num_distractors: int
    delay: int


@dataclass(frozen=True)
class Stroke:
    """A sound: its frame, frequency in Hz, decay to 1/e in seconds, and amplitude."""

    frame: int
    frequency: float
    decay: float
    amplitude: float


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        colors, shapes: names, one per shape.
        centers: x and y of each shape in each frame, as fractions of the image's side.
        bounces: frames in which each shape bounces.
        heard: index of the shape that is heard.
        strokes: all sounds.
    """

    colors: Sequence[str]
    shapes: Sequence[str]
    centers: Float[np.ndarray, "shapes frames 2"]
    bounces: Int[np.ndarray, "shapes bounces"]
    heard: int
    strokes: Sequence[Stroke]


def damped_tones(
    amplitude: Vector, frequency: Vector, decay: Vector, phase: Vector, *, max_length: int, rate: int
) -> Float32[np.ndarray, "strokes length"]:
    """Return amplitude · exp(-t / decay) · sin(2π · frequency · t + phase) for several strokes, until all have decayed.

    This is the imaginary part of a power of e, and a power at any time is a product of two: of a multiple of `BLOCK`
    samples and of less than a block. Both are few, and all products are a product of matrices.
    """
    exponent = ((2j * np.pi * frequency - 1.0 / decay) / rate)[:, None]
    length = min(round(MAX_DECAYS * decay.max() * rate), max_length)
    start = (amplitude * np.exp(1j * phase))[:, None]
    blocks = (start * np.exp(exponent * np.arange(0, length, BLOCK))).astype(np.complex64)
    rest = np.exp(exponent * np.arange(BLOCK)).astype(np.complex64)
    columns, rows = np.stack([blocks.imag, blocks.real], axis=-1), np.stack([rest.real, rest.imag], axis=1)
    return (columns @ rows).reshape(len(frequency), -1)[:, :length]


class BouncingScenes(GeneratedSource):
    """Videos with sound, with the target `label`, the color that is heard, and, except in training, `boxes`.

    Boxes are those of the heard shape in each frame of the `video`, and the times of its sounds in `audio`.

    Args:
        clip: sizes of the video and its sound.
        num_classes: the first so many colors.
        num_samples: scenes of each stage; 0 for none.
        num_shapes: shapes in a scene, of different colors.
        num_bounces: least and greatest number of bounces of each shape.
        sound_track: what is heard besides the bounces.
        cue: from what the answer follows: `timing`, which needs both modalities, or `either` of them.
        seed: of the scenes.
    """

    name = "bouncing_scenes"
    roles = ("video", "audio")
    stream = (1,)

    def __init__(
        self,
        *,
        clip: Clip,
        num_classes: int,
        num_samples: Mapping[Stage, int],
        num_shapes: int,
        num_bounces: tuple[int, int],
        sound_track: SoundTrack,
        cue: Cue,
        seed: int,
    ) -> None:
        if not 2 <= num_classes <= len(COLORS):
            raise ValueError(f"num_classes={num_classes} must be 2 to {len(COLORS)}")
        if not 2 <= num_shapes <= num_classes:
            raise ValueError(f"num_shapes={num_shapes} must be 2 to num_classes={num_classes}")
        fewest, most = num_bounces
        if not 1 <= fewest <= most or 1 + GAPS[0] * (most - 1) > clip.num_frames:
            raise ValueError(
                f"num_bounces={list(num_bounces)} must ascend from 1 to at most "
                f"{1 + (clip.num_frames - 1) // GAPS[0]}, which fit into {clip.num_frames} frames"
            )
        free = clip.num_frames - most - (num_shapes - 1)
        if not 0 <= sound_track.num_decoys <= free:
            raise ValueError(f"num_decoys={sound_track.num_decoys} must be 0 to {free}, the remaining frames")
        for name in ("num_distractors", "delay"):
            if not 0 <= (value := getattr(sound_track, name)) <= clip.num_frames:
                raise ValueError(f"{name}={value} must be 0 to {clip.num_frames} frames")
        if cue not in ("timing", "either"):
            raise ValueError(f"cue={cue!r} must be timing or either")
        super().__init__(num_samples=num_samples, seed=seed, num_classes=num_classes)
        self.clip = clip
        self.num_shapes = num_shapes
        self.num_bounces = (fewest, most)
        self.sound_track = sound_track
        self.cue = cue

    @property
    def class_names(self) -> list[str]:
        return list(COLORS)[: self.num_classes]

    def scene(self, random: Random, label: int) -> Scene:
        """Return a scene in which the color of a label is heard."""
        count = int(random.integers(self.num_bounces[0], self.num_bounces[1] + 1))
        bounces = self._bounces(random, count)
        heard = int(random.integers(self.num_shapes))
        names = self.class_names
        others = [name for number, name in enumerate(names) if number != label]
        colors = [others[place] for place in random.permutation(len(others))[: self.num_shapes]]
        colors[heard] = names[label]
        shapes = [list(NORMS)[place] for place in random.integers(len(NORMS), size=self.num_shapes)]
        moving = np.ones(self.num_shapes, dtype=bool) if self.cue == "timing" else np.arange(self.num_shapes) == heard
        return Scene(
            colors=colors,
            shapes=shapes,
            centers=self._centers(random, bounces, moving),
            bounces=bounces,
            heard=heard,
            strokes=self._strokes(random, bounces, heard, label),
        )

    def _bounces(self, random: Random, count: int) -> Int[np.ndarray, "shapes bounces"]:
        """Draw equally many bounces for each shape, of which any two shapes share at most half."""
        rows: list[set[int]] = []
        while len(rows) < self.num_shapes:
            gaps = random.integers(GAPS[0], GAPS[1] + 1, size=count - 1).tolist()
            spare = self.clip.num_frames - 1 - sum(gaps)
            if spare < 0:
                continue
            row = set(accumulate(gaps, initial=int(random.integers(spare + 1))))
            if any(len(row & other) > count // 2 for other in rows):
                rows = rows if random.random() < 0.9 else []  # a first shape may leave no room for the others
            else:
                rows.append(row)
        return np.array([sorted(row) for row in rows])

    def _centers(
        self, random: Random, bounces: Int[np.ndarray, "shapes bounces"], moving: np.ndarray
    ) -> Float[np.ndarray, "shapes frames 2"]:
        """Return parabolas between bounces, in lanes side by side, with a slow drift."""
        count, frames = self.num_shapes, self.clip.num_frames
        times = np.arange(frames)
        lanes = (random.permutation(count) + 0.5) / count
        drift = random.uniform(-0.5, 0.5, size=count) / count
        x = np.clip(lanes[:, None] + drift[:, None] * (times / max(frames - 1, 1) - 0.5), RADIUS, 1 - RADIUS)
        least = np.stack([bounces[:, 0] + 1, frames - bounces[:, -1]], axis=1)
        outer = np.maximum(random.integers(*GAPS, size=(count, 2), endpoint=True), least)
        ends = np.column_stack([bounces[:, 0] - outer[:, 0], bounces, bounces[:, -1] + outer[:, 1]])
        last = (ends[:, :, None] <= times).sum(axis=1) - 1
        rows = np.arange(count)[:, None]
        begin = ends[rows, last]
        gap = ends[rows, last + 1] - begin
        fall = (times - begin) / gap
        height = np.minimum((gap / (GAPS[1] + 1.0)) ** 2, 1.0) * 4.0 * fall * (1.0 - fall)
        y = 1.0 - RADIUS - (1.0 - 2.0 * RADIUS) * height
        still = random.uniform(RADIUS, 1.0 - RADIUS, size=count)
        return np.stack([x, np.where(moving[:, None], y, still[:, None])], axis=-1)

    def _strokes(
        self, random: Random, bounces: Int[np.ndarray, "shapes bounces"], heard: int, label: int
    ) -> list[Stroke]:
        """Draw a sound for each bounce of the heard shape, and the extra ones."""
        own = {int(frame) for frame in bounces[heard]}
        # One bounce of each other shape stays silent: it cannot be the one that is heard.
        others = [sorted({*row.tolist()} - own) for number, row in enumerate(bounces) if number != heard]
        silent = {frames[int(random.integers(len(frames)))] for frames in others}
        free = sorted(set(range(self.clip.num_frames)) - own - silent)
        decoys = random.choice(free, size=self.sound_track.num_decoys, replace=False).tolist()
        distractors = random.choice(self.clip.num_frames, size=self.sound_track.num_distractors, replace=False).tolist()
        octave = random.uniform(0.0, 1.0) if self.cue == "timing" else label / self.num_classes
        frequency, decay = 300.0 * 2.0**octave, float(random.uniform(0.02, 0.06))
        other = frequency * 2.0 ** random.uniform(1.2, 1.8)
        level = random.uniform(0.3, 1.0)
        strokes = [
            Stroke(frame, frequency, decay, level * random.uniform(0.7, 1.0)) for frame in [*sorted(own), *decoys]
        ]
        return strokes + [Stroke(frame, other, decay, level * random.uniform(0.7, 1.0)) for frame in distractors]

    def video(self, random: Random, scene: Scene) -> Float[Tensor, "3 frames size size"]:
        """Render the frames, with smooth edges on a dark background with noise."""
        size, frames = self.clip.image_size, self.clip.num_frames
        line = (np.arange(size, dtype=np.float32) + 0.5) / size
        video = np.empty((3, frames, size, size), np.float32)
        video[:] = random.uniform(0.0, 0.2, size=(3, 1, 1, 1))
        for color, shape, center in zip(scene.colors, scene.shapes, scene.centers.astype(np.float32), strict=True):
            dx, dy = np.abs(line - center.T[..., None])
            cover = NORMS[shape](dx[:, None, :], dy[:, :, None])
            cover *= -size
            cover += RADIUS * size + 0.5
            np.clip(cover, 0.0, 1.0, out=cover)
            video += cover * (np.array(COLORS[color], np.float32)[:, None, None, None] - video)
        noise = normal(random, *video.shape)
        noise *= 0.02
        video += noise
        return torch.from_numpy(np.clip(video, 0.0, 1.0, out=video))

    def sound(self, random: Random, scene: Scene) -> Float[Tensor, "1 length"]:
        """Render the sounds, over faint noise."""
        rate, frame_length = self.clip.sample_rate, self.clip.frame_length
        wave = normal(random, self.clip.num_frames * frame_length)
        wave *= 1e-3
        frequency, decay, amplitude = np.array([(one.frequency, one.decay, one.amplitude) for one in scene.strokes]).T
        onset, phase = random.uniform((ONSET[0], 0.0), (ONSET[1], 2 * np.pi), size=(len(scene.strokes), 2)).T
        tones = damped_tones(0.3 * amplitude, frequency, decay, phase, max_length=len(wave), rate=rate)
        for stroke, start, tone in zip(scene.strokes, onset, tones, strict=True):
            heard = wave[round((stroke.frame + self.sound_track.delay + start) * frame_length) :][: len(tone)]
            heard += tone[: len(heard)]
        return torch.from_numpy(np.clip(wave, -1.0, 1.0, out=wave))[None]

    def boxes(self, scene: Scene) -> list[Box]:
        """Return the box of the heard shape in each frame, and the times of its sounds."""
        label, side, rate = (
            list(COLORS).index(scene.colors[scene.heard]),
            self.clip.image_size,
            self.clip.frames_per_second,
        )
        boxes = []
        for frame, (x, y) in enumerate(scene.centers[scene.heard]):
            ranges = {"y": ((y - RADIUS) * side, (y + RADIUS) * side), "x": ((x - RADIUS) * side, (x + RADIUS) * side)}
            boxes.append(Box(label, "video", {"time": (frame / rate, (frame + 1) / rate), **ranges}))
        heard = scene.bounces[scene.heard] + self.sound_track.delay
        times = [(frame / rate, (frame + 1) / rate) for frame in heard.tolist() if frame < self.clip.num_frames]
        return boxes + [Box(label, "audio", {"time": time}) for time in times]

    def sample_classes(self, stage: Stage, index: int) -> Sequence[int]:
        return [int(self.random(stage, index, 0).integers(self.num_classes))]

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        (label,) = self.sample_classes(stage, index)
        scene = self.scene(random, label)
        parts = {"video": self.video(random, scene), "audio": self.sound(random, scene)}
        targets = {"label": label} if stage == "train" else {"label": label, "boxes": self.boxes(scene)}
        return Item(parts, targets, self.sample_name(stage, index))
