"""Queries made of input tokens (Perceiver IO, section 3.2: optical flow, autoencoding).

A query has the features, positions and modality embedding of the input at its place, and reads from the memory what
they alone do not tell.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.queries.base import Queries
from perceiver.queries.positions import Positions
from perceiver.types import Memory, Tokens


class TokensOf(Queries):
    """The positions of places, followed by a projection of the token whose cell contains the place.

    Tokens that are masked, and those of a modality that is missing, are zero.

    Args:
        modality: whose tokens are used; the axes of places are those of its grid.
        positions: of the places, which may be finer than the tokens.
        dim: width of the projection.

    Raises:
        ValueError: `dim` is less than 1.
    """

    needs_places = True

    def __init__(self, *, modality: str, positions: Positions, dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.modality = modality
        self.positions = positions
        self.shared_positions = positions.shared_positions
        self.token_width = dim
        self.dim = positions.dim + dim
        self.projection: nn.Linear | None = None

    def set_token_dim(self, token_dim: int) -> None:
        self.projection = nn.Linear(token_dim, self.token_width)

    def forward(self, memory: Memory, places: Float[Tensor, "batch places axes"] | None = None) -> Tokens:
        tokens = self.positions(memory, places)
        assert places is not None  # `positions` raises
        assert self.projection is not None
        found = self.projection(self._tokens_at(memory, places))
        return Tokens(torch.cat([tokens.values, found], dim=-1), None, tokens.grid)

    def _tokens_at(
        self, memory: Memory, places: Float[Tensor, "batch places axes"]
    ) -> Float[Tensor, "batch places token_dim"]:
        joined = memory.tokens
        assert joined is not None
        if self.modality not in joined.spans:
            return joined.values.new_zeros(*places.shape[:2], joined.values.shape[-1])
        span = joined.spans[self.modality]
        cells = cells_at(places, span.grid.shape)
        tokens = joined.values[:, span.start : span.stop]
        return tokens.gather(1, cells[..., None].expand(-1, -1, tokens.shape[-1]))


def cells_at(places: Float[Tensor, "batch places axes"], shape: Sequence[int]) -> Tensor:
    """Return the number of the cell that contains each place, in row-major order: [batch, places].

    Raises:
        ValueError: places have other axes than the grid.
    """
    if places.shape[-1] != len(shape):
        raise ValueError(f"places have {places.shape[-1]} axes, but the tokens have a grid of shape {list(shape)}")
    cells = torch.zeros(places.shape[:2], dtype=torch.long, device=places.device)
    for axis, size in enumerate(shape):
        cells = cells * size + (places[..., axis] * size).long().clamp(0, size - 1)
    return cells
