"""Videos -> tokens: each frame, or each few frames together, as a raster."""

from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.encoders.base import Combine, Encoder, cell_positions, check_sizes, combined_dim, with_positions
from perceiver.encoders.norm import zero_masked
from perceiver.encoders.stems import Stem
from perceiver.positions import Positions
from perceiver.types import Axis, Grid, Picture, Tokens


class StemFactory(Protocol):
    """Makes a stem for rasters of a number of channels."""

    def __call__(self, *, channels: int) -> Stem: ...


class VideoEncoder(Encoder):
    """Space-time patches of a video (Perceiver, section 4.2; Perceiver IO, appendix F) with positions over time, y, x.

    The channels of `frames_per_token` consecutive frames are those of one raster, of which a stem computes a feature
    map: with `PatchStem` these are space-time patches; with `PixelStem` and single frames every pixel is a token.

    Args:
        stem: makes the stem for a raster of `channels` · `frames_per_token` channels.
        positions: vectors for the cells over (time, rows, columns).
        channels, frames_per_second: of the raw video.
        frames_per_token: frames in one cell; the last cell may have fewer.
        mean, std: of the raw values; the input of the stem is (raw - mean) / std.
        combine: concatenate positions to the features or add them.
    """

    def __init__(
        self,
        *,
        stem: StemFactory,
        positions: Positions,
        channels: int,
        frames_per_second: float,
        frames_per_token: int,
        mean: float,
        std: float,
        combine: Combine,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, frames_per_token=frames_per_token)
        if frames_per_second <= 0:
            raise ValueError(f"frames_per_second={frames_per_second} must be more than 0")
        self.stem = stem(channels=channels * frames_per_token)
        self.positions = positions
        self.frames_per_second = frames_per_second
        self.frames_per_token = frames_per_token
        self.channels = channels
        self.mean, self.std = mean, std
        self.combine: Combine = combine
        self.dim = combined_dim(self.stem.dim, positions.dim, combine)

    def forward(
        self,
        raw: Float[Tensor, "batch channels frames height width"],
        mask: Bool[Tensor, "batch frames height width"] | None = None,
    ) -> Tokens:
        if raw.ndim != 5 or raw.shape[1] != self.channels:
            shape = f"[batch, channels={self.channels}, frames, height, width]"
            raise ValueError(f"video inputs must be {shape}, not {list(raw.shape)}")
        rasters, pixels = self._rasters((raw - self.mean) / self.std, mask)
        # The receptive field of a cell may extend beyond the mask.
        features = self.stem(zero_masked(rasters, pixels), pixels)
        features = rearrange(features, "(batch time) dim y x -> batch time y x dim", batch=raw.shape[0])
        times, rows, columns = features.shape[1:-1]
        cells = None
        if pixels is not None:
            by_frame = self.stem.token_mask(pixels)[:, :rows, :columns]
            cells = rearrange(by_frame, "(batch time) y x -> batch time y x", batch=raw.shape[0])
        positions = cell_positions(self.positions, (times, rows, columns), cells)
        values = with_positions(features.flatten(1, 3), positions, self.combine)
        grid = Grid((times, rows, columns), self.axes(times, rows, columns))
        return Tokens(values, None if cells is None else cells.flatten(1), grid)

    def _rasters(
        self, video: Float[Tensor, "batch channels frames height width"], mask: Tensor | None
    ) -> tuple[Float[Tensor, "rasters channels height width"], Bool[Tensor, "rasters height width"] | None]:
        """Return the frames of each cell of time as one raster, and where these are real."""
        missing = -video.shape[2] % self.frames_per_token
        video = F.pad(zero_masked(video, mask), (0, 0, 0, 0, 0, missing))
        rasters = rearrange(
            video,
            "batch channels (time frames) y x -> (batch time) (channels frames) y x",
            frames=self.frames_per_token,
        )
        if mask is None:
            return rasters, None
        mask = F.pad(mask, (0, 0, 0, 0, 0, missing))
        by_cell = rearrange(mask, "batch (time frames) y x -> (batch time) frames y x", frames=self.frames_per_token)
        return rasters, by_cell.any(dim=1)

    def axes(self, times: int, rows: int, columns: int) -> tuple[Axis, Axis, Axis]:
        """Return the axes of the tokens."""
        height, width = self.stem.stride
        return (
            Axis("time", "s", 0.0, times * self.frames_per_token / self.frames_per_second),
            Axis("y", "px", 0.0, float(rows * height)),
            Axis("x", "px", 0.0, float(columns * width)),
        )

    def picture(self, raw: Float[Tensor, "batch channels frames height width"]) -> Picture:
        frames, height, width = raw.shape[2:]
        time = Axis("time", "s", 0.0, frames / self.frames_per_second)
        axes = (time, Axis("y", "px", 0.0, float(height)), Axis("x", "px", 0.0, float(width)))
        return Picture(raw, Grid((frames, height, width), axes), "")

    def example_input(self) -> Float[Tensor, "1 channels frames height width"]:
        height, width = self.stem.stride
        return torch.zeros(1, self.channels, 3 * self.frames_per_token, 5 * height, 7 * width)
