"""Positions of the cells of a grid of any number of axes, at any resolution and aspect ratio.

Fourier features are those of Perceiver (Jaegle et al. 2021, section 3.2 and appendix D): for an axis of trained
resolution R, frequencies f = linspace(1, R/2, bands), features sin(πfx), cos(πfx) and x itself, with x in [-1, 1] over
the cells of the axis, ends included. Their order is that of DeepMind's code, so that published weights fit:

    [x₁ … x_d,  sin of axis 1 … sin of axis d,  cos of axis 1 … cos of axis d]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.types import Axis, Tokens, UnsuitableError, cell_centers

INTERPOLATION = {1: "linear", 2: "bicubic", 3: "trilinear"}


class Positions(nn.Module, ABC):
    """Grid shape -> one vector of width `dim` per cell, in row-major order.

    A grid of another shape than the trained one covers the same extent in finer or coarser cells, as an image of
    another resolution; or, if positions are `anchored`, it has the same cells up to another end, as a sound of another
    length. In a padded batch, the extent is that of each sample.
    """

    dim: int
    anchored: bool = False

    @abstractmethod
    def forward(
        self, shape: tuple[int, ...], extents: Int[Tensor, "batch axes"] | None = None
    ) -> Float[Tensor, "tokens dim"] | Float[Tensor, "batch tokens dim"]:
        """Return the vectors of a grid.

        Args:
            shape: of the grid.
            extents: if positions are not anchored: for each sample, the shape of the real grid at the upper left. Its
                cells get the vectors of a grid of that shape; the others get any finite ones.
        """


def extents(cells: Bool[Tensor, "batch *shape"]) -> Int[Tensor, "batch axes"]:
    """Return the number of cells of each sample along each axis, up to the last real one."""
    sizes = []
    for axis in range(1, cells.ndim):
        real = cells.movedim(axis, 1).flatten(2).any(dim=2) if cells.ndim > 2 else cells
        sizes.append((real * torch.arange(1, cells.shape[axis] + 1, device=cells.device)).amax(dim=1))
    return torch.stack(sizes, dim=1)


def fourier_features(
    coordinates: Float[Tensor, "*rest axes"], frequencies: Float[Tensor, "axes bands"]
) -> Float[Tensor, "*rest features"]:
    """Return Fourier features of coordinates, in [-1, 1] in training; `features` = axes · (2 · bands + 1)."""
    angles = pi * rearrange(coordinates[..., None] * frequencies, "... axes bands -> ... (axes bands)")
    return torch.cat([coordinates, angles.sin(), angles.cos()], dim=-1)


class FourierPositions(Positions):
    """Fourier features of the cells' coordinates; nothing is learned.

    Args:
        num_bands: frequencies per axis.
        max_resolution: cells per axis at the resolution of training, which determines the frequencies also at other
            resolutions.
        anchored: False: coordinates span [-1, 1] at any resolution. True: those of a grid of `max_resolution` do, and
            those of a longer grid continue beyond.
    """

    def __init__(self, *, num_bands: int, max_resolution: Sequence[int], anchored: bool = False) -> None:
        super().__init__()
        if num_bands < 1:
            raise ValueError(f"num_bands={num_bands} must be at least 1")
        if min(max_resolution, default=0) < 1:
            raise ValueError(f"max_resolution={list(max_resolution)} must be at least 1 along every axis")
        self.max_resolution = tuple(max_resolution)
        self.anchored = anchored
        self.num_bands = num_bands
        self.dim = len(self.max_resolution) * (2 * num_bands + 1)
        self.frequencies: Tensor
        self.register_buffer("frequencies", self._frequencies(), persistent=False)

    def _frequencies(self, device: torch.device | None = None) -> Float[Tensor, "axes bands"]:
        axes = [
            torch.linspace(1.0, resolution / 2, self.num_bands, device=device, dtype=torch.float32)
            for resolution in self.max_resolution
        ]
        return torch.stack(axes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `model.bfloat16()` must not round them: 99.4 would become 99.5, which differs at the borders of the image.
        self.frequencies = self._frequencies(self.frequencies.device)
        return self

    def forward(
        self, shape: tuple[int, ...], extents: Int[Tensor, "batch axes"] | None = None
    ) -> Float[Tensor, "tokens dim"] | Float[Tensor, "batch tokens dim"]:
        if len(shape) != len(self.max_resolution):
            raise ValueError(
                f"max_resolution={list(self.max_resolution)} does not fit an input grid of shape {list(shape)}"
            )
        if extents is not None:
            return fourier_features(self._coordinates_within(shape, extents), self.frequencies)
        axes = [self._coordinates(*sizes) for sizes in zip(shape, self.max_resolution, strict=True)]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        return fourier_features(coordinates, self.frequencies)

    def _coordinates_within(
        self, shape: tuple[int, ...], extents: Int[Tensor, "batch axes"]
    ) -> Float[Tensor, "batch tokens axes"]:
        """Return coordinates that span [-1, 1] over the extent of each sample and are 1 beyond."""
        axes = []
        for axis, size in enumerate(shape):
            last = (extents[:, axis, None] - 1).clamp_min(0)
            place = torch.arange(size, device=extents.device).minimum(last)
            step = 2.0 / last.clamp_min(1)
            # From both ends to the middle, as torch.linspace does, so that rounding is the same.
            line = torch.where(2 * place < last + 1, place * step - 1.0, 1.0 - (last - place) * step)
            line = torch.where(last > 0, line, -1.0)
            line = line.reshape(-1, *(size if other == axis else 1 for other in range(len(shape))))
            axes.append(line.expand(-1, *shape))
        return torch.stack(axes, dim=-1).flatten(1, -2)

    def _coordinates(self, size: int, trained: int) -> Float[Tensor, " size"]:
        device = self.frequencies.device
        if self.anchored:
            return 2.0 * torch.arange(size, device=device, dtype=torch.float32) / max(trained - 1, 1) - 1.0
        return torch.linspace(-1.0, 1.0, size, device=device, dtype=torch.float32)


def interpolate(vectors: Float[Tensor, "*_ dim"], shape: tuple[int, ...]) -> Float[Tensor, "*shape dim"]:
    """Interpolate the vectors of a grid of 1 to 3 axes for another grid over the same extent (bicubic over two)."""
    channels_first = rearrange(vectors, "... dim -> 1 dim ...")
    resized = F.interpolate(channels_first, size=shape, mode=INTERPOLATION[len(shape)], align_corners=False)
    return rearrange(resized, "1 dim ... -> ... dim")


def first_cells(vectors: Float[Tensor, "*_ dim"], own: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """Return `own` with the vectors of another grid in the cells that both have, counted from the first."""
    common = tuple(slice(min(sizes)) for sizes in zip(vectors.shape, own.shape, strict=True))
    result = own.detach().clone()
    result[common] = vectors[common].to(result)
    return result


class LearnedPositions(Positions):
    """A learned vector per cell of the trained grid, interpolated for other grids (bicubic over two axes).

    Args:
        shape: the trained grid.
        dim: width of the learned vectors, and of the result unless `project_dim` is given.
        project_dim: width of a linear projection after the learned vectors, as in DeepMind's learned-position model.
        init_std: 0.02 in the papers. Small models on little data learn faster with larger values.
        anchored: a smaller grid has the first of the trained vectors; a larger one is an error.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        dim: int,
        project_dim: int | None = None,
        init_std: float = 0.02,
        anchored: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.anchored = anchored
        if len(self.shape) not in INTERPOLATION:
            raise ValueError(f"shape={list(shape)}: learned positions take 1 to 3 axes")
        for name, size in (("shape", min(self.shape)), ("dim", dim), ("project_dim", project_dim)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.dim = dim if project_dim is None else project_dim
        self.embedding = nn.Parameter(torch.empty(*self.shape, dim))
        nn.init.trunc_normal_(self.embedding, std=init_std, a=-2.0, b=2.0)
        self.projection = nn.Identity() if project_dim is None else nn.Linear(dim, project_dim)

    def forward(
        self, shape: tuple[int, ...], extents: Int[Tensor, "batch axes"] | None = None
    ) -> Float[Tensor, "tokens dim"] | Float[Tensor, "batch tokens dim"]:
        if len(shape) != len(self.shape):
            raise ValueError(f"shape={list(self.shape)} does not fit an input grid of shape {list(shape)}")
        if extents is None or extents.is_meta:  # on the meta device
            return self.projection((self._first if self.anchored else self._resized)(shape).flatten(0, -2))
        rows = extents.tolist()
        grids = {extent: self._padded(extent, shape) for extent in {tuple(row) for row in rows}}
        return self.projection(torch.stack([grids[tuple(row)] for row in rows]).flatten(1, -2))

    def _padded(self, extent: tuple[int, ...], shape: tuple[int, ...]) -> Float[Tensor, "... dim"]:
        """Return the vectors of a grid at the upper left of a larger one, with zeros beyond."""
        padding = [0, 0]  # of `dim`, then from the last axis to the first
        for size, total in zip(reversed(extent), reversed(shape), strict=True):
            padding += [0, total - max(size, 1)]
        return F.pad(self._resized(tuple(max(size, 1) for size in extent)), padding)

    def _resized(self, shape: tuple[int, ...]) -> Float[Tensor, "... dim"]:
        return self.embedding if shape == self.shape else interpolate(self.embedding, shape)

    def resized(self, name: str, value: Tensor) -> Tensor | None:
        """Return learned vectors of another grid for this one; see `perceiver.types.Resizable`."""
        if name != "embedding" or value.ndim != len(self.shape) + 1 or value.shape[-1] != self.embedding.shape[-1]:
            return None
        return first_cells(value, self.embedding) if self.anchored else interpolate(value, self.shape)

    def _first(self, shape: tuple[int, ...]) -> Float[Tensor, "... dim"]:
        if any(size > trained for size, trained in zip(shape, self.shape, strict=True)):
            raise UnsuitableError(f"shape={list(self.shape)}: no positions for an input grid of shape {list(shape)}")
        return self.embedding[tuple(slice(size) for size in shape)]


@dataclass(frozen=True, kw_only=True)
class SharedAxis:
    """An axis that several modalities or inputs have in common, such as time in video and sound.

    Attributes:
        num_bands: frequencies of its Fourier features.
        resolution: cells along the axis; the highest frequency is half of it.
        start, stop: its range, in the unit of the grids' axes. None for both: that of each input, so that images of any
            resolution span it.
    """

    num_bands: int
    resolution: int
    start: float | None = None
    stop: float | None = None

    def __post_init__(self) -> None:
        if (self.start is None) != (self.stop is None):
            raise ValueError(f"start={self.start} and stop={self.stop} must both be given, or neither")
        if self.start is not None and self.stop is not None and not self.start < self.stop:
            raise ValueError(f"start={self.start} must be less than stop={self.stop}")
        for name, least in (("num_bands", 1), ("resolution", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def dim(self) -> int:
        return 2 * self.num_bands + 2

    def features(self, fractions: Float[Tensor, "*rest"]) -> Float[Tensor, "*rest dim"]:
        """Return Fourier features of places, 0 at the start of the axis and 1 at its stop, and a column of zeros."""
        frequencies = torch.linspace(1.0, self.resolution / 2, self.num_bands, device=fractions.device)
        return F.pad(fourier_features(2.0 * fractions[..., None] - 1.0, frequencies[None]), (0, 1))

    def nowhere(self, device: torch.device | None = None) -> Float[Tensor, " dim"]:
        """Return the features of what has no place on the axis: the last column alone, with the norm of a place.

        They are orthogonal to those of all places, so that attention distinguishes the two. Zeros instead would let
        layer norm enlarge the other columns of a modality that lacks an axis.
        """
        return F.pad(torch.tensor([self.num_bands**0.5], device=device), (self.dim - 1, 0))

    def fractions(self, axis: Axis, sizes: Int[Tensor, " batch"], num_cells: int) -> Float[Tensor, "batch cells"]:
        """Return the places of the centers of the cells of a grid's axis.

        Args:
            axis: of the grid.
            sizes: real cells of each sample along it.
            num_cells: all cells.
        """
        centers = torch.arange(num_cells, device=sizes.device) + 0.5
        if self.start is None or self.stop is None:
            return centers / sizes[:, None].clamp_min(1)
        values = axis.start + centers * (axis.stop - axis.start) / num_cells
        return ((values - self.start) / (self.stop - self.start)).expand(sizes.shape[0], -1)


@dataclass(frozen=True)
class SharedPositions:
    """Fourier features of the cell centers of any grid along shared axes, in the same columns for all modalities.

    `FourierPositions` belong to one encoder: their coordinates span each grid from end to end, and their columns follow
    those of the features. Here equal places have equal features in all modalities, and latents can start at them
    (`perceiver.latents.LatentArray`).

    Args:
        axes: name of a grid's axis -> the shared axis.
        grids: at whose cells the first latents start, such as those of the tokens of each modality: cells along each
            axis that the grid has. `{}` is a single place on no axis, such as that of a label.

    Raises:
        ValueError: there is no axis, or a grid has another one or no cells.
    """

    axes: Mapping[str, SharedAxis]
    grids: Sequence[Mapping[str, int]] = ()

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("axes={}: name at least one")
        for grid in self.grids:
            if not grid.keys() <= self.axes.keys() or min(grid.values(), default=1) < 1:
                raise ValueError(f"grids: {dict(grid)} must have at least 1 cell along axes of {list(self.axes)}")

    @property
    def dim(self) -> int:
        return sum(axis.dim for axis in self.axes.values())

    def of_tokens(self, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """Return the features of the cells of a grid; along an axis that it lacks, those of `SharedAxis.nowhere`."""
        grid, (batch, length) = tokens.grid, tokens.values.shape[:2]
        device = tokens.values.device
        mask = torch.ones(1, length, dtype=torch.bool, device=device) if tokens.mask is None else tokens.mask
        sizes = extents(mask.reshape(-1, *grid.shape))
        columns = []
        for name, shared in self.axes.items():
            number = next((number for number, axis in enumerate(grid.axes) if axis.name == name), None)
            if number is None:
                columns.append(shared.nowhere(device).expand(batch, length, -1))
                continue
            fractions = shared.fractions(grid.axes[number], sizes[:, number], grid.shape[number])
            shape = [size if other == number else 1 for other, size in enumerate(grid.shape)]
            features = shared.features(fractions).reshape(-1, *shape, shared.dim)
            columns.append(features.expand(batch, *grid.shape, -1).flatten(1, -2))
        return torch.cat(columns, dim=-1).to(tokens.values.dtype)

    def at(self, fractions: Mapping[str, Float[Tensor, "*rest"]]) -> Float[Tensor, "*rest dim"]:
        """Return the features of places, given as fractions along axes; those of `of_tokens` for an axis not given."""
        some = next(iter(fractions.values()))
        columns = [
            shared.features(fractions[name].float())
            if name in fractions
            else shared.nowhere(some.device).expand(*some.shape, -1)
            for name, shared in self.axes.items()
        ]
        return torch.cat(columns, dim=-1)

    def spread(self, count: int) -> Float[Tensor, "count dim"]:
        """Return the features of the cells of `grids` and, up to `count`, of places that cover the axes evenly.

        The latter are equidistant on one axis, a Sobol sequence on several.

        Raises:
            ValueError: the grids have more cells.
        """
        rows = [self._cells(grid) for grid in self.grids]
        rest = count - sum(map(len, rows))
        if rest < 0:
            grids = [dict(grid) for grid in self.grids]
            raise ValueError(f"grids={grids} of shared positions have {count - rest} places, more than {count} latents")
        if len(self.axes) == 1:
            fractions = (torch.arange(rest, device="cpu")[:, None] + 0.5) / max(rest, 1)
        else:
            sobol = torch.quasirandom.SobolEngine(len(self.axes))  # type: ignore[no-untyped-call]
            fractions = sobol.draw(max(rest, 1))[:rest]
        return torch.cat([*rows, self.at(dict(zip(self.axes, fractions.unbind(dim=1), strict=True)))])

    def _cells(self, grid: Mapping[str, int]) -> Float[Tensor, "cells dim"]:
        """Return the features of the centers of the cells of a grid."""
        centers = cell_centers([grid.get(name, 1) for name in self.axes], torch.device("cpu"))  # as Sobol sequences
        fractions = dict(zip(self.axes, centers.unbind(dim=1), strict=True))
        other = {"": centers[:, 0]}  # a grid may have none of the axes
        return self.at(other | {name: fractions[name] for name in grid})
