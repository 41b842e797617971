"""What every modality encoder is: raw input -> Tokens."""

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceiver.positions import Positions, extents
from perceiver.types import Picture, Sound, Tokens

Combine: TypeAlias = Literal["concat", "add"]
"""How positions join features: the papers concatenate for images and sound and add for text."""


class Encoder(nn.Module, ABC):
    """Turns one modality into tokens of width `dim`."""

    dim: int

    @abstractmethod
    def forward(self, raw: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode a batch; `mask` is True where `raw` is real, with one entry a raw position (no channels).

        What is not real changes no token that is, no gradient and no statistics of a batch, in training and evaluation;
        and tokens are what they would be without it. A sample ends with its last real position along each axis.
        """

    def picture(self, raw: Tensor) -> Picture | None:
        """Raw inputs as a person would look at them, where that is possible."""
        return None

    def sound(self, raw: Tensor) -> Sound | None:
        """Raw inputs as a person would hear them, where that is possible."""
        return None

    @abstractmethod
    def example_input(self) -> Tensor:
        """A batch of one of the smallest typical input, for summaries and contract tests."""


def check_sizes(**sizes: int | None) -> None:
    """Refuse what cannot be a size, by its name; None is no size.

    Raises:
        ValueError: a size is less than 1.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def combined_dim(feature_dim: int, position_dim: int, combine: Combine) -> int:
    """Width of features with their positions.

    Raises:
        ValueError: `add` with two different widths.
    """
    if combine == "concat":
        return feature_dim + position_dim
    if feature_dim != position_dim:
        raise ValueError(f"combine=add needs equal widths; features have {feature_dim}, positions {position_dim}")
    return feature_dim


def cell_positions(
    positions: Positions, shape: tuple[int, ...], cells: Bool[Tensor, "batch *shape"] | None
) -> Float[Tensor, "tokens dim"] | Float[Tensor, "batch tokens dim"]:
    """Positions of the cells of a grid: of each sample those that it would have without what is not real."""
    return positions(shape) if cells is None or positions.anchored else positions(shape, extents(cells))


def with_positions(
    features: Float[Tensor, "batch tokens feature_dim"],
    positions: Float[Tensor, "tokens position_dim"] | Float[Tensor, "batch tokens position_dim"],
    combine: Combine,
) -> Float[Tensor, "batch tokens dim"]:
    """Features with the positions concatenated to them or added to them."""
    positions = positions.to(features.dtype)
    if combine == "add":
        return features + positions
    return torch.cat([features, positions.expand(features.shape[0], -1, -1)], dim=-1)
