"""Memory without bottleneck: the decoder reads the tokens, so that the model is an encoder–decoder.

With `num_layers` > 0 this is a pre-norm transformer encoder (Vaswani et al. 2017, section 3.1), whose cost is quadratic
in the number of tokens; that of a latent array is linear.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceiver.attention import BlockSpec, SelfBlock, run_block
from perceiver.roles import ENCODE
from perceiver.types import JoinedTokens, Memory


class Direct(nn.Module):
    """Tokens -> memory, token by token.

    Args:
        dim: width of the memory.
        input_dim: width of the tokens, which are projected to `dim`.
        num_layers: self-attention layers over the tokens of all modalities.
        self_attention: sizes of a layer.
        activation_checkpointing: see `run_block`.

    Raises:
        ValueError: `num_layers` is negative.
    """

    def __init__(
        self,
        *,
        dim: int,
        input_dim: int,
        num_layers: int,
        self_attention: BlockSpec,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"num_layers={num_layers} must be at least 0")
        self.activation_checkpointing = activation_checkpointing
        self.projection = nn.Linear(input_dim, dim)
        self.blocks = nn.ModuleList(SelfBlock(dim=dim, spec=self_attention, role=ENCODE) for _ in range(num_layers))

    def forward(self, tokens: JoinedTokens) -> Memory:
        x = _zero_masked(self.projection(tokens.values), tokens.mask)
        for block in self.blocks:
            x = run_block(block, x, mask=tokens.mask, checkpointing=self.activation_checkpointing)
        return Memory(_zero_masked(x, tokens.mask), tokens.mask, tokens.spans)


def _zero_masked(
    x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch tokens dim"]:
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)
