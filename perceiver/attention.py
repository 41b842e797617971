"""Multi-head attention and the two blocks of a Perceiver.

The layer order is the pre-norm one of Perceiver (Jaegle et al. 2021, section 3.2) and Perceiver IO (Jaegle et al. 2022,
appendix E):

    x = queries + attention(norm(queries), norm(inputs))        CrossBlock; SelfBlock has one norm and inputs = queries
    x = x + mlp(norm(x))
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import inf

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceiver.kernels import Kept, normalized, recomputed
from perceiver.mechanisms.base import MechanismFactory
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.roles import Role
from perceiver.types import KeyMask

TRUNCATED_STD = 0.87962566103423978
"""The standard deviation of a standard normal truncated at ±2, which DeepMind's code divides by, too."""


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
        query_residual: whether attention is added to its queries or replaces them (as in the decoders of DeepMind's
            optical-flow, language and learned-position models).
        init_scale: the linear layers are initialized with a standard deviation of init_scale / √(inputs) and biases of
            0; DeepMind's code has 1. None: torch's initialization, which has √⅓ and random biases.
        activation: non-linearity of the MLP. torch's GELU is exact, DeepMind's the tanh approximation.
        mechanism: builds what computes attention from queries, keys and values (`conf/mechanism`).
        projections: whether queries, keys, values and outputs are projected. False: attention is computed on queries
            and inputs themselves, and all widths must be equal.

    Raises:
        ValueError: a probability is not in [0, 1), or `widening` is less than 1.
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
    mechanism: MechanismFactory = ScaledDotProduct
    projections: bool = True

    def __post_init__(self) -> None:
        for name in ("attention_dropout", "residual_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.widening < 1:
            raise ValueError(f"widening={self.widening} must be at least 1")


class KeyValueCache:
    """Projected keys and values of an attention, cached between the steps of a generation.

    Attributes:
        num_queries: queries of earlier calls.

    Args:
        grows: True: the inputs of each call follow those of earlier calls (text). False: the inputs are always the same
            and are projected once (memory).
    """

    def __init__(self, *, grows: bool) -> None:
        self.grows = grows
        self.kept: tuple[Tensor, Tensor] | None = None
        self.num_queries = 0

    def update(self, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return all keys and values so far; `project` computes those of the inputs of this call."""
        if self.kept is None:
            self.kept = project()
        elif self.grows:
            (keys, values), (more_keys, more_values) = self.kept, project()
            self.kept = torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2)
        return self.kept

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Continue with some rows of the batch, in any order, each any number of times."""
        if self.kept is not None:
            self.kept = self.kept[0][rows], self.kept[1][rows]


class Attention(nn.Module):
    """Multi-head attention from queries to inputs, with linear projections in and out (all with bias) or without.

    Without projections, the outputs of a head are the weighted mean of its part of the inputs.

    Raises:
        ValueError: `num_heads` does not divide `qk_dim` or `v_dim`, or widths differ without projections.
    """

    def __init__(self, *, query_dim: int, input_dim: int, spec: BlockSpec, role: Role | None = None) -> None:
        super().__init__()
        qk_dim = input_dim if spec.qk_dim is None else spec.qk_dim
        v_dim = qk_dim if spec.v_dim is None else spec.v_dim
        for name, dim in (("qk_dim", qk_dim), ("v_dim", v_dim)):
            if spec.num_heads < 1 or dim < 1 or dim % spec.num_heads:
                raise ValueError(f"num_heads={spec.num_heads} does not divide {name}={dim}")
        self.num_heads = spec.num_heads
        self.dropout = spec.attention_dropout
        self.mechanism = spec.mechanism(
            num_heads=spec.num_heads, dim=qk_dim // spec.num_heads, dropout=spec.attention_dropout, role=role
        )
        self.query: nn.Module = nn.Identity()
        self.key: nn.Module = nn.Identity()
        self.value: nn.Module = nn.Identity()
        self.out: nn.Module = nn.Identity()
        if spec.projections:
            self.query = nn.Linear(query_dim, qk_dim)
            self.key = nn.Linear(input_dim, qk_dim) if self.mechanism.reads_keys else nn.Identity()
            self.value = nn.Linear(input_dim, v_dim)
            self.out = nn.Linear(v_dim, query_dim)
            initialize(self, spec.init_scale)
        elif len({query_dim, input_dim, qk_dim, v_dim}) > 1:
            widths = f"queries have width {query_dim}, inputs {input_dim}, qk_dim={qk_dim}, v_dim={v_dim}"
            raise ValueError(f"projections=False: all widths must be equal, but {widths}")

    def forward(
        self,
        queries: Float[Tensor, "batch queries query_dim"],
        inputs: Float[Tensor, "batch keys input_dim"],
        mask: KeyMask | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> Float[Tensor, "batch queries query_dim"]:
        """Attend from queries to inputs, which `norm` normalizes first, if given; for the rest see `Mechanism`."""
        if cache is None and not causal and self._is_cheaper_unprojected(queries.shape[1], inputs.shape[1]):
            return self._attend_unprojected(queries, inputs, mask, norm)

        def project() -> tuple[Tensor, Tensor]:
            normed = inputs if norm is None else norm(inputs)
            k = self._by_head(self.key(normed)) if self.mechanism.reads_keys else None
            v = self._by_head(self.value(normed))
            return (v if k is None else k), v

        start = 0
        if cache is None:
            k, v = project()
        else:
            k, v = cache.update(project)
            start, cache.num_queries = cache.num_queries, cache.num_queries + queries.shape[1]
        q = self._by_head(self.query(queries))
        out = self.mechanism(q, k, v, mask=mask, causal=causal, start=start)
        return self.out(rearrange(out, "batch heads queries dim -> batch queries (heads dim)"))

    def _is_cheaper_unprojected(self, num_queries: int, num_keys: int) -> bool:
        """Return whether `_attend_unprojected` is possible, and fewer operations."""
        if self.num_heads > 1 or not self.mechanism.is_linear or (self.training and self.dropout):
            return False
        if not isinstance(self.key, nn.Linear) or not isinstance(self.value, nn.Linear):
            return False
        input_dim, width = self.key.in_features, self.key.out_features + self.value.out_features
        projected = num_keys * input_dim * width + num_queries * num_keys * width
        return num_queries * input_dim * width + 2 * num_queries * num_keys * input_dim < projected

    def _attend_unprojected(
        self,
        queries: Float[Tensor, "batch queries query_dim"],
        inputs: Float[Tensor, "batch keys input_dim"],
        mask: KeyMask | None,
        norm: nn.LayerNorm | None,
    ) -> Float[Tensor, "batch queries query_dim"]:
        """Return the same with a single head without keys and values, which take most of the time of many inputs.

        With weights A = softmax(q (K x + b)ᵀ), q (K x)ᵀ = (q K) xᵀ, b adds the same to all logits of a query, and
        A (V x + c) = V (A x) + c, since the rows of A sum to one. Likewise for the weights and bias of the norm, so
        that inputs without a gradient need none.
        """
        assert isinstance(self.key, nn.Linear)
        scale = (self.key.in_features / self.key.out_features) ** 0.5  # the mechanism divides by √in_features
        q = self.query(queries) @ self.key.weight * scale
        q = q + 0.0 * self.key.bias.sum()  # its gradient is zero, not missing, as distributed training requires
        if norm is None:
            keys = inputs.to(q.dtype)[:, None]
        else:
            q = q * norm.weight.to(q.dtype)
            keys = normalized(inputs, norm.eps, q.dtype)[:, None]
        read = self.mechanism(q[:, None], keys, keys, mask=mask)[:, 0]
        values = self.value(read if norm is None else read * norm.weight + norm.bias)
        if mask is not None:
            values = values.masked_fill(~mask.any(dim=1)[:, None, None], 0.0)
        return self.out(values)

    def _by_head(self, x: Float[Tensor, "batch length _"]) -> Float[Tensor, "batch heads length dim"]:
        return rearrange(x, "batch length (heads dim) -> batch heads length dim", heads=self.num_heads)


class MLP(nn.Sequential):
    """Two linear layers with a non-linearity between them."""

    def __init__(self, *, dim: int, spec: BlockSpec) -> None:
        hidden_dim = dim * spec.widening
        # A copy: an activation with weights (PReLU) must not be shared by all layers.
        super().__init__(nn.Linear(dim, hidden_dim), deepcopy(spec.activation), nn.Linear(hidden_dim, dim))
        initialize(self, spec.init_scale)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        first, activation, last = self[0], self[1], self[2]
        if isinstance(activation, nn.GELU):  # others may be random, work in place, or keep their output anyway
            return recomputed(activation, first(x), last)
        out: Tensor = last(activation(first(x)))
        return out


@torch.no_grad()
def attend_to_equal_places(attention: Attention, dim: int, sharpness: float) -> None:
    """Initialize an attention so that queries prefer inputs whose first `dim` columns are similar to their own.

    The weights of queries and keys for these columns become the same random matrix, semi-orthogonal in each head, so
    that they contribute `sharpness` times the dot product of the two to a logit: exactly, if a head has `dim` channels
    and scores are scaled dot products.

    Raises:
        ValueError: the attention has no projections of queries and keys, or one of these has fewer columns.
    """
    if not isinstance(attention.query, nn.Linear) or not isinstance(attention.key, nn.Linear):
        needed = "projections=true" if attention.mechanism.reads_keys else "a mechanism that reads keys, not location"
        raise ValueError(f"shared positions need an attention that projects its queries and keys: {needed}")
    query, key = attention.query.weight, attention.key.weight
    if (least := min(query.shape[1], key.shape[1])) < dim:
        raise ValueError(f"dim={least} is less than the {dim} features of shared positions")
    width = len(query) // attention.num_heads
    gain = (sharpness * width**0.5 * max(dim / width, 1.0)) ** 0.5
    matrix = torch.empty(attention.num_heads, width, dim, device=query.device)
    for head in matrix:
        nn.init.orthogonal_(head, gain=gain)
    query[:, :dim] = key[:, :dim] = matrix.flatten(0, 1)


def initialize(module: nn.Module, scale: float | None) -> None:
    """Initialize the linear layers of a module with a truncated normal; see `BlockSpec.init_scale`.

    Raises:
        ValueError: the scale is not positive and finite.
    """
    if scale is None:
        return
    if not 0.0 < scale < inf:
        raise ValueError(f"init_scale={scale} must be finite and more than 0")
    for linear in module.children():
        if isinstance(linear, nn.Linear):
            std = scale * linear.in_features**-0.5 / TRUNCATED_STD
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)


@torch.no_grad()
def add_nothing_to_columns(linears: Iterable[nn.Module], dim: int) -> None:
    """Initialize linear layers so that the first `dim` of their outputs are 0."""
    for linear in linears:
        if isinstance(linear, nn.Linear):
            nn.init.zeros_(linear.weight[:dim])
            nn.init.zeros_(linear.bias[:dim])


class Residual(nn.Module):
    """The sum of queries and attended values: a module, so that a capture sees both."""

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], read: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        return queries + read


class CrossBlock(nn.Module):
    """Queries read inputs, then pass through an MLP: the cross-attend of encoder and decoder."""

    def __init__(self, *, query_dim: int, input_dim: int, spec: BlockSpec, role: Role | None = None) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(query_dim)
        self.input_norm = nn.LayerNorm(input_dim)
        self.attention = Attention(query_dim=query_dim, input_dim=input_dim, spec=spec, role=role)
        self.residual = Residual() if spec.query_residual else None
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
        read = self.attention(self.query_norm(queries), inputs, mask=mask, cache=cache, norm=self.input_norm)
        x = self.dropout(read)
        if self.residual is not None:
            x = self.residual(queries, x)
        return x + self.dropout(recomputed(self.mlp_norm, x, self.mlp))


class SelfBlock(nn.Module):
    """A transformer layer. `spec.query_residual` has no meaning here: the residual is always there."""

    def __init__(self, *, dim: int, spec: BlockSpec, role: Role | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(query_dim=dim, input_dim=dim, spec=spec, role=role)
        self.residual = Residual()
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
        attend = partial(self.attention, mask=mask, causal=causal, cache=cache)
        x = self.residual(x, self.dropout(recomputed(self.norm, x, lambda normed: attend(normed, normed))))
        return x + self.dropout(recomputed(self.mlp_norm, x, self.mlp))


def run_block(block: nn.Module, *inputs: Tensor, checkpointing: bool = False, mask: KeyMask | None = None) -> Tensor:
    """Run a block of a stack.

    Args:
        checkpointing: in training, keep only the inputs of the block and recompute it in the backward pass (Chen et al.
            2016, arXiv:1604.06174): less memory, a third more time.
        mask: True where a key is real.
    """
    if checkpointing and block.training:
        run = partial(checkpoint, block, *inputs, mask=mask, use_reentrant=False)
        # The compiler refuses contexts of other kinds than its own; what it compiles is not `recomputed` anyway.
        return run() if torch.compiler.is_compiling() else run(context_fn=lambda: (Kept(), Kept()))
    return block(*inputs, mask=mask)
