"""Scenes of colored shapes with masks: the class of each pixel is the shape of the object there, or `background`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perceiver.data.files import Segmented
from perceiver.data.sources.base import Item
from perceiver.data.synthetic.shape_scenes import PairSampler, RenderedScenes
from perceiver.data.synthetic.shapes import SHAPES, ObjectSampler, Random, render, render_mask
from perceiver.types import Stage

CLASSES = ["background", *SHAPES]


class ShapeMasks(RenderedScenes):
    """The scenes of `ShapeScenes` with masks in place of captions, and, except in training, `boxes`.

    The `label` of a scene is the shape of its largest object.

    Args:
        num_classes: one more than there are shapes.
        pairs: draws colors and shapes.
        image_size, num_samples, objects, seed, redrawn: see `RenderedScenes`.
    """

    name = "shape_masks"

    def __init__(
        self,
        *,
        image_size: int,
        num_classes: int,
        num_samples: Mapping[Stage, int],
        objects: ObjectSampler,
        pairs: PairSampler,
        seed: int,
        redrawn: bool,
    ) -> None:
        if num_classes != len(CLASSES):
            raise ValueError(f"num_classes={num_classes} must be {len(CLASSES)}: {', '.join(CLASSES)}")
        super().__init__(
            image_size=image_size,
            num_samples=num_samples,
            objects=objects,
            seed=seed,
            num_classes=num_classes,
            redrawn=redrawn,
        )
        self.pairs = pairs

    @property
    def class_names(self) -> list[str]:
        return CLASSES

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        unseen = stage == "test" and random.random() < self.pairs.unseen_fraction
        objects = self.objects.place(random, self.pairs.sample(random, self.objects.count(random), unseen=unseen))
        image = Segmented(render(random, objects, self.image_size), render_mask(objects, self.image_size))
        largest = max(objects, key=lambda one: one.diameter)
        targets: dict[str, Any] = {"label": CLASSES.index(largest.shape)}
        if stage != "train":
            boxes = [one.box(self.image_size) for one in objects]
            targets["boxes"] = [replace(box, label=1 + box.label) for box in boxes]
        return Item({"image": image}, targets, self.sample_name(stage, index))
