"""Attention of any PyTorch model: found while it runs, without a change of the model or of its outputs.

    with watch(model, inputs={"image": images}) as attention:
        model(images)
    explanation = attention.explain(class_names=names)

A record is made as for the models of this package, of which everything else follows. Tokens are the sequences that read
no other one; a sequence that starts as parameters and reads others are latents; one that starts as token ids are
outputs. Where no outputs read a memory, the elements of the sequences that no other one reads are outputs themselves,
and an answer has those as queries whose last attention changes its logit, such as the class token.

Deviation from `capture`: the model runs in its own mode. A compiled model runs uncompiled within the context, so that
its outputs are those of the uncompiled model to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceiver.inspection.capture import Capture, undisturbed
from perceiver.inspection.contrast import choose_foils
from perceiver.inspection.evaluation import Evaluation
from perceiver.inspection.explanation import (
    Explanation,
    answer_contrasts,
    answer_evidence,
    answer_rollout,
    answer_scores,
    pair_evidence,
)
from perceiver.inspection.explorer.media import Media
from perceiver.inspection.faithfulness import FaithfulnessCurves, faithfulness_curves
from perceiver.inspection.grids import GivenInput, Input, placed
from perceiver.inspection.intercept import AttentionCall, Effect, Interceptor, Lineage, attention_weights
from perceiver.inspection.knockout import KINDS, KnockOut, Silence, knock_out_parts
from perceiver.inspection.record import Layer, Record
from perceiver.inspection.relevance import NO_GRADIENTS
from perceiver.inspection.rollout import Alpha, Rollout
from perceiver.inspection.sequences import Connection, Sequences, role_between
from perceiver.inspection.writer import ExplanationWriter
from perceiver.mechanisms.base import ALL, Indices, Role
from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.types import Answer, Batch, JoinedTokens

LOGITS = "logits"
SOFTMAX = ScaledDotProduct()
"""The mechanism of all watched layers."""
MOST_WORDS = 32
"""Positions of a text that are explained, unless others are chosen."""
ROW = "row"
Read: TypeAlias = Callable[[Any], Tensor]
"""Takes logits, [batch, classes] or [batch, length, vocab], from the output of a model."""


@dataclass(frozen=True)
class WatchedLayer(Layer):
    """An attention whose weights are known, or follow from a bias and a scale.

    Attributes:
        bias, scale, known: see `AttentionCall`; `known` are its weights.
    """

    bias: Tensor | None = None
    scale: float = 1.0
    known: Float[Tensor, "batch heads queries keys"] | None = None

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


class WatchedAttention(Capture):
    """The attention of the last call of a watched model.

    Attributes:
        modules: name of a layer -> path of the module that computed it.
        left_out: why calls of attention are not among the layers, a sentence each.
        output: what the model returned.
        texts: name of an input, and of its special tokens -> the text of each token, of each sample.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, GivenInput], roles: Mapping[str, str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = {name: Input.of(given) for name, given in inputs.items()}
        self.roles = roles
        self.modules: dict[str, str] = {}
        self.left_out: list[str] = []
        self.output: Any = None
        self.texts: dict[str, list[list[str]]] = {}
        self.method: Callable[..., Any] = model.forward
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._order: list[str | None] = []
        self._read: Read = usual_logits
        self._sequences = Sequences()
        self._calls: list[Connection | None] = []
        self._rows = 0

    # Recording.

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._arguments = (args, kwargs)
        self._sequences, self._calls = Sequences(), []
        self.left_out, self._rows, self.output = [], 0, None

    def _add(self, call: AttentionCall) -> int | None:
        """Record a call, and return the number of the sequence that it updates."""
        rows = call.shape[0]
        sizes = {size for x in _leaves(self._arguments) for size in x.shape[:2]}
        self._rows = self._rows or (rows if rows in sizes or not sizes else 0)
        if rows != self._rows:
            self.left_out.append(
                f"{call.module or type(self.model).__name__}: {rows} rows of attention are not the samples of the batch"
            )
            self._calls.append(None)
            return None
        connection = self._sequences.connect(call)
        self._calls.append(connection)
        return connection.queries

    def _end(self, output: Any) -> None:
        """Make the record of the calls."""
        self.output, self.outputs, self.queries = output, {}, {}
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
            self.layers[name] = _layer(one.call, role, lengths)
            self.modules[name] = one.call.module
            self._order.append(name)
        inputs = {names[number]: found[number].length for number in self._sequences.inputs}
        self.token_lengths = inputs
        final = [] if self.decode_layers else self._sequences.final
        self.output_lengths = {names[number]: found[number].length for number in final}
        if not self.layers:
            self.tokens = None
            return
        device = next(iter(self.layers.values())).q.device
        total = sum(inputs.values())
        spans, self.texts = placed(inputs, self.inputs, self._rows)
        self.tokens = JoinedTokens(torch.zeros(self._rows, total, 1, device=device), self._token_mask(), spans)

    def _token_mask(self) -> Bool[Tensor, "batch tokens"] | None:
        """Return which tokens any layer can read; None for all."""
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

    # What is computed of the record.

    def __str__(self) -> str:
        """Describe what was found: each layer with its module, and the sequences that it connects."""
        lines = [
            f"{name}: {self.modules[name]}, {layer.num_heads} heads, {layer.num_queries} {layer.role.queries} read "
            + " and ".join(
                f"{place.stop - place.start} {sequence}" for sequence, place in self.key_parts(layer).items()
            )
            for name, layer in self.layers.items()
        ]
        lines += [f"{name}: {' × '.join(map(str, span.grid.shape))} tokens" for name, span in self.spans.items()]
        return "\n".join([*lines, *(f"left out: {reason}" for reason in dict.fromkeys(self.left_out))])

    def rollout(
        self, queries: Sequence[int] | None = None, *, output: str | None = None, alpha: Alpha = 0.5
    ) -> Rollout:
        self._check(alpha)
        return super().rollout(queries, output=output, alpha=alpha)

    def _check(self, alpha: Alpha) -> None:
        if not self.layers:
            reasons = "; ".join(dict.fromkeys(self.left_out)) or "it calls neither a fused kernel nor softmax @ values"
            raise ValueError(f"no attention was found in the last call of {type(self.model).__name__}: {reasons}")
        if alpha == "norm":
            raise ValueError("rollout_alpha=norm needs the residuals of a model of this package; give a number")

    def explain(
        self,
        logits: Read | None = None,
        *,
        class_names: Sequence[str] | Callable[[int], str] = str,
        top: int = 3,
        positions: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        alpha: Alpha = 0.5,
        foil: str | None = None,
    ) -> Explanation:
        """Explain the answers of the last call, which must have been made with gradients.

        Args:
            logits: takes the logits from what the model returned; None: `usual_logits`. Of [batch, classes] the `top`
                classes of each sample are explained; of [batch, length, vocab] the likeliest token at some positions.
            class_names: of classes or tokens; a function of their number, or a sequence.
            top: classes of each sample.
            positions: of a text; None: the first `MOST_WORDS`.
            labels: true classes of the samples, where they are known.
            ids: names of the samples.
            alpha: of the rollout, see there; a number.
            foil: name of the class or token with which each answer is contrasted first, or `contrast.SECOND`; None for
                no contrasts.

        Raises:
            ValueError: no attention was found, the logits have another shape or no gradient, alpha is not a number, or
                no answer is called `foil`.
        """
        self._check(alpha)
        self._read = logits or usual_logits
        values = self._read(self.output)
        if values.ndim not in (2, 3) or len(values) != self.num_rows:
            raise ValueError(f"logits have the shape {list(values.shape)}, not [{self.num_rows}, (length,) classes]")
        if not values.requires_grad:
            raise ValueError(NO_GRADIENTS)
        name = class_names if callable(class_names) else lambda number: class_names[number]
        self.outputs = {LOGITS: values.detach().float()}
        if values.ndim == 2:
            answers = [
                [
                    Answer(name(label), (), LOGITS, label=label)
                    for label in row.topk(min(top, len(row))).indices.tolist()
                ]
                for row in self.outputs[LOGITS]
            ]
            answers = self._with_queries(values, answers)
        else:
            chosen = list(range(values.shape[1]))[:MOST_WORDS] if positions is None else list(positions)
            best = self.outputs[LOGITS].argmax(dim=-1)[:, chosen].tolist()
            answers = [
                [Answer(name(one), (place,), LOGITS, ids=(one,)) for place, one in zip(chosen, row, strict=True)]
                for row in best
            ]
        num_classes = values.shape[-1] if values.ndim == 2 else 0
        targets = {} if labels is None else {"label": torch.as_tensor(labels)}
        batch = Batch(
            {name: given.values for name, given in self.inputs.items() if isinstance(given.values, Tensor)},
            targets,
            [str(row) for row in range(self.num_rows)] if ids is None else list(ids),
        )
        logs, given = {LOGITS: self.outputs[LOGITS].log_softmax(dim=-1)}, {LOGITS: values.float()}
        both, contrasts = answer_evidence(self, given, answers), None
        if foil is not None:
            probabilities = {LOGITS: logs[LOGITS].exp()}
            foils = choose_foils(answers, probabilities, {LOGITS: _Names(name, values.shape[-1])}, first=foil)
            contrasts = answer_contrasts(foils, logs, pair_evidence(self, given, answers, foils))
        return Explanation(
            batch=batch,
            record=self,
            answers=answers,
            num_classes=num_classes,
            probability=answer_scores(logs, answers).exp(),
            alpha=alpha,
            rollout=answer_rollout(self, answers, num_classes=num_classes, alpha=alpha),
            relevance=both[:, :, 0],
            against=both[:, :, 1],
            contrasts=contrasts,
        )

    def _with_queries(self, logits: Tensor, answers: list[list[Answer]]) -> list[list[Answer]]:
        """Give each answer the queries whose last attention changes its logit."""
        if self.decode_layers:
            every = tuple(range(self.num_outputs))
            return [[replace(one, queries=every) for one in row] for row in answers]
        found = []
        for slot in range(len(answers[0])):
            score = answer_scores({LOGITS: logits}, [row[slot : slot + 1] for row in answers]).sum()
            found.append(self._elements_read(score))
        return [
            [replace(one, queries=tuple(found[slot][row].nonzero()[:, 0].tolist())) for slot, one in enumerate(of_row)]
            for row, of_row in enumerate(answers)
        ]

    def _elements_read(self, score: Tensor) -> Bool[Tensor, "batch outputs"]:
        """Return the elements of the final sequences whose last attention changes a score."""
        parts = []
        for sequence, length in self.output_lengths.items():
            layers = [layer for layer in self.layers.values() if layer.role.queries == sequence and layer.outs]
            outs = [layer.outs[0] for layer in layers]
            found = torch.autograd.grad(score, outs, retain_graph=True, allow_unused=True) if outs else ()
            own = [gradient for gradient in found if gradient is not None]
            changes = (own[-1] != 0).any(dim=-1).any(dim=1) if own else score.new_zeros(self.num_rows, length).bool()
            parts.append(changes)
        return torch.cat(parts, dim=1)

    def run(
        self,
        rows: Int[Tensor, " cases"],
        visible: Mapping[str, Bool[Tensor, "cases _"]],
        heads: Mapping[str, Bool[Tensor, "cases heads"]] | None = None,
    ) -> Tensor:
        """Run the model again for some rows with less attention, and return its logits.

        Args:
            rows: numbers of rows of the last call, each any number of times.
            visible: sequence -> False where no query reads an element.
            heads: layer -> False where a head is silent.
        """
        effects = iter([self._effect(name, visible, heads or {}) for name in self._order])
        arguments = _select(self._arguments, rows, self._rows)
        args, kwargs = arguments
        interceptor = Interceptor(self.model, lambda call: None, lineage=Lineage(), effects=effects)
        with undisturbed(self.model), interceptor.running():
            output = self.method(*args, **kwargs)
        return self._read(output)

    def _effect(
        self, name: str | None, visible: Mapping[str, Tensor], heads: Mapping[str, Bool[Tensor, "cases heads"]]
    ) -> Effect:
        if name is None:
            return Effect()
        layer = self.layers[name]
        parts = self.key_parts(layer)
        mask = None
        if not parts.keys().isdisjoint(visible):
            some = next(iter(visible.values()))
            full = [
                visible[sequence] if sequence in visible else some.new_ones(len(some), place.stop - place.start)
                for sequence, place in parts.items()
            ]
            mask = torch.cat(full, dim=1)
        return Effect(mask, heads.get(name))

    def faithfulness(self, explanation: Explanation, *, num_orders: int = 20) -> FaithfulnessCurves:
        """Compute the curves of the maps of an explanation, see `faithfulness_curves`: a masked token is read by none.

        What the outputs contain of a token without attention remains, such as of each token in a mean over all.
        Special tokens are not masked.

        Args:
            explanation: of the last call.
            num_orders: random orders of tokens, whose curves are averaged.
        """
        assert self.tokens is not None
        record = Record()
        mask = torch.zeros(self.tokens.values.shape[:2], dtype=torch.bool, device=self.tokens.values.device)
        for name, span in self.spans.items():
            mask[:, span.start : span.stop] = not name.endswith(Input.SPECIAL)
        mask = mask if self.tokens.mask is None else mask & self.tokens.mask
        record.tokens = replace(self.tokens, mask=mask)
        record.queries = {ROW: torch.arange(self.num_rows, device=mask.device)[:, None]}

        def probabilities(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {LOGITS: outputs[LOGITS].float().softmax(dim=-1)}

        model: Any = _Rerun(self, mask)
        with torch.no_grad():
            return faithfulness_curves(
                model,
                record,
                explanation.maps,
                explanation.answers,
                probabilities,
                ids=explanation.batch.ids,
                num_orders=num_orders,
            )

    def knock_out(self, explanation: Explanation, kinds: Sequence[str] = KINDS) -> list[KnockOut]:
        """Silence parts of the model one at a time, and return the changes of the answers; see `knock_out_parts`.

        What is silent is attention: the bias of a projection after it remains, and what outputs contain of an element
        without attention, such as of each in a mean over all.
        """

        def run(rows: Int[Tensor, " cases"], silence: Silence) -> dict[str, Tensor]:
            heads = dict(silence.heads)
            for name, alive in silence.layers.items():
                whole = alive[:, None].expand(-1, self.layers[name].num_heads)
                heads[name] = heads[name] & whole if name in heads else whole
            return {LOGITS: self.run(rows, silence.visible, heads).float().softmax(dim=-1)}

        with torch.no_grad():
            return knock_out_parts(explanation, run, kinds)

    def evaluate(self, explanation: Explanation) -> Evaluation:
        """Return what the curves of the maps of an explanation show."""
        return Evaluation().with_faithfulness([self.faithfulness(explanation)])

    def write_page(
        self,
        folder: str | Path,
        explanation: Explanation,
        *,
        step: int = 0,
        epoch: int = 0,
        evaluation: Evaluation | None = None,
        knock_outs: Sequence[KnockOut] = (),
        max_megabytes: float = 32.0,
    ) -> Path:
        """Write the exact maps of an explanation into a folder, and the explorer's page; return the page's path.

        Args:
            folder: is created; a page has all steps in it, which must be of the same samples.
            explanation: of the last call.
            step, epoch: of a training.
            evaluation: of its maps; None: `evaluate`.
            knock_outs: of its answers, see `knock_out`.
            max_megabytes: limit of the exact weights.
        """
        evaluation = self.evaluate(explanation) if evaluation is None else evaluation
        return replace(self.writer(explanation), knock_outs=knock_outs).write_page(
            Path(folder), step=step, epoch=epoch, evaluation=evaluation, max_megabytes=max_megabytes
        )

    def writer(self, explanation: Explanation) -> ExplanationWriter:
        """Return the writer of an explanation of the last call."""
        pictures = {name: picture for name, given in self.inputs.items() if (picture := given.drawn) is not None}
        return ExplanationWriter(explanation, Media(pictures, texts=self.texts))


class _Names(Sequence[str]):
    """The names of classes or tokens, computed when they are needed."""

    def __init__(self, name: Callable[[int], str], count: int) -> None:
        self.name = name
        self.numbers = [*range(count)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        chosen = self.numbers[place]
        return self.name(chosen) if isinstance(chosen, int) else [self.name(number) for number in chosen]


class _Rerun:
    """The part of an `Explainable` model that `faithfulness_curves` needs."""

    def __init__(self, attention: WatchedAttention, deletable: Bool[Tensor, "batch tokens"]) -> None:
        self.attention = attention
        self.deletable = deletable

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of the rows that the queries name, without the tokens that the mask excludes."""
        rows = queries[ROW][:, 0]
        assert tokens.mask is not None
        visible = tokens.mask | ~self.deletable[rows]
        places = self.attention.token_places
        return {LOGITS: self.attention.run(rows, {name: visible[:, place] for name, place in places.items()})}


@contextmanager
def watch(
    model: nn.Module,
    *,
    inputs: Mapping[str, GivenInput] | None = None,
    roles: Mapping[str, str] | None = None,
    method: str = "forward",
    gradients: bool = False,
) -> Iterator[WatchedAttention]:
    """Record the attention of each call of a model inside the context, whoever wrote it; see `WatchedAttention`.

    Outputs, gradients, random numbers and the mode of the model are as without it. A compiled model runs uncompiled.
    Attention in kernels that are no torch functions, such as those of `flash_attn`, is not seen. `print(attention)`
    says what was found.

    Args:
        model: any module.
        inputs: name -> the input that tokens belong to: images [batch, channels, height, width], the text of each
            token for each sample, or an `Input`; in the order of the sequences. What is missing has an axis of tokens.
        roles: pattern of module paths -> the sequence that their attention updates, where it is not guessed rightly:
            `tokens`, `latents` or `outputs`.
        method: the method of the model that is called.
        gradients: give the outputs of attention a gradient also where all parameters before are frozen, for
            `explain`; the outputs of the model then have one, too.
    """
    attention = WatchedAttention(model, inputs or {}, roles or {})
    attention.method = getattr(model, method)
    is_own = method in vars(model)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:
            return attention.method(*args, **kwargs)
        attention._begin(args, kwargs)
        interceptor = Interceptor(model, attention._add, lineage=attention._sequences.lineage, gradients=gradients)
        with interceptor.running():
            output = attention.method(*args, **kwargs)
        attention._end(output)
        return output

    setattr(model, method, watched)  # a hook would switch off fast paths
    try:
        with torch.compiler.set_stance("force_eager"):
            yield attention
    finally:
        if is_own:
            setattr(model, method, attention.method)
        else:
            delattr(model, method)


def usual_logits(output: Any) -> Tensor:
    """Return the logits among what a model returned: a tensor, or the attribute or key `logits`.

    Raises:
        ValueError: there are none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, LOGITS, None)
    if found is None and isinstance(output, Mapping):
        found = output.get(LOGITS)
    if not isinstance(found, Tensor):
        raise ValueError(f"no logits in a {type(output).__name__}: give explain(logits=lambda output: …)")
    return found


def _layer(call: AttentionCall, role: Role, key_lengths: Mapping[str, int]) -> WatchedLayer:
    rows, heads, num_queries, num_keys = call.shape
    q = call.v.new_empty(rows, heads, num_queries, 0) if call.q is None else call.q
    k = call.v.new_empty(rows, heads, num_keys, 0) if call.k is None else call.k
    return WatchedLayer(
        role,
        SOFTMAX,
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


def _key_mask(call: AttentionCall) -> Bool[Tensor, "batch keys"] | None:
    """Return True for the keys that a query may attend to; None for all."""
    if call.weights is not None:
        real = (call.weights > 0).any(dim=1).any(dim=1)
    elif call.bias is None:
        return None
    else:
        is_bool = call.bias.dtype == torch.bool
        allowed = call.bias if is_bool else call.bias > torch.finfo(call.bias.dtype).min / 2
        real = allowed.any(dim=1).any(dim=1).expand(call.shape[0], call.shape[3])
    return None if real.all() else real


def _leaves(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, Mapping):
        for value in arguments.values():
            yield from _leaves(value)
    elif isinstance(arguments, tuple | list):
        for value in arguments:
            yield from _leaves(value)


def _select(arguments: Any, rows: Int[Tensor, " cases"], batch: int) -> Any:
    """Select rows of the tensors in nested arguments, along the first or second axis of the size of the batch."""
    if isinstance(arguments, Tensor):
        axis = next((axis for axis, size in enumerate(arguments.shape[:2]) if size == batch), None)
        return arguments if axis is None else arguments.index_select(axis, rows.to(arguments.device))
    if isinstance(arguments, Mapping):
        return {name: _select(value, rows, batch) for name, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return type(arguments)(_select(value, rows, batch) for value in arguments)
    return arguments
