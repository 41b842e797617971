"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1): softmax(q kᵀ / √d) v, with d the width of q and k.

`forward` runs PyTorch's fused kernel, which does not store the weights; `weights` computes them explicitly. Deviation:
a query without a real key gets zeros, on every backend.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceiver.mechanisms.base import ALL, Indices, KeyMask, Mechanism, Role, allowed_pairs

KERNEL_ALIGNMENT = 8
"""Head widths are padded to multiples of it: fused kernels refuse others, and the fallback stores all weights."""


class ScaledDotProduct(Mechanism):
    """The default mechanism; see `MechanismFactory` for its arguments, of which heads and widths do not matter."""

    def __init__(
        self, *, num_heads: int | None = None, dim: int | None = None, dropout: float = 0.0, role: Role | None = None
    ) -> None:
        super().__init__(role=role)
        self.dropout = dropout

    def forward(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        v: Float[Tensor, "batch heads keys v_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        start: int = 0,
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        return attend(q, k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0)

    def weights(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        queries: Indices = ALL,
        start: int = 0,
    ) -> Float[Tensor, "batch heads chosen keys"]:
        allowed = allowed_pairs(q.shape[2], k.shape[2], mask, causal, q.device)
        with torch.autocast(q.device.type, enabled=False):
            logits = q[:, :, queries].float() @ k.float().mT * q.shape[-1] ** -0.5
            if allowed is None:
                return logits.softmax(dim=-1)
            allowed = allowed if allowed.shape[2] == 1 else allowed[:, :, queries]
            # The lowest number, not -inf, keeps rows without keys finite; the second fill zeroes masked keys.
            weights = logits.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(dim=-1)
            return weights.masked_fill(~allowed, 0.0)


def attend(
    q: Float[Tensor, "batch heads queries qk_dim"],
    k: Float[Tensor, "batch heads keys qk_dim"],
    v: Float[Tensor, "batch heads keys v_dim"],
    *,
    mask: KeyMask | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Compute attention by PyTorch's fused kernel, which does not store the weights.

    Args:
        mask: True where a key is real.
        causal: each query attends to the keys up to its own position, counted from the end: the last to all keys.
        dropout: probability with which a weight is dropped.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The kernel's backward pass in bfloat16 takes up to twenty times as long as in float32.
        with torch.autocast("cpu", enabled=False):
            wide = (x.float() for x in (q, k, v))
            return attend(*wide, mask=mask, causal=causal, dropout=dropout).to(v.dtype)
    in_kernel = causal and mask is None and q.shape[2] == k.shape[2]
    allowed = None if in_kernel else allowed_pairs(q.shape[2], k.shape[2], mask, causal, q.device)
    scale = q.shape[-1] ** -0.5
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
