"""Dense outputs (Perceiver IO, section 3.2): a vector for each place that is queried."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock, KeyValueCache, attend_to_equal_places
from perceiver.decoders.base import LOGITS, Decoder
from perceiver.queries.base import Queries
from perceiver.queries.joined import Joined
from perceiver.roles import DECODE
from perceiver.types import Memory, QueryKind


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """How outputs are computed from the queries after they have read the memory.

    Attributes:
        norm: whether they are normalized first (layer norm). DeepMind's decoders do not.
        hidden_dim: width of a linear layer that all outputs share, before the linear layer of each; None for none.
            DeepMind's multimodal autoencoder has one.
        scale: by which outputs are multiplied: 0.01 in DeepMind's model of optical flow.

    Raises:
        ValueError: `hidden_dim` is less than 1.
    """

    norm: bool = True
    hidden_dim: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise ValueError(f"hidden_dim={self.hidden_dim} must be at least 1")


class DenseDecoder(Decoder):
    """Memory and places -> `logits` [batch, places, channels]; with `Joined` queries, an output of each name.

    An output of a single learned query is [batch, channels]. Of several outputs, those are computed that are queried.

    Each query is decoded independently of the others. Without gradients, they are processed in chunks, so that memory
    depends on `chunk_size`, not on their number, and keys and values are projected once for all chunks; with gradients,
    all activations are stored anyway.

    Args:
        dim: width of the memory.
        num_channels: width of the output, or of each output by name.
        queries: of the output, or of several.
        attention: sizes of the cross-attention.
        chunk_size: queries that are processed at a time.
        sharpness: if queries have shared positions, the cross-attention starts by reading the latents at the place of
            a query, see `attend_to_equal_places`.
        head: from the queries to outputs.

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
        head: HeadSpec | None = None,
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
        head = HeadSpec() if head is None else head
        self.chunk_size = chunk_size
        self.scale = head.scale
        self.cross_block = CrossBlock(query_dim=self.queries.dim, input_dim=dim, spec=attention, role=DECODE)
        width = self.queries.dim
        self.norm = nn.LayerNorm(width) if head.norm else nn.Identity()
        self.shared_head = nn.Identity() if head.hidden_dim is None else nn.Linear(width, head.hidden_dim)
        width = width if head.hidden_dim is None else head.hidden_dim
        self.heads = nn.ModuleDict({name: nn.Linear(width, channels[name]) for name in channels})
        if (shared := self.queries.shared_positions) is not None:
            attend_to_equal_places(self.cross_block.attention, shared.dim, sharpness)

    @property
    def needs_queries(self) -> dict[str, QueryKind]:
        return {name: "places" for name, part in self.queries.by_output.items() if part.needs_places}

    @property
    def accepts_queries(self) -> dict[str, QueryKind]:
        parts = self.queries.by_output.items()
        return {name: "places" for name, part in parts if part.needs_places or part.takes_places}

    def set_input_dim(self, input_dim: int) -> None:
        for part in self.queries.by_output.values():
            part.set_input_dim(input_dim)

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the outputs whose places are given, and those that need none.

        Raises:
            ValueError: there are none.
        """
        outputs, given = {}, queries or {}
        for name, part in self.queries.by_output.items():
            if name in given and (part.needs_places or part.takes_places):
                places = given[name]
                chunks = [places] if torch.is_grad_enabled() else torch.split(places, self.chunk_size, dim=1)
                cache = KeyValueCache(grows=False) if len(chunks) > 1 else None
                outputs[name] = torch.cat([self._decode(name, part, memory, chunk, cache) for chunk in chunks], dim=1)
            elif not part.needs_places:
                found = self._decode(name, part, memory, None)
                outputs[name] = found[:, 0] if found.shape[1] == 1 else found
        if not outputs:
            raise ValueError(f"queries lack {' and '.join(map(repr, self.needs_queries))}: the places of the output")
        return outputs

    def _decode(
        self,
        name: str,
        part: Queries,
        memory: Memory,
        places: Float[Tensor, "batch places axes"] | None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        tokens = self.queries.widen(name, part(memory, places))
        read = self.cross_block(tokens.values, memory.values, mask=memory.mask, cache=cache)
        values = self.heads[name](self.shared_head(self.norm(read)))
        return values if self.scale == 1.0 else values * self.scale
