"""Synthetic images of colored shapes with captions, whose scene graph is known.

A scene is a function of (seed, stage, index) in validation and testing; in training it is drawn anew each time. Some
pairs of color and shape are held out: they occur in test scenes only, whose metrics are also reported as a group of
their own (`unseen`), as in ShapeWorld (Kuhnle & Copestake 2017).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

from perceiver.data.sources.base import Item, OnError
from perceiver.data.sources.generated import GeneratedSource
from perceiver.data.synthetic.shape_captions import COUNTS, PLURALS, WORDS, CaptionSampler, ShapeFacts, constant_caption
from perceiver.data.synthetic.shapes import COLORS, SHAPES, ObjectSampler, Random, SceneObject, render
from perceiver.types import Stage

MIN_PIXELS = 3
"""Least diameter of a recognizable object."""
P_ALIKE = 0.2
"""Probability that all objects of a scene have the color or shape of the first, so that more can be counted."""
NUM_TEXTS = 2000
"""Scenes whose captions a tokenizer is trained on."""
NUM_CONSTANT = 100
"""Scenes by which the best constant caption is chosen."""


class PairSampler:
    """Draws the colors and shapes of the objects of a scene.

    Args:
        held_out: pairs of color and shape, such as `red square`, that only test scenes have.
        unseen_fraction: fraction of the test scenes that have one.
    """

    def __init__(self, *, held_out: Sequence[str], unseen_fraction: float) -> None:
        if not 0.0 <= unseen_fraction <= 1.0:
            raise ValueError(f"unseen_fraction={unseen_fraction} must be in [0, 1]")
        if unseen_fraction and not held_out:
            raise ValueError(f"unseen_fraction={unseen_fraction} must be 0 if held_out={list(held_out)} names no pairs")
        pairs = {f"{color} {shape}": (color, shape) for color, shape in product(COLORS, SHAPES)}
        if unknown := [name for name in held_out if name not in pairs]:
            raise ValueError(f"held_out={unknown}: there are {', '.join(pairs)}")
        self.seen = [pair for name, pair in pairs.items() if name not in held_out]
        self.unseen = [pairs[name] for name in held_out]
        if not self.seen:
            raise ValueError(f"held_out={list(held_out)} leaves nothing to train on")
        self.unseen_fraction = unseen_fraction

    def sample(self, random: Random, count: int, *, unseen: bool) -> list[tuple[str, str]]:
        """Draw pairs of color and shape, of which the first is held out if `unseen`."""
        first, others = _choice(random, self.unseen if unseen else self.seen), self.seen
        if random.random() < P_ALIKE:
            common = int(random.integers(2))
            others = [pair for pair in self.seen if pair[common] == first[common]] or self.seen
        return [first, *(_choice(random, others) for _ in range(count - 1))]


def _choice(random: Random, pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    return pairs[int(random.integers(len(pairs)))]


class RenderedScenes(GeneratedSource):
    """Base of sources whose samples are rendered scenes of shapes.

    Args:
        image_size: side of the images, in pixels.
        objects: draws sizes and positions.
        num_samples, seed, num_classes, redrawn: see `GeneratedSource`.
    """

    roles: ClassVar[Sequence[str]] = ("image",)

    def __init__(
        self,
        *,
        image_size: int,
        num_samples: Mapping[Stage, int],
        objects: ObjectSampler,
        seed: int,
        num_classes: int = 0,
        redrawn: bool = True,
    ) -> None:
        super().__init__(num_samples=num_samples, seed=seed, num_classes=num_classes, redrawn=redrawn)
        small = objects.diameters["small"]
        if small[0] * image_size < MIN_PIXELS:
            raise ValueError(f"image_size={image_size}: small={list(small)} would be less than {MIN_PIXELS} pixels")
        self.image_size = image_size
        self.objects = objects


class ShapeScenes(RenderedScenes):
    """Synthetic scenes with the targets `caption`, `references`, `group`, and, except in training, `boxes` and `facts`.

    There are no classes.

    Args:
        pairs: draws colors and shapes.
        captions: draws captions.
        image_size, num_samples, objects, seed: see `RenderedScenes`.
    """

    name = "shape_scenes"

    def __init__(
        self,
        *,
        image_size: int,
        num_samples: Mapping[Stage, int],
        objects: ObjectSampler,
        pairs: PairSampler,
        captions: CaptionSampler,
        seed: int,
    ) -> None:
        super().__init__(image_size=image_size, num_samples=num_samples, objects=objects, seed=seed)
        self.pairs = pairs
        self.captions = captions

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """Yield training captions, and then every word of the grammar."""
        for index in range(NUM_TEXTS):
            random = self.random("train", index)
            yield from self.captions.sample(random, self.sample_objects(random), count=1)
        yield from (f"{count} {noun}" for count, noun in product(COUNTS, PLURALS.values()))
        yield from WORDS

    @cached_property
    def constant(self) -> str:
        """The best constant caption of training scenes."""
        return constant_caption([self.sample_objects(self.random("train", index)) for index in range(NUM_CONSTANT)])

    def sample_objects(self, random: Random, *, unseen: bool = False) -> list[SceneObject]:
        """Draw the objects of a scene, of which one is of a held-out pair if `unseen`."""
        count = self.objects.count(random)
        return self.objects.place(random, self.pairs.sample(random, count, unseen=unseen))

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        unseen = stage == "test" and random.random() < self.pairs.unseen_fraction
        objects = self.sample_objects(random, unseen=unseen)
        image = render(random, objects, self.image_size)
        texts = self.captions.sample(random, objects)
        targets: dict[str, Any] = {"caption": texts[0], "references": texts, "group": "unseen" if unseen else ""}
        if stage != "train":
            targets["boxes"] = [one.box(self.image_size) for one in objects]
            targets["facts"] = ShapeFacts(objects, self.image_size, self.constant)
        return Item({"image": image}, targets, self.sample_name(stage, index))
