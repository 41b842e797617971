"""Looking at attention without touching the training path.

Training always runs the fused kernel, which never holds the weights. Inside `capture(model)` every `ScaledDotProduct`
leaves its queries, keys and mask here. Outside, nothing is left in the model: no flag, no hook, no recompilation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perceiver.attention import CrossBlock, KeyMask, ScaledDotProduct, SelfBlock
from perceiver.decoders.base import Decoder
from perceiver.inspection.record import Layer, Record, Role
from perceiver.inspection.relevance import relevance
from perceiver.inspection.rollout import Alpha, Rollout, readers_of, rollout
from perceiver.inspection.statistics import statistics
from perceiver.latents import LatentArray
from perceiver.model import Join, Perceiver
from perceiver.types import JoinedTokens, Picture, Sound


class Capture(Record):
    """The attention of the last forward pass, and what there is to ask of it."""

    def rollout(self, queries: Sequence[int] | None = None, *, alpha: Alpha = 0.5) -> Rollout:
        """Where chosen queries of the decoder (None: each) get their information from; see `rollout`."""
        if queries is None:
            return rollout(self, alpha=alpha)
        num_rows = next(iter(self.layers.values())).num_rows
        return rollout(self, alpha=alpha, readers=readers_of([[[one] for one in queries]] * num_rows, self.num_outputs))

    def relevance(self, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers tokens"]:
        """How much each score hangs on each token; for `capture(model, gradients=True)`; see `relevance`."""
        return relevance(self, scores)

    def statistics(self, *, alpha: Alpha = 0.5) -> dict[str, float]:
        """`<layer>/<name>` -> number; see `statistics`."""
        return statistics(self, alpha=alpha)


@contextmanager
def capture(model: nn.Module, *, gradients: bool = False) -> Iterator[Capture]:
    """Record the attention of what `model` runs inside the context.

    The model runs in eval mode, without gradients and uncompiled. Mode of every part, random state and compilation are
    afterwards what they were. A model is whatever holds a Perceiver; attention inside its encoders is not recorded.

        with capture(model) as attention:
            model(inputs)
        attention.map("cross0", queries=[0, 5])

    Args:
        model: holds a Perceiver.
        gradients: keep what `Capture.relevance` needs, which must be asked for inside the context. No parameter gets a
            gradient from it.
    """
    captured = Capture()
    recorder = _Recorder(captured, gradients)
    with undisturbed(model), torch.set_grad_enabled(gradients):
        hooks = [hook for module in model.modules() for hook in recorder.follow(module)]
        for module, role in _roles(model).items():
            hooks.append(module.register_forward_hook(recorder.attention(role), with_kwargs=True))
        try:
            yield captured
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs in eval mode, without gradients and uncompiled; afterwards all is as it was before."""
    modes = {module: module.training for module in model.modules()}
    # Left to itself, `fork_rng` would touch every GPU of the machine.
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def pictures_of(model: Perceiver, inputs: Mapping[str, Tensor]) -> dict[str, Picture]:
    """What there is to see of raw inputs: modality name -> picture, for those that have one."""
    with torch.no_grad():
        found = {name: model.encoders[name].picture(raw) for name, raw in inputs.items()}  # type: ignore[operator]
    return {name: picture for name, picture in found.items() if picture is not None}


def sounds_of(model: Perceiver, inputs: Mapping[str, Tensor]) -> dict[str, Sound]:
    """What there is to hear of raw inputs: modality name -> sound, for those that have one."""
    found = {name: model.encoders[name].sound(raw) for name, raw in inputs.items()}  # type: ignore[operator]
    return {name: sound for name, sound in found.items() if sound is not None}


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

    Only what runs inside of a latent array or of a decoder's forward pass is kept. What a decoder writes word by word
    is none: kept, it would hold all keys as often as there are words. Neither is what activation checkpointing runs
    again for the gradients.
    """

    def __init__(self, captured: Capture, gradients: bool) -> None:
        self.captured = captured
        self.gradients = gradients
        self.recording = False
        self.residual: Float[Tensor, "batch queries"] | None = None

    def follow(self, module: nn.Module) -> list[RemovableHandle]:
        """Hooks that tell where in a forward pass the model is."""
        if isinstance(module, Join):
            return [module.register_forward_hook(self._joined)]
        if isinstance(module, LatentArray | Decoder):
            hooks = [
                module.register_forward_pre_hook(lambda *_: self._record(True)),
                module.register_forward_hook(lambda *_: self._record(False), always_call=True),
            ]
            return [*hooks, module.register_forward_hook(self._answered)] if isinstance(module, Decoder) else hooks
        if isinstance(module, CrossBlock | SelfBlock):
            return [
                module.register_forward_pre_hook(self._enters),
                module.attention.register_forward_hook(self._adds),
            ]
        return []

    def attention(self, role: Role) -> Callable[..., Tensor | None]:
        """A hook that keeps an attention."""

        def keep(
            out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: KeyMask | None = None, causal: bool = False
        ) -> None:
            layer = Layer(role, q.detach(), k.detach(), mask, causal)
            if self.gradients:
                layer = replace(layer, v=v.detach(), out=out)
            self.captured.layers[f"{role}{len(self.captured.named(role))}"] = layer

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
            if self.gradients and not out.requires_grad:  # of a model whose parameters are frozen
                out = out.detach().requires_grad_()
            if self.recording:
                keep(out, *args, **kwargs)
            return out if self.gradients else None  # what is run again must be what was run before, too

        return record

    def _joined(self, module: nn.Module, args: tuple[Any, ...], output: JoinedTokens) -> None:
        if _runs_again():
            return
        self.captured.layers.clear()  # the join comes first: a new forward pass begins
        self.captured.outputs = None
        self.captured.tokens = replace(output, values=output.values.detach())

    def _answered(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if _runs_again():
            return
        self.captured.queries = args[1:]
        self.captured.outputs = output

    def _record(self, does: bool) -> None:
        self.recording = does and not _runs_again()

    def _enters(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        goes_on = isinstance(block, SelfBlock) or block.query_residual
        self.residual = args[0].detach().float().norm(dim=-1) if goes_on else None

    def _adds(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.recording:
            return
        name, layer = next(reversed(self.captured.layers.items()))
        added = output.detach().float().norm(dim=-1)
        total = added if self.residual is None else added + self.residual
        share = added / total.clamp_min(torch.finfo(total.dtype).tiny)
        self.captured.layers[name] = replace(layer, added=share, has_residual=self.residual is not None)


def _runs_again() -> bool:
    """Whether this is a backward pass, in which activation checkpointing runs modules again."""
    return torch._C._current_graph_task_id() != -1  # what torch's own checkpointing asks, too
