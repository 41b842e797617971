"""Images -> tokens: a stem makes a feature map, whose cells get positions and become tokens.

Stems: every pixel (Perceiver, section 4.1), patches (space to depth), and the convolutional stem of Perceiver IO
(Jaegle et al. 2022, appendix H.1: convolution 7×7 stride 2, batch norm, ReLU, max pool 3×3 stride 2).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.encoders.base import Combine, Encoder, combined_dim, with_positions
from perceiver.positions import Positions
from perceiver.types import Axis, Grid, Tokens


class Stem(nn.Module, ABC):
    """Image -> feature map. `stride` is how many pixels of the image one cell stands for, along each axis."""

    channels: int
    dim: int
    stride: int

    @abstractmethod
    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]: ...


class PixelStem(Stem):
    """One cell a pixel; with `dim`, through a linear projection (a 1×1 convolution), otherwise the bare channels."""

    stride = 1

    def __init__(self, *, channels: int, dim: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.dim = channels if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Conv2d(channels, dim, kernel_size=1)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim height width"]:
        return self.projection(image)


class PatchStem(Stem):
    """One cell a square patch; with `dim` through a linear projection, otherwise bare (row, column, channel).

    An image whose sides `patch_size` does not divide is padded with zeros at the bottom and on the right.
    """

    def __init__(self, *, channels: int, patch_size: int, dim: int | None = None) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size={patch_size} must be at least 1")
        self.channels = channels
        self.stride = patch_size
        patch_dim = channels * patch_size**2
        self.dim = patch_dim if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(patch_dim, dim)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        patches = rearrange(
            pad_to_multiple(image, self.stride),
            "batch channels (rows dy) (columns dx) -> batch rows columns (dy dx channels)",
            dy=self.stride,
            dx=self.stride,
        )
        return rearrange(self.projection(patches), "batch rows columns dim -> batch dim rows columns")


class ConvStem(Stem):
    """The convolutional stem of Perceiver IO: a quarter of the resolution.

    Args:
        padding: `same` halves each side twice, rounding up, as DeepMind's code does (224 -> 56). `symmetric` pads the
            convolution by 3 on every side and the pooling not at all, as Hugging Face's does (224 -> 55).
    """

    stride = 4

    def __init__(self, *, channels: int, dim: int = 64, padding: Literal["same", "symmetric"] = "same") -> None:
        super().__init__()
        self.channels = channels
        self.dim = dim
        self.padding = padding
        self.conv = nn.Conv2d(channels, dim, kernel_size=7, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        if self.padding == "symmetric":
            return F.max_pool2d(self.norm(self.conv(F.pad(image, (3, 3, 3, 3)))).relu(), kernel_size=3, stride=2)
        features = self.norm(self.conv(pad_same(image, kernel_size=7, stride=2))).relu()
        # After the ReLU nothing is below zero, so zero padding is as neutral to the maximum as -inf.
        return F.max_pool2d(pad_same(features, kernel_size=3, stride=2), kernel_size=3, stride=2)


class ImageEncoder(Encoder):
    """Stem, then positions over the rows and columns of its feature map.

    Args:
        stem: image -> feature map.
        positions: vectors for the cells of the feature map (so `max_resolution` counts cells, not pixels).
        mean, std: of the raw values, for all channels or one a channel; the stem sees (raw - mean) / std.
        combine: concatenate positions to the features or add them.
    """

    def __init__(
        self,
        *,
        stem: Stem,
        positions: Positions,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        combine: Combine = "concat",
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            per_channel = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
            if len(per_channel) not in (1, stem.channels):
                raise ValueError(f"{name}={value} must be one number, or one for each of {stem.channels} channels")
            self.register_buffer(name, per_channel, persistent=False)
        self.stem = stem
        self.positions = positions
        self.combine: Combine = combine
        self.dim = combined_dim(stem.dim, positions.dim, combine)

    def forward(
        self,
        raw: Float[Tensor, "batch channels height width"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Tokens:
        if raw.ndim != 4 or raw.shape[1] != self.stem.channels:
            raise ValueError(
                f"image inputs must be [batch, channels={self.stem.channels}, height, width], not {list(raw.shape)}"
            )
        image = (raw - self.mean) / self.std
        if mask is not None:  # a cell at the border of what is real must not see what lies beyond
            image = image.masked_fill(~mask[:, None], 0.0)
        features = self.stem(image)
        rows, columns = features.shape[-2:]
        values = with_positions(
            rearrange(features, "batch dim rows columns -> batch (rows columns) dim"),
            self.positions((rows, columns)),
            self.combine,
        )
        stride = float(self.stem.stride)
        axes = (Axis("y", "px", 0.0, rows * stride), Axis("x", "px", 0.0, columns * stride))
        token_mask = None if mask is None else self._cell_mask(mask, rows, columns)
        return Tokens(values=values, mask=token_mask, grid=Grid(shape=(rows, columns), axes=axes))

    def _cell_mask(
        self, mask: Bool[Tensor, "batch height width"], rows: int, columns: int
    ) -> Bool[Tensor, "batch tokens"]:
        """A cell is real if any of its pixels is."""
        stride = self.stem.stride
        real = F.max_pool2d(pad_to_multiple(mask[:, None].float(), stride), kernel_size=stride) > 0
        return rearrange(real[..., :rows, :columns], "batch 1 rows columns -> batch (rows columns)")

    def example_input(self) -> Float[Tensor, "1 channels height width"]:
        return torch.zeros(1, self.stem.channels, 8 * self.stem.stride, 8 * self.stem.stride)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Zeros at the bottom and on the right until `multiple` divides both sides."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))


def pad_same(image: Tensor, *, kernel_size: int, stride: int) -> Tensor:
    """TensorFlow's `SAME`: as many zeros as make the output ceil(size / stride) wide, the odd one behind."""
    before_after = []
    for size in reversed(image.shape[-2:]):
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        before_after += [total // 2, total - total // 2]
    return F.pad(image, before_after)
