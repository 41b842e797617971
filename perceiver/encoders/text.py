"""Text -> tokens: an embedding of each token id (Perceiver IO, section 4.1: bytes)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from perceiver.encoders.base import Combine, Encoder, cell_positions, check_sizes, combined_dim, with_positions
from perceiver.positions import Positions
from perceiver.types import Axis, Grid, Tokens


class TextEncoder(Encoder):
    """Embeds token ids. Positions should be `anchored`, so that they are the same in texts of any length.

    Args:
        vocab_size: number of ids.
        dim: width of the embeddings.
        positions: vectors for the positions in the text; None for none, as for recurrent layers.
        combine: add positions (as the paper does) or concatenate them.
        init_std: standard deviation of the initial embeddings.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        positions: Positions | None,
        combine: Combine = "add",
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, dim=dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.trunc_normal_(self.embedding.weight, std=init_std, a=-2.0, b=2.0)
        self.positions = positions
        self.combine: Combine = combine
        self.dim = dim if positions is None else combined_dim(dim, positions.dim, combine)

    def forward(self, raw: Int[Tensor, "batch 1 length"], mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if raw.ndim != 3 or raw.shape[1] != 1 or raw.shape[2] < 1 or raw.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"text inputs must be whole numbers [batch, 1, length], not {raw.dtype} {list(raw.shape)}")
        length, ids = raw.shape[2], raw[:, 0]
        if mask is not None:  # padding need not be an id
            ids = ids.masked_fill(~mask, 0)
        values = self.embedding(ids)
        if self.positions is not None:
            values = with_positions(values, cell_positions(self.positions, (length,), mask), self.combine)
        return Tokens(values=values, mask=mask, grid=Grid((length,), (Axis("place", "", 0.0, float(length)),)))

    def example_input(self) -> Int[Tensor, "1 1 length"]:
        return torch.zeros(1, 1, 8, dtype=torch.long)
