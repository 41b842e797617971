"""Queries from the tokens of a text, for decoders that predict the next token at each position."""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.positions import first_cells
from perceiver.types import Axis, Grid, Tokens


class Text(nn.Module):
    """Token ids -> embeddings, with learned positions added.

    Args:
        vocab_size: number of ids.
        max_length: maximum number of tokens.
        dim: width of the embeddings.
        positions: whether there are positions; recurrent layers need none.
        init_std: standard deviation of their initial values.

    Raises:
        ValueError: a size is less than 1.
    """

    def __init__(
        self, *, vocab_size: int, max_length: int, dim: int, positions: bool = True, init_std: float = 0.02
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, max_length=max_length, dim=dim)
        self.dim = dim
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.empty(max_length, dim)) if positions else None
        for weights in (self.embedding.weight, self.positions):
            if weights is not None:
                nn.init.trunc_normal_(weights, std=init_std, a=-2.0, b=2.0)

    def forward(self, ids: Int[Tensor, "batch length"], start: int = 0) -> Tokens:
        """Embed token ids whose first has the position `start`.

        Raises:
            ValueError: the text is longer than `max_length`.
        """
        stop = start + ids.shape[1]
        if stop > self.max_length:
            raise ValueError(f"max_length={self.max_length} is less than the {stop} tokens of a text")
        values = self.embedding(ids)
        if self.positions is not None:
            values = values + self.positions[start:stop]
        return Tokens(values, None, Grid((ids.shape[1],), (Axis("place", "", float(start), float(stop)),)))

    def resized(self, name: str, value: Tensor) -> Tensor | None:
        """Return the positions of another `max_length` for this one; see `perceiver.types.Resizable`."""
        if name != "positions" or self.positions is None or value.ndim != 2 or value.shape[1] != self.dim:
            return None
        return first_cells(value, self.positions)
