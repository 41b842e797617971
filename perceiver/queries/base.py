"""The contract of queries: what the attention of a decoder starts from, as `Tokens` with a grid."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from perceiver.positions import SharedPositions
from perceiver.types import Memory, Tokens


class Queries(nn.Module, ABC):
    """Makes the queries of one output.

    Attributes:
        dim: their width.
        needs_places: whether `places` must be given, one for each query.
        takes_places: whether they may be given; without them, all queries are made.
        shared_positions: those in the first columns, if any.
    """

    dim: int
    needs_places: bool
    takes_places: bool = False
    shared_positions: SharedPositions | None = None

    @abstractmethod
    def forward(self, memory: Memory, places: Tensor | None = None) -> Tokens:
        """Return the queries.

        Args:
            memory: what they will read; it also has the input tokens.
            places: [batch, places, axes], 0 at the start of each axis and 1 at its stop (`types.cell_centers`). Each
                query depends on its own place alone.

        Raises:
            ValueError: places do not have the axes of these queries.
        """

    def set_input_dim(self, input_dim: int) -> None:
        """Build what depends on the width of the input tokens; the model calls it once, when it knows them."""
