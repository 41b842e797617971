"""The contract of an encoder: raw input of one modality -> Tokens."""

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceiver.positions import Positions, extents
from perceiver.types import Picture, Sound, Tokens

Combine: TypeAlias = Literal["concat", "add"]
"""How positions are combined with features: the papers concatenate for images and sound and add for text."""


class Encoder(nn.Module, ABC):
    """Turns one modality into tokens of width `dim`."""

    dim: int

    @abstractmethod
    def forward(self, raw: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode a batch; `mask` is True where `raw` is real, without channels.

        Masked values change no real token, no gradient and no batch statistic, in training and in evaluation: tokens
        are those of the sample alone, which ends with its last real position along each axis.
        """

    def picture(self, raw: Tensor) -> Picture | None:
        """Return raw inputs in visible form, if they have one."""
        return None

    def sound(self, raw: Tensor) -> Sound | None:
        """Return raw inputs in audible form, if they have one."""
        return None

    @abstractmethod
    def example_input(self) -> Tensor:
        """Return a batch of one of the smallest typical input, for summaries and contract tests."""


def check_sizes(**sizes: int | None) -> None:
    """Check that sizes are positive; None is not checked.

    Raises:
        ValueError: a size is less than 1.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def combined_dim(feature_dim: int, position_dim: int, combine: Combine) -> int:
    """Return the width of features with positions.

    Raises:
        ValueError: `add` with different widths.
    """
    if combine == "concat":
        return feature_dim + position_dim
    if feature_dim != position_dim:
        raise ValueError(f"combine=add needs equal widths; features have {feature_dim}, positions {position_dim}")
    return feature_dim


def cell_positions(
    positions: Positions, shape: tuple[int, ...], cells: Bool[Tensor, "batch *shape"] | None
) -> Float[Tensor, "tokens dim"] | Float[Tensor, "batch tokens dim"]:
    """Return positions of the cells of a grid: for each sample as if it were alone."""
    return positions(shape) if cells is None or positions.anchored else positions(shape, extents(cells))


def with_positions(
    features: Float[Tensor, "batch tokens feature_dim"],
    positions: Float[Tensor, "tokens position_dim"] | Float[Tensor, "batch tokens position_dim"],
    combine: Combine,
) -> Float[Tensor, "batch tokens dim"]:
    """Concatenate positions to features, or add them."""
    positions = positions.to(features.dtype)
    if combine == "add":
        return features + positions
    return torch.cat([features, positions.expand(features.shape[0], -1, -1)], dim=-1)
