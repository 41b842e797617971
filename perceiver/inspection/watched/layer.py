"""One attention of a watched model, as a layer of a record."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.maps.record import Layer
from perceiver.inspection.watched.intercept import AttentionCall, attention_weights
from perceiver.roles import Role
from perceiver.types import ALL, Indices


@dataclass(frozen=True)
class WatchedLayer(Layer):
    """Attention whose weights are known, or determined by queries, keys, bias and scale.

    Attributes:
        bias, scale, known: see `AttentionCall`; `known` are its weights.
    """

    bias: Tensor | None = None
    scale: float = 1.0
    known: Float[Tensor, "batch heads queries keys"] | None = None

    @classmethod
    def of_call(cls, call: AttentionCall, role: Role, key_lengths: Mapping[str, int]) -> "WatchedLayer":
        """Return the layer of a call, with a role, that reads sequences of the given lengths."""
        rows, heads, num_queries, num_keys = call.shape
        q = call.v.new_empty(rows, heads, num_queries, 0) if call.q is None else call.q
        k = call.v.new_empty(rows, heads, num_keys, 0) if call.k is None else call.k
        return cls(
            role,
            None,
            q,
            k,
            _key_mask(call),
            False,
            torch.full((rows, num_queries), 0.5, device=q.device),
            has_residual=True,
            key_lengths=key_lengths,
            v=call.v,
            outs=() if call.out is None or not call.out.requires_grad else (call.out,),
            bias=call.bias,
            scale=call.scale,
            known=call.weights,
        )

    @torch.no_grad()
    def weights(self, queries: Indices = ALL, heads: Indices = ALL) -> Float[Tensor, "batch _ chosen keys"]:
        if self.known is not None:
            return self.known[:, heads][:, :, queries].float()
        bias = self.bias
        if bias is not None:
            bias = bias[:, heads] if bias.shape[1] > 1 else bias
            bias = bias[:, :, queries] if bias.shape[2] > 1 else bias
        return attention_weights(self.q[:, heads][:, :, queries], self.k[:, heads], bias, self.scale)

    def sample(self, index: int) -> "WatchedLayer":
        one = slice(index, index + 1)
        bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[one]
        layer = super().sample(index)
        assert isinstance(layer, WatchedLayer)
        return replace(layer, bias=bias, known=None if self.known is None else self.known[one])


def _key_mask(call: AttentionCall) -> Bool[Tensor, "batch keys"] | None:
    """Return True for keys that any query may attend to; None if that holds for all."""
    if call.weights is not None:
        real = (call.weights > 0).any(dim=1).any(dim=1)
    elif call.bias is None:
        return None
    else:
        is_bool = call.bias.dtype == torch.bool
        allowed = call.bias if is_bool else call.bias > torch.finfo(call.bias.dtype).min / 2
        real = allowed.any(dim=1).any(dim=1).expand(call.shape[0], call.shape[3])
    return None if real.all() else real
