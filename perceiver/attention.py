"""Multi-head scaled dot-product attention and the two blocks a Perceiver is made of.

Attention (Vaswani et al. 2017, eq. 1): softmax(q kᵀ / √d) v, with d the width of q and k per head. The layer order is
the pre-norm one of Perceiver (Jaegle et al. 2021, section 3.2) and Perceiver IO (Jaegle et al. 2022, appendix E):

    x = queries + attention(norm(queries), norm(inputs))        CrossBlock; SelfBlock has one norm and inputs = queries
    x = x + mlp(norm(x))

Deviation from both papers' code: a query none of whose keys is real gets zeros from the attention, on every backend.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

KeyMask: TypeAlias = Bool[Tensor, "batch keys"]

KERNEL_ALIGNMENT = 8
"""Head widths are padded to a multiple of this: fused kernels refuse others, and the fallback holds the whole map."""

DEVIATION_OF_CUT = 0.87962566103423978
"""What is left of a normal distribution's deviation of 1 when it is cut at ±2; DeepMind's code makes up for it, too."""


def attend(
    q: Float[Tensor, "batch heads queries qk_dim"],
    k: Float[Tensor, "batch heads keys qk_dim"],
    v: Float[Tensor, "batch heads keys v_dim"],
    *,
    mask: KeyMask | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries v_dim"]:
    """Attention through PyTorch's fused kernel; never holds the weights.

    Args:
        mask: True where a key is real.
        causal: query i sees keys up to its own place, counted from the end: the last query sees every key.
        dropout: probability with which a weight is dropped.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The kernel's backward pass in bfloat16 takes up to twenty times as long as in float32.
        with torch.autocast("cpu", enabled=False):
            wide = (x.float() for x in (q, k, v))
            return attend(*wide, mask=mask, causal=causal, dropout=dropout).to(v.dtype)
    allowed = _allowed_pairs(q.shape[2], k.shape[2], mask, causal, q.device)
    scale = q.shape[-1] ** -0.5
    v_dim = v.shape[-1]
    width = -(-max(q.shape[-1], v_dim) // KERNEL_ALIGNMENT) * KERNEL_ALIGNMENT
    # Zero channels change neither q·k nor the real channels of the output.
    q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    if allowed is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)
    else:
        sees_any = allowed.any(dim=-1, keepdim=True)
        # A row without keys would be 0/0; it reads everything instead, and what it read is thrown away.
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~sees_any, dropout_p=dropout, scale=scale)
        out = out.masked_fill(~sees_any, 0.0)
    return out[..., :v_dim]


def attention_weights(
    q: Float[Tensor, "batch heads queries qk_dim"],
    k: Float[Tensor, "batch heads keys qk_dim"],
    *,
    mask: KeyMask | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries keys"]:
    """The weights that `attend` used, recomputed in float32: `attention_weights(q, k) @ v == attend(q, k, v)`.

    Rows sum to one; masked keys are exactly zero; a row without a real key is all zeros.
    """
    allowed = _allowed_pairs(q.shape[2], k.shape[2], mask, causal, q.device, explicit=True)
    with torch.autocast(q.device.type, enabled=False):
        logits = q.float() @ k.float().mT * q.shape[-1] ** -0.5
        if allowed is None:
            return logits.softmax(dim=-1)
        # The lowest number, not -inf, keeps rows without keys finite; the second fill makes masked keys exact zeros.
        weights = logits.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(dim=-1)
        return weights.masked_fill(~allowed, 0.0)


def _allowed_pairs(
    num_queries: int, num_keys: int, mask: KeyMask | None, causal: bool, device: torch.device, explicit: bool = False
) -> Bool[Tensor, "_ 1 _ keys"] | None:
    """Which query may read which key, or None where the kernel knows by itself (everything, or square causal)."""
    allowed = None if mask is None else rearrange(mask, "batch keys -> batch 1 1 keys")
    if causal and (explicit or allowed is not None or num_queries != num_keys):
        pairs = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)
        allowed = pairs[None, None] if allowed is None else allowed & pairs
    return allowed


class ScaledDotProduct(nn.Module):
    """`attend` as a module: the one place where attention happens, and so the place where a capture looks.

    Its inputs are the projected queries, keys and values; `perceiver.inspection.capture` hooks it.
    """

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(
        self,
        q: Float[Tensor, "batch heads queries qk_dim"],
        k: Float[Tensor, "batch heads keys qk_dim"],
        v: Float[Tensor, "batch heads keys v_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch heads queries v_dim"]:
        return attend(q, k, v, mask=mask, causal=causal, dropout=self.dropout if self.training else 0.0)


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """The sizes of a block that do not follow from its place in the model.

    Attributes:
        num_heads: attention heads; divides `qk_dim` and `v_dim`.
        qk_dim: width of queries and keys over all heads; None: the width of the inputs, as in both papers.
        v_dim: width of the values over all heads; None: `qk_dim`.
        widening: hidden width of the MLP over its outer width.
        attention_dropout: probability that an attention weight is dropped.
        residual_dropout: probability that a channel is dropped from what attention and MLP add.
        query_residual: whether attention adds to its queries or replaces them (as the decoders of DeepMind's
            optical-flow, language and learned-position models do).
        init_scale: weights of the linear layers begin with a deviation of init_scale / √(inputs), biases at 0;
            DeepMind's code has 1. None leaves them to torch, which has √⅓ and random biases.
        activation: non-linearity of the MLP. torch's GELU is exact, DeepMind's the tanh approximation.
    """

    num_heads: int
    qk_dim: int | None = None
    v_dim: int | None = None
    widening: int = 1
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    query_residual: bool = True
    init_scale: float | None = None
    activation: nn.Module = field(default_factory=nn.GELU)


class KeyValueCache:
    """Keys and values that an attention has projected, kept from call to call of one generation.

    Args:
        grows: True: each call brings more inputs, behind those of the calls before (words). False: the inputs stay what
            they are, and are projected once (latents).
    """

    def __init__(self, *, grows: bool) -> None:
        self.grows = grows
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """All keys and values so far; `project` gives those of the call's own inputs."""
        if self.kept is None:
            self.kept = project()
        elif self.grows:
            (keys, values), (more_keys, more_values) = self.kept, project()
            self.kept = torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2)
        return self.kept

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Go on with some rows of the batch, in a new order; any may be there several times."""
        if self.kept is not None:
            self.kept = self.kept[0][rows], self.kept[1][rows]


class Attention(nn.Module):
    """Multi-head attention from queries to inputs, with linear projections in and out (all with bias).

    Raises:
        ValueError: `num_heads` does not divide `qk_dim` or `v_dim`.
    """

    def __init__(self, *, query_dim: int, input_dim: int, spec: BlockSpec) -> None:
        super().__init__()
        qk_dim = input_dim if spec.qk_dim is None else spec.qk_dim
        v_dim = qk_dim if spec.v_dim is None else spec.v_dim
        for name, dim in (("qk_dim", qk_dim), ("v_dim", v_dim)):
            if spec.num_heads < 1 or dim < 1 or dim % spec.num_heads:
                raise ValueError(f"num_heads={spec.num_heads} does not divide {name}={dim}")
        self.num_heads = spec.num_heads
        self.query = nn.Linear(query_dim, qk_dim)
        self.key = nn.Linear(input_dim, qk_dim)
        self.value = nn.Linear(input_dim, v_dim)
        self.dot_product = ScaledDotProduct(dropout=spec.attention_dropout)
        self.out = nn.Linear(v_dim, query_dim)
        initialize(self, spec.init_scale)

    def forward(
        self,
        queries: Float[Tensor, "batch queries query_dim"],
        inputs: Float[Tensor, "batch keys input_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch queries query_dim"]:
        def project() -> tuple[Tensor, Tensor]:
            return self._by_head(self.key(inputs)), self._by_head(self.value(inputs))

        k, v = project() if cache is None else cache.update(project)
        out = self.dot_product(self._by_head(self.query(queries)), k, v, mask=mask, causal=causal)
        return self.out(rearrange(out, "batch heads queries dim -> batch queries (heads dim)"))

    def _by_head(self, x: Float[Tensor, "batch length _"]) -> Float[Tensor, "batch heads length dim"]:
        return rearrange(x, "batch length (heads dim) -> batch heads length dim", heads=self.num_heads)


class MLP(nn.Sequential):
    """Two linear layers with a non-linearity between them."""

    def __init__(self, *, dim: int, spec: BlockSpec) -> None:
        hidden_dim = dim * spec.widening
        # A copy: an activation with weights of its own (PReLU) must not be one and the same in every layer.
        super().__init__(nn.Linear(dim, hidden_dim), deepcopy(spec.activation), nn.Linear(hidden_dim, dim))
        initialize(self, spec.init_scale)


def initialize(module: nn.Module, scale: float | None) -> None:
    """Begin the linear layers of a module with normal weights, cut at two deviations; see `BlockSpec.init_scale`.

    Raises:
        ValueError: the scale is none.
    """
    if scale is None:
        return
    if not 0.0 < scale < inf:
        raise ValueError(f"init_scale={scale} must be finite and more than 0")
    for linear in module.children():
        if isinstance(linear, nn.Linear):
            std = scale * linear.in_features**-0.5 / DEVIATION_OF_CUT
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)


class CrossBlock(nn.Module):
    """Queries read inputs, then think for themselves: the cross-attend of encoder and decoder."""

    def __init__(self, *, query_dim: int, input_dim: int, spec: BlockSpec) -> None:
        super().__init__()
        self.query_residual = spec.query_residual
        self.query_norm = nn.LayerNorm(query_dim)
        self.input_norm = nn.LayerNorm(input_dim)
        self.attention = Attention(query_dim=query_dim, input_dim=input_dim, spec=spec)
        self.mlp_norm = nn.LayerNorm(query_dim)
        self.mlp = MLP(dim=query_dim, spec=spec)
        self.dropout = nn.Dropout(spec.residual_dropout)

    def forward(
        self,
        queries: Float[Tensor, "batch queries query_dim"],
        inputs: Float[Tensor, "batch keys input_dim"],
        mask: KeyMask | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch queries query_dim"]:
        read = self.attention(self.query_norm(queries), self.input_norm(inputs), mask=mask, cache=cache)
        x = self.dropout(read)
        if self.query_residual:
            x = queries + x
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class SelfBlock(nn.Module):
    """A transformer layer. `spec.query_residual` has no meaning here: the residual is always there."""

    def __init__(self, *, dim: int, spec: BlockSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(query_dim=dim, input_dim=dim, spec=spec)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim=dim, spec=spec)
        self.dropout = nn.Dropout(spec.residual_dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask=mask, causal=causal, cache=cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
