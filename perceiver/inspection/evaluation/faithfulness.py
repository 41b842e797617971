"""Deletion and insertion curves of maps (Petsiuk et al. 2018), and those of uninformative maps, the nulls.

Deletion masks increasing shares of the tokens, those with the highest values of a map first; insertion starts without
any token, and shows those with the highest values first. A curve is the probability of the answer. A map that marks the
tokens that matter lowers it early by deletion, and raises it early by insertion.

The nulls are tokens in random order; the same map of another sample, at the same number of the answer, stretched over
the real tokens of this one; and a Gaussian at the center of each input. The first has no structure, the others that of
maps and of photographs: a map that is no better than another sample's says nothing about its own.

Deviations from the paper: tokens are masked instead of pixels blackened or blurred, so that the input stays one that
the model knows, and the curves of the nulls are measured.

Tokens of stems with overlapping receptive fields still contain part of their masked neighbors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self
from zlib import crc32

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceiver.inspection.maps.answers import Answers, answer_value
from perceiver.inspection.maps.capture import undisturbed
from perceiver.inspection.maps.explainer import Explains
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.record import Record
from perceiver.types import Answer, JoinedTokens, Span, cell_centers

FRACTIONS = (0.0, 0.05, 0.15, 0.35, 0.65, 0.85, 0.95, 1.0)
"""Shares of the real tokens that are masked, or shown; symmetric, so that the insertion curve of a random order is the
deletion curve of the reverse order."""
MAX_ANSWERS, MIN_LOSS = 2, 0.1
"""Tested answers of a sample: at most so many, whose probability falls by at least so much without any input. Answers
that do not need the input, such as some words, cannot test a map."""
TOKENS_AT_ONCE = 2**14
"""Tokens of one forward pass, unless a single one of the batch has more."""
RANDOM, OTHER, CENTER = "random", "other", "center"
"""The nulls: `random` and `center` are curves of their own, `other/<kind of map>` is one for each kind."""
CENTER_WIDTH = 0.25
"""Standard deviation of the Gaussian at the center, relative to each axis of the input."""
Curve = Float[Tensor, "samples fractions"]


@dataclass(frozen=True)
class FaithfulnessCurves:
    """The probability of each sample's tested answers (their mean), by share of the tokens masked or shown.

    Samples without a tested answer are excluded. `other/<kind of map>` is NaN if there is no other sample.

    Attributes:
        deletion: kind of map, and null -> probability after masking the tokens with the highest values.
        insertion: the same for showing those tokens alone.
    """

    deletion: dict[str, Curve]
    insertion: dict[str, Curve]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the curves of several batches as one."""
        deletion, insertion = (
            {name: torch.cat([part[name] for part in of_parts]) for name in of_parts[0]}
            for of_parts in ([part.deletion for part in parts], [part.insertion for part in parts])
        )
        return cls(deletion, insertion)

    @property
    def kinds(self) -> list[str]:
        """The kinds of maps, without the nulls."""
        return [name for name in self.deletion if name not in (RANDOM, CENTER) and not name.startswith(f"{OTHER}/")]

    @property
    def num_samples(self) -> int:
        return len(self.deletion[RANDOM])

    def gains(self, kind: str, null: str) -> dict[str, Float[Tensor, " samples"]]:
        """Return by how much a kind of map is better than a null: the area between their curves.

        Returns:
            `deletion`, the area by which its curve lies below, and `insertion`, that by which it lies above; both are
            differences of probabilities, at most 1.
        """
        null, shares = f"{OTHER}/{kind}" if null == OTHER else null, torch.tensor(FRACTIONS)
        return {
            "deletion": torch.trapezoid(self.deletion[null] - self.deletion[kind], shares, dim=1),
            "insertion": torch.trapezoid(self.insertion[kind] - self.insertion[null], shares, dim=1),
        }


@dataclass(frozen=True)
class SampleMaps:
    """The maps of one sample, as nulls for the next one.

    Attributes:
        maps: kind of map -> its value at each token, for each answer.
        real: True where a token is real.
        spans: modality -> its place among the tokens.
    """

    maps: Mapping[str, Float[Tensor, "answers tokens"]]
    real: Bool[Tensor, " tokens"]
    spans: Mapping[str, Span]

    def stretched(self, slot: int, real: Bool[Tensor, " tokens"]) -> Float[Tensor, "kinds tokens"]:
        """Return the maps of an answer (modulo the number of answers) over the real tokens of another sample.

        The cells between the first and the last real token of each axis are stretched over those of the other sample.
        """
        maps = torch.stack([values[slot % len(values)] for values in self.maps.values()])
        found = torch.zeros_like(maps)
        for span in self.spans.values():
            keys, shape = slice(span.start, span.stop), torch.tensor(span.grid.shape)
            within = _places_within(real[keys], span)
            extent = _extent(self.real[keys], span)
            cells = (within * extent).long().clamp(min=torch.zeros_like(shape), max=(extent - 1).clamp_min(0))
            strides = torch.cat([shape[1:].flip(0).cumprod(0).flip(0), shape.new_ones(1)])
            found[:, keys] = maps[:, keys][:, (cells * strides).sum(dim=1).to(maps.device)]
        return found


def last_sample(
    record: Record, maps: Mapping[str, Float[Tensor, "batch answers tokens"]], answers: Answers
) -> SampleMaps | None:
    """Return the maps of the last sample of a batch that has answers; None if no sample has."""
    return next((one for row in reversed(range(len(answers))) if (one := _sample(record, maps, answers, row))), None)


def faithfulness(
    explainer: Explains,
    explanation: Explanation,
    *,
    maps: Mapping[str, Float[Tensor, "batch answers tokens"]] | None = None,
    num_orders: int,
    before: SampleMaps | None = None,
) -> FaithfulnessCurves:
    """Compute the curves of maps of an explanation (None: all of its own); see `faithfulness_curves`."""
    with undisturbed(explainer.module), explainer.forward_context():
        return faithfulness_curves(
            explainer,
            explanation.record,
            explanation.maps if maps is None else maps,
            explanation.answers,
            ids=explanation.batch.ids,
            num_orders=num_orders,
            before=before,
        )


def faithfulness_curves(
    explainer: Explains,
    record: Record,
    maps: Mapping[str, Float[Tensor, "batch answers tokens"]],
    answers: Answers,
    *,
    ids: Sequence[str],
    num_orders: int,
    before: SampleMaps | None = None,
) -> FaithfulnessCurves:
    """Compute the deletion and insertion curves of maps and of the nulls.

    The other sample is the previous one; for the very first sample, it is the last one of its batch.

    Args:
        explainer: of a model in eval mode and without gradients, as inside `capture`.
        record: its forward pass.
        maps: kind of map -> its value at each token, for each answer.
        answers: of each row.
        ids: of the samples, which determine the random orders.
        num_orders: random orders whose curves are averaged.
        before: the last sample of the previous batch.
    """
    assert record.tokens is not None
    real = _maskable_tokens(record)
    masked = _MaskedModel(explainer, record.tokens, record.queries, record.real_tokens & ~real)
    cases = [(row, slot, answer) for row, of_row in enumerate(answers) for slot, answer in enumerate(of_row)]
    every = list(range(len(real)))
    whole, none = masked.probability(
        every, torch.stack([real, torch.zeros_like(real)]), [(row, answer) for row, _, answer in cases]
    )
    numbers = []
    for row in every:
        own = [
            number for number, case in enumerate(cases) if case[0] == row and whole[number] - none[number] >= MIN_LOSS
        ]
        numbers += sorted(own, key=lambda number: float(none[number] - whole[number]))[:MAX_ANSWERS]
    kinds, others = list(maps), [f"{OTHER}/{kind}" for kind in maps]
    if not numbers:
        empty = {name: torch.zeros(0, len(FRACTIONS)) for name in (RANDOM, CENTER, *kinds, *others)}
        return FaithfulnessCurves(empty, empty)
    cases, ends = [cases[number] for number in numbers], torch.stack([whole[numbers], none[numbers]])
    rows = sorted({row for row, _, _ in cases})
    place = {row: number for number, row in enumerate(rows)}
    of_rows = [(place[row], answer) for row, _, answer in cases]
    of_cases = [(number, answer) for number, (_, _, answer) in enumerate(cases)]
    case_rows = [row for row, _, _ in cases]

    def curves(
        where: Sequence[int],
        wanted: Sequence[tuple[int, Answer]],
        ranks: Int[Tensor, "orders rows tokens"],
        *,
        insert: bool,
    ) -> Float[Tensor, "orders samples fractions"]:
        visible = _visible(ranks, real[where], insert=insert)
        found = masked.probability(where, visible.flatten(0, 1), wanted).reshape(*visible.shape[:2], -1)
        first, last = ends.flip(0) if insert else ends
        shape = (len(ranks), 1, len(cases))
        points = torch.cat([first.expand(shape), found, last.expand(shape)], dim=1)
        # The answers of one sample are not independent.
        means = [
            points[:, :, [number for number, one in enumerate(case_rows) if one == row]].mean(dim=2) for row in rows
        ]
        return torch.stack(means, dim=1)

    orders = torch.stack([random_order(real[row], ids[row], num_orders + 1) for row in rows], dim=1)
    ties, of_random = orders[0], orders[1:]
    by_chance = curves(rows, of_rows, of_random, insert=False).mean(dim=0)
    middle = deletion_ranks(_center(record.tokens.spans, real[rows]), real[rows], ties)
    values = torch.stack([values[case_rows, [slot for _, slot, _ in cases]] for values in maps.values()])
    foreign = torch.full_like(values, torch.nan)
    for number, (row, slot, _) in enumerate(cases):
        if other := _other_sample(record, maps, answers, row, before):
            foreign[:, number] = other.stretched(slot, real[row])
    is_alone = foreign.isnan().all(dim=2)
    case_ties = ties[[place[row] for row in case_rows]]
    ranks = torch.stack(
        [deletion_ranks(one.nan_to_num(), real[case_rows], case_ties) for one in (*values.float(), *foreign.float())]
    )
    found = []
    for insert in (False, True):
        center = curves(rows, of_rows, middle[None], insert=insert)[0]
        of_maps, stretched = curves(case_rows, of_cases, ranks, insert=insert).chunk(2)
        alone = torch.stack([is_alone[:, case_rows.index(row)] for row in rows], dim=1).cpu()
        stretched = stretched.masked_fill(alone[..., None], torch.nan)
        chance = by_chance.flip(1) if insert else by_chance
        found.append(
            {RANDOM: chance, CENTER: center}
            | dict(zip(kinds, of_maps, strict=True))
            | dict(zip(others, stretched, strict=True))
        )
    return FaithfulnessCurves(*found)


def random_order(real: Bool[Tensor, " tokens"], id: str, count: int) -> Int[Tensor, "count tokens"]:
    """Return ranks of the real tokens in random orders that depend only on the sample's id; other tokens come last."""
    generator = torch.Generator().manual_seed(crc32(id.encode()))
    ranks = torch.full((count, len(real)), len(real), device=real.device)
    ranks[:, real] = torch.rand(count, int(real.sum()), generator=generator).argsort(dim=1).to(real.device)
    return ranks


def deletion_ranks(
    values: Float[Tensor, "cases tokens"], real: Bool[Tensor, "cases tokens"], ties: Int[Tensor, "cases tokens"]
) -> Int[Tensor, "cases tokens"]:
    """Return the rank of each token: highest value first, ties broken by `ties`, tokens that are not real last."""
    shuffled = ties.argsort(dim=1, stable=True)
    values = values.masked_fill(~real, -torch.inf)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order).argsort(dim=1)


@dataclass(frozen=True)
class _MaskedModel:
    """A model for some of the tokens of a batch.

    Attributes:
        explainer: see `faithfulness_curves`.
        tokens: of the batch.
        queries: output -> the queries of the batch.
        fixed: tokens that are always visible.
    """

    explainer: Explains
    tokens: JoinedTokens
    queries: Mapping[str, Tensor]
    fixed: Bool[Tensor, "batch tokens"]

    def probability(
        self, rows: Sequence[int], visible: Bool[Tensor, "steps rows tokens"], wanted: Sequence[tuple[int, Answer]]
    ) -> Float[Tensor, "steps wanted"]:
        """Return the probability of answers from the visible tokens alone.

        Args:
            rows: of the batch.
            visible: the tokens of each row, in several steps.
            wanted: answers, each with the index of its row in `rows`.
        """
        size = max(TOKENS_AT_ONCE // visible[0].numel(), 1)
        found = []
        for start in range(0, len(visible), size):
            part = visible[start : start + size]
            every, shown = torch.tensor(rows).repeat(len(part)), part.flatten(0, 1)
            shown = shown | self.fixed[every]
            values = self.tokens.values[every].masked_fill(~shown[..., None], 0.0)
            queries = {name: given[every] for name, given in self.queries.items()}
            outputs = self.explainer.forward_tokens(replace(self.tokens, values=values, mask=shown), queries)
            logs = {name: output.float().log() for name, output in self.explainer.probabilities(outputs).items()}
            logs = {name: values.reshape(*part.shape[:2], *values.shape[1:]) for name, values in logs.items()}
            of_part = [answer_value(logs[answer.output][:, row], answer, num_steps=1) for row, answer in wanted]
            found.append(torch.stack(of_part, dim=1).exp().cpu() if of_part else torch.zeros(len(part), 0))
        return torch.cat(found)


def _visible(
    ranks: Int[Tensor, "orders rows tokens"], real: Bool[Tensor, "rows tokens"], *, insert: bool
) -> Bool[Tensor, "orders steps rows tokens"]:
    """Return the tokens that deletion leaves, or that insertion shows, at the fractions between 0 and 1."""
    total = real.sum(dim=1)
    masked = (torch.tensor(FRACTIONS, dtype=torch.float64)[1:-1, None] * total.cpu()).round().long().to(real.device)
    if insert:
        return real & (ranks[:, None] < (total - masked.flip(0))[:, :, None])
    return real & (ranks[:, None] >= masked[:, :, None])


def _maskable_tokens(record: Record) -> Bool[Tensor, "batch tokens"]:
    """Return True where a token is real and may be masked."""
    real = record.real_tokens
    return real if record.fixed is None else real & ~record.fixed


def _sample(
    record: Record, maps: Mapping[str, Float[Tensor, "batch answers tokens"]], answers: Answers, row: int
) -> SampleMaps | None:
    """Return the maps of one sample; None without answers."""
    if not answers[row]:
        return None
    of_row = {kind: values[row, : len(answers[row])] for kind, values in maps.items()}
    return SampleMaps(of_row, _maskable_tokens(record)[row], record.spans)


def _other_sample(
    record: Record,
    maps: Mapping[str, Float[Tensor, "batch answers tokens"]],
    answers: Answers,
    row: int,
    before: SampleMaps | None,
) -> SampleMaps | None:
    """Return the maps of the sample before a row; None if no other sample has the same grids."""
    earlier = next((one for one in reversed(range(row)) if answers[one]), None)
    if earlier is not None:
        return _sample(record, maps, answers, earlier)
    if before is not None and before.spans == record.spans:
        return before
    last = next((one for one in reversed(range(row + 1, len(answers))) if answers[one]), None)
    return None if last is None else _sample(record, maps, answers, last)


def _extent(real: Bool[Tensor, " cells"], span: Span) -> Int[Tensor, " axes"]:
    """Return the number of cells along each axis up to the last real one."""
    indices = torch.stack(torch.meshgrid(*map(torch.arange, span.grid.shape), indexing="ij"), dim=-1).flatten(0, -2)
    return ((indices + 1) * real.cpu()[:, None]).amax(dim=0)


def _places_within(real: Bool[Tensor, " cells"], span: Span) -> Float[Tensor, "cells axes"]:
    """Return the place of each cell relative to the real ones: 0 at the start, 1 after the last one of each axis."""
    extent = _extent(real, span).clamp_min(1)
    return cell_centers(span.grid.shape) * torch.tensor(span.grid.shape) / extent


def _center(spans: Mapping[str, Span], real: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """Return a Gaussian at the center of the real cells of each modality."""
    found = torch.zeros(real.shape)
    for row, of_row in enumerate(real):
        for span in spans.values():
            keys = slice(span.start, span.stop)
            distance = ((_places_within(of_row[keys], span) - 0.5) / CENTER_WIDTH).square().sum(dim=1)
            found[row, keys] = (-distance / 2).exp()
    return found.to(real.device)
