"""Learned queries (Perceiver IO, section 3.2): the same for every input."""

import torch
from einops import repeat
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.queries.base import Queries
from perceiver.types import Axis, Grid, Memory, Tokens


class Learned(Queries):
    """`num_queries` learned tokens of width `dim`.

    Raises:
        ValueError: a size is less than 1.
    """

    needs_places = False

    def __init__(self, *, num_queries: int, dim: int) -> None:
        super().__init__()
        check_sizes(num_queries=num_queries, dim=dim)
        self.dim = dim
        self.array = nn.Parameter(torch.empty(num_queries, dim))
        nn.init.trunc_normal_(self.array, std=0.02, a=-2.0, b=2.0)

    def forward(self, memory: Memory, places: Tensor | None = None) -> Tokens:
        values = repeat(self.array, "queries dim -> batch queries dim", batch=len(memory))
        length = len(self.array)
        return Tokens(values, None, Grid((length,), (Axis("query", "", 0.0, float(length)),)))
