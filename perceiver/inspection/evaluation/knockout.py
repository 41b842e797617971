"""Knock-out: parts of a model are silenced one at a time, and the change of each answer is measured.

    modality    all of its tokens are masked
    latent      no attention and no decoder reads it, as if masked
    head        its output is zero
    layer       its attention adds nothing to the queries; without a residual, the outputs of all its heads are zero

Unlike a map, this is an intervention: it does not depend on gradients or on how attention is propagated. Parts are
silenced singly: two redundant parts may each have no effect, since the other one remains. Labels are not used.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceiver.inspection.maps.answers import Answers, answer_scores
from perceiver.inspection.maps.capture import is_residual, layer_name, undisturbed
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.record import Record
from perceiver.mechanisms.base import Mechanism
from perceiver.roles import LATENTS
from perceiver.types import Memory, Span

KINDS = ("modalities", "latents", "heads", "layers")
TOKENS_AT_ONCE = 2**16
"""Tokens of a forward pass, unless a single case has more."""
MAX_LATENTS = 256
"""Latents that are silenced: those that the answers read most."""


@dataclass(frozen=True)
class Part:
    """A part of a model that can be silenced.

    Attributes:
        name: of a modality or layer, number of a latent, or `<layer>/<head>`.
        hidden: sequence -> those of its elements that no query reads.
        heads: layer -> its heads whose outputs are zero.
        layers: the layers that add nothing.
    """

    name: str
    hidden: Mapping[str, slice] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Silence:
    """The parts that are silent in each row of a forward pass.

    Attributes:
        visible: sequence -> False where no query reads an element.
        heads: layer -> False where the output of a head is zero.
        layers: layer -> False where it adds nothing.
    """

    visible: Mapping[str, Bool[Tensor, "cases _"]]
    heads: Mapping[str, Bool[Tensor, "cases heads"]]
    layers: Mapping[str, Bool[Tensor, " cases"]]


class Run(Protocol):
    """Runs a model again with silent parts."""

    def __call__(self, rows: Int[Tensor, " cases"], silence: Silence) -> dict[str, Tensor]:
        """Return the probabilities of the outputs for some rows of the recorded batch."""
        ...


@dataclass(frozen=True)
class KnockOut:
    """The change of answers by silencing each part of a kind.

    Attributes:
        kind: one of `KINDS`.
        names: of the parts.
        change: probability of each answer without the part, minus that of the whole model; NaN pads fewer answers.
    """

    kind: str
    names: list[str]
    change: Float[Tensor, "batch answers parts"]

    @property
    def effect(self) -> Float[Tensor, " parts"]:
        """The mean absolute change over the answers of a sample, then over samples."""
        return torch.from_numpy(mean_effect(self.change.numpy()))

    @property
    def ranking(self) -> list[int]:
        """Indices of the parts, the one with the largest effect first."""
        return self.effect.argsort(descending=True, stable=True).tolist()


def mean_effect(change: Float[np.ndarray, "batch answers parts"]) -> Float[np.ndarray, " parts"]:
    """Return the mean absolute change over the answers of a sample, then over samples with answers; see `KnockOut`."""
    is_known = ~np.isnan(change[..., :1])
    counts = is_known.sum(axis=1)
    means = np.where(is_known, np.abs(change), 0.0).sum(axis=1) / np.maximum(counts, 1)
    return means.sum(axis=0) / max(int((counts > 0).sum()), 1)


def knock_out(explainer: Explainer, explanation: Explanation, kinds: Sequence[str] = KINDS) -> list[KnockOut]:
    """Silence parts of a model of this package one at a time; see `knock_out_parts`."""
    record = explanation.record
    assert record.tokens is not None
    tokens, real = record.tokens, record.real_tokens

    def run(rows: Int[Tensor, " cases"], silence: Silence) -> dict[str, Tensor]:
        parts = [silence.visible.get(name, real[rows, place]) for name, place in record.token_places.items()]
        mask = real[rows] & torch.cat(parts, dim=1)
        values = tokens.values[rows].masked_fill(~mask[..., None], 0.0)
        queries = {name: given[rows] for name, given in record.queries.items()}
        with silenced(explainer.module, record, silence):
            outputs = explainer.model.forward_tokens(replace(tokens, values=values, mask=mask), queries)
        return explainer.task.probabilities(outputs)

    with undisturbed(explainer.module), explainer.forward_context():
        return knock_out_parts(explanation, run, kinds)


def knock_out_parts(explanation: Explanation, run: Run, kinds: Sequence[str] = KINDS) -> list[KnockOut]:
    """Silence the parts of some kinds one at a time.

    Args:
        explanation: of a batch.
        run: the model with silent parts.
        kinds: of parts, each of `KINDS`.

    Returns:
        The changes of all answers, for each kind of part that the model has.

    Raises:
        ValueError: a kind is not one of `KINDS`.
    """
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"knockout={wrong[0]}: must be one of {', '.join(KINDS)}")
    found = [(kind, parts) for kind in kinds if (parts := parts_of(explanation, kind))]
    (before,) = _probabilities(explanation, run, [Part("")])
    knock_outs = []
    for kind, parts in found:
        after = torch.stack([*_probabilities(explanation, run, parts)], dim=-1)
        change = (after - before[..., None]).cpu()
        for row, of_row in enumerate(explanation.answers):
            change[row, len(of_row) :] = torch.nan
        knock_outs.append(KnockOut(kind, [part.name for part in parts], change))
    return knock_outs


def knock_out_arrays(knock_outs: Sequence[KnockOut]) -> dict[str, np.ndarray]:
    """Return `knockout/<kind>/parts`, names, and `knockout/<kind>/change` [batch, answers, parts] for an event."""
    arrays: dict[str, np.ndarray] = {}
    for one in knock_outs:
        arrays[f"knockout/{one.kind}/parts"] = np.array(one.names)
        arrays[f"knockout/{one.kind}/change"] = one.change.numpy()
    return arrays


def parts_of(explanation: Explanation, kind: str) -> list[Part]:
    """Return the parts of a kind that a model has."""
    record = explanation.record
    if kind == "modalities":
        return [Part(name, _elements(record, span)) for name, span in record.spans.items()]
    if kind == "layers":
        return [Part(name, layers=(name,)) for name in record.layers]
    if kind == "heads":
        return [
            Part(f"{name}/{head}", heads={name: head})
            for name, layer in record.layers.items()
            for head in range(layer.num_heads)
        ]
    count = _lengths(record).get(LATENTS, 0)
    chosen = list(range(count))
    if count > MAX_LATENTS:
        reads = [shares.sum(dim=(0, 1)) for shares in explanation.rollout.latents.values() if shares.shape[2] == count]
        order = torch.stack(reads).sum(dim=0).argsort(descending=True, stable=True).tolist() if reads else chosen
        chosen = sorted(order[:MAX_LATENTS])
    return [Part(str(latent), {LATENTS: slice(latent, latent + 1)}) for latent in chosen]


def _elements(record: Record, span: Span) -> dict[str, slice]:
    """Return the elements of the sequences of tokens that a modality consists of."""
    found = {}
    for name, place in record.token_places.items():
        start, stop = max(span.start, place.start), min(span.stop, place.stop)
        if start < stop:
            found[name] = slice(start - place.start, stop - place.start)
    return found


def _lengths(record: Record) -> dict[str, int]:
    """Return the lengths of all sequences that are read, and of the tokens."""
    places = dict(record.token_places)
    for layer in record.layers.values():
        places |= record.key_parts(layer)
    lengths = {name: place.stop - place.start for name, place in places.items()}
    for layer in record.layers.values():  # latents that only a mean over the memory reads
        lengths.setdefault(layer.role.queries, layer.num_queries)
    return lengths


def _probabilities(
    explanation: Explanation, run: Run, parts: Sequence[Part]
) -> Iterator[Float[Tensor, "batch answers"]]:
    """Yield the probability of each answer without each of the parts, several rows at a time."""
    record, answers = explanation.record, explanation.answers
    assert record.tokens is not None
    num_rows, num_tokens = record.tokens.values.shape[:2]
    lengths, device = _lengths(record), record.tokens.values.device
    size = max(TOKENS_AT_ONCE // (num_rows * num_tokens), 1)
    for start in range(0, len(parts), size):
        chosen = parts[start : start + size]
        rows = torch.arange(num_rows, device=device).repeat(len(chosen))
        probabilities = run(rows, _silence(record, chosen, lengths))
        logs = {name: values.float().log() for name, values in probabilities.items()}
        found: Answers = [of_row for _ in chosen for of_row in answers]
        yield from torch.split(answer_scores(logs, found).exp(), num_rows)


def _silence(record: Record, parts: Sequence[Part], lengths: Mapping[str, int]) -> Silence:
    """Return the silence of all rows without the first part, then of all rows without the second, and so on."""
    assert record.tokens is not None
    num_rows, device = len(record.tokens.values), record.tokens.values.device
    visible: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        cases = slice(number * num_rows, (number + 1) * num_rows)

        def entry(known: dict[str, Tensor], name: str, *shape: int) -> Tensor:
            ones = torch.ones(len(parts) * num_rows, *shape, dtype=torch.bool, device=device)
            return known.setdefault(name, ones)

        for name, elements in part.hidden.items():
            entry(visible, name, lengths[name])[cases, elements] = False
        for name, head in part.heads.items():
            entry(heads, name, record.layers[name].num_heads)[cases, head] = False
        for name in part.layers:
            entry(layers, name)[cases] = False
    return Silence(visible, heads, layers)


@contextmanager
def silenced(model: nn.Module, record: Record, silence: Silence) -> Iterator[None]:
    """Run a model whose attention consists of `Mechanism`s with silent parts.

    Args:
        model: in eval mode, as inside `undisturbed`.
        record: one of its forward passes.
        silence: of each row of the next forward pass.
    """
    silencer = _Silencer(record, silence)
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    linear = [mechanism for mechanism in mechanisms if mechanism.is_linear]
    hooks = [hook for module in model.modules() for hook in silencer.hooks(module)]
    try:
        for mechanism in linear:  # otherwise, the bias of the values of a head would remain
            mechanism.is_linear = False
        yield
    finally:
        for mechanism in linear:
            del mechanism.is_linear
        for hook in hooks:
            hook.remove()


class _Silencer:
    """Hooks that silence parts of a model in one forward pass."""

    def __init__(self, record: Record, silence: Silence) -> None:
        self.record = record
        self.silence = silence
        self.known: dict[str, Mechanism] = {}
        self.last: str | None = None  # the layer whose residual follows

    def hooks(self, module: nn.Module) -> list[Any]:
        """Register the hooks of one module."""
        hooks: list[Any] = []
        if LATENTS in self.silence.visible:
            hooks.append(module.register_forward_hook(self._after_memory))
        if isinstance(module, Mechanism) and module.role is not None:
            hooks.append(module.register_forward_pre_hook(self._before_attention, with_kwargs=True))
            hooks.append(module.register_forward_hook(self._after_attention))
        if is_residual(module):
            hooks.append(module.register_forward_hook(self._after_residual))
        return hooks

    def _after_memory(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Memory) or self.record.memory != LATENTS:
            return output
        visible = self.silence.visible[LATENTS]
        return replace(output, mask=visible if output.mask is None else output.mask & visible)

    def _before_attention(
        self, module: Mechanism, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.last = layer_name(module, self.known)
        self.known[self.last] = module
        parts = self.record.key_parts(self.record.layers[self.last])
        if parts.keys().isdisjoint(self.silence.visible):
            return args, kwargs
        q, k, v, *rest = args
        given = {**dict(zip(("mask", "causal", "start"), rest, strict=False)), **kwargs}
        ones = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        mask = ones if given.get("mask") is None else given["mask"].clone()
        for name, place in parts.items():
            if name in self.silence.visible:
                mask[:, place] &= self.silence.visible[name]
        return (q, k, v), {**given, "mask": mask}

    def _after_attention(self, module: Mechanism, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.last is not None
        heads, layer = self.silence.heads.get(self.last), self.silence.layers.get(self.last)
        if heads is not None:
            output = output * heads[:, :, None, None]
        if layer is not None and not self.record.layers[self.last].has_residual:
            output = output * layer[:, None, None, None]
        return output

    def _after_residual(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        layer = None if self.last is None else self.silence.layers.get(self.last)
        self.last = None
        return output if layer is None else torch.where(layer[:, None, None], output, args[0])
