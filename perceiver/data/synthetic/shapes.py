"""Scenes of colored shapes: their objects, how these are placed, and how they are rendered.

Lengths are fractions of the image's side, positions are measured from the upper left corner.
Precedents: SHAPES (Andreas et al. 2016), ShapeWorld (Kuhnle & Copestake 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, floor, pi, sin, sqrt
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from perceiver.types import Box

Random: TypeAlias = np.random.Generator
Point: TypeAlias = tuple[float, float]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 45),
    "green": (45, 175, 60),
    "blue": (50, 85, 225),
    "yellow": (235, 215, 50),
    "purple": (165, 55, 195),
    "cyan": (50, 205, 220),
    "white": (235, 235, 235),
}
"""Name of a color -> its mean RGB."""
COLOR_JITTER = 20
"""Largest deviation of an object's color from the mean, per channel."""
BACKGROUND, TINT, NOISE = (15.0, 60.0), 10.0, 7.0
"""Range of the background's mean, largest deviation of a channel from it, and standard deviation of its pixels."""
SIZES = ("small", "large")
RELATIONS = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1), "under": ("y", 1)}
"""Name of a relation between two objects -> its axis and direction."""
RELATION_MARGIN = 0.1
"""Least distance of the centers of related objects along that axis."""
GAP = 0.03
"""Least distance of the boxes of two objects."""
SUPERSAMPLING = 4
MAX_OBJECTS = 6
NUM_POSITIONS, NUM_ATTEMPTS = 30, 10
"""Random positions tried for an object, and attempts at a scene."""


def _star() -> list[Point]:
    radii = [0.5 if corner % 2 == 0 else 0.21 for corner in range(10)]
    points = np.array([(r * sin(i * pi / 5), -r * cos(i * pi / 5)) for i, r in enumerate(radii)])
    low, high = points.min(axis=0), points.max(axis=0)
    return [(float(x), float(y)) for x, y in (points - low) / (high - low) - 0.5]


_ARM = 0.13
OUTLINES: dict[str, list[Point]] = {
    "circle": [(cos(i * pi / 20) / 2, sin(i * pi / 20) / 2) for i in range(40)],
    "square": [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)],
    "triangle": [(0.0, -0.5), (0.5, 0.5), (-0.5, 0.5)],
    "diamond": [(0.0, -0.5), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0)],
    "star": _star(),
    "cross": [
        *((-_ARM, -0.5), (_ARM, -0.5), (_ARM, -_ARM), (0.5, -_ARM), (0.5, _ARM), (_ARM, _ARM)),
        *((_ARM, 0.5), (-_ARM, 0.5), (-_ARM, _ARM), (-0.5, _ARM), (-0.5, -_ARM), (-_ARM, -_ARM)),
    ],
}
"""Name of a shape -> its polygon, which touches all sides of a unit box around (0, 0)."""
SHAPES = list(OUTLINES)


@dataclass(frozen=True)
class SceneObject:
    """A shape in a scene.

    Attributes:
        size, color, shape: their names.
        x, y: its center.
        diameter: side of its box.
        rgb: its exact color.
    """

    size: str
    color: str
    shape: str
    x: float
    y: float
    diameter: float
    rgb: tuple[int, int, int]

    @property
    def attributes(self) -> dict[str, str]:
        return {"size": self.size, "color": self.color, "shape": self.shape}

    def box(self, image_size: int, label: int | None = None) -> Box:
        """Return its bounding box in pixels, as one of a class: by default, its shape."""
        ranges = {
            axis: ((center - self.diameter / 2) * image_size, (center + self.diameter / 2) * image_size)
            for axis, center in (("x", self.x), ("y", self.y))
        }
        return Box(SHAPES.index(self.shape) if label is None else label, "image", ranges)


def is_related(relation: str, one: SceneObject | None, other: SceneObject | None) -> bool:
    """Return whether one object is left of, … the other; False if either is None."""
    axis, sign = RELATIONS[relation]
    return bool(one and other and sign * (getattr(one, axis) - getattr(other, axis)) >= RELATION_MARGIN)


class ObjectSampler:
    """Draws the number of objects of a scene, their sizes and positions.

    Args:
        num_objects: least and most objects.
        small, large: range of the diameters of objects of that size.
    """

    def __init__(self, *, num_objects: tuple[int, int], small: tuple[float, float], large: tuple[float, float]) -> None:
        if not 1 <= num_objects[0] <= num_objects[1] <= MAX_OBJECTS:
            raise ValueError(f"num_objects={list(num_objects)} must ascend from at least 1 to at most {MAX_OBJECTS}")
        if not 0.0 < small[0] <= small[1] < large[0] <= large[1] <= 0.5:
            raise ValueError(f"small={list(small)} and then large={list(large)} must ascend from more than 0 to 0.5")
        if _grid_side(num_objects[1]) * (large[1] + GAP) > 1.0:
            raise ValueError(f"num_objects={list(num_objects)}: so many objects of large={list(large)} do not fit")
        self.num_objects = num_objects
        self.diameters = dict(zip(SIZES, (small, large), strict=True))

    def count(self, random: Random) -> int:
        """Draw the number of objects."""
        return int(random.integers(self.num_objects[0], self.num_objects[1] + 1))

    def place(self, random: Random, pairs: Sequence[tuple[str, str]]) -> list[SceneObject]:
        """Draw objects of these pairs of color and shape."""
        sizes = [SIZES[i] for i in random.integers(len(SIZES), size=len(pairs))]
        diameters = [float(random.uniform(*self.diameters[size])) for size in sizes]
        positions = _scatter(random, diameters) or _scatter_in_grid(random, diameters)
        return [
            SceneObject(size, color, shape, *position, diameter, _jitter(random, COLORS[color]))
            for size, (color, shape), position, diameter in zip(sizes, pairs, positions, diameters, strict=True)
        ]


def _scatter(random: Random, diameters: Sequence[float]) -> list[Point]:
    """Draw positions anywhere in the image by rejection; none if some object finds no room."""
    for _ in range(NUM_ATTEMPTS):
        found: list[Point] = []
        for diameter in diameters:
            distances = [(diameter + other) / 2 + GAP for other in diameters]
            for x, y in (random.random((NUM_POSITIONS, 2)) * (1 - diameter) + diameter / 2).tolist():
                if all(max(abs(x - a), abs(y - b)) >= least for (a, b), least in zip(found, distances, strict=False)):
                    found.append((x, y))
                    break
            else:
                break
        if len(found) == len(diameters):
            return found
    return []


def _scatter_in_grid(random: Random, diameters: Sequence[float]) -> list[Point]:
    """Draw positions within different cells of a square grid, which have room for any object."""
    side = _grid_side(len(diameters))
    cells = random.choice(side**2, len(diameters), replace=False).tolist()
    rooms = [(1 / side - diameter - GAP) / 2 for diameter in diameters]
    return [
        (
            (cell % side + 0.5) / side + random.uniform(-room, room),
            (cell // side + 0.5) / side + random.uniform(-room, room),
        )
        for cell, room in zip(cells, rooms, strict=True)
    ]


def _grid_side(count: int) -> int:
    """Return the number of rows of a square grid of at least `count` cells."""
    return ceil(sqrt(count))


def _jitter(random: Random, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (random.integers(-COLOR_JITTER, COLOR_JITTER + 1, size=3) + rgb).clip(0, 255).tolist()
    return red, green, blue


def render(random: Random, objects: Sequence[SceneObject], image_size: int) -> UInt8[Tensor, "3 image_size image_size"]:
    """Render objects over a random background."""
    tint = random.uniform(*BACKGROUND) + random.uniform(-TINT, TINT, size=(3, 1, 1))
    noise = NOISE * random.standard_normal((3, image_size, image_size), dtype=np.float32)
    image = np.broadcast_to(tint, noise.shape).astype(np.float32)
    for one in objects:
        top, left, coverage = _coverage(one, image_size)
        region = image[:, top : top + coverage.shape[0], left : left + coverage.shape[1]]
        region += coverage * (np.array(one.rgb, dtype=np.float32)[:, None, None] - region)
    return torch.from_numpy((image + noise).round().clip(0, 255).astype(np.uint8))


def render_mask(objects: Sequence[SceneObject], image_size: int) -> UInt8[Tensor, "image_size image_size"]:
    """Return 0 for the background, and for an object, where it covers at least half of a pixel, 1 + its shape."""
    mask = np.zeros((image_size, image_size), np.uint8)
    for one in objects:
        top, left, coverage = _coverage(one, image_size)
        region = mask[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        region[coverage >= 0.5] = 1 + SHAPES.index(one.shape)
    return torch.from_numpy(mask)


def _coverage(one: SceneObject, image_size: int) -> tuple[int, int, Float[np.ndarray, "rows columns"]]:
    """Return the first row and column of an object's pixels, and the covered fraction of each."""
    (x0, x1), (y0, y1) = (one.box(image_size).ranges[axis] for axis in "xy")
    left, top = max(floor(x0), 0), max(floor(y0), 0)
    width, height = min(ceil(x1), image_size) - left, min(ceil(y1), image_size) - top
    corners = [
        tuple(((center + one.diameter * step) * image_size - begin) * SUPERSAMPLING for center, step, begin in axes)
        for x, y in OUTLINES[one.shape]
        for axes in [((one.x, x, left), (one.y, y, top))]
    ]
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return top, left, np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255
