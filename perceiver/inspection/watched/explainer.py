"""An explainer of a watched model, so that its maps are evaluated like those of models of this package."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.watched.answers import LOGITS, WatchedAnswers
from perceiver.inspection.watched.embeddings import Candidate, Node, Place, Results, dominating, replacing
from perceiver.inspection.watched.intercept import AttentionCall
from perceiver.inspection.watched.record import ROW, WatchedRecord
from perceiver.types import JoinedTokens


@dataclass(frozen=True)
class WatchedExplainer:
    """Runs a watched model again for tokens of its last call; see `Explains`.

    Attributes:
        record: of the call.
        answers: explains its answers.
        places: sequence of tokens -> where it is embedded; if empty, no query attends to a masked token, but its
            embedding is not set to zero.
    """

    record: WatchedRecord
    answers: WatchedAnswers
    places: Mapping[str, Place]

    @classmethod
    def with_embeddings(cls, record: WatchedRecord, answers: WatchedAnswers) -> "WatchedExplainer":
        """Return the explainer of a call, and set the values of the tokens of its record.

        Raises:
            ValueError: a sequence is not embedded in one tensor that its answers depend on.
        """
        assert record.tokens is not None
        found = {name: _embedding(record, answers, name) for name in record.token_places}
        values = [
            (one.values.transpose(0, 1) if one.place.is_first else one.values)[: record.num_rows].detach()
            for one in found.values()
        ]
        width = max(one.shape[2] for one in values)
        joined = torch.cat([F.pad(one, (0, width - one.shape[2])) for one in values], dim=1)
        record.tokens = replace(record.tokens, values=joined)
        return cls(record, answers, {name: one.place for name, one in found.items()})

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.record.call.model

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return a context that does nothing: the model runs in its own precision."""
        return nullcontext()

    def forward_tokens(self, tokens: JoinedTokens, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits of the rows that the queries name; no query attends to tokens that the mask excludes."""
        rows = queries[ROW][:, 0]
        count = len(rows)
        assert tokens.mask is not None
        visible = tokens.mask | ~self.record.real_tokens[rows]  # the model masks the others itself
        values = tokens.values
        padding = [0] * (_unambiguous(self.record, count) - count)
        rows, visible, values = (torch.cat([one, one[padding]]) for one in (rows, visible, values))
        places = self.record.token_places
        own = {} if visible.all() else {name: visible[:, place] for name, place in places.items()}
        given = {self.places[name]: values[:, place] for name, place in places.items()} if self.places else {}
        results = Results(len(rows), {one.length for one in given}, replacing(given)) if given else None
        output = self.record.run(rows, own, results=results)
        return {LOGITS: self.answers.read(output)[:count]}

    def probabilities(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the probabilities of logits."""
        return {LOGITS: outputs[LOGITS].float().softmax(dim=-1)}

    def explain_again(self, explanation: Explanation) -> Explanation:
        """Explain the same answers with the current weights of the model."""
        record = self.record.again()
        logits = self.answers.logits(record)
        record.outputs = {LOGITS: logits.detach().float()}
        found = self.answers.explanation(record, explanation.batch, logits, explanation.answers)
        if self.places:
            WatchedExplainer.with_embeddings(record, self.answers)
        return found


def _unambiguous(record: WatchedRecord, count: int) -> int:
    """Return the least number of rows, from `count`, that is not the size of another axis: heads, queries or keys."""
    taken = {1}
    for layer in record.layers.values():
        taken |= {layer.num_heads, layer.num_queries, layer.num_keys, *layer.key_lengths.values()}
    return next(size for size in range(count, count + len(taken) + 1) if size not in taken)


def _embedding(record: WatchedRecord, answers: WatchedAnswers, sequence: str) -> Candidate:
    """Return where a sequence of tokens is embedded.

    Raises:
        ValueError: it is not embedded in one tensor that the answers depend on.
    """
    place = record.token_places[sequence]
    length, first = place.stop - place.start, record.first_call(sequence)
    assert first is not None
    rows = torch.arange(_unambiguous(record, record.num_rows)) % record.num_rows
    candidates: list[Candidate] = []
    outs: list[Tensor] = []

    def on_call(call: AttentionCall) -> None:
        assert call.out is not None
        outs.append(call.out)

    def on_result(where: Place, out: Tensor) -> Tensor:
        if len(outs) > first:
            return out
        if not out.requires_grad:
            out = out.detach().requires_grad_()
            out = out.view_as(out)
        node: Node = out.grad_fn
        candidates.append(Candidate(where, out, node))
        return out

    with torch.enable_grad():
        logits = answers.read(record.run(rows, {}, results=Results(len(rows), [length], on_result), on_call=on_call))
    ends = outs[first].grad_fn, logits.grad_fn
    found = None if None in ends else dominating(candidates, *ends)
    if found is None:
        problem = f"there is no tensor of the {length} {sequence} on which alone the answers depend; leave it out"
        raise ValueError(f"rivals=True: {problem}")
    return found
