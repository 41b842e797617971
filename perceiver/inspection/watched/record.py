"""The attention of one call of a watched model, as a record of layers and sequences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from perceiver.inspection.maps.capture import Capture, undisturbed
from perceiver.inspection.maps.rollout import Alpha, Rollout
from perceiver.inspection.watched.embeddings import Results
from perceiver.inspection.watched.grids import GivenInput, Input, placed
from perceiver.inspection.watched.intercept import AttentionCall, Effect, Interceptor
from perceiver.inspection.watched.layer import WatchedLayer
from perceiver.inspection.watched.rerun import ModelCall
from perceiver.inspection.watched.sequences import Connection, Sequences, role_between
from perceiver.types import JoinedTokens, first_line

ROW = "row"
"""Name of the queries of watched records, the numbers of their rows."""


class WatchedRecord(Capture):
    """The attention of the last call of a watched model.

    Attributes:
        call: the last call of the model; without arguments before the first one.
        modules: name of a layer -> path of the module that computed it.
        left_out: a sentence for each call of attention that is not among the layers, which says why.
        starts: name of a sequence of tokens -> the sequences that it is computed from without attention, if any.
        output: what the model returned.
        texts: name of an input, or of its special tokens -> the text of each token of each sample.
    """

    def __init__(self, call: ModelCall, inputs: Mapping[str, GivenInput], roles: Mapping[str, str]) -> None:
        super().__init__()
        self.call = call
        self.inputs = {name: Input.of(given) for name, given in inputs.items()}
        self.roles = roles
        self.modules: dict[str, str] = {}
        self.left_out: list[str] = []
        self.starts: dict[str, list[str]] = {}
        self.output: Any = None
        self.texts: dict[str, list[list[str]]] = {}
        self._order: list[str | None] = []
        self._sequences = Sequences()
        self._calls: list[Connection | None] = []
        self._rows = 0

    def record_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, gradients: bool) -> Any:
        """Call the model, record its attention, and return what it returned; see `watch`."""
        self.call = replace(self.call, args=args, kwargs=kwargs)
        self._sequences, self._calls = Sequences(), []
        self.left_out, self._rows, self.output = [], 0, None
        interceptor = Interceptor(self.call.model, self._add, lineage=self._sequences.lineage, gradients=gradients)
        with interceptor.running():
            output = self.call.method(*args, **kwargs)
        self.left_out += [
            f"{path or type(self.call.model).__name__}: the result of a softmax is not multiplied by values"
            for path in interceptor.unread.values()
        ]
        self._end(output)
        return output

    def _add(self, call: AttentionCall) -> int | None:
        """Record a call, and return the number of the sequence that it updates."""
        rows = call.shape[0]
        sizes = {size for x in self.call.tensors for size in x.shape[:2]}
        self._rows = self._rows or (rows if rows in sizes or not sizes else 0)
        if rows != self._rows:
            name = call.module or type(self.call.model).__name__
            self.left_out.append(f"{name}: {rows} rows of attention are not the samples of the batch")
            self._calls.append(None)
            return None
        connection = self._sequences.connect(call)
        self._calls.append(connection)
        return connection.queries

    def _end(self, output: Any) -> None:
        """Build the record from the calls."""
        self.output, self.outputs, self.queries = output, {}, {ROW: torch.arange(self._rows)[:, None]}
        connections = [one for one in self._calls if one is not None]
        found = self._sequences.found
        names = self._sequences.names(connections, self.roles)
        self.layers, self.modules, self._order = {}, {}, []
        for one in self._calls:
            if one is None:
                self._order.append(None)
                continue
            is_input = not found[one.queries].reads
            role = role_between(names[one.queries], [names[number] for number in one.keys], is_input=is_input)
            name = f"{role.name}{sum(known.rstrip('0123456789') == role.name for known in self.layers)}"
            lengths = {names[number]: length for number, length in one.keys.items()}
            self.layers[name] = WatchedLayer.of_call(one.call, role, lengths)
            self.modules[name] = one.call.module
            self._order.append(name)
        inputs = {names[number]: found[number].length for number in self._sequences.inputs}
        self.token_lengths = inputs
        starts = {number: found.keys() & found[number].origins for number in self._sequences.inputs}
        self.starts = {names[number]: [names[one] for one in sorted(of)] for number, of in starts.items() if of}
        final = [] if self.decode_layers else self._sequences.final
        self.output_lengths = {names[number]: found[number].length for number in final}
        if not self.layers:
            self.tokens = None
            return
        device = next(iter(self.layers.values())).q.device
        total = sum(inputs.values())
        spans, self.texts = placed(inputs, self.inputs, self._rows)
        self.tokens = JoinedTokens(torch.zeros(self._rows, total, 1, device=device), self._token_mask(), spans)
        self.fixed = torch.zeros(self._rows, total, dtype=torch.bool, device=device)
        for name, span in spans.items():
            self.fixed[:, span.start : span.stop] = name.endswith(Input.SPECIAL)

    def _token_mask(self) -> Bool[Tensor, "batch tokens"] | None:
        """Return True for tokens that any layer can read; None if all can be read."""
        parts = []
        for sequence, length in self.token_lengths.items():
            masks = [
                torch.ones(self._rows, layer.num_keys, dtype=torch.bool, device=layer.q.device)[:, place]
                if layer.mask is None
                else layer.mask[:, place]
                for layer in self.layers.values()
                for name, place in self.key_parts(layer).items()
                if name == sequence
            ]
            device = next(iter(self.layers.values())).q.device
            full = torch.ones(self._rows, length, dtype=torch.bool, device=device)
            parts.append(torch.stack(masks).any(dim=0) if masks else full)
        mask = torch.cat(parts, dim=1)
        return None if mask.all() else mask

    def __str__(self) -> str:
        """Describe what was found: each layer with its module, and the sequences that it connects."""
        lines = []
        for name, layer in self.layers.items():
            path = self.modules[name] or type(self.call.model).__name__
            read = [f"{place.stop - place.start} {sequence}" for sequence, place in self.key_parts(layer).items()]
            queries = f"{layer.num_queries} {layer.role.queries}"
            lines.append(f"{name}: {path}, {layer.num_heads} heads, {queries} read {' and '.join(read)}")
        lines += [f"{name}: {' × '.join(map(str, span.grid.shape))} tokens" for name, span in self.spans.items()]
        lines += [f"{name}: starts as {' and '.join(of)}, where its maps end" for name, of in self.starts.items()]
        return "\n".join([*lines, *(f"left out: {reason}" for reason in dict.fromkeys(self.left_out))])

    def rollout(
        self, queries: Sequence[int] | None = None, *, output: str | None = None, alpha: Alpha = 0.5
    ) -> Rollout:
        self.check(alpha)
        return super().rollout(queries, output=output, alpha=alpha)

    def check(self, alpha: Alpha) -> None:
        if not self.layers:
            if not self.call.args and not self.call.kwargs and self.output is None:
                raise ValueError(f"{type(self.call.model).__name__} was not called inside `watch`")
            reasons = "; ".join(dict.fromkeys(self.left_out)) or "it calls neither a fused kernel nor softmax @ values"
            raise ValueError(f"no attention was found in the last call of {type(self.call.model).__name__}: {reasons}")
        if alpha == "norm":
            raise ValueError("rollout_alpha=norm needs the residuals of a model of this package; give a number")

    def run(
        self,
        rows: Int[Tensor, " cases"],
        visible: Mapping[str, Bool[Tensor, "cases _"]],
        heads: Mapping[str, Bool[Tensor, "cases heads"]] | None = None,
        results: Results | None = None,
        on_call: Callable[[AttentionCall], int | None] = lambda call: None,
    ) -> Any:
        """Run the model again for some rows with less attention, and return its output.

        Args:
            rows: indices of rows of the last call, in any order and number.
            visible: sequence -> False for elements that no query attends to.
            heads: layer -> False for silent heads.
            results, on_call: see `ModelCall.repeated`.

        Raises:
            ValueError: the model cannot be called with as many rows.
        """
        effects = [Effect() if name is None else self._effect(name, visible, heads or {}) for name in self._order]
        try:
            return self.call.of_rows(rows, self._rows).repeated(effects, results, on_call)
        except RuntimeError as error:
            name, reason = type(self.call.model).__name__, first_line(error)
            problem = f"{name} cannot be called with {len(rows)} samples instead of {self._rows}: {reason}"
            raise ValueError(problem) from error

    def again(self) -> "WatchedRecord":
        """Return a new record of the same call in eval mode, with gradients and the current weights of the model."""
        record = WatchedRecord(self.call, self.inputs, self.roles)
        with undisturbed(self.call.model), torch.enable_grad():
            record.record_call(self.call.args, self.call.kwargs, gradients=True)
        return record

    def first_call(self, sequence: str) -> int | None:
        """Return the number of the first call of attention that updates or reads a sequence; None if no call does."""
        for number, name in enumerate(self._order):
            if name is not None and sequence in {self.layers[name].role.queries, *self.key_parts(self.layers[name])}:
                return number
        return None

    def _effect(
        self, name: str, visible: Mapping[str, Tensor], heads: Mapping[str, Bool[Tensor, "cases heads"]]
    ) -> Effect:
        parts = self.key_parts(self.layers[name])
        mask = None
        if not parts.keys().isdisjoint(visible):
            some = next(iter(visible.values()))
            full = [
                visible[sequence] if sequence in visible else some.new_ones(len(some), place.stop - place.start)
                for sequence, place in parts.items()
            ]
            mask = torch.cat(full, dim=1)
        return Effect(mask, heads.get(name))
