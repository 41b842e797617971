"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1): softmax(q kᵀ / √d) v, with d the width of q and k.

`forward` does not store the weights: it runs PyTorch's fused kernel or, in bfloat16 on a CPU, `MatrixProducts`;
`weights` computes them explicitly. Deviation: a query without a real key gets zeros, on every backend.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.mechanisms.base import Keys, Mask, Pairs, Pairwise, Queries, Role, Values
from perceiver.mechanisms.choices import Soft, masked_softmax
from perceiver.mechanisms.explicit import CHUNK, Explicit, allowed_pairs, pairs_of
from perceiver.mechanisms.reaches import Everywhere
from perceiver.mechanisms.scores import DotProduct

KERNEL_ALIGNMENT = 8
"""On a GPU, head widths are padded to multiples of it: the kernels refuse others, and the fallback stores all weights.
Everywhere, those of queries and values are padded to the larger one."""


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
        v_dim = v.shape[-1]
        width = max(q.shape[-1], v_dim)
        if q.is_cuda:
            width = -(-width // KERNEL_ALIGNMENT) * KERNEL_ALIGNMENT
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


class MatrixProducts(torch.autograd.Function):
    """Attention by two matrix products and a softmax, whose weights the backward pass computes again."""

    @staticmethod
    def forward(ctx: Any, q: Queries, k: Keys, v: Values, allowed: Pairs | None, scale: float) -> Tensor:
        scaled = q * scale
        out = torch.cat([_weights(scaled, k, allowed, rows) @ v for rows in _chunks(q, k)], dim=2)
        ctx.save_for_backward(scaled, k, v, allowed, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        q, k, v, allowed, out = ctx.saved_tensors
        of_q = []
        of_k, of_v = (
            torch.zeros_like(x) if needed else None for x, needed in zip((k, v), ctx.needs_input_grad[1:3], strict=True)
        )
        for rows in _chunks(q, k):
            weights, of_out = _weights(q, k, allowed, rows), gradient[:, :, rows]
            if of_v is not None:
                of_v += weights.mT @ of_out
            mean = (of_out * out[:, :, rows]).sum(dim=-1, keepdim=True)
            of_logits = (of_out @ v.mT).sub_(mean).mul_(weights)
            of_q.append(of_logits @ k)
            if of_k is not None:
                of_k += of_logits.mT @ q[:, :, rows]
        return torch.cat(of_q, dim=2) * ctx.scale, of_k, of_v, None, None


def _weights(q: Queries, k: Keys, allowed: Pairs | None, rows: slice) -> Pairwise:
    """Return the softmax of q kᵀ for some queries; zeros for a query that may attend to no key."""
    return masked_softmax(q[:, :, rows] @ k.mT, pairs_of(allowed, rows))


def _chunks(q: Queries, k: Keys) -> list[slice]:
    """Divide the queries into parts with at most `CHUNK` weights."""
    size = max(CHUNK // max(q.shape[0] * q.shape[1] * k.shape[2], 1), 1)
    return [slice(start, start + size) for start in range(0, max(q.shape[2], 1), size)]
