"""Looking at attention without touching the training path.

Training always runs the fused kernel, which never holds the weights. Inside `capture(model)` every `ScaledDotProduct`
leaves its queries, keys and mask here; the weights are recomputed from them in float32, only for what is asked for and
in bounded chunks. Outside, nothing is left in the model: no flag, no hook, no recompilation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceiver.attention import KeyMask, ScaledDotProduct, attention_weights
from perceiver.model import Join
from perceiver.types import JoinedTokens, Span

Role: TypeAlias = Literal["cross", "self", "decode"]

Queries: TypeAlias = slice | Sequence[int]

ALL = slice(None)
CHUNK = 64
"""Queries whose weights are held at once."""


@dataclass(frozen=True)
class Layer:
    """One attention of one forward pass: what it is, and what its weights follow from."""

    role: Role
    q: Float[Tensor, "batch heads queries qk_dim"]
    k: Float[Tensor, "batch heads keys qk_dim"]
    mask: KeyMask | None
    causal: bool

    @property
    def num_queries(self) -> int:
        return self.q.shape[2]

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    def weights(self, queries: Queries = ALL) -> Float[Tensor, "batch heads chosen keys"]:
        """Exact weights of the chosen queries, in float32."""
        if self.causal:  # what a query may see depends on its place among all
            return attention_weights(self.q, self.k, mask=self.mask, causal=True)[:, :, queries]
        return attention_weights(self.q[:, :, queries], self.k, mask=self.mask)

    def sample(self, index: int) -> "Layer":
        """The same attention for one sample of the batch."""
        mask = None if self.mask is None else self.mask[index : index + 1]
        return Layer(self.role, self.q[index : index + 1], self.k[index : index + 1], mask, self.causal)

    def chunks(self) -> Iterator[slice]:
        """Slices that cover all queries."""
        for start in range(0, self.num_queries, CHUNK):
            yield slice(start, min(start + CHUNK, self.num_queries))


class Capture:
    """The attention of the last forward pass.

    Attributes:
        layers: name -> layer, in the order in which they ran; named by role and number: `cross0`, `self0`, … `decode0`.
        spans: modality name -> its place among the keys of the `cross` layers.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.spans: dict[str, Span] = {}

    def map(
        self, layer: str, *, head: int | None = None, queries: Sequence[int] | None = None
    ) -> Float[Tensor, "batch queries keys"]:
        """Attention weights of one layer.

        Args:
            layer: its name.
            head: one head; None for the mean over heads.
            queries: which queries (latents, in `cross` and `self` layers); None for all.

        Raises:
            KeyError: there is no such layer.
        """
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; there are {', '.join(self.layers)}")
        found = self.layers[layer]
        chosen = list(range(found.num_queries)) if queries is None else list(queries)
        rows = [found.weights(chosen[start : start + CHUNK]) for start in range(0, len(chosen), CHUNK)]
        return torch.cat([row.mean(dim=1) if head is None else row[:, head] for row in rows], dim=1)

    def named(self, role: Role) -> list[str]:
        """Names of the layers of a role, in order."""
        return [name for name, layer in self.layers.items() if layer.role == role]


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Record the attention of what `model` runs inside the context.

    The model runs in eval mode, without gradients and uncompiled. Mode of every part, random state and compilation are
    afterwards what they were.

        with capture(model) as attention:
            model(inputs)
        attention.map("cross0", queries=[0, 5])
    """
    captured = Capture()
    modes = {module: module.training for module in model.modules()}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, ScaledDotProduct):
            hooks.append(module.register_forward_pre_hook(_recorder(captured, _role(name)), with_kwargs=True))
        elif isinstance(module, Join):
            hooks.append(module.register_forward_hook(_span_recorder(captured)))
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def _role(name: str) -> Role:
    """Role of an attention by its place in a Perceiver."""
    if "cross_blocks." in name and "latents." in name:
        return "cross"
    return "self" if "self_blocks." in name and "latents." in name else "decode"


def _recorder(captured: Capture, role: Role) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        q, k = args[0].detach(), args[1].detach()
        layer = Layer(role, q, k, mask=kwargs.get("mask"), causal=bool(kwargs.get("causal")))
        captured.layers[f"{role}{len(captured.named(role))}"] = layer

    return record


def _span_recorder(captured: Capture) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], output: JoinedTokens) -> None:
        captured.layers.clear()  # the join comes first: a new forward pass begins
        captured.spans = output.spans

    return record
