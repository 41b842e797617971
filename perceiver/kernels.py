"""Attention kernels: softmax over allowed keys, and scaled dot-product attention that does not store its weights.

A query that may attend to no key gets weights and outputs of zero.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeAlias

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.types import ALL, Indices, Keys, Mask, Pairs, Pairwise, Queries, Values

Layout: TypeAlias = tuple[torch.Size, tuple[int, ...], int]
"""Shape, stride and offset of a tensor in its storage."""

_KEPT = ContextVar("kept", default=0)
"""Contexts of `Kept` that are entered."""

CHUNK = 2**25
"""Numbers stored for the logits of a chunk of several queries: 128 MiB in float32."""

HEADS_WORKSPACE, QUERIES_WORKSPACE = 2**19, 2**23
"""Numbers stored for the weights of several heads, and of several queries of one head, by matrix products: 1 and 16 MiB
in bfloat16. Fewer queries would read all keys too often."""
NORM_WORKSPACE = 2**18
"""Numbers stored in the wider type while inputs are normalized and rounded: 1 MiB in float32."""

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


def chunks(count: int, size: int, least: int = 1, most: int | None = None) -> list[slice]:
    """Divide `count` items of `size` numbers each into slices of at most `most` numbers, but at least `least` items.

    Without `most`, these are `CHUNK` numbers.
    """
    length = max((CHUNK if most is None else most) // max(size, 1), least)
    return [slice(start, start + length) for start in range(0, max(count, 1), length)]


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


def normalized(
    x: Float[Tensor, "batch length dim"], eps: float, dtype: torch.dtype
) -> Float[Tensor, "batch length dim"]:
    """Return layer norm without weights and bias; on a CPU in parts, if inputs without gradients change their type."""
    shape = x.shape[-1:]
    if x.device.type != "cpu" or x.dtype == dtype or x.requires_grad or torch.compiler.is_compiling():
        return F.layer_norm(x, shape, eps=eps).to(dtype)
    out = torch.empty_like(x, dtype=dtype)
    for part in chunks(x.shape[1], len(x) * x.shape[2], most=NORM_WORKSPACE):
        out[:, part] = F.layer_norm(x[:, part], shape, eps=eps)
    return out


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, reader: Callable[[Tensor], Tensor]) -> Tensor:
    """Return reader(function(x)).

    In autocast on a CPU, `reader` gets one copy in the lower precision, whatever the number of products that read it.
    The backward pass computes it again instead of keeping it, except within `Kept`.

    Args:
        function: a norm or an activation without randomness, cheap beside the products that read it.
        x: what `function` itself keeps for its gradient, so that keeping it costs nothing more.
        reader: everything that reads the copy.
    """
    y = function(x)
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return reader(y)
    dtype = torch.get_autocast_dtype("cpu")
    if y.dtype not in (torch.float32, dtype):
        return reader(y)
    y = y.to(dtype)
    if not y.requires_grad or _KEPT.get():
        return reader(y)
    source, storage = x.detach(), y.untyped_storage().data_ptr()

    @cache
    def again() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            return function(source).to(dtype)

    def pack(saved: Tensor) -> Tensor | Layout:
        if saved.untyped_storage().data_ptr() != storage:
            return saved
        return saved.shape, saved.stride(), int(saved.storage_offset())

    def unpack(packed: Tensor | Layout) -> Tensor:
        return packed if isinstance(packed, Tensor) else again().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return reader(y)


class Kept:
    """Keeps what `recomputed` would compute again: where all is recomputed anyway, by hooks that it would override.

    It may be entered any number of times, as checkpointing does once for each backward pass.
    """

    def __enter__(self) -> None:
        _KEPT.set(_KEPT.get() + 1)

    def __exit__(self, *error: object) -> None:
        _KEPT.set(_KEPT.get() - 1)


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
    """Attention by two matrix products and a softmax, whose weights the backward pass computes again.

    A part of the heads is processed at a time, and if need be a part of the queries of one: weights that fit into a
    cache take a third less time, and touching new pages of memory costs as much as a product. Results lie in memory as
    projections read them, all heads of a token together.
    """

    @staticmethod
    def forward(ctx: Any, q: Queries, k: Keys, v: Values, allowed: Pairs | None, scale: float) -> Tensor:
        out = v.new_empty(len(q), q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        for heads, rows in _parts(q, k):
            weights = _weights(_part(q, heads, rows), _part(k, heads), _allowed(allowed, q, heads, rows), scale)
            out[heads][:, :, rows] = _product(weights, _part(v, heads))
        ctx.save_for_backward(q, k, v, allowed)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed = ctx.saved_tensors
        of_q = torch.empty_like(q)
        of_k, of_v = (
            torch.zeros_like(x) if needed else None for x, needed in zip((k, v), ctx.needs_input_grad[1:3], strict=True)
        )
        for heads, rows in _parts(q, k):
            queries, keys, of_out = _part(q, heads, rows), _part(k, heads), _part(gradients[0], heads, rows)
            weights = _weights(queries, keys, _allowed(allowed, q, heads, rows), ctx.scale)
            if of_v is not None:
                of_v[heads] += _product(weights.mT, of_out)
            of_weights = _product(of_out, _part(v, heads).mT)
            of_logits = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[heads][:, :, rows] = _product(of_logits, keys, ctx.scale)
            if of_k is not None:
                of_k[heads] += _product(of_logits.mT, queries, ctx.scale)
        return of_q, of_k, of_v, None, None


Heads: TypeAlias = tuple[slice, slice]
"""Some samples, and some heads of them."""


def _parts(q: Queries, k: Keys) -> list[tuple[Heads, slice]]:
    """Divide samples and heads, and the queries of each head."""
    batch, heads, num_queries, _ = q.shape
    row = k.shape[2]
    samples = chunks(batch, heads * num_queries * row, most=HEADS_WORKSPACE)
    some = chunks(heads, num_queries * row, most=HEADS_WORKSPACE)
    rows = chunks(num_queries, row, most=QUERIES_WORKSPACE)
    return [((one, of_one), part) for one in samples for of_one in some for part in rows]


def _part(x: Queries, heads: Heads, rows: slice = ALL) -> Queries:
    """Return some heads and rows, contiguous, since every product would copy others."""
    return x[heads][:, :, rows].contiguous()


def _allowed(allowed: Pairs | None, q: Queries, heads: Heads, rows: slice) -> Pairs | None:
    return None if allowed is None else pairs_of(allowed.expand(*q.shape[:2], -1, -1)[heads], rows)


def _weights(q: Queries, k: Keys, allowed: Pairs | None, scale: float) -> Pairwise:
    """Return the softmax of scale q kᵀ, in the memory of the logits."""
    logits = _product(q, k.mT, scale)
    if allowed is not None:
        logits.masked_fill_(~allowed, torch.finfo(logits.dtype).min)
    weights = torch.softmax(logits, dim=-1, out=logits)
    return weights if allowed is None else weights.masked_fill_(~allowed, 0.0)


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Return scale a b of contiguous or transposed matrices, by sample and head."""
    out = torch.baddbmm(a.new_empty(1, 1, 1), _flat(a), _flat(b), beta=0, alpha=scale)
    return out.view(*a.shape[:-1], b.shape[-1])


def _flat(x: Tensor) -> Tensor:
    """Return matrices on one axis: of a single transposed one, `flatten` gives strides for which a product copies."""
    return x.flatten(0, 1) if x.is_contiguous() else x.mT.flatten(0, 1).mT
