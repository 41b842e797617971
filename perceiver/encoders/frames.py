"""Several frames as one raster: the input of optical flow (Perceiver IO, section 4.2 and appendix H)."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.encoders.base import Combine, check_sizes
from perceiver.encoders.norm import zero_masked
from perceiver.encoders.stems import RasterEncoder
from perceiver.encoders.video import StemFactory
from perceiver.positions import Positions
from perceiver.types import Axis, Grid, Picture, Tokens


class FramesEncoder(RasterEncoder):
    """A few frames, whose channels are those of one raster; tokens have positions in the image, none in time.

    Each pixel may also have the values of its neighborhood, a square around it, in the order (row, column, channel);
    beyond the border these are zero after normalization, as in DeepMind's code.

    Args:
        stem: makes the stem for a raster of `channels` · `neighborhood`² · `num_frames` channels, those of one frame
            after the other.
        positions, combine: see `RasterEncoder`.
        channels, num_frames: of the raw input.
        neighborhood: side of the square, an odd number; 1: the pixel alone.
        mean, std: of the raw values; the input of the stem is (raw - mean) / std.

    Raises:
        ValueError: a size is less than 1, `neighborhood` is even, or `std` not positive.
    """

    def __init__(
        self,
        *,
        stem: StemFactory,
        positions: Positions,
        channels: int,
        num_frames: int,
        neighborhood: int,
        mean: float,
        std: float,
        combine: Combine = "concat",
    ) -> None:
        check_sizes(channels=channels, num_frames=num_frames, neighborhood=neighborhood)
        if neighborhood % 2 == 0:
            raise ValueError(f"neighborhood={neighborhood} must be odd")
        if std <= 0.0:
            raise ValueError(f"std={std} must be more than 0")
        pixel_channels = channels * neighborhood**2
        super().__init__(stem=stem(channels=pixel_channels * num_frames), positions=positions, combine=combine)
        self.channels, self.pixel_channels = channels, pixel_channels
        self.num_frames = num_frames
        self.neighborhood = neighborhood
        self.mean, self.std = mean, std

    def forward(
        self,
        raw: Float[Tensor, "batch channels frames height width"],
        mask: Bool[Tensor, "batch frames height width"] | None = None,
    ) -> Tokens:
        """Encode frames; or neighborhoods that were extracted before, normalized, as channels."""
        if raw.ndim != 5 or raw.shape[1] not in (self.channels, self.pixel_channels) or raw.shape[2] != self.num_frames:
            shape = f"[batch, channels={self.channels}, frames={self.num_frames}, height, width]"
            raise ValueError(f"frames must be {shape}, not {list(raw.shape)}")
        values = raw
        if raw.shape[1] != self.pixel_channels or self.neighborhood == 1:
            values = self.neighborhoods(zero_masked((raw - self.mean) / self.std, mask))
        raster = rearrange(values, "batch channels frames y x -> batch (frames channels) y x")
        return self.tokens(raster, None if mask is None else mask.any(dim=1))

    def neighborhoods(
        self, frames: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch pixel_channels frames height width"]:
        """Return the values of each pixel's neighborhood as its channels."""
        side, (height, width) = self.neighborhood, frames.shape[-2:]
        if side == 1:
            return frames
        rasters = rearrange(frames, "batch channels frames y x -> (batch frames) channels y x")
        patches = F.unfold(rasters, kernel_size=side, padding=side // 2)
        return rearrange(
            patches,
            "(batch frames) (channels dy dx) (y x) -> batch (dy dx channels) frames y x",
            frames=self.num_frames,
            dy=side,
            dx=side,
            y=height,
            x=width,
        )

    def axes(self, rows: int, columns: int) -> tuple[Axis, Axis]:
        height, width = self.stem.stride
        return Axis("y", "px", 0.0, float(rows * height)), Axis("x", "px", 0.0, float(columns * width))

    def picture(self, raw: Float[Tensor, "batch channels frames height width"]) -> Picture:
        """Return the first frame, to whose pixels the tokens belong."""
        height, width = raw.shape[-2:]
        axes = (Axis("y", "px", 0.0, float(height)), Axis("x", "px", 0.0, float(width)))
        return Picture(raw[:, :, 0], Grid((height, width), axes), "")

    def example_input(self) -> Float[Tensor, "1 channels frames height width"]:
        height, width = self.stem.stride
        return torch.zeros(1, self.channels, self.num_frames, 5 * height, 7 * width)
