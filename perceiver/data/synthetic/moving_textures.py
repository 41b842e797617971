"""Pairs of frames of moving textures whose optical flow is known: a background and shapes, each with its own motion.

A texture is a sum of plane waves of several wavelengths. An affine map of a plane wave is a plane wave, so that both
frames are evaluated exactly at their pixels, without interpolation. The flow of a pixel is the affine motion of the
uppermost layer there, also where it is covered in the second frame or leaves the image, as in FlyingChairs (Dosovitskiy
et al. 2015, arXiv:1504.06852).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from perceiver.data.files import FramePair
from perceiver.data.sources.base import Item
from perceiver.data.sources.generated import GeneratedSource, Random
from perceiver.data.synthetic.bouncing_scenes import NORMS, Norm
from perceiver.types import Stage

MEAN = (0.25, 0.75)
"""Range of the mean of a texture, for each color."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Ranges of the motion of a layer, around its center; each number is drawn uniformly up to plus or minus it.

    Attributes:
        translation: along each axis, in pixels.
        rotation: in degrees.
        scaling: relative change of size.

    Raises:
        ValueError: a number is less than 0, or `scaling` not less than 1.
    """

    translation: float
    rotation: float
    scaling: float

    def __post_init__(self) -> None:
        for name in ("translation", "rotation", "scaling"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.scaling >= 1.0:
            raise ValueError(f"scaling={self.scaling} must be less than 1")

    def draw(self, random: Random, center: Float[np.ndarray, "2"]) -> "Affine":
        """Draw the motion of a layer with this center."""
        angle, scale = np.radians(random.uniform(-1, 1) * self.rotation), 1.0 + random.uniform(-1, 1) * self.scaling
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cosine, -sine], [sine, cosine]])
        shift = random.uniform(-1, 1, size=2) * self.translation
        return Affine(matrix, center - matrix @ center + shift)


@dataclass(frozen=True)
class Affine:
    """An affine map of points (x, y): matrix · point + offset."""

    matrix: Float[np.ndarray, "2 2"]
    offset: Float[np.ndarray, "2"]

    def __call__(self, points: Float[np.ndarray, "2 *rest"]) -> Float[np.ndarray, "2 *rest"]:
        return np.tensordot(self.matrix, points, 1) + self.offset.reshape(2, *[1] * (points.ndim - 1))

    @property
    def inverse(self) -> "Affine":
        matrix = np.linalg.inv(self.matrix)
        return Affine(matrix, -matrix @ self.offset)


IDENTITY = Affine(np.eye(2), np.zeros(2))


@dataclass(frozen=True, kw_only=True)
class TextureSampler:
    """Draws textures.

    Attributes:
        wavelengths: least and greatest wavelength in pixels; their logarithms are drawn uniformly.
        num_waves: of a texture.
        contrast: standard deviation of each color.

    Raises:
        ValueError: a number is out of range.
    """

    wavelengths: tuple[float, float]
    num_waves: int
    contrast: float

    def __post_init__(self) -> None:
        if not 2.0 <= self.wavelengths[0] <= self.wavelengths[1]:
            raise ValueError(f"wavelengths={list(self.wavelengths)} must ascend from at least 2 pixels")
        if self.num_waves < 1:
            raise ValueError(f"num_waves={self.num_waves} must be at least 1")
        if self.contrast <= 0.0:
            raise ValueError(f"contrast={self.contrast} must be more than 0")

    def draw(self, random: Random) -> "Texture":
        shortest, longest = (float(np.log(length)) for length in self.wavelengths)
        lengths = np.exp(random.uniform(shortest, longest, size=self.num_waves))
        angles, phases = random.uniform(0.0, 2.0 * np.pi, size=(2, self.num_waves))
        colors = random.standard_normal((3, self.num_waves)) * self.contrast * (2.0 / self.num_waves) ** 0.5
        frequencies = 2.0 * np.pi / lengths * np.stack([np.cos(angles), np.sin(angles)])
        return Texture(random.uniform(*MEAN, size=3), colors * np.exp(1j * phases), frequencies)


@dataclass(frozen=True)
class Texture:
    """A sum of plane waves: at a point p, mean + Re Σ amplitudes · exp(i frequencies · p)."""

    mean: Float[np.ndarray, "3"]
    amplitudes: Complex[np.ndarray, "3 waves"]
    frequencies: Float[np.ndarray, "2 waves"]

    def at(self, where: Affine, line: Float[np.ndarray, " size"]) -> Float[np.ndarray, "3 size size"]:
        """Return the colors at `where` of each pixel of a square image, whose centers along both axes are `line`."""
        frequencies = where.matrix.T @ self.frequencies
        x, y = np.exp(1j * frequencies[:, :, None] * line)
        amplitudes = self.amplitudes * np.exp(1j * (where.offset @ self.frequencies))
        waves = (amplitudes[:, None] * y.T) @ x
        return self.mean[:, None, None] + waves.real


@dataclass(frozen=True)
class Shape:
    """A ball of a norm, turned by a matrix; lengths in pixels."""

    norm: Norm
    center: Float[np.ndarray, "2"]
    radius: float
    turn: Float[np.ndarray, "2 2"]

    def coverage(self, points: Float[np.ndarray, "2 rows columns"]) -> Float[np.ndarray, "rows columns"]:
        """Return 1 within the shape and 0 outside of it, with an edge of a pixel."""
        offsets = np.abs(np.tensordot(self.turn, points - self.center[:, None, None], 1))
        return np.clip(self.radius - self.norm(*offsets) + 0.5, 0.0, 1.0)


class MovingTextures(GeneratedSource):
    """Pairs of frames with their flow, as parts of the role `video`.

    Args:
        image_size: side of the frames, in pixels.
        num_shapes: least and greatest number of shapes before the background.
        radii: least and greatest radius of a shape, as a fraction of the side.
        motion: of each layer.
        textures: of each layer.
        noise: standard deviation of what is added to each frame.
        num_samples, seed: see `GeneratedSource`.
    """

    name = "moving_textures"
    roles = ("video",)

    def __init__(
        self,
        *,
        image_size: int,
        num_shapes: tuple[int, int],
        radii: tuple[float, float],
        motion: Motion,
        textures: TextureSampler,
        noise: float,
        num_samples: Mapping[Stage, int],
        seed: int,
    ) -> None:
        super().__init__(num_samples=num_samples, seed=seed)
        if image_size < 2:
            raise ValueError(f"image_size={image_size} must be at least 2")
        if not 0 <= num_shapes[0] <= num_shapes[1]:
            raise ValueError(f"num_shapes={list(num_shapes)} must ascend from at least 0")
        if not 0.0 < radii[0] <= radii[1] <= 1.0:
            raise ValueError(f"radii={list(radii)} must ascend from more than 0 to at most 1")
        if noise < 0.0:
            raise ValueError(f"noise={noise} must be at least 0")
        self.image_size = image_size
        self.num_shapes = num_shapes
        self.radii = radii
        self.motion = motion
        self.textures = textures
        self.noise = noise

    def item(self, stage: Stage, index: int, random: Random) -> Item:
        size = self.image_size
        line = np.arange(size) + 0.5
        points = np.stack(np.meshgrid(line, line))
        first, second = np.zeros((2, 3, size, size))
        flow = np.zeros((2, size, size))
        count = int(random.integers(*self.num_shapes, endpoint=True))
        for shape in [None, *(self._shape(random) for _ in range(count))]:
            motion = self.motion.draw(random, np.full(2, size / 2) if shape is None else shape.center)
            texture = self.textures.draw(random)
            for frame, where in ((first, IDENTITY), (second, motion.inverse)):
                cover = 1.0 if shape is None else shape.coverage(where(points))
                frame += cover * (texture.at(where, line) - frame)
            moved = motion(points) - points
            flow = moved if shape is None else np.where(shape.coverage(points) >= 0.5, moved, flow)
        frames = [self._pixels(random, frame) for frame in (first, second)]
        pair = FramePair(frames[0], frames[1], torch.from_numpy(flow.astype(np.float32)))
        return Item({"video": pair}, {}, self.sample_name(stage, index))

    def _shape(self, random: Random) -> Shape:
        center = random.uniform(0.0, self.image_size, size=2)
        angle, norm = random.uniform(0.0, np.pi), list(NORMS.values())[int(random.integers(len(NORMS)))]
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        return Shape(norm, center, random.uniform(*self.radii) * self.image_size, turn)

    def _pixels(self, random: Random, frame: Float[np.ndarray, "3 size size"]) -> Tensor:
        noisy = frame + self.noise * random.standard_normal(frame.shape, dtype=np.float32)
        return torch.from_numpy((255.0 * noisy).round().clip(0, 255).astype(np.uint8))
