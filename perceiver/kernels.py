"""Attention kernels: softmax over allowed keys, and scaled dot-product attention that does not store its weights.

A query that may attend to no key gets weights and outputs of zero.
"""

from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.types import Indices, Keys, Mask, Pairs, Pairwise, Queries, Values

CHUNK = 2**25
"""Numbers stored for the logits of a chunk of several queries: 128 MiB in float32."""

KERNEL_ALIGNMENT = 8
"""On a GPU, head widths are padded to multiples of it: the kernels refuse others, and the fallback stores all weights.
Everywhere, those of queries and values are padded to the larger one."""


def allowed_pairs(q: Queries, k: Keys, mask: Mask, causal: bool) -> Pairs | None:
    """Return which query may attend to which key, or None for all keys; see `Mechanism.forward`."""
    allowed = None if mask is None else rearrange(mask, "batch keys -> batch 1 1 keys")
    if causal:
        pairs = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        allowed = pairs[None, None] if allowed is None else allowed & pairs
    return allowed


def pairs_of(allowed: Pairs | None, chunk: Indices) -> Pairs | None:
    """Return the allowed pairs of a chunk of queries."""
    return allowed if allowed is None or allowed.shape[2] == 1 else allowed[:, :, chunk]


def chunks(num_queries: int, row: int, least: int = 1) -> list[slice]:
    """Divide queries into parts of at most `CHUNK` numbers, with `row` for each query, but of at least `least`."""
    size = max(CHUNK // max(row, 1), least)
    return [slice(start, start + size) for start in range(0, max(num_queries, 1), size)]


def masked_softmax(logits: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return the softmax over allowed keys."""
    return zeroed(filled(logits, allowed).softmax(dim=-1), allowed)


def masked_argmax(values: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return a weight of 1 for the allowed key with the largest value."""
    largest = filled(values, allowed).argmax(dim=-1)
    return zeroed(F.one_hot(largest, values.shape[-1]).to(values.dtype), allowed)


def filled(logits: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return logits with the lowest number for other keys, which keeps rows without a key finite, unlike -inf."""
    return logits if allowed is None else logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)


def zeroed(weights: Pairwise, allowed: Pairs | None) -> Pairwise:
    """Return weights with 0 for other keys."""
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def wide(x: Tensor) -> Tensor:
    """Return numbers in float32, or in their own type if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """Return weights that start as those of torch's linear layers."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


def headwise(x: Queries, weight: Float[Tensor, "heads qk_dim out"]) -> Float[Tensor, "batch heads queries out"]:
    """Return the product of each head with weights of its own; `@` would copy these for each sample."""
    return einsum(x, weight.to(x.dtype), "batch heads length dim, heads dim out -> batch heads length out")


def fused_attention(
    q: Queries, k: Keys, v: Values, allowed: Pairs | None, causal: bool, scale: float, dropout: float
) -> Tensor:
    """Return attention by PyTorch's fused kernel; `causal` without `allowed` needs as many keys as queries."""
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
        out = torch.cat([_weights(scaled, k, allowed, rows) @ v for rows in _rows(q, k)], dim=2)
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
        for rows in _rows(q, k):
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
    """Return the softmax of q kᵀ for some queries."""
    return masked_softmax(q[:, :, rows] @ k.mT, pairs_of(allowed, rows))


def _rows(q: Queries, k: Keys) -> list[slice]:
    return chunks(q.shape[2], q.shape[0] * q.shape[1] * k.shape[2])
