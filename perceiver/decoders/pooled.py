"""The decoder of Perceiver (Jaegle et al. 2021, section 3.1): the mean over the latents, then one linear layer."""

from jaxtyping import Float
from torch import Tensor, nn

from perceiver.decoders.base import Decoder


class PooledDecoder(Decoder):
    """Latents -> one logit per class.

    Args:
        dim: width of the latents.
        num_classes: logits per sample.
    """

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, latents: Float[Tensor, "batch latents dim"]) -> Float[Tensor, "batch classes"]:
        return self.head(latents.mean(dim=1))
