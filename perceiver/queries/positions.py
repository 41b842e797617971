"""Queries made of positions (Perceiver IO, section 3.2): an output at any place, and so at any resolution."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.positions import FourierPositions, SharedPositions, fourier_features
from perceiver.queries.base import Queries
from perceiver.types import Axis, Grid, Memory, Tokens


class Positions(Queries):
    """Fourier features of places, perhaps projected; before them, if there are any, the shared positions of the places.

    With shared positions, queries have the same columns as latents that start at places, so that an attention can be
    initialized to read the latents at the place of a query (`perceiver.attention.attend_to_equal_places`).

    Args:
        axes: names of the axes of the places.
        positions: their frequencies; `max_resolution` is the finest grid of training along each axis.
        dim: width of the projection; None for none.
        shared_positions: of the whole model; a place is a fraction of each shared axis.
        starts_of: a grid, in which a place stands for the start of its cell, as in the queries of DeepMind's multimodal
            autoencoder: the coordinate of cell i of n is 2 i / n - 1. None: a place stands for itself.

    Raises:
        ValueError: a size is less than 1, or `positions` or `starts_of` have other axes.
    """

    needs_places = True

    def __init__(
        self,
        *,
        axes: Sequence[str],
        positions: FourierPositions,
        dim: int | None,
        shared_positions: SharedPositions | None = None,
        starts_of: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim)
        if len(axes) != len(positions.max_resolution):
            raise ValueError(f"axes={list(axes)} do not fit max_resolution={list(positions.max_resolution)}")
        if starts_of is not None and len(starts_of) != len(axes):
            raise ValueError(f"starts_of={list(starts_of)} does not fit axes={list(axes)}")
        self.axes = tuple(axes)
        self.positions = positions
        self.projection = nn.Identity() if dim is None else nn.Linear(positions.dim, dim)
        self.shared_positions = shared_positions
        self.starts_of = None if starts_of is None else tuple(starts_of)
        self.dim = (positions.dim if dim is None else dim) + (0 if shared_positions is None else shared_positions.dim)

    def forward(self, memory: Memory, places: Float[Tensor, "batch places axes"] | None = None) -> Tokens:
        if places is None or places.shape[-1] != len(self.axes):
            shape = None if places is None else list(places.shape)
            raise ValueError(
                f"places must be [batch, places, {len(self.axes)}] for axes={list(self.axes)}, not {shape}"
            )
        coordinates = places.float()
        if self.starts_of is not None:
            sizes = torch.tensor(self.starts_of, device=places.device)
            coordinates = (coordinates * sizes).floor() / sizes
        features = fourier_features(2.0 * coordinates - 1.0, self.positions.frequencies)
        like = memory.values if isinstance(self.projection, nn.Identity) else self.projection.weight
        values = self.projection(features.to(like.dtype))
        if self.shared_positions is not None:
            shared = self.shared_positions.at(dict(zip(self.axes, places.unbind(dim=-1), strict=True)))
            values = torch.cat([shared.to(values.dtype), values], dim=-1)
        length = places.shape[1]
        return Tokens(values, None, Grid((length,), (Axis("place", "", 0.0, float(length)),)))
