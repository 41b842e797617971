"""Pictures of coloured shapes with captions, made as they are asked for; what is true of them is known.

What a scene shows is a function of (seed, stage, index) in validation and testing; in training it is drawn anew every
time. Some pairs of colour and shape are held out: they come in test scenes only, which are measured as a group of their
own (`unseen`), as in ShapeWorld (Kuhnle & Copestake 2017).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from perceiver.data.sources.base import Item, OnError, Roles, Source
from perceiver.data.synthetic.scene_graph import ShapeFacts, constant_caption
from perceiver.data.synthetic.shape_grammar import COUNTS, PLURALS, WORDS, captions
from perceiver.data.synthetic.shape_scene import COLOURS, GAP, SHAPES, Random, Thing, cells, drawn, things_of
from perceiver.types import Stage

MOST_OBJECTS = 6
LEAST_PIXELS = 3
"""Diameter of what can still be told apart, more or less."""
ALIKE = 0.2
"""How often all things of a scene have the colour of the first, or all its shape, so that there is more to count."""
NUM_TEXTS = 2000
NUM_CONSTANT = 100
"""Scenes on which the best constant caption is chosen."""
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class ShapeScenes(Source):
    """Made-up scenes; a scene is a sample with the targets `caption`, `references`, `boxes`, `facts` and `group`.

    Training samples have no boxes and no facts. There are no classes.

    Args:
        image_size: side of the pictures, in pixels.
        num_samples: scenes of each stage; 0 for none.
        num_objects: least and most things in a scene.
        small, large: least and greatest diameter of what is called so, as shares of the side.
        order: in which things are mentioned: `random` or `left_to_right`.
        num_references: different captions of a scene, as far as there are so many.
        held_out: pairs of colour and shape, such as `red square`, that only some of the test scenes show.
        unseen_share: the share of those.
        seed: of the scenes.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_samples: Mapping[Stage, int],
        num_objects: tuple[int, int],
        small: tuple[float, float],
        large: tuple[float, float],
        order: Literal["random", "left_to_right"],
        num_references: int,
        held_out: Sequence[str],
        unseen_share: float,
        seed: int,
    ) -> None:
        super().__init__()
        if min(num_samples.values()) < 0:
            raise ValueError(f"num_samples={dict(num_samples)} must be at least 0")
        if not 1 <= num_objects[0] <= num_objects[1] <= MOST_OBJECTS:
            raise ValueError(f"num_objects={list(num_objects)} must ascend from at least 1 to at most {MOST_OBJECTS}")
        if not 0.0 < small[0] <= small[1] < large[0] <= large[1] <= 0.5:
            raise ValueError(f"small={list(small)} and then large={list(large)} must ascend from more than 0 to 0.5")
        if cells(num_objects[1]) * (large[1] + GAP) > 1.0:
            raise ValueError(f"num_objects={list(num_objects)}: as many things of large={list(large)} do not fit")
        if small[0] * image_size < LEAST_PIXELS:
            raise ValueError(f"image_size={image_size}: small={list(small)} would be less than {LEAST_PIXELS} pixels")
        if order not in ("random", "left_to_right"):
            raise ValueError(f"order={order!r} must be random or left_to_right")
        if num_references < 1:
            raise ValueError(f"num_references={num_references} must be at least 1")
        if not 0.0 <= unseen_share <= 1.0:
            raise ValueError(f"unseen_share={unseen_share} must be in [0, 1]")
        if unseen_share and not held_out:
            raise ValueError(f"unseen_share={unseen_share} must be 0 where held_out={list(held_out)} names no pairs")
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        pairs = {f"{colour} {shape}": (colour, shape) for colour, shape in product(COLOURS, SHAPES)}
        if unknown := [name for name in held_out if name not in pairs]:
            raise ValueError(f"held_out={unknown}: there are {', '.join(pairs)}")
        self.seen = [pair for name, pair in pairs.items() if name not in held_out]
        self.unseen = [pairs[name] for name in held_out]
        if not self.seen:
            raise ValueError(f"held_out={list(held_out)} leaves nothing to train on")
        self.image_size = image_size
        self.num_samples = num_samples
        self.num_objects = num_objects
        self.sizes = {"small": small, "large": large}
        self.left_to_right = order == "left_to_right"
        self.num_references = num_references
        self.unseen_share = unseen_share
        self.seed = seed

    def items(self, stage: Stage, roles: Roles) -> "ShapeItems | None":
        return ShapeItems(self, stage) if self.num_samples[stage] else None

    @cached_property
    def constant(self) -> str:
        """The best constant caption of training scenes."""
        return constant_caption(
            [self.things(self.random("train", index), unseen=False) for index in range(NUM_CONSTANT)]
        )

    def texts(self, *, on_error: OnError) -> Iterator[str]:
        """What a tokenizer learns its vocabulary from: captions as in training, and what may be rare in them."""
        for index in range(NUM_TEXTS):
            random = self.random("train", index)
            yield from self.captions(self.things(random, unseen=False), random, 1)
        yield from (f"{count} {noun}" for count, noun in product(COUNTS, PLURALS.values()))
        yield from WORDS

    def random(self, stage: Stage, index: int, *more: int) -> Random:
        return np.random.default_rng([self.seed, STAGES.index(stage), index, *more])

    def things(self, random: Random, *, unseen: bool) -> list[Thing]:
        """The things of a scene; if `unseen`, one of them is of a pair that is held out."""
        count = int(random.integers(self.num_objects[0], self.num_objects[1] + 1))
        first, others = _drawn_from(random, self.unseen if unseen else self.seen), self.seen
        if random.random() < ALIKE:
            common = int(random.integers(2))
            others = [pair for pair in self.seen if pair[common] == first[common]] or self.seen
        return things_of(random, [first, *(_drawn_from(random, others) for _ in range(count - 1))], self.sizes)

    def captions(self, things: Sequence[Thing], random: Random, count: int) -> list[str]:
        return captions(things, random, count=count, left_to_right=self.left_to_right)


def _drawn_from(random: Random, pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    return pairs[int(random.integers(len(pairs)))]


class ShapeItems:
    """The scenes of one stage."""

    roles = ("image",)

    def __init__(self, scenes: ShapeScenes, stage: Stage) -> None:
        self.scenes = scenes
        self.stage = stage
        self.constant = "" if stage == "train" else scenes.constant

    def __len__(self) -> int:
        return self.scenes.num_samples[self.stage]

    def classes_of(self, index: int) -> Sequence[int]:
        return ()

    def name_of(self, index: int) -> str:
        return f"shape_scenes/{self.stage}/{index}"

    def __getitem__(self, index: int) -> Item:
        scenes, train = self.scenes, self.stage == "train"
        # torch's generator is seeded by (seed, epoch, index).
        random = scenes.random(self.stage, index, *([int(torch.randint(2**62, ()))] if train else []))
        unseen = self.stage == "test" and random.random() < scenes.unseen_share
        things = scenes.things(random, unseen=unseen)
        image = drawn(random, things, scenes.image_size)
        texts = scenes.captions(things, random, scenes.num_references)
        targets: dict[str, Any] = {"caption": texts[0], "references": texts, "group": "unseen" if unseen else ""}
        if not train:
            targets["boxes"] = [thing.box(scenes.image_size) for thing in things]
            targets["facts"] = ShapeFacts(things, scenes.image_size, self.constant)
        return Item({"image": image}, targets, self.name_of(index))
