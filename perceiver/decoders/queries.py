"""The decoder of Perceiver IO (Jaegle et al. 2022, section 3.2): learned queries read the memory."""

from collections.abc import Mapping

from einops import einsum
from torch import Tensor, nn

from perceiver.attention import BlockSpec, CrossBlock
from perceiver.decoders.base import LOGITS, Decoder
from perceiver.queries.learned import Learned
from perceiver.roles import DECODE
from perceiver.types import Memory


class QueryDecoder(Decoder):
    """Memory -> `logits`, one per class, through learned queries.

    Args:
        dim: width of the memory.
        num_classes: logits per sample.
        queries: one for all logits, as in the paper; or one per class, each with its own attention map and its own
            linear map to a logit (a shared one is learned far slower, since only the queries distinguish classes).
        attention: sizes of the cross-attention.

    Raises:
        ValueError: the number of queries is neither 1 nor `num_classes`.
    """

    def __init__(self, *, dim: int, num_classes: int, queries: Learned, attention: BlockSpec) -> None:
        super().__init__()
        if (num_queries := len(queries.array)) not in (1, num_classes):
            raise ValueError(f"num_queries={num_queries} must be 1 or num_classes={num_classes}")
        self.queries = queries
        self.cross_block = CrossBlock(query_dim=queries.dim, input_dim=dim, spec=attention, role=DECODE)
        self.head = nn.Linear(queries.dim, num_classes)

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        queried = self.queries(memory).values
        read = self.cross_block(queried, memory.values, mask=memory.mask)
        if queried.shape[1] == 1:
            return {LOGITS: self.head(read[:, 0])}
        logits = einsum(read, self.head.weight, "batch classes dim, classes dim -> batch classes") + self.head.bias
        return {LOGITS: logits}
