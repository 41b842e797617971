"""Recording of attention without changes to the training path.

Training always runs the fused kernel, which never stores the weights. Inside `capture(model)` hooks record the queries,
keys and mask of every `Mechanism`. Afterwards nothing remains in the model: no flag, no hook, no recompilation.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perceiver.attention import Residual
from perceiver.encoders.base import Encoder
from perceiver.inspection.maps.record import Layer, Record
from perceiver.inspection.maps.relevance import evidence, relevance
from perceiver.inspection.maps.rollout import Alpha, Rollout, mean_of_queries, rollout
from perceiver.inspection.maps.statistics import statistics
from perceiver.mechanisms.base import Mechanism
from perceiver.roles import DECODE
from perceiver.types import JoinedTokens, KeyMask, Model, Picture, Sound


@runtime_checkable
class Explainable(Model, Protocol):
    """A model that can be explained, whose attention is computed by `Mechanism`s that declare their role.

    It is a `torch.nn.Module` whose `forward` passes its inputs through a part that returns `JoinedTokens`. A `Residual`
    adds attention to its queries; without one, attention replaces them.

    Attributes:
        encoders: modality name -> encoder.
    """

    encoders: nn.ModuleDict

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the outputs of `forward` for the joined tokens of its inputs."""
        ...


class Capture(Record):
    """The attention of the last forward pass, and what is computed from it."""

    def rollout(
        self, queries: Sequence[int] | None = None, *, output: str | None = None, alpha: Alpha = 0.5
    ) -> Rollout:
        """Return the shares of the tokens in chosen queries of the decoder (None: each); see `rollout`.

        Args:
            queries: numbers of queries.
            output: the output whose queries they are; required if the model has several outputs.
            alpha: share of attention as opposed to the residual.

        Raises:
            ValueError: `output` is missing or is not an output of the model, or alpha is not valid.
        """
        if (len(self.outputs) > 1) if output is None else (output not in self.outputs):
            raise ValueError(f"output={output}: must be one of the model's outputs {', '.join(self.outputs)}")
        record = self if output is None else self.for_output(output)
        if queries is None:
            return rollout(record, alpha=alpha)
        weights = mean_of_queries([[[one] for one in queries]] * self.num_rows, record.num_outputs)
        return rollout(record, alpha=alpha, query_weights=weights)

    def relevance(self, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers tokens"]:
        """Return how much each score depends on each token, in `capture(model, gradients=True)`; see `relevance`."""
        return relevance(self, scores)

    def evidence(self, scores: Float[Tensor, "batch readers"]) -> Float[Tensor, "batch readers 2 tokens"]:
        """Return the relevance for each score and the evidence against it; see `evidence`."""
        return evidence(self, scores)

    def statistics(self, *, alpha: Alpha = 0.5) -> dict[str, float]:
        """Return `<layer>/<name>` -> number; see `statistics`."""
        return statistics(self, alpha=alpha)


@contextmanager
def capture(model: nn.Module, *, gradients: bool = False) -> Iterator[Capture]:
    """Record the attention of the forward passes of `model` inside the context.

    The model runs in eval mode, without gradients and uncompiled; the mode of every module, the random state and
    compilation are restored afterwards. The attention of every `Mechanism` with a role is recorded in the forward pass
    of an `Explainable` model, but not during generation token by token. If a mechanism of a decoder is called several
    times, the queries of all calls become one layer.

        with capture(model) as attention:
            model(inputs)
        attention.map("cross0", queries=[0, 5])

    Args:
        model: an `Explainable` model, or a module that holds one.
        gradients: record what `Capture.relevance` needs, which must be called inside the context. No parameter gets a
            gradient.
    """
    captured = Capture()
    recorder = _Recorder(captured, gradients)
    with undisturbed(model), torch.set_grad_enabled(gradients):
        hooks = [hook for module in model.modules() for hook in recorder.hooks(module)]
        try:
            yield captured
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode, without gradients and uncompiled; restore modes and random state afterwards."""
    modes = {module: module.training for module in model.modules()}
    # By default, `fork_rng` initializes every GPU of the machine.
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), uncompiled():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def uncompiled() -> AbstractContextManager[object]:
    """A context in which compiled functions run uncompiled.

    Where none was compiled before, so that torch's compiler is not loaded, there is nothing to do: its import takes
    longer than a prediction.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def is_residual(module: nn.Module) -> bool:
    """Return whether a module adds the output of attention to its queries."""
    return isinstance(module, Residual)


def layer_name(mechanism: Mechanism, known: Mapping[str, Mechanism | None]) -> str:
    """Return the name of the layer that a mechanism with a role computes next.

    Args:
        mechanism: the one that is called.
        known: name -> mechanism of the layers so far, in the order of execution. If a mechanism of a decoder is called
            again, in chunks or token by token, it computes further queries of the same layer.
    """
    role = mechanism.role
    assert role is not None
    if role == replace(DECODE, decoder=role.decoder):
        for name, before in known.items():
            if before is mechanism:
                return name
    kind = f"{role.decoder}/{role.name}" if role.decoder else role.name
    return f"{kind}{sum(name.rstrip('0123456789') == kind for name in known)}"


def input_pictures(model: Explainable, inputs: Mapping[str, Tensor]) -> dict[str, Picture]:
    """Return modality -> picture of the raw inputs that can be drawn."""
    with torch.no_grad():
        found = {name: _encoder(model, name).picture(raw) for name, raw in inputs.items()}
    return {name: picture for name, picture in found.items() if picture is not None}


def input_sounds(model: Explainable, inputs: Mapping[str, Tensor]) -> dict[str, Sound]:
    """Return modality -> sound of the raw inputs that can be played."""
    found = {name: _encoder(model, name).sound(raw) for name, raw in inputs.items()}
    return {name: sound for name, sound in found.items() if sound is not None}


def _encoder(model: Explainable, name: str) -> Encoder:
    encoder = model.encoders[name]
    assert isinstance(encoder, Encoder)
    return encoder


class _Recorder:
    """Hooks that record a forward pass in a capture.

    Only what runs inside the model's `forward` is recorded: neither generation token by token, which would store all
    keys once per token, nor what activation checkpointing recomputes in the backward pass.
    """

    def __init__(self, captured: Capture, gradients: bool) -> None:
        self.captured = captured
        self.gradients = gradients
        self.recording = False
        self.last: str | None = None  # the layer whose residual follows

    def hooks(self, module: nn.Module) -> list[RemovableHandle]:
        """Register the hooks of one module."""
        hooks = [module.register_forward_hook(self._after_join)]
        if isinstance(module, Explainable):
            assert isinstance(module, nn.Module)
            hooks += [
                module.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                module.register_forward_hook(self._after_forward),
                module.register_forward_hook(lambda *_: self._set_recording(False), always_call=True),
            ]
        if isinstance(module, Mechanism):
            hooks.append(module.register_forward_hook(self._after_attention, with_kwargs=True))
        if is_residual(module):
            hooks.append(module.register_forward_hook(self._after_residual))
        return hooks

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _is_recomputed():
            return
        self._set_recording(True)
        self.captured.layers.clear()
        self.captured.outputs, self.captured.tokens = {}, None
        self.captured.queries = (args[2] if len(args) > 2 else kwargs.get("queries")) or {}

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: dict[str, Tensor]) -> None:
        if not _is_recomputed():
            self.captured.outputs = output

    def _set_recording(self, recording: bool) -> None:
        self.recording = recording and not _is_recomputed()

    def _after_join(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recording and isinstance(output, JoinedTokens):
            self.captured.tokens = replace(output, values=output.values.detach())

    def _after_attention(
        self, module: Mechanism, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor | None:
        self.last = None
        if module.role is None:
            return None
        if self.gradients and not out.requires_grad:  # all parameters are frozen
            out = out.detach().requires_grad_()
        if self.recording:
            self._add_layer(module, out, *args, **kwargs)
        return out if self.gradients else None  # a recomputation must return the same

    def _add_layer(
        self,
        module: Mechanism,
        out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: KeyMask | None = None,
        causal: bool = False,
        start: int = 0,
    ) -> None:
        role = module.role
        assert role is not None
        share = q.new_ones(q.shape[0], q.shape[2], dtype=torch.float32)  # unless a residual follows
        layer = Layer(role, module, q.detach(), k.detach(), mask, causal, share, has_residual=False, start=start)
        if self.gradients:
            layer = replace(layer, v=v.detach(), outs=(out,))
        layers = self.captured.layers
        self.last = layer_name(module, {name: known.mechanism for name, known in layers.items()})
        layers[self.last] = layers[self.last].with_more_queries(layer) if self.last in layers else layer

    def _after_residual(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.recording or self.last is None:
            return
        queries, attention = (x.detach().float().norm(dim=-1) for x in args)
        total = queries + attention
        share = attention / total.clamp_min(torch.finfo(total.dtype).tiny)
        layer = self.captured.layers[self.last]
        share = torch.cat([layer.attention_share[:, : -share.shape[1]], share], dim=1)  # after that of earlier chunks
        self.captured.layers[self.last] = replace(layer, attention_share=share, has_residual=True)
        self.last = None


def _is_recomputed() -> bool:
    """Return whether a backward pass is running, in which activation checkpointing recomputes modules."""
    return torch._C._current_graph_task_id() != -1  # as in torch.utils.checkpoint
