"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1): softmax(q kᵀ / √d) v, with d the width of q and k.

`forward` runs PyTorch's fused kernel, which does not store the weights; `weights` computes them explicitly. Deviation:
a query without a real key gets zeros, on every backend.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.mechanisms.base import Keys, Mask, Queries, Role, Values
from perceiver.mechanisms.choices import Soft
from perceiver.mechanisms.explicit import Explicit, allowed_pairs
from perceiver.mechanisms.reaches import Everywhere
from perceiver.mechanisms.scores import DotProduct

KERNEL_ALIGNMENT = 8
"""Head widths are padded to multiples of it: fused kernels refuse others, and the fallback stores all weights."""


class ScaledDotProduct(Explicit):
    """The default mechanism; see `MechanismFactory` for its arguments, of which heads and widths do not matter."""

    def __init__(self, *, num_heads: int = 1, dim: int = 1, dropout: float = 0.0, role: Role | None = None) -> None:
        score, sizes = partial(DotProduct, scaled=True), {"num_heads": num_heads, "dim": dim}
        super().__init__(score=score, choice=Soft, reach=Everywhere, **sizes, dropout=dropout, role=role)

    def forward(
        self, q: Queries, k: Keys, v: Values, mask: Mask = None, causal: bool = False, start: int = 0
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # The kernel's backward pass in bfloat16 takes up to twenty times as long as in float32.
            with torch.autocast("cpu", enabled=False):
                return self.forward(q.float(), k.float(), v.float(), mask, causal).to(v.dtype)
        in_kernel = causal and mask is None and q.shape[2] == k.shape[2]
        allowed = None if in_kernel else allowed_pairs(q, k, mask, causal)
        scale, dropout = q.shape[-1] ** -0.5, self.dropout if self.training else 0.0
        v_dim = v.shape[-1]
        width = -(-max(q.shape[-1], v_dim) // KERNEL_ALIGNMENT) * KERNEL_ALIGNMENT
        # Zero channels change neither q·k nor the real channels of the output.
        q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        if allowed is None:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)
        else:
            sees_any = allowed.any(dim=-1, keepdim=True)
            # A row without keys would be 0/0; it attends to all keys instead, and its result is discarded.
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~sees_any, dropout_p=dropout, scale=scale)
            out = out.masked_fill(~sees_any, 0.0)
        return out[..., :v_dim]
