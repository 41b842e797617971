"""Learned queries (Perceiver IO, section 3.2): the same for every input."""

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.encoders.base import check_sizes
from perceiver.queries.base import Queries
from perceiver.queries.tokens import cells_at
from perceiver.types import Axis, Grid, Memory, Tokens


class Learned(Queries):
    """`num_queries` learned tokens of width `dim`: all of them, or those at places along their sequence.

    Raises:
        ValueError: a size is less than 1.
    """

    needs_places = False
    takes_places = True

    def __init__(self, *, num_queries: int, dim: int) -> None:
        super().__init__()
        check_sizes(num_queries=num_queries, dim=dim)
        self.dim = dim
        self.array = nn.Parameter(torch.empty(num_queries, dim))
        nn.init.trunc_normal_(self.array, std=0.02, a=-2.0, b=2.0)

    def forward(self, memory: Memory, places: Float[Tensor, "batch places 1"] | None = None) -> Tokens:
        if places is None:
            values: Tensor = repeat(self.array, "queries dim -> batch queries dim", batch=memory.values.shape[0])
        else:
            values = self.array[cells_at(places, [len(self.array)])]
        length = values.shape[1]
        return Tokens(values, None, Grid((length,), (Axis("query", "", 0.0, float(length)),)))
