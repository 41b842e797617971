"""Queries made of input tokens (Perceiver IO, section 3.2: optical flow, autoencoding).

A query has the features, positions and modality embedding of the input at its place, and reads from the memory what
they alone do not tell.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.positions import FourierPositions, SharedPositions
from perceiver.queries.base import Queries
from perceiver.queries.positions import Positions
from perceiver.types import Axis, Grid, Memory, Tokens


class TokensOf(Positions):
    """The positions of places, followed by a projection of the token whose cell contains the place.

    Tokens that are masked, and those of a modality that is missing, are zero.

    Args:
        modality: whose tokens are used; `axes` are those of its grid.
        token_dim: width of the projection of tokens.
        axes, positions, dim, shared_positions: of the places, which may be finer than the tokens, see `Positions`.

    Raises:
        ValueError: a size is less than 1, or `positions` have other axes.
    """

    def __init__(
        self,
        *,
        modality: str,
        token_dim: int,
        axes: Sequence[str],
        positions: FourierPositions,
        dim: int,
        shared_positions: SharedPositions | None = None,
    ) -> None:
        super().__init__(axes=axes, positions=positions, dim=dim, shared_positions=shared_positions)
        check_sizes(token_dim=token_dim)
        self.modality = modality
        self.token_dim = token_dim
        self.dim += token_dim
        self.token_projection: nn.Linear | None = None

    def set_input_dim(self, input_dim: int) -> None:
        self.token_projection = nn.Linear(input_dim, self.token_dim)

    def forward(self, memory: Memory, places: Float[Tensor, "batch places axes"] | None = None) -> Tokens:
        tokens = super().forward(memory, places)
        assert places is not None  # `Positions` raises
        assert self.token_projection is not None
        found = self.token_projection(tokens_at(memory, self.modality, places))
        return replace(tokens, values=torch.cat([tokens.values, found], dim=-1))


class InputTokens(Queries):
    """The token whose cell contains the place, unchanged, as in DeepMind's model of optical flow.

    Args:
        modality: whose tokens are used; the axes of the places are those of its grid.
        dim: width of the tokens.

    Raises:
        ValueError: `dim` is less than 1; `set_input_dim`, of tokens of another width.
    """

    needs_places = True

    def __init__(self, *, modality: str, dim: int) -> None:
        super().__init__()
        check_sizes(dim=dim)
        self.modality = modality
        self.dim = dim

    def set_input_dim(self, input_dim: int) -> None:
        if input_dim != self.dim:
            raise ValueError(f"dim={self.dim} must be that of the input tokens, {input_dim}")

    def forward(self, memory: Memory, places: Float[Tensor, "batch places axes"] | None = None) -> Tokens:
        if places is None:
            raise ValueError(f"places of the tokens of {self.modality!r} must be given")
        length = places.shape[1]
        grid = Grid((length,), (Axis("place", "", 0.0, float(length)),))
        return Tokens(tokens_at(memory, self.modality, places), None, grid)


def tokens_at(
    memory: Memory, modality: str, places: Float[Tensor, "batch places axes"]
) -> Float[Tensor, "batch places input_dim"]:
    """Return the joined input tokens of a modality whose cells contain the places; zeros if it is missing."""
    joined = memory.tokens
    assert joined is not None
    if modality not in joined.spans:
        return joined.values.new_zeros(*places.shape[:2], joined.values.shape[-1])
    span = joined.spans[modality]
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
