"""Dense outputs (Perceiver IO, section 3.2): a vector for each place that is queried."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock, attend_to_equal_places
from perceiver.decoders.base import LOGITS, Decoder
from perceiver.mechanisms.base import DECODE
from perceiver.queries.base import Queries
from perceiver.queries.joined import Joined
from perceiver.types import Memory, QueryKind


class DenseDecoder(Decoder):
    """Memory and places -> `logits` [batch, places, channels]; with `Joined` queries, an output of each name.

    An output of a single learned query is [batch, channels].

    Each query is decoded independently of the others. Without gradients, they are processed in chunks, so that memory
    depends on `chunk_size`, not on their number; with gradients, all activations are stored anyway.

    Args:
        dim: width of the memory.
        num_channels: width of the output, or of each output by name.
        queries: of the output, or of several.
        attention: sizes of the cross-attention.
        chunk_size: queries that are processed at a time.
        sharpness: if queries have shared positions, the cross-attention starts by reading the latents at the place of
            a query, see `attend_to_equal_places`.

    Raises:
        ValueError: a size is less than 1, or the outputs of `num_channels` and `queries` differ.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_channels: int | Mapping[str, int],
        queries: Queries | Joined,
        attention: BlockSpec,
        chunk_size: int,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        self.queries = queries if isinstance(queries, Joined) else Joined(queries={LOGITS: queries})
        channels = {LOGITS: num_channels} if isinstance(num_channels, int) else dict(num_channels)
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1")
        if min(channels.values(), default=0) < 1:
            raise ValueError(f"num_channels={num_channels} must be at least 1")
        if channels.keys() != self.queries.by_output.keys():
            raise ValueError(f"num_channels={num_channels}: the outputs are {', '.join(self.queries.by_output)}")
        self.chunk_size = chunk_size
        self.cross_block = CrossBlock(query_dim=self.queries.dim, input_dim=dim, spec=attention, role=DECODE)
        self.norm = nn.LayerNorm(self.queries.dim)
        self.heads = nn.ModuleDict({name: nn.Linear(self.queries.dim, channels[name]) for name in channels})
        if (shared := self.queries.shared_positions) is not None:
            attend_to_equal_places(self.cross_block.attention, shared.dim, sharpness)

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        return {name: "places" for name, part in self.queries.by_output.items() if part.needs_places}

    def set_input_dim(self, input_dim: int) -> None:
        for part in self.queries.by_output.values():
            part.set_input_dim(input_dim)

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        outputs = {}
        for name, part in self.queries.by_output.items():
            if not part.needs_places:
                found = self._decode(name, part, memory, None)
                outputs[name] = found[:, 0] if found.shape[1] == 1 else found
            elif queries is None or name not in queries:
                raise ValueError(f"queries lack {name!r}: the places of the output")
            else:
                places = queries[name]
                chunks = [places] if torch.is_grad_enabled() else torch.split(places, self.chunk_size, dim=1)
                outputs[name] = torch.cat([self._decode(name, part, memory, chunk) for chunk in chunks], dim=1)
        return outputs

    def _decode(
        self, name: str, part: Queries, memory: Memory, places: Float[Tensor, "batch places axes"] | None
    ) -> Float[Tensor, "batch queries channels"]:
        tokens = self.queries.widen(name, part(memory, places))
        return self.heads[name](self.norm(self.cross_block(tokens.values, memory.values, mask=memory.mask)))
