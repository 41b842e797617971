"""Images -> tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.encoders.base import Combine
from perceiver.encoders.stems import RasterEncoder, Stem
from perceiver.positions import Positions
from perceiver.types import Axis, Grid, Picture, Tokens


class ImageEncoder(RasterEncoder):
    """An image as a raster.

    Args:
        stem, positions, combine: see `RasterEncoder`.
        mean, std: of the raw values, for all channels or one per channel; the input of the stem is (raw - mean) / std.
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
        super().__init__(stem=stem, positions=positions, combine=combine)
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            per_channel = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
            if len(per_channel) not in (1, stem.channels):
                raise ValueError(f"{name}={value} must be one number, or one for each of {stem.channels} channels")
            self.register_buffer(name, per_channel, persistent=False)

    def forward(
        self,
        raw: Float[Tensor, "batch channels height width"],
        mask: Bool[Tensor, "batch height width"] | None = None,
    ) -> Tokens:
        if raw.ndim != 4 or raw.shape[1] != self.stem.channels:
            raise ValueError(
                f"image inputs must be [batch, channels={self.stem.channels}, height, width], not {list(raw.shape)}"
            )
        return self.tokens((raw - self.mean) / self.std, mask)

    def axes(self, rows: int, columns: int) -> tuple[Axis, Axis]:
        height, width = self.stem.stride
        return Axis("y", "px", 0.0, float(rows * height)), Axis("x", "px", 0.0, float(columns * width))

    def picture(self, raw: Float[Tensor, "batch channels height width"]) -> Picture:
        height, width = raw.shape[-2:]
        return Picture(raw, Grid((height, width), (Axis("y", "px", 0.0, height), Axis("x", "px", 0.0, width))), "")

    def example_input(self) -> Float[Tensor, "1 channels height width"]:
        height, width = self.stem.stride
        return torch.zeros(1, self.stem.channels, 8 * height, 8 * width)
