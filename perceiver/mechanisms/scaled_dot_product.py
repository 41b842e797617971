"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1): softmax(q kᵀ / √d) v, with d the width of q and k.

`forward` does not store the weights: it runs PyTorch's fused kernel or, in bfloat16 on a CPU, `MatrixProducts`;
`weights` computes them explicitly. Deviation: a query without a real key gets zeros, on every backend.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from perceiver.kernels import MatrixProducts, allowed_pairs, fused_attention
from perceiver.mechanisms.choices import Soft
from perceiver.mechanisms.explicit import Explicit
from perceiver.mechanisms.reaches import Everywhere
from perceiver.mechanisms.scores import DotProduct
from perceiver.roles import Role
from perceiver.types import Keys, Mask, Queries, Values


class ScaledDotProduct(Explicit):
    """The default mechanism; see `MechanismFactory` for its arguments, of which heads and widths do not matter."""

    is_linear = True

    def __init__(self, *, num_heads: int = 1, dim: int = 1, dropout: float = 0.0, role: Role | None = None) -> None:
        score, sizes = partial(DotProduct, scaled=True), {"num_heads": num_heads, "dim": dim}
        super().__init__(score=score, choice=Soft, reach=Everywhere, **sizes, dropout=dropout, role=role)

    def forward(
        self, q: Queries, k: Keys, v: Values, mask: Mask = None, causal: bool = False, start: int = 0
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        scale, dropout = q.shape[-1] ** -0.5, self.dropout if self.training else 0.0
        on_cpu, needs_gradients = q.device.type == "cpu", k.requires_grad or v.requires_grad
        if on_cpu and not dropout and (q.dtype == torch.bfloat16 or (q.requires_grad and not needs_gradients)):
            # In bfloat16, the kernel takes up to ten times as long; it computes all gradients, needed or not.
            return MatrixProducts.apply(q, k, v, allowed_pairs(q, k, mask, causal), scale)
        if on_cpu and q.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return self.forward(q.float(), k.float(), v.float(), mask, causal).to(v.dtype)
        in_kernel = causal and mask is None and q.shape[2] == k.shape[2]
        allowed = None if in_kernel else allowed_pairs(q, k, mask, causal)
        return fused_attention(q, k, v, allowed, causal, scale, dropout)
