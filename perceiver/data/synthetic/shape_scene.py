"""Scenes of coloured shapes: what is in one, where it lies, and how it looks.

Lengths are shares of the picture's side, measured from its left upper corner; pixels are what is drawn of them.
Precedents: SHAPES (Andreas et al. 2016), ShapeWorld (Kuhnle & Copestake 2017).
"""

from collections.abc import Mapping, Sequence
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

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 45),
    "green": (45, 175, 60),
    "blue": (50, 85, 225),
    "yellow": (235, 215, 50),
    "purple": (165, 55, 195),
    "cyan": (50, 205, 220),
    "white": (235, 235, 235),
}
"""A colour's name -> what it is about, in RGB."""
COLOUR_JITTER = 20
"""How far a thing's colour may be from that, in each channel."""
GREY, TINT, NOISE = (15.0, 60.0), 10.0, 7.0
"""Of the background: the least and the greatest mean, how far a channel may be from it, and the deviation of pixels."""
SIZES = ("small", "large")
RELATIONS = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1), "under": ("y", 1)}
"""The word that tells a relation -> the axis along which a thing has it to another, and in which direction."""
RELATION_MARGIN = 0.1
"""How far apart along that axis the centres of two things must be."""
GAP = 0.03
"""Least room between the boxes of two things."""
SUPERSAMPLING = 4
PLACES, STARTS = 30, 10
"""How many places are tried for a thing, and how often a scene is started again."""


def _star() -> list[Point]:
    """Five points up, stretched to fill its box as the other outlines do."""
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
"""A shape's name -> its corners around (0, 0); each touches all four sides of a box whose sides are 1."""
SHAPES = list(OUTLINES)


@dataclass(frozen=True)
class Thing:
    """A shape in a picture; `x` and `y` are its centre, `diameter` is the side of its box, `rgb` its very colour."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    diameter: float
    rgb: tuple[int, int, int]

    @property
    def attributes(self) -> dict[str, str]:
        return {"size": self.size, "colour": self.colour, "shape": self.shape}

    def box(self, image_size: int) -> Box:
        """Where it is in a picture, in pixels."""
        ranges = {
            axis: ((at - self.diameter / 2) * image_size, (at + self.diameter / 2) * image_size)
            for axis, at in (("x", self.x), ("y", self.y))
        }
        return Box(SHAPES.index(self.shape), "image", ranges)


def holds(relation: str, one: Thing | None, other: Thing | None) -> bool:
    """Whether one thing is left of, … another; things that are not there have no relation."""
    axis, sign = RELATIONS[relation]
    return bool(one and other and sign * (getattr(one, axis) - getattr(other, axis)) >= RELATION_MARGIN)


def things_of(
    random: Random, kinds: Sequence[tuple[str, str]], sizes: Mapping[str, tuple[float, float]]
) -> list[Thing]:
    """Things of these colours and shapes at random places, of random sizes: name -> least and greatest diameter.

    Every diameter must fit into `cells(len(kinds))` of them in a row.
    """
    names = [list(sizes)[i] for i in random.integers(len(sizes), size=len(kinds))]
    diameters = [float(random.uniform(*sizes[name])) for name in names]
    places = _scattered(random, diameters) or _in_cells(random, diameters)
    return [
        Thing(name, colour, shape, *place, diameter, _jittered(random, COLOURS[colour]))
        for name, (colour, shape), place, diameter in zip(names, kinds, places, diameters, strict=True)
    ]


def cells(count: int) -> int:
    """How many rows, and columns, a square grid needs to have `count` cells."""
    return ceil(sqrt(count))


def _scattered(random: Random, diameters: Sequence[float]) -> list[Point]:
    """Places anywhere in the picture; none if there seems to be no room for all."""
    for _ in range(STARTS):
        found: list[Point] = []
        for diameter in diameters:
            rooms = [(diameter + other) / 2 + GAP for other in diameters]
            for x, y in (random.random((PLACES, 2)) * (1 - diameter) + diameter / 2).tolist():
                if all(max(abs(x - a), abs(y - b)) >= room for (a, b), room in zip(found, rooms, strict=False)):
                    found.append((x, y))
                    break
            else:
                break
        if len(found) == len(diameters):
            return found
    return []


def _in_cells(random: Random, diameters: Sequence[float]) -> list[Point]:
    """Places in the cells of a grid, where there is room for sure."""
    side = cells(len(diameters))
    chosen = random.choice(side**2, len(diameters), replace=False).tolist()
    rooms = [(1 / side - diameter - GAP) / 2 for diameter in diameters]
    return [
        (
            (cell % side + 0.5) / side + random.uniform(-room, room),
            (cell // side + 0.5) / side + random.uniform(-room, room),
        )
        for cell, room in zip(chosen, rooms, strict=True)
    ]


def _jittered(random: Random, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (random.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, size=3) + rgb).clip(0, 255).tolist()
    return red, green, blue


def drawn(random: Random, things: Sequence[Thing], image_size: int) -> UInt8[Tensor, "3 image_size image_size"]:
    """The picture of things over a random background; from the same generator, the same background."""
    tint = random.uniform(*GREY) + random.uniform(-TINT, TINT, size=(3, 1, 1))
    noise = NOISE * random.standard_normal((3, image_size, image_size), dtype=np.float32)
    picture = np.broadcast_to(tint, noise.shape).astype(np.float32)
    for thing in things:
        top, left, cover = _cover(thing, image_size)
        there = picture[:, top : top + cover.shape[0], left : left + cover.shape[1]]
        there += cover * (np.array(thing.rgb, dtype=np.float32)[:, None, None] - there)
    return torch.from_numpy((picture + noise).round().clip(0, 255).astype(np.uint8))


def _cover(thing: Thing, image_size: int) -> tuple[int, int, Float[np.ndarray, "rows columns"]]:
    """The first row and column that a thing touches, and which share of each pixel from there on it covers."""
    (x0, x1), (y0, y1) = (thing.box(image_size).ranges[axis] for axis in "xy")
    left, top = max(floor(x0), 0), max(floor(y0), 0)
    width, height = min(ceil(x1), image_size) - left, min(ceil(y1), image_size) - top
    corners = [
        tuple(((at + thing.diameter * step) * image_size - begin) * SUPERSAMPLING for at, step, begin in axes)
        for x, y in OUTLINES[thing.shape]
        for axes in [((thing.x, x, left), (thing.y, y, top))]
    ]
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return top, left, np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255
