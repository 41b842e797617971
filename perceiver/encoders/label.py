"""Labels -> tokens: an embedding or a one-hot vector of each, as inputs of autoencoders (Perceiver IO, section 4.3)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from perceiver.encoders.base import Encoder, check_sizes
from perceiver.types import Axis, Grid, Tokens


class LabelEncoder(Encoder):
    """Embeds the numbers of classes, which is a linear projection of one-hot vectors; their order does not matter.

    Args:
        num_classes: number of classes.
        dim: width of the embeddings; None for one-hot vectors, of width `num_classes`.
    """

    one_hot: Tensor

    def __init__(self, *, num_classes: int, dim: int | None) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, dim=dim)
        self.embedding = None if dim is None else nn.Embedding(num_classes, dim)
        self.register_buffer("one_hot", torch.eye(num_classes) if dim is None else None, persistent=False)
        self.dim = num_classes if dim is None else dim

    def forward(self, raw: Int[Tensor, "batch 1 labels"], mask: Bool[Tensor, "batch labels"] | None = None) -> Tokens:
        if raw.ndim != 3 or raw.shape[1] != 1 or raw.shape[2] < 1 or raw.is_floating_point():
            raise ValueError(f"labels must be whole numbers [batch, 1, labels], not {raw.dtype} {list(raw.shape)}")
        labels = raw[:, 0] if mask is None else raw[:, 0].masked_fill(~mask, 0)
        count = raw.shape[2]
        values = self.one_hot[labels] if self.embedding is None else self.embedding(labels)
        return Tokens(values, mask, Grid((count,), (Axis("label", "", 0.0, float(count)),)))

    def example_input(self) -> Int[Tensor, "1 1 1"]:
        return torch.zeros(1, 1, 1, dtype=torch.long)
