"""Rasters -> tokens: a stem computes a feature map, whose cells with their positions are the tokens.

A raster is an image or a spectrogram. Stems: every pixel (Perceiver, section 4.1),
patches (space to depth), the convolutional stem of Perceiver IO (Jaegle et al. 2022, appendix H.1: convolution 7×7
stride 2, batch norm, ReLU, max pool 3×3 stride 2), and a stack of 3×3 convolutions (Xiao et al. 2021,
arXiv:2106.14881).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.encoders.base import Combine, Encoder, cell_positions, check_sizes, combined_dim, with_positions
from perceiver.encoders.norm import BatchNorm, zero_masked
from perceiver.positions import Positions, extents
from perceiver.types import Axis, Grid, Tokens

Mask = Bool[Tensor, "batch height width"]


class Stem(nn.Module, ABC):
    """Raster -> feature map. `stride`: rows and columns of the raster per cell.

    `mask` is True where the raster is real; elsewhere it is zero. A stem of several layers zeroes masked cells between
    layers and excludes them from batch norm, so that a raster has the same cells alone and padded.
    """

    channels: int
    dim: int
    stride: tuple[int, int]

    @abstractmethod
    def forward(
        self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None = None
    ) -> Float[Tensor, "batch dim rows columns"]: ...

    def token_mask(self, mask: Mask) -> Bool[Tensor, "batch rows columns"]:
        """Return which cells of the feature map are real: those with any real pixel."""
        return downsample_mask(mask, self.stride)


class PixelStem(Stem):
    """One cell per pixel: its channels, or with `dim` a linear projection of them (a 1×1 convolution)."""

    stride = (1, 1)

    def __init__(self, *, channels: int, dim: int | None = None) -> None:
        super().__init__()
        check_sizes(channels=channels, dim=dim)
        self.channels = channels
        self.dim = channels if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Conv2d(channels, dim, kernel_size=1)

    def forward(
        self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None = None
    ) -> Float[Tensor, "batch dim height width"]:
        return self.projection(raster)


class PatchStem(Stem):
    """One cell per patch: its pixels (row, column, channel), or with `dim` a linear projection of them.

    The raster is padded with zeros at the bottom and on the right to multiples of the patch.

    Args:
        channels: of the raster.
        patch_size: side, or [rows, columns], of a patch.
        dim: width of the projection; None for none.
    """

    def __init__(self, *, channels: int, patch_size: int | Sequence[int], dim: int | None = None) -> None:
        super().__init__()
        check_sizes(channels=channels, dim=dim)
        sides = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"patch_size={patch_size} must be a number from 1 on, or two: [rows, columns]")
        self.channels = channels
        self.stride = rows, columns = sides
        patch_dim = channels * rows * columns
        self.dim = patch_dim if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(patch_dim, dim)

    def forward(
        self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None = None
    ) -> Float[Tensor, "batch dim rows columns"]:
        rows, columns = self.stride
        patches = rearrange(
            pad_to_multiple(raster, self.stride),
            "batch channels (rows dy) (columns dx) -> batch rows columns (dy dx channels)",
            dy=rows,
            dx=columns,
        )
        return rearrange(self.projection(patches), "batch rows columns dim -> batch dim rows columns")


class ConvStem(Stem):
    """The convolutional stem of Perceiver IO, at a quarter of the resolution.

    Args:
        channels: of the raster.
        dim: channels of the feature map.
        padding: `same` halves each side twice, rounding up, as DeepMind's code (224 -> 56), but see `pad_same`.
            `symmetric` pads the convolution by 3 on every side and the pooling not at all, as Hugging Face's
            (224 -> 55); a padded raster has no cells where the pooling would extend beyond its real part.

    Raises:
        ValueError: `forward`, of a raster that is too small for `symmetric`.
    """

    stride = (4, 4)

    def __init__(self, *, channels: int, dim: int = 64, padding: Literal["same", "symmetric"] = "same") -> None:
        super().__init__()
        check_sizes(channels=channels, dim=dim)
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding={padding} must be same or symmetric")
        self.channels = channels
        self.dim = dim
        self.padding = padding
        self.conv = nn.Conv2d(channels, dim, kernel_size=7, stride=2, bias=False)
        self.norm = BatchNorm(dim)

    def forward(
        self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None = None
    ) -> Float[Tensor, "batch dim rows columns"]:
        symmetric = self.padding == "symmetric"
        if symmetric and min(raster.shape[-2:]) < 5:  # after the convolution less than the pooling window
            height, width = raster.shape[-2:]
            raise ValueError(f"padding=symmetric needs rasters of at least 5 × 5, not {height} × {width}")
        padded = F.pad(raster, (3, 3, 3, 3)) if symmetric else pad_same(raster, kernel_size=7, stride=2)
        halved = None if mask is None else downsample_mask(mask, (2, 2))
        features = zero_masked(self.norm(self.conv(padded), halved).relu(), halved)
        if not symmetric:
            # Features are not negative after the ReLU, so zero padding does not change a maximum.
            features = pad_same(features, kernel_size=3, stride=2)
        return F.max_pool2d(features, kernel_size=3, stride=2)

    def token_mask(self, mask: Mask) -> Bool[Tensor, "batch rows columns"]:
        cells = super().token_mask(mask)
        if self.padding == "same":
            return cells
        for axis, size in enumerate(torch.unbind(extents(downsample_mask(mask, (2, 2))), dim=1), start=1):
            places = torch.arange(cells.shape[axis], device=cells.device)
            fits = 2 * places + 3 <= size[:, None]
            cells = cells & (fits[:, :, None] if axis == 1 else fits[:, None, :])
        return cells


class ConvStack(Stem):
    """3×3 convolutions, each with batch norm and ReLU; the first of each level halves the resolution, rounding up.

    With one convolution per level, the receptive field of a cell is the cell and as much above and on the left.

    Args:
        channels: of the raster.
        dims: channels of each level.
        convs_per_level: convolutions of each level.
    """

    def __init__(self, *, channels: int, dims: Sequence[int], convs_per_level: int = 1) -> None:
        super().__init__()
        check_sizes(channels=channels, convs_per_level=convs_per_level)
        if len(dims) < 1 or min(dims) < 1:
            raise ValueError(f"dims={list(dims)} must name the channels of at least one convolution")
        self.channels = channels
        self.dim = dims[-1]
        self.stride = (2 ** len(dims), 2 ** len(dims))
        sizes: list[tuple[int, int, int]] = []
        for before, dim in zip([channels, *dims], dims, strict=False):
            sizes += [(before, dim, 2), *[(dim, dim, 1)] * (convs_per_level - 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, dim, kernel_size=3, stride=stride, padding=1, bias=False),
                BatchNorm(dim),
                nn.ReLU(),
            )
            for before, dim, stride in sizes
        )
        self.convs_per_level = convs_per_level

    def forward(
        self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None = None
    ) -> Float[Tensor, "batch dim rows columns"]:
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Sequential)
            convolution, norm, activation = layer
            stride = 2 ** (number // self.convs_per_level + 1)
            cells = None if mask is None else downsample_mask(mask, (stride, stride))
            raster = zero_masked(activation(norm(convolution(raster), cells)), cells)
        return raster


class RasterEncoder(Encoder):
    """Stem, then positions over the rows and columns of its feature map.

    Args:
        stem: raster -> feature map.
        positions: vectors for the cells of the feature map (`max_resolution` counts cells, not pixels).
        combine: concatenate positions to the features or add them.
    """

    def __init__(self, *, stem: Stem, positions: Positions, combine: Combine) -> None:
        super().__init__()
        self.stem = stem
        self.positions = positions
        self.combine: Combine = combine
        self.dim = combined_dim(stem.dim, positions.dim, combine)

    @abstractmethod
    def axes(self, rows: int, columns: int) -> tuple[Axis, Axis]:
        """Return the axes of the rows and columns of the feature map."""

    def tokens(self, raster: Float[Tensor, "batch channels height width"], mask: Mask | None) -> Tokens:
        """Encode a raster; masked pixels change no real token, statistic or gradient."""
        # The receptive field of a cell may extend beyond the mask.
        features = self.stem(zero_masked(raster, mask), mask)
        rows, columns = features.shape[-2:]
        cells = None if mask is None else self.stem.token_mask(mask)[:, :rows, :columns]
        values = with_positions(
            rearrange(features, "batch dim rows columns -> batch (rows columns) dim"),
            cell_positions(self.positions, (rows, columns), cells),
            self.combine,
        )
        token_mask = None if cells is None else rearrange(cells, "batch rows columns -> batch (rows columns)")
        return Tokens(values=values, mask=token_mask, grid=Grid(shape=(rows, columns), axes=self.axes(rows, columns)))


def downsample_mask(mask: Mask, stride: tuple[int, int]) -> Bool[Tensor, "batch rows columns"]:
    """Return which cells contain anything real."""
    return F.max_pool2d(pad_to_multiple(mask.float(), stride), kernel_size=stride) > 0


def pad_to_multiple(raster: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad with zeros at the bottom and on the right until `multiple` divides both sides."""
    height, width = raster.shape[-2:]
    return F.pad(raster, (0, -width % multiple[1], 0, -height % multiple[0]))


def pad_same(raster: Tensor, *, kernel_size: int, stride: int) -> Tensor:
    """Pad with zeros for an output of ceil(size / stride): TensorFlow's `SAME` where `stride` divides the size.

    Elsewhere TensorFlow divides further zeros between both sides, which shifts the cells; here they are appended, so
    that a raster has the same cells alone and with zeros after it.
    """
    before = (kernel_size - stride) // 2
    before_after = []
    for size in reversed(raster.shape[-2:]):
        before_after += [before, -size % stride + kernel_size - stride - before]
    return F.pad(raster, before_after)
