"""The decoder of Perceiver (Jaegle et al. 2021, section 3.1): the mean over the latents, then one linear layer."""

from collections.abc import Mapping

from torch import Tensor, nn

from perceiver.decoders.base import LOGITS, Decoder
from perceiver.types import Memory


class PooledDecoder(Decoder):
    """Memory -> `logits`, one per class, from the mean of its real elements.

    Args:
        dim: width of the memory.
        num_classes: logits per sample.
    """

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, memory: Memory, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        return {LOGITS: self.head(memory.mean())}
