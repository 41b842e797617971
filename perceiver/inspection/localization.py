"""How well maps lie where things truly are, for data that says so in boxes.

Two scores, each beside what a map that knows nothing would have: the share of a map's mass inside of the boxes (the
energy-based pointing game of Wang et al. 2020, Score-CAM), and the pointing game (Zhang et al. 2016, section 4.1),
whether the brightest place lies in one. Deviations: what lies in a box is counted by shares of cells, since a cell may
be larger than a box; there is no margin around boxes; where several cells are the brightest, the share of them counts.

Each word of which it is known what it refers to is one case: the rollout from it against the boxes of that. With one
query a class, each class that a sample truly has is one: the rollout from its query against its boxes. Otherwise a
sample is one: the rollout from its outputs against all its boxes. Relevance tells classes apart whether or not the
decoder has a query for each. A case is left out where nothing can be found: no map, or no box on what is real of the
input.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceiver.inspection.axes import extent
from perceiver.inspection.explanation import Explanation
from perceiver.inspection.record import Record
from perceiver.types import Box, Grid

TOUCHED = 1e-6
"""Least share of a cell that a box covers where it touches it: less comes from rounding at a common edge."""


@dataclass(frozen=True)
class Case:
    """One map that is compared with boxes: that of the answer `slot` of a sample; `kind` of a word, else empty."""

    sample: int
    slot: int
    boxes: Sequence[Box]
    kind: str = ""


def localization(explanation: Explanation) -> dict[str, Float[Tensor, " cases"]]:
    """The scores of every case of a batch, on all its modalities, and how much alike the maps of words are.

    Returns:
        Of rollouts `energy_in_box`, `pointing_game`, and each with `_chance` after it; of words each with `_<kind>`
        after it; of relevance the same as `relevance/…`; and `word_overlap`, see `overlaps`.
    """
    located = [
        Case(sample, slot, answer.boxes, answer.kind)
        for sample, row in enumerate(explanation.answers)
        for slot, answer in enumerate(row)
        if answer.boxes
    ]
    of_rollout = compared_with_boxes(
        explanation.record, explanation.rollout.inputs, rollout_cases(explanation, located)
    )
    of_relevance = compared_with_boxes(explanation.record, explanation.relevance, located)
    return of_rollout | overlaps(explanation) | {f"relevance/{name}": cases for name, cases in of_relevance.items()}


def rollout_cases(explanation: Explanation, located: Sequence[Case]) -> list[Case]:
    """The cases whose answers have rollouts of their own, and one for each sample whose classes share theirs."""
    own = [case for case in located if explanation.answers[case.sample][case.slot] in explanation.own[case.sample]]
    boxes = explanation.batch.targets.get("boxes", [None] * len(explanation.answers))
    shared = [
        Case(sample, slot, boxes[sample])
        for sample, row in enumerate(explanation.answers)
        for slot, answer in enumerate(row)
        if boxes[sample] and not answer.is_word and answer not in explanation.own[sample]
    ]
    first = {(case.sample, explanation.answers[case.sample][case.slot].output): case for case in reversed(shared)}
    return own + sorted(first.values(), key=lambda case: case.sample)


def compared_with_boxes(
    record: Record, maps: Float[Tensor, "batch answers tokens"], cases: Sequence[Case]
) -> dict[str, Float[Tensor, " cases"]]:
    """The scores of the maps of some cases; see `localization`."""
    parts = []
    for modality, span in record.spans.items():
        here = [
            replace(case, boxes=boxes)
            for case in cases
            if (boxes := [box for box in case.boxes if box.modality == modality])
        ]
        keys = slice(span.start, span.stop)
        for kind in dict.fromkeys(case.kind for case in here):
            chosen = [case for case in here if case.kind == kind]
            samples, slots = torch.tensor([(case.sample, case.slot) for case in chosen]).unbind(dim=1)
            scores = map_scores(
                maps.cpu()[samples, slots][:, keys],
                box_coverage([case.boxes for case in chosen], span.grid),
                None if record.token_mask is None else record.token_mask.cpu()[samples, keys],
            )
            parts.append({f"{name}_{kind}".rstrip("_"): values for name, values in scores.items()})
    return joined(parts)


def overlaps(explanation: Explanation) -> dict[str, Float[Tensor, " samples"]]:
    """How much alike the rollouts of a text's words are: 0 where no two share a token, 1 where all are the same.

    The mean over pairs of words of the mass that two maps have in common (1 - total variation). A model that looks at
    the same for every word is found out by it.

    Returns:
        `word_overlap`, of each sample with at least two words that have a map; nothing where answers are no words.
    """
    found = []
    for row, inputs in zip(explanation.answers, explanation.rollout.inputs, strict=True):
        words = [slot for slot, answer in enumerate(row) if answer.is_word]
        maps = inputs[words]
        maps = maps[maps.sum(dim=-1) > 0]
        if (count := len(maps)) > 1:
            shares = maps / maps.sum(dim=-1, keepdim=True)
            common = 1 - torch.cdist(shares, shares, p=1) / 2
            found.append((common.sum() - common.trace()) / (count * (count - 1)))
    return {"word_overlap": torch.stack(found).cpu()} if found else {}


def box_coverage(boxes: Sequence[Sequence[Box]], grid: Grid) -> Float[Tensor, "cases tokens"]:
    """Which share of each cell of the grid the boxes of a case cover together, however they overlap.

    An axis that the grid lacks counts for nothing: on a grid of time alone a box covers its time.
    """
    pieces = [
        _pieces([[extent(box, axis) for box in case] for case in boxes], num_cells)
        for axis, num_cells in zip(grid.axes, grid.shape, strict=True)
    ]
    covered = pieces[0].covered
    for piece in pieces[1:]:
        covered = covered[..., None] * piece.covered[:, :, *[None] * (covered.ndim - 2)]
    covered = covered.sum(dim=1).clamp(max=1)
    for piece in pieces:  # the axis in front goes to the end, cell by cell
        covered = torch.einsum("cp...,cnp->c...n", covered, piece.shares)
    return covered.flatten(1)


@dataclass(frozen=True)
class Pieces:
    """One axis, cut at the edges of all cells and boxes of a case.

    Attributes:
        covered: 1 where a box covers a piece.
        shares: what a piece is of a cell.
    """

    covered: Float[Tensor, "cases boxes pieces"]
    shares: Float[Tensor, "cases cells pieces"]


def _pieces(extents: Sequence[Sequence[tuple[float, float]]], num_cells: int) -> Pieces:
    most = max(len(case) for case in extents)
    padded = [[*case, *[(0.0, 0.0)] * (most - len(case))] for case in extents]  # what has no width covers nothing
    boxes = torch.tensor(padded, dtype=torch.float64)
    cells = torch.arange(num_cells + 1, dtype=torch.float64).expand(len(boxes), -1) / num_cells
    edges = torch.cat([cells, boxes.flatten(1)], dim=1).sort(dim=1).values
    middles, widths = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=1)
    within = (middles[:, None] > boxes[..., :1]) & (middles[:, None] < boxes[..., 1:])
    lies_in = (middles * num_cells).long()[:, None] == torch.arange(num_cells)[:, None]
    return Pieces(covered=within.double(), shares=lies_in * (widths * num_cells)[:, None])


def map_scores(
    maps: Float[Tensor, "cases tokens"],
    coverage: Float[Tensor, "cases tokens"],
    mask: Bool[Tensor, "cases tokens"] | None,
) -> dict[str, Float[Tensor, " cases"]]:
    """Scores of maps; those left out that have no mass, or nothing covered, where `mask` is True.

    Args:
        maps: weights, at least 0.
        coverage: the share of each cell that is covered by boxes.
        mask: True where a cell is real; None means that all are.
    """
    real = torch.ones_like(coverage) if mask is None else mask.double()
    mass, covered = maps.double() * real, coverage * real
    touched = (coverage > TOUCHED) * real
    possible = (mass.sum(dim=1) > 0) & (touched.sum(dim=1) > 0)
    mass, covered, touched, real = (values[possible] for values in (mass, covered, touched, real))
    brightest = (mass == mass.amax(dim=1, keepdim=True)) * real
    return {
        "energy_in_box": (mass * covered).sum(dim=1) / mass.sum(dim=1),
        "energy_in_box_chance": covered.sum(dim=1) / real.sum(dim=1),
        "pointing_game": (brightest * touched).sum(dim=1) / brightest.sum(dim=1),
        "pointing_game_chance": touched.sum(dim=1) / real.sum(dim=1),
    }


def joined(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> dict[str, Float[Tensor, " cases"]]:
    """The cases of several parts as one."""
    found = list(parts)
    names = dict.fromkeys(name for part in found for name in part)
    return {name: torch.cat([part[name] for part in found if name in part]) for name in names}


def mean_scores(parts: Iterable[Mapping[str, Float[Tensor, " _"]]]) -> dict[str, float]:
    """The mean over all cases of all parts; nothing where there is no case."""
    return {name: float(values.mean()) for name, values in joined(parts).items() if len(values)}
