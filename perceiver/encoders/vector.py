"""Vectors -> tokens, one for each: one-hot classes (Perceiver IO, section 4.3), measurements, precomputed features."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceiver.encoders.base import Encoder, check_sizes
from perceiver.encoders.norm import zero_masked
from perceiver.types import Axis, Grid, Tokens


class VectorEncoder(Encoder):
    """A vector, or any number of them, without positions.

    Args:
        channels: of a vector.
        dim: width of a linear projection; None for none.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(self, *, channels: int, dim: int | None) -> None:
        super().__init__()
        check_sizes(channels=channels, dim=dim)
        self.channels = channels
        self.projection = nn.Identity() if dim is None else nn.Linear(channels, dim)
        self.dim = channels if dim is None else dim

    def forward(
        self,
        raw: Float[Tensor, "batch channels"] | Float[Tensor, "batch channels length"],
        mask: Bool[Tensor, " batch"] | Bool[Tensor, "batch length"] | None = None,
    ) -> Tokens:
        if raw.ndim not in (2, 3) or raw.shape[1] != self.channels or raw.shape[-1] < 1:
            shape = f"[batch, channels={self.channels}] or [batch, channels={self.channels}, length]"
            raise ValueError(f"vectors must be {shape}, not {list(raw.shape)}")
        if raw.ndim == 2:
            raw, mask = raw[..., None], None if mask is None else mask[:, None]
        length = raw.shape[2]
        values = self.projection(zero_masked(raw, mask).mT)
        return Tokens(values, mask, Grid((length,), (Axis("place", "", 0.0, float(length)),)))

    def example_input(self) -> Float[Tensor, "1 channels 1"]:
        return torch.zeros(1, self.channels, 1)
