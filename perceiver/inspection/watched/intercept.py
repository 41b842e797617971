"""Attention calls of any model, found while it runs: fused, explicit, and the fast paths of `torch.nn`.

`Interceptor` sees every torch function that is called inside the watched method of a model. Attention is

    F.scaled_dot_product_attention(q, k, v, …)
    softmax(logits) @ v, with anything between that keeps the shape, such as dropout (`matmul`, `bmm`, `einsum` with any
        order of axes)
    the fused kernels of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` without gradients

Each runs unchanged, so that outputs, gradients and random numbers are those of the model, to the bit. Which sequences
a call connects follows from the tensors that queries and keys were computed from (`Lineage`).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from perceiver.inspection.watched.lineage import PRODUCTS, Lineage, Trace, tensors_in
from perceiver.inspection.watched.weighted_sum import WeightedSum

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
"""Names under which modules keep their number of heads."""
FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
"""The arguments of `F.scaled_dot_product_attention`."""
OTHER_CALLS = "the model calls attention more or less often when it is called again; watch it in eval mode"
PADDING = 1
"""`mask_type` of a mask over keys in torch's fast paths; others have an entry for each pair."""


@dataclass(frozen=True)
class AttentionCall:
    """One attention of a forward pass, by head.

    Attributes:
        module: path of the module that computes it.
        q, k, v: detached; q and k are None if `weights` are known.
        bias: added to the logits; or boolean, False where a query may not attend to a key; or None.
        scale: of the logits.
        weights: the weights before dropout, if the model computes them explicitly.
        out: weights times values, part of the autograd graph; None in a fast path.
        query_origins, key_origins: the origins of queries and keys, see `Lineage`.
    """

    module: str
    q: Float[Tensor, "batch heads queries qk_dim"] | None
    k: Float[Tensor, "batch heads keys qk_dim"] | None
    v: Float[Tensor, "batch heads keys v_dim"]
    bias: Tensor | None
    scale: float
    weights: Float[Tensor, "batch heads queries keys"] | None
    out: Float[Tensor, "batch heads queries v_dim"] | None
    query_origins: tuple[int, ...]
    key_origins: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Numbers of rows, heads, queries and keys."""
        known = self.weights if self.q is None else self.q
        assert known is not None
        rows, heads, queries, _ = known.shape
        return rows, heads, queries, self.v.shape[2]


@dataclass(frozen=True)
class Effect:
    """What an intervention does to one attention.

    Attributes:
        visible: False for keys that no query attends to; the weights of the others are renormalized.
        heads: False for heads whose output is set to zero.
    """

    visible: Bool[Tensor, "batch keys"] | None = None
    heads: Bool[Tensor, "batch heads"] | None = None


class Interceptor(TorchFunctionMode):
    """Runs a method of a model, and reports each attention call in it.

    Args:
        model: the model.
        on_call: takes each call, and returns the number of the sequence that the call updates.
        gradients: give the outputs of attention a gradient even if all parameters before them are frozen.
        effects: of the interventions on each call, in order; None: no interventions.

    Attributes:
        unread: identity of the result of a softmax -> path of its module, if it was not multiplied by values.
    """

    def __init__(
        self,
        model: nn.Module,
        on_call: Callable[[AttentionCall], int | None],
        *,
        lineage: Lineage,
        gradients: bool = False,
        effects: Iterator[Effect] | None = None,
    ) -> None:
        super().__init__()
        self.on_call = on_call
        self.gradients = gradients
        self.effects = effects
        self.lineage = lineage
        self.modules = {id(module): (name, module) for name, module in model.named_modules()}
        self.unread: dict[int, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Intercept calls within a forward pass."""
        with ExitStack() as stack:
            # Fast paths have no gradient, and a call in one could not be changed.
            if self.effects is None and not (self.gradients and torch.is_grad_enabled()):
                # They are not taken where a tensor has a torch function, which includes a mode like this one.
                stack.enter_context(patch("torch.overrides.has_torch_function", _is_overridden))
            stack.enter_context(patch.object(F, "has_torch_function", _is_overridden))
            stack.enter_context(self)
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if torch._C._current_graph_task_id() != -1:  # activation checkpointing recomputes a part
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(func, dict(zip(FUSED, args, strict=False)) | dict(kwargs))
        if func is torch._native_multi_head_attention:
            return self._fast_attention(func, args, kwargs)
        if func is torch._transformer_encoder_layer_fwd:
            return self._fast_layer(func, args, kwargs)
        sources = list(tensors_in([*args, *kwargs.values()]))
        if name in PRODUCTS and len(sources) > 1:
            for used, v in (sources[-2:], sources[:-3:-1]):
                trace = self.lineage.traces.get(used)
                if trace is not None and trace.weights is not None:
                    product = WeightedSum.of(name, args, trace.axis, used, v)
                    if product is not None:
                        return self._explicit(func, args, kwargs, product, trace)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.lineage.follow(name, sources, out)
            if name == "softmax" and out.ndim >= 3:
                axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
                self.lineage.traces[out] = replace(
                    self.lineage.trace(out), weights=out, axis=-1 if axis is None else axis % out.ndim - out.ndim
                )
                self.unread[id(out)] = self._module()
        elif isinstance(out, tuple | list):
            for one in tensors_in(out):
                self.lineage.follow(name, sources, one)
        return out

    def _fused(self, func: Callable[..., Any], given: dict[str, Any]) -> Tensor:
        q, k, v = given["query"], given["key"], given["value"]
        bias, scale = given.get("attn_mask"), given.get("scale")
        q4, k4, v4 = (_by_head(x) for x in (q, k, v))
        if bias is not None:
            bias = bias.unsqueeze(1) if q.ndim == bias.ndim == 3 else bias
            bias = bias[(None,) * (4 - bias.ndim)]
        if given.get("is_causal"):
            bias = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()[None, None]
        origins = [self.lineage.trace(x).origins for x in (q, k)]
        if q4.shape[1] != k4.shape[1]:  # grouped queries
            k4, v4 = (x.repeat_interleave(q4.shape[1] // x.shape[1], dim=1) for x in (k4, v4))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        call = AttentionCall(self._module(), q4.detach(), k4.detach(), v4.detach(), bias, scale, None, None, *origins)
        return self._report(func(**given), call)

    def _explicit(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        product: WeightedSum,
        trace: Trace,
    ) -> Tensor:
        """Report a call whose weights the model computes explicitly."""
        softmax = trace.weights
        assert softmax is not None
        module = self._module()
        self.unread.pop(id(softmax), None)
        weights = product.by_query(softmax.reshape(product.used.shape) if trace.is_dropped else product.used)
        heads = 1
        if weights.ndim == 3:  # rows for each sample and head
            heads = softmax.shape[1] if softmax.ndim == 4 else self._num_heads(module, len(weights))
        weights4, v4 = (_by_head(x, heads) for x in (weights, product.values))
        v4 = v4.expand(*weights4.shape[:2], *v4.shape[2:])
        queries, keys = trace.factors or (trace, trace)
        call = AttentionCall(
            module, None, None, v4.detach(), None, 1.0, weights4.detach(), None, queries.origins, keys.origins
        )
        by_query = self._report(product.by_query_of_out(func(*args, **kwargs)), call)
        out = product.as_out(by_query)
        self.lineage.traces[out] = self.lineage.trace(by_query)
        return out

    def _report(self, out: Tensor, call: AttentionCall) -> Tensor:
        """Report a call with its output, apply its effect, and return the output that the model continues with."""
        if self.effects is not None:
            effect = next(self.effects, None)
            if effect is None:
                raise ValueError(OTHER_CALLS)
            if effect.visible is not None or effect.heads is not None:
                out = affected(call, effect).to(out.dtype).reshape(out.shape)
        if self.gradients and torch.is_grad_enabled() and not out.requires_grad:
            leaf = out.detach().requires_grad_()
            out = leaf.view_as(leaf)
        by_head = out.reshape(*call.shape[:3], out.shape[-1])
        sequence = self.on_call(replace(call, out=by_head))
        out = by_head.reshape(out.shape)
        self.lineage.traces[out] = Trace(call.query_origins if sequence is None else (sequence,))
        return out

    def _fast_attention(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Report the fast path of `nn.MultiheadAttention`."""
        out = func(*args, **kwargs)
        query, key, value, _, heads, weight, bias, _, _, mask, *_, mask_type = args
        sequence = self._report_projected((query, key, value), heads, weight, bias, mask, mask_type)
        self.lineage.traces[out[0]] = Trace(self.lineage.union([query]) if sequence is None else (sequence,))
        return out

    def _fast_layer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Report the fast path of `nn.TransformerEncoderLayer`."""
        out = func(*args, **kwargs)
        source, dim, heads, weight, bias, *_ = args
        norm_first, eps, norm_weight, norm_bias = args[8:12]
        mask, mask_type = args[-2:]
        origins = self.lineage.union([source])
        x = source
        if source.is_nested:
            lengths = torch.tensor([len(row) for row in source.unbind()], device=source.device)
            x = source.to_padded_tensor(0.0)
            mask, mask_type = torch.arange(x.shape[1], device=x.device) >= lengths[:, None], PADDING
        x = F.layer_norm(x, (dim,), norm_weight, norm_bias, eps) if norm_first else x
        self.lineage.traces[x] = Trace(origins)
        sequence = self._report_projected((x, x, x), heads, weight, bias, mask, mask_type)
        self.lineage.traces[out] = Trace(origins if sequence is None else (sequence,))
        return out

    def _report_projected(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        heads: int,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        mask_type: int | None,
    ) -> int | None:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        projected = [F.linear(*each) for each in zip(inputs, weight.chunk(3), biases, strict=True)]
        q, k, v = (rearrange(x, "batch length (heads dim) -> batch heads length dim", heads=heads) for x in projected)
        if mask is not None:
            allowed = ~mask if mask.dtype == torch.bool else mask
            mask = allowed[:, None, None] if mask_type == PADDING else allowed[(None,) * (4 - allowed.ndim)]
        origins = [self.lineage.union([x]) for x in inputs[:2]]
        call = AttentionCall(self._module(), q, k, v, mask, q.shape[-1] ** -0.5, None, None, *origins)
        return self.on_call(call)

    def _module(self) -> str:
        """Return the path of the innermost module of the model that is running."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            for name in ("self", "module"):
                found = self.modules.get(id(frame.f_locals.get(name)))
                if found is not None:
                    return found[0]
            frame = frame.f_back
        return ""

    def _num_heads(self, path: str, num_rows: int) -> int:
        """Return the number of heads of a module whose tensors have rows for each sample and head."""
        module = next(module for name, module in self.modules.values() if name == path)
        for name in HEADS:
            heads = getattr(module, name, None)
            if isinstance(heads, int) and heads > 0 and num_rows % heads == 0:
                return heads
        return 1


def affected(call: AttentionCall, effect: Effect) -> Float[Tensor, "batch heads queries v_dim"]:
    """Compute the output of a call with an effect; zeros for a query without a visible key."""
    weights = attention_weights(call.q, call.k, call.bias, call.scale) if call.weights is None else call.weights.float()
    if effect.visible is not None:
        weights = weights * effect.visible[:, None, None]
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    out = weights @ call.v.float()
    return out if effect.heads is None else out * effect.heads[:, :, None, None]


def attention_weights(
    q: Tensor | None, k: Tensor | None, bias: Tensor | None, scale: float
) -> Float[Tensor, "batch heads queries keys"]:
    """Return the softmax of scaled and biased dot products in float32; zeros for a query that may attend to no key."""
    assert q is not None
    assert k is not None
    logits = (q.float() @ k.float().mT) * scale
    if bias is not None:
        logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias.float()
    return logits.softmax(dim=-1).nan_to_num(0.0)


def _is_overridden(tensors: Iterable[Any]) -> bool:
    """Return whether a tensor overrides `__torch_function__`: `has_torch_function` without regard to modes."""
    plain = torch._C._disabled_torch_function_impl
    functions = [getattr(type(tensor), "__torch_function__", plain) for tensor in tensors]
    return any(function not in (plain, Tensor.__torch_function__) for function in functions)


def _by_head(x: Tensor, heads: int = 1) -> Float[Tensor, "batch heads length dim"]:
    return x if x.ndim == 4 else x.reshape(-1, heads, *x.shape[-2:])
