"""Looking at attention without touching the training path.

Training always runs the fused kernel, which never holds the weights. Inside `capture(model)` every `ScaledDotProduct`
leaves its queries, keys and mask here. Outside, nothing is left in the model: no flag, no hook, no recompilation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perceiver.encoders.base import Encoder
from perceiver.inspection.record import Layer, Record
from perceiver.inspection.relevance import relevance
from perceiver.inspection.rollout import Alpha, Rollout, readers_of, rollout
from perceiver.inspection.statistics import statistics
from perceiver.mechanisms.base import KeyMask, Mechanism, Residual
from perceiver.types import JoinedTokens, Model, Picture, Sound


@runtime_checkable
class Explainable(Model, Protocol):
    """What inspection needs of a model besides attention through `Mechanism`s that declare their role.

    It is a `torch.nn.Module` whose `forward` passes its inputs through a part that returns `JoinedTokens`. A `Residual`
    adds to the queries what attention read; without one, nothing goes on beside it.

    Attributes:
        encoders: modality name -> encoder.
    """

    encoders: nn.ModuleDict

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What `forward` makes of the tokens."""
        ...


class Capture(Record):
    """The attention of the last forward pass, and what there is to ask of it."""

    def rollout(self, queries: Sequence[int] | None = None, *, alpha: Alpha = 0.5) -> Rollout:
        """Where chosen queries of the decoder (None: each) get their information from; see `rollout`."""
        if queries is None:
            return rollout(self, alpha=alpha)
        readers = readers_of([[[one] for one in queries]] * self.num_rows, self.num_outputs)
        return rollout(self, alpha=alpha, readers=readers)

    def relevance(self, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers tokens"]:
        """How much each score depends on each token; for `capture(model, gradients=True)`; see `relevance`."""
        return relevance(self, scores)

    def statistics(self, *, alpha: Alpha = 0.5) -> dict[str, float]:
        """`<layer>/<name>` -> number; see `statistics`."""
        return statistics(self, alpha=alpha)


@contextmanager
def capture(model: nn.Module, *, gradients: bool = False) -> Iterator[Capture]:
    """Record the attention of what `model` runs inside the context.

    The model runs in eval mode, without gradients and uncompiled. Mode of every part, random state and compilation are
    afterwards what they were. Recorded is the attention of every `Mechanism` that declares a role, in the forward pass
    of an `Explainable` model; what is generated token by token is not.

        with capture(model) as attention:
            model(inputs)
        attention.map("cross0", queries=[0, 5])

    Args:
        model: an `Explainable` model, or a module that holds one.
        gradients: keep what `Capture.relevance` needs, which must be asked for inside the context. No parameter gets a
            gradient from it.
    """
    captured = Capture()
    recorder = _Recorder(captured, gradients)
    with undisturbed(model), torch.set_grad_enabled(gradients):
        hooks = [hook for module in model.modules() for hook in recorder.follow(module)]
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


def pictures_of(model: Explainable, inputs: Mapping[str, Tensor]) -> dict[str, Picture]:
    """What there is to see of raw inputs: modality name -> picture, for those that have one."""
    with torch.no_grad():
        found = {name: _encoder(model, name).picture(raw) for name, raw in inputs.items()}
    return {name: picture for name, picture in found.items() if picture is not None}


def sounds_of(model: Explainable, inputs: Mapping[str, Tensor]) -> dict[str, Sound]:
    """What there is to hear of raw inputs: modality name -> sound, for those that have one."""
    found = {name: _encoder(model, name).sound(raw) for name, raw in inputs.items()}
    return {name: sound for name, sound in found.items() if sound is not None}


def _encoder(model: Explainable, name: str) -> Encoder:
    encoder = model.encoders[name]
    assert isinstance(encoder, Encoder)
    return encoder


class _Recorder:
    """Leaves in a capture what a forward pass does.

    Only what runs inside of the model's `forward` is kept. What is generated token by token is not: kept, it would hold
    all keys as often as there are tokens. Neither is what activation checkpointing runs again for the gradients.
    """

    def __init__(self, captured: Capture, gradients: bool) -> None:
        self.captured = captured
        self.gradients = gradients
        self.recording = False
        self.last: str | None = None  # the layer whose residual comes next

    def follow(self, module: nn.Module) -> list[RemovableHandle]:
        """Hooks on what a forward pass runs through."""
        hooks = [module.register_forward_hook(self._joined)]
        if isinstance(module, Explainable):
            assert isinstance(module, nn.Module)
            hooks += [
                module.register_forward_pre_hook(self._begins, with_kwargs=True),
                module.register_forward_hook(self._ends),
                module.register_forward_hook(lambda *_: self._record(False), always_call=True),
            ]
        if isinstance(module, Mechanism):
            hooks.append(module.register_forward_hook(self._attends, with_kwargs=True))
        if isinstance(module, Residual):
            hooks.append(module.register_forward_hook(self._adds))
        return hooks

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _runs_again():
            return
        self._record(True)
        self.captured.layers.clear()
        self.captured.outputs, self.captured.tokens = {}, None
        self.captured.queries = (args[2] if len(args) > 2 else kwargs.get("queries")) or {}

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: dict[str, Tensor]) -> None:
        if not _runs_again():
            self.captured.outputs = output

    def _record(self, does: bool) -> None:
        self.recording = does and not _runs_again()

    def _joined(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recording and isinstance(output, JoinedTokens):
            self.captured.tokens = replace(output, values=output.values.detach())

    def _attends(self, module: Mechanism, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
        self.last = None
        if module.role is None:
            return None
        if self.gradients and not out.requires_grad:  # of a model whose parameters are frozen
            out = out.detach().requires_grad_()
        if self.recording:
            self._keep(module, out, *args, **kwargs)
        return out if self.gradients else None  # what is run again must be what was run before, too

    def _keep(
        self,
        module: Mechanism,
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: KeyMask | None = None,
        causal: bool = False,
    ) -> None:
        role = module.role
        assert role is not None
        added = q.new_ones(q.shape[0], q.shape[2], dtype=torch.float32)  # until a residual is seen
        layer = Layer(role, module, q.detach(), k.detach(), mask, causal, added, has_residual=False)
        if self.gradients:
            layer = replace(layer, v=v.detach(), out=out)
        kind = f"{role.decoder}/{role.name}" if role.decoder else role.name
        self.last = f"{kind}{sum(name.rstrip('0123456789') == kind for name in self.captured.layers)}"
        self.captured.layers[self.last] = layer

    def _adds(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.recording or self.last is None:
            return
        queries, read = (x.detach().float().norm(dim=-1) for x in args)
        total = queries + read
        share = read / total.clamp_min(torch.finfo(total.dtype).tiny)
        layer = self.captured.layers[self.last]
        self.captured.layers[self.last] = replace(layer, added=share, has_residual=True)
        self.last = None


def _runs_again() -> bool:
    """Whether this is a backward pass, in which activation checkpointing runs modules again."""
    return torch._C._current_graph_task_id() != -1  # what torch's own checkpointing asks, too
