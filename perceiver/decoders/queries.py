"""The decoder of Perceiver IO (Jaegle et al. 2022, section 3.2): learned queries read the latents."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock
from perceiver.decoders.base import Decoder


class QueryDecoder(Decoder):
    """Latents -> one logit per class, through learned queries.

    Args:
        dim: width of the latents.
        num_classes: logits per sample.
        query_dim: width of the queries.
        query_per_class: False: one query whose output gives all logits, as in the paper. True: each class asks for
            itself, and so has an attention map of its own.
        attention: sizes of the cross-attend.
    """

    def __init__(
        self, *, dim: int, num_classes: int, query_dim: int, attention: BlockSpec, query_per_class: bool = False
    ) -> None:
        super().__init__()
        num_queries, outputs_per_query = (num_classes, 1) if query_per_class else (1, num_classes)
        self.queries = nn.Parameter(torch.empty(num_queries, query_dim))
        nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)
        self.cross_block = CrossBlock(query_dim=query_dim, input_dim=dim, spec=attention)
        self.head = nn.Linear(query_dim, outputs_per_query)

    def forward(self, latents: Float[Tensor, "batch latents dim"]) -> Float[Tensor, "batch classes"]:
        queries = repeat(self.queries, "queries dim -> batch queries dim", batch=latents.shape[0])
        logits = self.head(self.cross_block(queries, latents))
        return rearrange(logits, "batch queries outputs -> batch (queries outputs)")
