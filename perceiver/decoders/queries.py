"""The decoder of Perceiver IO (Jaegle et al. 2022, section 3.2): learned queries read the latents."""

import torch
from einops import einsum, repeat
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
            itself, and so has an attention map of its own; its logit is linear in what its query gets. (With one such
            layer for all classes they would be told apart by the queries alone, and learned far slower.)
        attention: sizes of the cross-attend.
    """

    def __init__(
        self, *, dim: int, num_classes: int, query_dim: int, attention: BlockSpec, query_per_class: bool = False
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_classes if query_per_class else 1, query_dim))
        nn.init.trunc_normal_(self.queries, std=0.02, a=-2.0, b=2.0)
        self.cross_block = CrossBlock(query_dim=query_dim, input_dim=dim, spec=attention)
        self.head = nn.Linear(query_dim, num_classes)

    def forward(self, latents: Float[Tensor, "batch latents dim"]) -> Float[Tensor, "batch classes"]:
        queries = repeat(self.queries, "queries dim -> batch queries dim", batch=latents.shape[0])
        answers = self.cross_block(queries, latents)
        if len(self.queries) == 1:
            return self.head(answers[:, 0])
        return einsum(answers, self.head.weight, "batch classes dim, classes dim -> batch classes") + self.head.bias
