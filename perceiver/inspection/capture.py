"""Looking at attention without touching the training path.

Training always runs the fused kernel, which never holds the weights. Inside `capture(model)` every `ScaledDotProduct`
leaves its queries, keys and mask here; the weights are recomputed from them in float32, only for what is asked for and
in bounded chunks. Outside, nothing is left in the model: no flag, no hook, no recompilation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perceiver.attention import KeyMask, ScaledDotProduct, SelfBlock, attention_weights
from perceiver.decoders.base import Decoder
from perceiver.latents import LatentArray
from perceiver.model import Join, Perceiver
from perceiver.types import JoinedTokens, Picture, Span

Role: TypeAlias = Literal["cross", "self", "decode", "words"]
"""Latents read tokens or each other; outputs read latents, or the words before them."""

Indices: TypeAlias = slice | Sequence[int]

ALL = slice(None)
HELD_WEIGHTS = 2**24
"""How many weights are held at once, where not all of them are asked for: 64 MiB."""


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

    @property
    def num_keys(self) -> int:
        return self.k.shape[2]

    def weights(self, queries: Indices = ALL, heads: Indices = ALL) -> Float[Tensor, "batch _ chosen keys"]:
        """Exact weights of the chosen queries and heads, in float32."""
        q, k = self.q[:, heads], self.k[:, heads]
        if self.causal:  # what a query may see depends on its place among all
            return attention_weights(q, k, mask=self.mask, causal=True)[:, :, queries]
        return attention_weights(q[:, :, queries], k, mask=self.mask)

    def sample(self, index: int) -> "Layer":
        """The same attention for one sample of the batch."""
        one = slice(index, index + 1)
        return replace(self, q=self.q[one], k=self.k[one], mask=None if self.mask is None else self.mask[one])

    def chunks(self, queries: Sequence[int]) -> Iterator[Sequence[int]]:
        """The queries in parts whose weights are few enough to be held at once."""
        size = max(HELD_WEIGHTS // (self.q.shape[0] * self.num_heads * self.num_keys), 1)
        for start in range(0, len(queries), size):
            yield queries[start : start + size]

    def through(self, share: Float[Tensor, "batch rows queries"]) -> Float[Tensor, "batch rows keys"]:
        """`share` times the weights (mean over heads), without ever holding all of them."""
        read = share.new_zeros(*share.shape[:2], self.num_keys)
        for chunk in self.chunks(range(self.num_queries)):
            read += share[:, :, chunk] @ self.weights(chunk).mean(dim=1)
        return read


class Capture:
    """The attention of the last forward pass.

    Attributes:
        layers: name -> layer, in the order in which they ran; named by role and number: `cross0`, `self0`, … `words0`,
            `decode0`.
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
        heads = ALL if head is None else [head]
        chosen = range(found.num_queries) if queries is None else queries
        return torch.cat([found.weights(chunk, heads).mean(dim=1) for chunk in found.chunks(chosen)], dim=1)

    @property
    def num_outputs(self) -> int:
        """Queries that read the latents; where the decoder pools, the one that stands for the mean."""
        decoders = self.named("decode")
        return self.layers[decoders[-1]].num_queries if decoders else 1

    def named(self, role: Role) -> list[str]:
        """Names of the layers of a role, in order."""
        return [name for name, layer in self.layers.items() if layer.role == role]


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Record the attention of what `model` runs inside the context.

    The model runs in eval mode, without gradients and uncompiled. Mode of every part, random state and compilation are
    afterwards what they were. A model is whatever holds a Perceiver; attention inside its encoders is not recorded.

        with capture(model) as attention:
            model(inputs)
        attention.map("cross0", queries=[0, 5])
    """
    captured = Capture()
    modes = {module: module.training for module in model.modules()}
    # Left to itself, `fork_rng` would touch every GPU of the machine.
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    recorder = _Recorder(captured)
    hooks = [hook for module in modes for hook in recorder.follow(module)]
    for module, role in _roles(model).items():
        hooks.append(module.register_forward_pre_hook(recorder.attention(role), with_kwargs=True))
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def pictures_of(model: Perceiver, inputs: Mapping[str, Tensor]) -> dict[str, Picture]:
    """What there is to see of raw inputs: modality name -> picture, for those that have one."""
    with torch.no_grad():
        found = {name: model.encoders[name].picture(raw) for name, raw in inputs.items()}  # type: ignore[operator]
    return {name: picture for name, picture in found.items() if picture is not None}


def _roles(model: nn.Module) -> dict[nn.Module, Role]:
    """Every attention of latents and decoders with its role."""
    places: list[tuple[Role, nn.Module]] = []
    for part in model.modules():
        if isinstance(part, LatentArray):
            places += [("cross", part.cross_blocks), ("self", part.self_blocks)]
        elif isinstance(part, Decoder):
            places.append(("decode", part))
            places += [("words", block) for block in part.modules() if isinstance(block, SelfBlock)]
    return {
        module: role for role, place in places for module in place.modules() if isinstance(module, ScaledDotProduct)
    }


class _Recorder:
    """Leaves in a capture what a forward pass does.

    What a decoder writes word by word is no forward pass: kept, it would hold all keys as often as there are words.
    """

    def __init__(self, captured: Capture) -> None:
        self.captured = captured
        self.decoding = False

    def follow(self, module: nn.Module) -> list[RemovableHandle]:
        """Hooks that tell where in a forward pass the model is."""
        if isinstance(module, Join):
            return [module.register_forward_hook(self._joined)]
        if isinstance(module, Decoder):
            return [
                module.register_forward_pre_hook(lambda *_: self._decodes(True)),
                module.register_forward_hook(lambda *_: self._decodes(False), always_call=True),
            ]
        return []

    def attention(self, role: Role) -> Callable[..., None]:
        """A hook that keeps an attention."""

        def keep(q: Tensor, k: Tensor, v: Tensor, mask: KeyMask | None = None, causal: bool = False) -> None:
            layer = Layer(role, q.detach(), k.detach(), mask, causal)
            self.captured.layers[f"{role}{len(self.captured.named(role))}"] = layer

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.decoding or role in ("cross", "self"):
                keep(*args, **kwargs)

        return record

    def _joined(self, module: nn.Module, args: tuple[Any, ...], output: JoinedTokens) -> None:
        self.captured.layers.clear()  # the join comes first: a new forward pass begins
        self.captured.spans = output.spans

    def _decodes(self, does: bool) -> None:
        self.decoding = does
